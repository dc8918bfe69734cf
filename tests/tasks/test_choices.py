"""Multiple-choice problems as data sets store them, and the letters that models answer with."""

import json
import warnings

import pandas as pd
import pytest

from kinetics_jax.tasks.choice_grading import grade_choice, stated_choice
from kinetics_jax.tasks.choices import AS_THEY_STAND, ChoiceError, Choices, load_choice_file
from kinetics_jax.tasks.graders import gradable_problems, grading, open_grader
from kinetics_jax.tasks.grading import Grade
from kinetics_jax.tasks.math_grading import GradingError
from kinetics_jax.tasks.prompts import CHOICE_INSTRUCTION, render_prompts

MMLU_PRO = {"question_id": 70, "question": "q", "options": ["x", "y", "z"], "answer": "C", "answer_index": 2}
MMLU = [
    {"question": "p", "choices": ["x", "y", "z", "w"], "answer": 0, "subject": "law"},
    {"question": "q", "choices": ["x", "y", "z", "w"], "answer": 3},
]
ARC = {"id": "M", "question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}
MED = {"question": "q", "options": {"A": "x", "B": "y"}, "answer": "y", "answer_idx": "B"}
COP = [
    {"question": "p", "opa": "x", "opb": "y", "opc": "z", "opd": "w", "cop": 3},
    {"question": "q", "opa": "x", "opb": "y", "opc": "z", "opd": "w", "cop": 0},
]
GPQA = {
    "Question": "q",
    "Correct Answer": "right",
    "Incorrect Answer 1": "one",
    "Incorrect Answer 2": "two",
    "Incorrect Answer 3": "three",
}


def load(tmp_path, *records, how=AS_THEY_STAND, name="mine.jsonl", **columns):
    path = tmp_path / name
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return load_choice_file(path, how, **columns)


@pytest.mark.parametrize(
    ("records", "answers"),
    [
        ([MMLU_PRO], "C"),
        (MMLU, "AD"),
        ([ARC], "B"),
        ([{**ARC, "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}}], "B"),
        ([{**ARC, "choices": {"text": ["x", "y"], "label": ["B", "A"]}, "answerKey": "A"}], "B"),
        ([MED], "B"),
        (COP, "DA"),
        ([{"question": "q", "A": "x", "B": "y", "answer": "b"}], "B"),
        ([{"question": "q", "option1": "x", "option2": "y", "answer": "(B)"}], "B"),
        ([{"question": "q", "choices": ["3", "4", "5"], "answer": "4"}], "B"),
        ([{"question": "q", "choices": "['x', \"y's\"]", "answer": "y's"}], "B"),
        (
            [
                {"question": "q", "choices": ["x", "y"], "answer": 2},
                {"question": "p", "choices": ["x", "y"], "answer": 1},
            ],
            "BA",
        ),
    ],
)
def test_shapes(tmp_path, records, answers):
    problems = load(tmp_path, *records)
    assert "".join(problem.answer for problem in problems) == answers


def test_what_a_problem_keeps(tmp_path):
    (problem,) = load(tmp_path, MMLU_PRO | {"category": "law"})
    assert problem.choices == ("x", "y", "z")
    assert problem.fields == {"question_id": 70, "category": "law"}
    assert problem.stored("text")["choices"] == ["x", "y", "z"]
    assert render_prompts([problem], tmp_path, task="mine.jsonl") == {
        "mine-0": f"q\n\nA) x\nB) y\nC) z\n\n{CHOICE_INSTRUCTION}\n\n"
    }


def test_parquet_holds_arrays(tmp_path):
    pd.DataFrame(MMLU).to_parquet(tmp_path / "mine.parquet")
    assert [problem.answer for problem in load_choice_file(tmp_path / "mine.parquet")] == ["A", "D"]


def test_a_shuffle_is_the_same_everywhere(tmp_path):
    records = [GPQA | {"Question": str(number)} for number in range(40)]
    problems = load(tmp_path, *records, how=Choices(shuffle=7))
    assert problems[0].choices == ("three", "two", "right", "one")  # by the seed, the problem's id and the choice
    assert all(problem.choices["ABCD".index(problem.answer)] == "right" for problem in problems)
    assert {problem.answer for problem in problems} == set("ABCD")
    assert load(tmp_path, *records[:3], how=Choices(shuffle=7)) == problems[:3]
    assert load(tmp_path, *records, how=Choices(shuffle=8)) != problems


@pytest.mark.parametrize(
    ("records", "how", "why"),
    [
        ([GPQA], AS_THEY_STAND, "the right choice has a column of its own .Correct Answer.*--shuffle-choices SEED"),
        (
            [MMLU_PRO | {"answer_index": 1}],
            AS_THEY_STAND,
            "line 1: answer 'C' and answer_index 1 name different choices",
        ),
        (
            [{"question": "q", "choices": ["x", "y", "z"], "answer": 1}],
            Choices(),
            "2 ways that differ .number from 0, n",
        ),
        ([{"question": "q", "choices": ["B", "A"], "answer": "A"}], AS_THEY_STAND, "2 ways that differ .letter, text"),
        (
            [{"question": "q", "choices": ["x", "y"], "answer": "z"}],
            AS_THEY_STAND,
            "line 1: 'answer' names no choice: 'z'",
        ),
        ([{"question": "q", "choices": ["x"], "answer": "A"}], AS_THEY_STAND, "line 1: has 1 choices; 2 to 10"),
        (
            [{"question": "q", "choices": ["x", None], "answer": "A"}],
            Choices(),
            "a choice must be text or a number, got N",
        ),
        ([{"question": "q", "choices": 4, "answer": "A"}], AS_THEY_STAND, "'choices' holds no list of choices but 4"),
        (
            [{"question": "q", "answer": "A"}],
            Choices(),
            "no column has a name of choices; name them with --choice-colu",
        ),
        ([{"question": "q", "choices": ["x", "y"]}], AS_THEY_STAND, "no column says which choice is right"),
        (
            [MMLU_PRO | {"choices": ["x", "y"]}],
            Choices(),
            "may stand in options or choices; say which with --choice-col",
        ),
        ([MMLU_PRO], Choices(("colour",)), "no column 'colour'"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, records, how, why):
    with pytest.raises(ChoiceError, match=f"mine.jsonl.*{why}"):
        load(tmp_path, *records, how=how)


def test_what_a_shuffle_makes_wrong_is_told(tmp_path):
    record = {"question": "q", "choices": ["x", "y", "all of the above"], "answer": "C"}
    with pytest.warns(UserWarning, match="speaks of the others' places"):
        load(tmp_path, record, how=Choices(shuffle=0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path, record)
    with pytest.warns(UserWarning, match="have the same choice twice"):
        load(tmp_path, record | {"choices": ["x", "x", "y"]})


CHOICES = {"choices": ["Paris", "Lyon", "Marseille", "42 cm"]}


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{C}",
        r"\boxed{(C)}",
        r"$\boxed{\text{C}}$.",
        r"\boxed{\textbf{(C)}\ Marseille}",
        r"\boxed{\mathrm{C}}",
        r"\boxed{C. Marseille}",
        r"\boxed{marseille}",
        r"\boxed{option C}",
        "Answer: C",
        "**Answer:** C",
        "**Answer: C**",
        "ANSWER: $C",
        "### Answer: C) Marseille",
        "Answer:\n\nC",
        "answer: c",
        "The answer is (C).",
        "the answer is C",
        "The answer is most likely (C).",
        "The answer to this question is C, since B is not by the sea.",
        "The correct option is **C**",
        "The correct answer is: C) Marseille",
        "Therefore, the answer is option C.",
        "The best answer is \\(\\textbf{C}\\)",
        "The answer is not A, it is C, so the answer is C.",
        "The wrong answer is A. The answer is C",
        "(C)",
        "**C**",
        "C.",
        "C) Marseille",
        "**C) Marseille**",
        "A is the capital.\n\nC",
        "C. Marseille\n\nExplanation: it is in the south.",
        "Option C is correct.",
        "(C) is the correct answer because A is not by the sea",
        "I choose C.",
        "I'd go with C.",
        "<answer>C</answer>",
        "答案：C",
        "La réponse est : C",
        "The answer is Marseille.",
        "**Option C: Marseille**",
        "Among the options, the correct one is C.",
        "Answer - c) Marseille",
        r"<think>the answer is B \boxed{B}</think>The answer is C",
        r"<think>so it is \boxed{C}",
    ],
)
def test_letters_in_the_forms_that_models_write(text):
    assert grade_choice(text, "C", CHOICES) == Grade(True, "C")
    assert grade_choice(text, "B", CHOICES) == Grade(False, "C")


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("The answer is A", Grade(False, "A")),
        (r"\boxed{E}", Grade(False, "E")),
        (r"\boxed{42 cm}", Grade(False, "D")),
        ("The answer is B or C", Grade(False, "B, C")),
        (r"\boxed{B, C}", Grade(False, "B, C")),
        ("The answer is a function of x", Grade(False, None)),
        ("Answer: A careful look shows more.", Grade(False, None)),
        ("A) Paris\nB) Lyon\nC) Marseille", Grade(False, None)),  # the question, repeated
        ("Option C is wrong.", Grade(False, None)),
        ("", Grade(False, None)),
        (r"\boxed{Rome}", Grade(None, "Rome", "error")),
        (r"\boxed{B) Marseille}", Grade(None, "B) Marseille", "error")),
    ],
)
def test_what_is_wrong_and_what_nobody_can_tell(text, grade):
    assert grade_choice(text, "C", CHOICES) == grade


def test_texts_that_are_long_or_hostile_end():
    assert stated_choice("The answer is " * 100_000 + "C") == "C"
    assert stated_choice("\\boxed{" * 50_000) is None
    assert stated_choice("( * " * 100_000) is None
    assert stated_choice("answer" + " " * 20_000) is None


def test_the_grader_is_that_of_problems_with_choices(tmp_path):
    problems = load(tmp_path, MMLU_PRO)
    how = grading().of(problems)
    assert how.identity == {"grader": {"function": "choice"}}
    assert gradable_problems(problems, "mine.jsonl", grading()) == problems
    with open_grader("mine.jsonl", {"mine-0": "C"}, how) as grader:
        assert grader("The answer is C", "C", {"choices": ["x", "y", "z"]}).correct is True
    with (
        pytest.raises(GradingError, match="problem 'a': the known answer '42' is no letter of a choice"),
        open_grader("mine.jsonl", {"a": "42"}, how),
    ):
        pass
