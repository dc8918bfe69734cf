"""Run folders graded and scored by the user's own functions: what is kept, replaced, refused and continued."""

import dataclasses
import json

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models

from kinetics_jax.analysis.samples import SamplesError, pooled, run_data
from kinetics_jax.config import ModelConfig
from kinetics_jax.runs.folder import RunWriter, TraceError, read_run
from kinetics_jax.runs.grade_again import grade_again
from kinetics_jax.runs.truncation import grade_cuts
from kinetics_jax.tasks.own_functions import FunctionError

PIECES = ["so ", "7", "8", "."]
TEXTS = {("a", 0): [0, 1], ("a", 1): [0, 2], ("b", 0): [0, 0, 0, 2]}
SOURCE = """
def last(text, answer, problem):
    return problem["unit"] == "cm" and text.rstrip(" .")[-1:] == answer

def rated(text, answer):
    return {"correct": text[-1:] == answer, "answer": text[-1:], "score": float(len(text))}

def faulty(text, answer):
    if len(text) > 6:
        raise RuntimeError("too long")
    return True

def judge(text, answer):
    return 1 / len(text)

def silent(text, answer):
    return None
"""


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return lambda name: f"{path}:{name}"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(PIECES)}, unk_token="so "))
    made.decoder = decoders.Fuse()
    made.save(str(path))
    return path


def header(**more):
    config = {**ModelConfig.named("0.6B").__dict__, "rope_scaling": None}
    run = {"model": "elsewhere", "policy": "dense", "task": "mine.jsonl", "sampling": {"max_tokens": 20, "seed": 0}}
    return {**run, "config": config, "n": 2, **more}


def write(path, **more):
    """A run of two problems, whose samples are graded as wrong."""
    problems = [
        {"id": name, "question": "?", "answer": "8", "prompt": "?", "fields": {"unit": "cm"}} for name in ("a", "b")
    ]
    with RunWriter(path, header(**more), problems) as writer:
        for (problem, sample), tokens in TEXTS.items():
            record = {"problem": problem, "sample": sample, "seed": 0, "prompt_tokens": 1, "output_tokens": tokens}
            record |= {"text": "".join(PIECES[token] for token in tokens), "finish_reason": "stop", "answer": None}
            writer.append(record | {"correct": False, "grader": "ok", "seconds": 0.0})
    return path


def grades(path):
    return [record["correct"] for record in read_run(path).samples]


@pytest.mark.filterwarnings("ignore:.*unfinished")
def test_a_run_is_graded_by_a_function_that_reads_its_fields(tmp_path, mine):
    path = write(tmp_path / "run")
    run, changed = grade_again(path, grader=mine("last"))
    assert changed == [("a", 1), ("b", 0)]
    assert grades(path) == [False, True, True]
    stored = json.loads((path / "run.json").read_text())
    assert stored["grader"] == run.header["grader"] == {"function": "mine.py:last", **fingerprint(mine)}
    assert not any({"score", "why"} & record.keys() for record in run.samples)


def fingerprint(mine):
    from kinetics_jax.tasks.own_functions import own_function

    return {"fingerprint": own_function(mine("last")).fingerprint}


@pytest.mark.filterwarnings("ignore:.*unfinished")
def test_runs_of_other_graders_are_not_pooled_and_the_difference_is_told(tmp_path, mine):
    ours = write(tmp_path / "ours")
    run, _ = grade_again(ours, grader=mine("last"))
    theirs = read_run(write(tmp_path / "theirs", policy="block_topk:budget=64,page_size=16"))
    with pytest.warns(UserWarning, match=r"the runs differ in grader \(mine.py:last .* the task's"):
        pooled([run_data(run), run_data(theirs)])
    again = dataclasses.replace(theirs, header={**theirs.header, "policy": "dense", "sampling": {"max_tokens": 20}})
    with pytest.raises(SamplesError, match="grader"):
        pooled([run_data(run), run_data(again)])


