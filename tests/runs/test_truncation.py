"""Samples cut after n tokens: graded as what a reader of the cut text would say, kept, continued, thrown away."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from kinetics_jax.analysis.ablations import length_ablation
from kinetics_jax.analysis.samples import run_data
from kinetics_jax.config import ModelConfig
from kinetics_jax.errors import CheckpointError
from kinetics_jax.runs.cut_grades import NAME, read_cut_grades
from kinetics_jax.runs.folder import RunWriter, TraceError, read_run
from kinetics_jax.runs.truncation import grade_cuts

# Tokens of a few letters each, decoded one after another.
PIECES = ["so ", "\\boxed{", "42", "}", " no, ", "7", "<think>", "</think>", "\\frac{1}", "{2}"]
SO, BOX, RIGHT, END, NO, WRONG, THINK, DONE, HALF, OF_TWO = range(10)
FIRST_RIGHT = [SO, BOX, RIGHT, END, NO, BOX, WRONG, END]  # right after 4 tokens, wrong after 8


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(PIECES)}, unk_token="so "))
    made.decoder = decoders.Fuse()
    made.save(str(path))
    return path


def write_run(path, outputs, *, task="builtin", answer="42", prompt="?", grades=None):
    """A run of one problem; `outputs [samples]` are token ids."""
    run = {"model": "elsewhere", "policy": "dense", "task": task, "sampling": {"max_tokens": 20, "seed": 0}}
    run |= {"config": dataclasses.asdict(ModelConfig.named("0.6B")), "n": len(outputs)}
    with RunWriter(path, run, [{"id": "a", "question": "?", "answer": answer, "prompt": prompt}]) as writer:
        for i, tokens in enumerate(outputs):
            record = {"problem": "a", "sample": i, "seed": 0, "prompt_tokens": 1, "output_tokens": tokens}
            record |= {"text": "".join(PIECES[token] for token in tokens), "finish_reason": "stop", "answer": None}
            writer.append(record | {"correct": grades[i] if grades else False, "grader": "ok", "seconds": 0.0})
    return path


def lines_of(path):
    return [json.loads(line) for line in (path / NAME).read_text().splitlines()]


def test_a_cut_text_is_graded_for_what_it_says(tmp_path, tokenizer):
    path = write_run(tmp_path / "run", [FIRST_RIGHT, [SO, NO], [SO, SO, BOX, RIGHT, END]], grades=[False, False, True])
    seen = []
    run = grade_cuts(path, [2, 4, 6, 8], tokenizer=tokenizer, on_progress=lambda *done: seen.append(done))
    data = run_data(run)
    assert list(data.caps) == [2, 4, 6, 8]
    assert data.correct_within[0] == (False, True, True, False)  # a box that is not closed says nothing
    assert data.correct_within[1] == (False,) * 4
    assert data.correct_within[2] == (False, False, True, True)
    assert seen == [(0, 2), (1, 2), (2, 2)]
    table = length_ablation([data], caps=[4, 8])
    assert table.attrs["rule"] == "cut"
    np.testing.assert_allclose(table["accuracy"], [1 / 3, 1 / 3])
    np.testing.assert_allclose(table["mean_tokens"], [(4 + 2 + 4) / 3, (8 + 2 + 5) / 3])
    assert [line["answer"] for line in lines_of(path) if line.get("cap") == 4] == ["42", None]


def test_mathematics_is_graded_by_its_own_grader(tmp_path, tokenizer):
    half = [THINK, SO, DONE, BOX, HALF, OF_TWO, END, NO, BOX, WRONG, END]
    path = write_run(tmp_path / "run", [half, [THINK, BOX, HALF, OF_TWO, END, SO]], task="math500", answer="0.5")
    data = run_data(grade_cuts(path, [3, 5, 7, 10], tokenizer=tokenizer, workers=1))
    assert data.correct_within == [(False, False, True, True), (False, True, False, False)]


@pytest.mark.slow
def test_several_processes_say_the_same(tmp_path, tokenizer):
    outputs = [FIRST_RIGHT[:length] for length in range(3, 9)]
    one, two = (write_run(tmp_path / name, outputs, task="aime24") for name in ("one", "two"))
    grade_cuts(one, [2, 4], tokenizer=tokenizer, workers=1)
    grade_cuts(two, [2, 4], tokenizer=tokenizer, workers=2)
    assert run_data(read_run(one)).correct_within == run_data(read_run(two)).correct_within
    assert len(lines_of(one)) == len(lines_of(two)) == 2 + 6 + 4


def test_reasoning_that_the_prompt_opens_is_no_answer(tmp_path, tokenizer):
    """Its last number would be one, were the text not known to be reasoning."""
    path = write_run(tmp_path / "run", [[SO, RIGHT, SO, SO]], task="aime24", prompt="? <think>")
    assert run_data(grade_cuts(path, [3], tokenizer=tokenizer, workers=1)).correct_within == [(False,)]
    path = write_run(tmp_path / "open", [[SO, RIGHT, SO, SO]], task="aime24")
    assert run_data(grade_cuts(path, [3], tokenizer=tokenizer, workers=1)).correct_within == [(True,)]


def test_what_is_graded_is_not_graded_again(tmp_path, tokenizer):
    path = write_run(tmp_path / "run", [FIRST_RIGHT] * 3)
    grade_cuts(path, [4], tokenizer=tokenizer)
    before = (path / NAME).read_bytes()
    totals = []
    grade_cuts(path, [4], tokenizer=tokenizer, on_progress=lambda _, total: totals.append(total))
    assert totals == [0]
    assert (path / NAME).read_bytes() == before
    grade_cuts(path, [4, 6], tokenizer=tokenizer)
    assert (path / NAME).read_bytes().startswith(before)
    assert run_data(read_run(path)).caps == (4, 6)


def test_a_stopped_grading_continues(tmp_path, tokenizer):
    path = write_run(tmp_path / "run", [FIRST_RIGHT] * 4)

    def stop_after_two(done, _):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grade_cuts(path, [4], tokenizer=tokenizer, on_progress=stop_after_two)
    with pytest.warns(UserWarning, match="2 of 4 samples are not graded at cap 4"):
        assert run_data(read_run(path)).caps == ()
    with open(path / NAME, "a") as file:
        file.write('{"problem": "a", "se')
    totals = []
    with pytest.warns(UserWarning, match="torn last line"):
        grade_cuts(path, [4], tokenizer=tokenizer, on_progress=lambda _, total: totals.append(total))
    assert totals[0] == 2
    assert run_data(read_run(path)).correct_within == [(True,)] * 4


def test_other_samples_and_other_graders_are_other_grades(tmp_path, tokenizer, monkeypatch):
    path = write_run(tmp_path / "run", [FIRST_RIGHT] * 2)
    grade_cuts(path, [4], tokenizer=tokenizer)
    lines = (path / "samples.jsonl").read_text().splitlines()
    other = json.loads(lines[1]) | {"output_tokens": [SO] * 5, "text": "so " * 5}
    (path / "samples.jsonl").write_text("\n".join([lines[0], json.dumps(other)]) + "\n")
    with pytest.warns(UserWarning, match="1 of 2 samples are not graded at cap 4"):
        assert run_data(read_run(path)).caps == ()
    totals = []
    grade_cuts(path, [4], tokenizer=tokenizer, on_progress=lambda _, total: totals.append(total))
    assert totals[0] == 1
    assert run_data(read_run(path)).correct_within == [(True,), (False,)]
    monkeypatch.setattr("kinetics_jax.runs.truncation.grader_fingerprint", lambda task: "another")
    totals.clear()
    grade_cuts(path, [4], tokenizer=tokenizer, on_progress=lambda _, total: totals.append(total))
    assert totals[0] == 2
    cut = read_cut_grades(read_run(path))
    assert cut is not None
    assert cut.maker["grader"] == "another"
    assert len(lines_of(path)) == 4


def test_one_process_at_a_time(tmp_path, tokenizer):
    path = write_run(tmp_path / "run", [FIRST_RIGHT] * 2)

    def grade_at_once(done, _):
        with pytest.raises(TraceError, match="another process is grading"):
            grade_cuts(path, [4], tokenizer=tokenizer)

    grade_cuts(path, [4], tokenizer=tokenizer, on_progress=grade_at_once)


def test_what_cannot_be_graded_is_told(tmp_path, tokenizer):
    path = write_run(tmp_path / "run", [FIRST_RIGHT])
    for caps in ([], [0], [1.5]):
        with pytest.raises(TraceError, match="caps must be whole numbers"):
            grade_cuts(path, caps, tokenizer=tokenizer)
    with pytest.raises(CheckpointError, match="no tokenizer is known for model 'elsewhere'"):
        grade_cuts(path, [4])
    with pytest.raises(CheckpointError, match="name a tokenizer"):
        grade_cuts(path, [4], tokenizer=tmp_path)
    other = Tokenizer(models.WordLevel({str(i): i for i in range(10)}, unk_token="0"))
    other.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TraceError, match="sample 0: this tokenizer does not give its text"):
        grade_cuts(path, [4], tokenizer=tmp_path)
    (path / NAME).write_text("")
    assert run_data(read_run(path)).caps == ()
    (path / NAME).write_text("{}\n")
    with pytest.raises(TraceError, match="not grades of schema 1"):
        run_data(read_run(path))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_cutting_finds_at_least_what_had_finished(tmp_path_factory, tokenizer, data):
    """Never less than the rule that asks for a right sample which ends within the cap."""
    tokens = st.lists(st.sampled_from([SO, BOX, RIGHT, END, WRONG]), min_size=1, max_size=9)
    outputs = data.draw(st.lists(tokens, min_size=1, max_size=5))
    grades = ["\\boxed{42}" in "".join(PIECES[token] for token in output)[-10:] for output in outputs]
    path = write_run(tmp_path_factory.mktemp("runs") / "run", outputs, grades=grades)
    caps = [1, 3, 5, 9]
    cut = run_data(grade_cuts(path, caps, tokenizer=tokenizer))
    finished = dataclasses.replace(cut, caps=(), correct_within=(), answers_within=())
    more, less = (length_ablation([run], caps=caps) for run in (cut, finished))
    assert np.all(more["accuracy"] >= less["accuracy"])
    assert more["mean_tokens"].equals(less["mean_tokens"])
    assert more["accuracy"].iloc[-1] == less["accuracy"].iloc[-1]  # nothing is cut there
