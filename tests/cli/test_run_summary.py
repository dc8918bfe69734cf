"""The line that `sample` and `grade` end with: nothing that flatters is left unsaid."""

import pytest

from kinetics_jax.cli.run_summary import run_summary, run_totals
from kinetics_jax.runs.best_of_n import grade_again
from kinetics_jax.runs.folder import RunWriter

RUN = {"model": "m", "policy": "dense", "task": "builtin", "sampling": {"max_tokens": 24, "seed": 0}}
PROBLEMS = [{"id": "a", "question": "?", "answer": "7", "prompt": "?"}]


def write(path, *changes):
    with RunWriter(path, RUN, PROBLEMS) as writer:
        for sample, change in enumerate(changes):
            writer.append(
                {
                    "problem": "a",
                    "sample": sample,
                    "seed": 0,
                    "prompt_tokens": 3,
                    "output_tokens": [1] * 24,
                    "text": r"\boxed{7}",
                    "finish_reason": "stop",
                    "correct": True,
                    "answer": "7",
                    "grader": "ok",
                    "seconds": 0.5,
                    **change,
                }
            )
        return writer.read_back()


def test_cut_and_undecided_samples_are_told(tmp_path):
    cut = {"finish_reason": "length", "correct": False}
    assert run_summary(write(tmp_path / "cut", *[cut] * 9)) == (
        "9 samples, 0.000 correct, 9 of 9 cut at max_tokens (24), 24.0 tokens each"
    )
    run = write(tmp_path / "mixed", {}, cut, {"correct": None, "grader": "timeout"}, {"finish_reason": "nonfinite"})
    assert run_totals(run) == {
        "samples": 4,
        "graded": 2,
        "undecided": 2,
        "nonfinite": 1,
        "cut": 1,
        "correct": 0.25,
        "mean_output_tokens": 24,
    }
    assert run_summary(write(tmp_path / "none")) == "0 samples"


def test_samples_that_are_not_finite_stay_undecided(tmp_path):
    write(tmp_path, {}, {"finish_reason": "nonfinite", "correct": None, "answer": None, "grader": "nonfinite"})
    run, changed = grade_again(tmp_path)
    assert changed == []
    assert [each["correct"] for each in run.samples] == [True, None]
    assert run_summary(run) == (
        "2 samples, 0.500 correct, 1 of 2 undecided, 1 of them with logits that are not finite (counted as unsolved), "
        "24.0 tokens each"
    )


@pytest.mark.parametrize("correct", [True, False])
def test_a_grade_of_what_is_not_finite_is_taken_back(tmp_path, correct):
    """A text that logits without a value have made has no grade, whatever an earlier version said."""
    write(tmp_path, {"finish_reason": "nonfinite", "correct": correct})
    run, changed = grade_again(tmp_path)
    assert (run.samples[0]["correct"], run.samples[0]["grader"], changed) == (None, "nonfinite", [("a", 0)])