def test_own_grades_are_replaced_only_when_told(tmp_path, mine):
    path = write(tmp_path / "run")
    grade_again(path, grader=mine("last"))
    before = (path / "samples.jsonl").read_bytes()
    for again in ({}, {"grader": mine("last")}, {"grader": "math"}, {"grader": mine("rated"), "score": mine("judge")}):
        with pytest.raises(
            TraceError, match=r"holds grades by your own grader mine.py:last, which would be replaced; --over"
        ):
            grade_again(path, **again)
    assert (path / "samples.jsonl").read_bytes() == before
    run, _ = grade_again(path, overwrite=True)
    assert "grader" not in run.header
    assert "grader" not in json.loads((path / "run.json").read_text())
    grade_again(path)  # the package's grades may always be made again


def test_grades_by_hand_are_own_grades(tmp_path):
    path = write(tmp_path / "run")
    text = (path / "samples.jsonl").read_text()
    (path / "samples.jsonl").write_text(text.replace('"grader": "ok"', '"grader": "me"', 1))
    with pytest.raises(TraceError, match=r"grades that this package did not make \(grader 'me'\)"):
        grade_again(path)
    assert grade_again(path, overwrite=True)[0].samples[0]["grader"] == "ok"


@pytest.mark.filterwarnings("ignore:.*unfinished")
def test_scores_of_a_grader_and_of_a_verifier(tmp_path, mine):
    path = write(tmp_path / "run")
    run, _ = grade_again(path, grader=mine("rated"))
    assert [record["score"] for record in run.samples] == [4, 4, 10]
    assert [record["answer"] for record in run.samples] == ["7", "8", "8"]
    assert list(run_data(run).scores) == [4, 4, 10]
    with pytest.raises(TraceError, match=r"holds scores, which would be replaced"):
        grade_again(path, score=mine("judge"))
    grade_again(path, score=mine("judge"), overwrite=True)
    run = read_run(path)
    assert [record["score"] for record in run.samples] == [1 / 4, 1 / 4, 1 / 10]
    assert grades(path) == [False, True, True]  # as they were
    assert run.header["score"]["function"] == "mine.py:judge"
    assert run.header["grader"]["function"] == "mine.py:rated"
    (pool,) = pooled([run_data(run)])
    np.testing.assert_array_equal(pool.problems["a"].scores, [1 / 4, 1 / 4])
    # A verifier's scores stay under other grades, unless the grader returns its own, which go with its grades.
    run, _ = grade_again(path, grader="math", overwrite=True)
    assert [record["score"] for record in run.samples] == [1 / 4, 1 / 4, 1 / 10]
    with pytest.raises(
        TraceError, match=r"holds scores by mine.py:judge, and mine.py:rated returns its own; --overwrite"
    ):
        grade_again(path, grader=mine("rated"))
    run, _ = grade_again(path, grader=mine("last"))
    assert [record["score"] for record in run.samples] == [1 / 4, 1 / 4, 1 / 10]
    run, _ = grade_again(path, grader=mine("rated"), overwrite=True)
    assert [record["score"] for record in run.samples] == [4, 4, 10]
    assert "score" not in run.header
    run, _ = grade_again(path, overwrite=True)
    assert not any("score" in record for record in run.samples)


def test_a_grader_that_fails_costs_its_sample_a_grade_and_nothing_else(tmp_path, mine):
    path = write(tmp_path / "run")
    with pytest.warns(
        UserWarning, match=r"grader mine.py:faulty, problem 'b': raises RuntimeError: too long in line 10"
    ):
        run, _ = grade_again(path, grader=mine("faulty"))
    assert grades(path) == [True, True, None]
    assert run.samples[2]["grader"] == "error"
    assert run.samples[2]["why"].startswith("mine.py:faulty raises RuntimeError: too long")
    with pytest.warns(UserWarning, match=r"score mine.py:silent, problem 'a': returns None"):
        run, _ = grade_again(path, score=mine("silent"))
    assert all("mine.py:silent returns None" in record["why"] for record in run.samples[:2])
    before = (path / "samples.jsonl").read_bytes()
    with pytest.raises(FunctionError, match=r"cannot be loaded: there is no 'gone' in it"):
        grade_again(path, grader=mine("gone"), overwrite=True)
    assert (path / "samples.jsonl").read_bytes() == before


