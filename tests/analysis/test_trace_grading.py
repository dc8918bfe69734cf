"""Texts of the paper's traces, cut after n tokens and graded: what is kept beside the file, read back, and refused."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from kinetics_jax.analysis.ablations import length_ablation
from kinetics_jax.analysis.paper_traces import parse_trace
from kinetics_jax.analysis.readers import read_all, read_trace_rows
from kinetics_jax.analysis.rules import lacks, rule_accuracy
from kinetics_jax.analysis.samples import SamplesError, pooled
from kinetics_jax.analysis.trace_grading import grade_cut_texts
from kinetics_jax.cli.grade import grade
from kinetics_jax.errors import UserError
from kinetics_jax.runs.folder import TraceError

WORDS = ["?", "so", "\\boxed{3}", "no,", "\\boxed{4}", "how", "many"]
TEXTS = ("so \\boxed{3} no, \\boxed{4}", "so so so \\boxed{3}", "no,")  # right after 2 words; after 4; never
SCORES = (0, 100, 0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


def write_trace(path, texts=TEXTS, scores=SCORES, task="builtin"):
    rows = [
        {"query": "how many", "choices": ["3"], "prediction": [t], "score": s}
        for t, s in zip(texts, scores, strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in [{"attn_local": None, "task": task}, *rows]))
    return path


def graded(path, caps, tokenizer, **how):
    return grade_cut_texts(parse_trace(path, read_trace_rows(path)), caps, tokenizer=tokenizer, workers=1, **how)


@pytest.mark.parametrize("task", ["builtin", "aime24"])
def test_a_cut_text_is_graded_for_what_it_says(tmp_path, tokenizer, task):
    path = write_trace(tmp_path / "x_qwen3-8b.jsonl", task=task)
    before, seen = path.read_bytes(), []
    beside = graded(path, [1, 2, 3, 4], tokenizer, on_progress=lambda *done: seen.append(done))
    assert (path.read_bytes(), beside.name) == (before, "x_qwen3-8b.jsonl.cut_grades")
    assert [each.name for each in tmp_path.iterdir() if "partial" in each.name] == []
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    (run,) = read_all([tmp_path])  # the grades are no samples; the counts need no tokenizer
    assert list(run.caps) == [1, 2, 3, 4]
    assert run.correct_within == [(False, True, True, False), (False, False, False, True), (False,) * 4]
    assert (run.output_tokens, run.prompt_tokens) == ([4, 4, 1], [82] * 3)
    (pool,) = pooled([run])
    assert length_ablation([pool])["accuracy"].round(6).tolist() == [0, 0.333333, 0.333333, 0.333333]


def test_what_texts_answer_is_kept_and_can_vote(tmp_path, tokenizer):
    path = write_trace(tmp_path / "x_qwen3-8b.jsonl")
    (bare,) = pooled(read_all([path]))
    assert "no majority, since what the samples answered is not known; " in str(lacks(bare, "majority"))
    assert f"{path})" in str(lacks(bare, "majority"))
    beside = graded(path, [2, 3], tokenizer)
    (run,) = read_all([path])
    assert run.answers == ["4", "3", None]
    assert run.answers_within == [("3", "3"), (None, None), (None, None)]  # of the third the whole text
    (pool,) = pooled([run])
    np.testing.assert_allclose(rule_accuracy(pool, "majority", [1, 3]), [[1 / 3, 1 / 2]])  # "4" and "3" tie
    np.testing.assert_allclose(rule_accuracy(pool, "majority", [1, 3], 3), [[1 / 3, 1]])
    lines = [json.loads(line) for line in beside.read_text().splitlines()]
    old = [lines[0] | {"schema": 1}]
    old += [{name: value for name, value in line.items() if name not in ("answers", "answer")} for line in lines[1:]]
    beside.write_text("".join(json.dumps(line) + "\n" for line in old))
    (before,) = read_all([path])  # files of schema 1 stay readable, without a majority
    assert (before.correct_within, before.answers) == (run.correct_within, ())
    with pytest.warns(UserWarning, match="made with another grader, tokenizer or version; its texts are graded again"):
        graded(path, [2], tokenizer)
    assert read_all([path])[0].answers_within == run.answers_within


def test_what_is_graded_is_not_graded_again(tmp_path, tokenizer):
    path, totals = write_trace(tmp_path / "x_qwen3-8b.jsonl"), []
    count = lambda done, total: totals.append(total)  # noqa: E731
    graded(path, [3], tokenizer)
    graded(path, [3], tokenizer, on_progress=count)
    graded(path, [2], tokenizer, on_progress=count)
    assert (totals[0], totals[1]) == (0, 2)  # the third text has one token
    (run,) = read_all([path])
    assert (list(run.caps), run.correct_within[0]) == ([2, 3], (True, True))


def test_a_stopped_command_goes_on(tmp_path, tokenizer):
    path = write_trace(tmp_path / "x_qwen3-8b.jsonl")

    def stop(done, total):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        graded(path, [2], tokenizer, on_progress=stop)
    partial = tmp_path / "x_qwen3-8b.jsonl.cut_grades.partial"
    with partial.open("a") as file:
        file.write('{"sample": 1, "of')  # torn
    (run,) = read_all([path])
    assert run.caps == ()
    totals = []
    graded(path, [2], tokenizer, on_progress=lambda done, total: totals.append(total))
    assert totals[0] == 2
    assert read_all([path])[0].correct_within == [(True,), (False,), (False,)]


def test_other_texts_other_tokenizers_and_broken_grades(tmp_path, tokenizer):
    path = write_trace(tmp_path / "x_qwen3-8b.jsonl")
    beside = graded(path, [2], tokenizer)
    other = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    with pytest.raises(
        SamplesError, match="another tokenizer: the text in line 2 of the trace has 4 tokens there, 1 by"
    ):
        read_all([path], tokenizer=other)
    write_trace(path, texts=(TEXTS[1], TEXTS[1], TEXTS[2]))
    with pytest.warns(UserWarning, match="grades of other texts than the trace holds now"):
        assert read_all([path])[0].caps == ()
    whole = beside.read_text()
    for broken, says in (
        (whole.replace('"schema": 2', '"schema": 9'), "not grades of schema 1 or 2"),
        (
            whole.replace('"answers": {"2": "3"}', '"answers": {"2": 3}'),
            "answers holds something else than texts by cap",
        ),
        (whole.replace('"tokens": 4', '"tokens": -4'), "line 2: not a grade .tokens cannot be -4"),
        (whole.replace('{"2": true}', '{"2": "yes"}'), "line 2: not a grade .correct holds something else"),
    ):
        beside.write_text(broken)
        with pytest.raises(SamplesError, match=f"{says}.*remove it and grade again"):
            read_all([path])
    (tmp_path / "y_qwen3-8b.jsonl.cut_grades.partial").mkdir()
    with pytest.raises((TraceError, UserError)):
        graded(write_trace(tmp_path / "y_qwen3-8b.jsonl"), [2], tokenizer)


def test_the_command_takes_files_and_directories(tmp_path, tokenizer, capsys):
    for method in ("dense", "topk"):
        (tmp_path / "AIME24" / method).mkdir(parents=True)
    for method, size in (("dense", "8b"), ("topk", "4b")):
        write_trace(tmp_path / "AIME24" / method / f"aime24_qwen3-{size}.jsonl")
    grade((tmp_path / "AIME24",), caps=(2, 4), tokenizer=tokenizer, workers=1, as_json=True)
    rows = json.loads(capsys.readouterr().out)
    assert [(row["model"], row["cap"]) for row in rows] == [
        ("Qwen/Qwen3-8B", 2), ("Qwen/Qwen3-8B", 4), ("Qwen/Qwen3-4B", 2), ("Qwen/Qwen3-4B", 4)
    ]  # fmt: skip
    trace = tmp_path / "AIME24" / "dense" / "aime24_qwen3-8b.jsonl"
    for runs, how, says in (
        ((trace,), {}, "keeps the grades that it came with"),
        ((trace, trace), {}, "one run folder at a time"),
        ((), {}, "name a run folder"),
    ):
        with pytest.raises(UserError, match=says):
            grade(runs, **how)
    (tmp_path / "t.csv").write_text("problem,sample,tokens,correct\na,1,2,1\n")
    with pytest.raises(UserError, match="there are no texts to grade"):
        grade((tmp_path / "t.csv",), caps=(2,))
