"""The tasks of the ledger family: another reading solves what is generated, and graders accept what is right alone."""

import itertools
import re

import numpy as np
import pytest

from kinetics_jax.tasks import ledger
from kinetics_jax.tasks.math_grading import GradingError, grader_for
from kinetics_jax.tasks.problems import TASKS, load_problems

IDS = {token: index for index, token in enumerate(ledger.vocabulary())}


def follow(question: str, branches=None):
    """An independent reading: (next state, balance before, after) of every line, by tokens at their places."""
    tokens = question.split()
    pages = np.array(tokens).reshape(-1, 8)
    rules = {row[i]: (row[i + 1], row[i + 2]) for row in pages[:-1] for i in (0, 4)}
    tens, ones, _, _, place, at, value, stop = pages[-1]
    assert (at, stop) == ("at", ";")
    value, left = int(value), int(tens[1:]) * 10 + int(ones[1:])
    for step in range(left if branches is None else len(branches)):
        branch = "ba"[value % 2 == 0] if branches is None else branches[step]
        operation, place = rules[place[1:] + branch]
        factor, _, addend = operation.rpartition("+")
        before, value = value, (int(factor[1:] or 1) * value + int(addend)) % 53
        yield place, before, value


@pytest.mark.parametrize(("states", "lines"), [(2, 1), (6, 12), (16, 32), (16, 127), (32, 60)])
def test_a_ledger_ends_where_an_independent_reading_does(states, lines):
    rng = np.random.default_rng(3)
    for _ in range(10):
        problem = ledger.make_problem(rng, "ledger", states=states, lines=lines)
        question, solution = problem.question.split(), problem.solution.split()
        assert len(question) == 8 * (states + 1)
        assert len(solution) == 8 * lines + 5 == 8 * problem.lines + 5
        assert set(question + solution) <= set(IDS)
        *_, (place, before, after) = follow(problem.question)
        assert ledger.solve(problem.question) == problem.answer == f"{place} {after}"
        assert solution[-13:-11] == ["#0", ".0"]
        assert " ".join(solution[-9:]) == f"{place} {before} {after} ; \\boxed{{ {place} {after} }} {ledger.EOS}"


def goals_of(question: str) -> list[str]:
    return question.split()[-6:-4]


def test_a_route_ends_at_one_of_two_states():
    rng = np.random.default_rng(4)
    for _ in range(20):
        problem = ledger.make_problem(rng, "route", lines=60)
        branches = re.findall(r"s\d+([ab])", problem.solution)
        walked = list(follow(problem.question, branches))
        goals = goals_of(problem.question)
        assert len(walked) == problem.lines == 60
        assert walked[-1][0] in goals
        assert len(set(goals)) == 2
        assert problem.solution.split()[-13:-11] == ["#0", ":0"]


def solved_route(seed: int = 5) -> tuple[str, str]:
    problem = ledger.make_problem(np.random.default_rng(seed), "route", lines=35)
    return problem.question, problem.solution.removesuffix(f" {ledger.EOS}")


def test_every_other_route_that_obeys_and_ends_there_is_right_too():
    question, _ = solved_route()
    rng, found = np.random.default_rng(0), 0
    for _ in range(60):
        branches = "".join("ab"[i] for i in rng.integers(2, size=35))
        walked = list(follow(question, branches))
        place, _, after = walked[-1]
        lines = list(ledger.obeying_lines(ledger.read_book(question), branches))
        assert [int(line[6]) for line in lines] == [after for _, _, after in walked]
        written = " ".join(word for line in lines for word in line) + f" \\boxed{{ {place} {after} }}"
        grade = ledger.grade_route(written, question)
        assert (grade.correct, grade.answer) == (place in goals_of(question), branches)
        found += bool(grade.correct)
    assert 0 < found < 30


def test_any_token_changed_is_a_wrong_route():
    question, solution = solved_route()
    words = solution.split()
    assert ledger.grade_route(solution, question).correct
    rng, vocabulary = np.random.default_rng(1), ledger.vocabulary()
    for place in range(len(words)):
        other = [token for token in vocabulary if token != words[place]]
        changed = [*words[:place], other[rng.integers(len(other))], *words[place + 1 :]]
        assert ledger.grade_route(" ".join(changed), question).correct is False
    for cut in (0, 3, len(words) - 1, len(words) - 4, 8):
        assert ledger.grade_route(" ".join(words[:cut]), question).correct is False
    assert ledger.grade_route(" ".join(words[8:]), question).correct is False  # begins in the middle
    assert ledger.grade_route(" ".join(words[:-12] + words[-4:]), question).correct is False  # and ends there


def test_a_ledger_answer_is_its_last_box_word_by_word():
    for text, right in (
        ("x \\boxed{ >s9 25 }", True),
        ("\\boxed{>s9   25}", True),
        ("\\boxed{ >s9 25 } \\boxed{ >s9 2 }", False),
        ("\\boxed{ >s9 5 }", False),
        ("\\boxed{ 25 >s9 }", False),
        ("\\boxed{ >s9 25", False),
        ("", False),
    ):
        assert ledger.grade_ledger(text, ">s9 25").correct is right


def test_known_answers_that_are_none_are_refused_by_task():
    question, solution = solved_route()
    with grader_for("ledger", {"a": ">s9 25"}) as grade:
        assert grade("\\boxed{ >s9 25 }", ">s9 25").correct
    with grader_for("route", {"a": question}) as grade:
        assert grade(solution, question).correct
    ledger_question = ledger.make_problem(np.random.default_rng(0), "ledger").question
    for task, answer, why in (
        ("ledger", "25", "not a state and a balance"),
        ("route", ">s9 25", "not a rule book"),
        ("route", ledger_question, "asks for no route"),
    ):
        with pytest.raises(GradingError, match=f"a: .*{why}"), grader_for(task, {"a": answer}):
            pass
    with pytest.raises(ValueError, match="not a rule book"):
        ledger.grade_route(solution, "something else")
    assert {"ledger", "route"} < set(TASKS)


def test_impossible_problems_are_refused():
    rng = np.random.default_rng(0)
    for change in ({"states": 1}, {"states": 33}, {"lines": 0}, {"lines": 128}):
        with pytest.raises(ValueError, match="need 2 <= states <= 32 and 1 <= lines <= 127"):
            ledger.make_problem(rng, "ledger", **change)


def test_held_out_problems_are_made_from_their_seed_and_spread_over_lengths():
    made = ledger.held_out_problems("ledger", 24)
    assert made == ledger.held_out_problems("ledger", 36)[:24]
    for part in (made[:12], made[12:]):
        lines = sorted(problem.lines for problem in part)
        assert lines[0] < 48
        assert lines[-1] > 111
        assert max(b - a for a, b in itertools.pairwise(lines)) <= 16
    routes = ledger.held_out_problems("route", 24)
    assert [problem.lines for problem in routes] == [problem.lines for problem in made[:24]]
    assert len({problem.question for problem in [*made, *routes]}) == 48


@pytest.mark.slow
def test_the_package_holds_the_held_out_problems():
    for task in ("ledger", "route"):
        held, made = load_problems(task), ledger.held_out_problems(task)
        assert [problem.question for problem in held] == [problem.question for problem in made]
        answers = [problem.question if task == "route" else problem.answer for problem in made]
        assert [problem.answer for problem in held] == answers
        assert held[5].id == f"{task}-005"