@pytest.mark.filterwarnings("ignore:.*unfinished")
def test_cut_samples_have_the_grader_of_whole_ones(tmp_path, mine, tokenizer):
    path = write(tmp_path / "run")
    grade_again(path, grader=mine("last"))
    with pytest.raises(TraceError, match=r"graded by your own mine.py:last; name it: --grader mine.py:last"):
        grade_cuts(path, [2], tokenizer=tokenizer)  # what a folder names is not run
    with pytest.raises(
        TraceError, match=r"graded by mine.py:last, and their cuts would be by mine.py:rated; grade the samp"
    ):
        grade_cuts(path, [2], tokenizer=tokenizer, grader=mine("rated"))
    data = run_data(grade_cuts(path, [2], tokenizer=tokenizer, grader=mine("last"), workers=1))
    assert data.correct_within == [(False,), (True,), (False,)]
    other = write(tmp_path / "other")
    with pytest.raises(TraceError, match=r"graded by the grader of its task, and their cuts would be by mine.py:last"):
        grade_cuts(other, [2], tokenizer=tokenizer, grader=mine("last"))


@pytest.mark.parametrize(
    ("stored", "asked", "why"),
    [
        (
            {"grader": {"function": "a:b", "fingerprint": "1"}},
            {"grader": {"function": "a:b", "fingerprint": "2"}},
            'grader.fingerprint: "1" stored, "2" asked for.; give another folder.*kinetics grade',
        ),
        ({"score": {"function": "a:b", "fingerprint": "1"}}, {}, "score: .*a:b.* stored, null asked for"),
        ({"instruction": "x"}, {"instruction": "y"}, 'instruction: "x" stored, "y" asked for.; give another folder'),
        ({}, {"system": "y"}, 'system: null stored, "y" asked for'),
        ({"template": "chat"}, {"template": "plain"}, 'template: "chat" stored, "plain" asked for'),
        (
            {"prompt_template": {"file": "a", "digest": "1"}},
            {"prompt_template": {"file": "a", "digest": "2"}},
            'prompt_template.digest: "1" stored, "2" asked for',
        ),
        ({"shuffled_choices": 1}, {}, "shuffled_choices: 1 stored, null asked for"),
    ],
)
def test_another_grader_or_prompt_is_another_run(tmp_path, stored, asked, why):
    write(tmp_path, **stored)
    problems = list(read_run(tmp_path).problems.values())
    with pytest.raises(TraceError, match=why):
        RunWriter(tmp_path, header(**asked), problems)
    RunWriter(tmp_path, header(**stored), problems).__exit__()


def test_runs_of_earlier_versions_go_on(tmp_path):
    """They say nothing of templates, recommendations and other columns."""
    write(tmp_path)
    run = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(run | {"schema": 2}))
    problems = list(read_run(tmp_path).problems.values())
    for problem in problems:
        del problem["fields"]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    now = [problem | {"fields": {"unit": "cm"}} for problem in problems]
    with RunWriter(tmp_path, header(template="bare", recommended={"temperature": 0.6}), now) as writer:
        assert len(writer.done) == 3
    with pytest.raises(TraceError, match=r"the prompts? .*problem .a."):
        RunWriter(tmp_path, header(), [problem | {"prompt": "other"} for problem in now])
    with pytest.raises(TraceError, match=r"the problems differ"):
        RunWriter(tmp_path, header(), [problem | {"question": "other"} for problem in now])
