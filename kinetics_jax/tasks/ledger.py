r"""The tasks of the ledger family: a rule book is followed line by line, for hundreds of tokens.

A question holds a page of eight tokens for each of its states, two rules a page, and a line to begin with:

    s3a *5+2 >s9 ; s3b +5 >s12 ;    ...    #9 .6 run run >s3 at 12 ;

A rule says: in state s3, on branch a, apply `*5+2` to the balance (modulo 53) and go to state s9. A solution writes one
line of eight tokens a step: how many lines are to go (`#9 .5`: 95), the rule's name, its operation and its next state,
the balance before and after. At its end it boxes the last state and balance:

    #9 .5 s3a *5+2 >s9 12 9 ;      ...    \boxed{ >s9 9 } <|endoftext|>

The line with none to go is the last. The two tasks differ in who chooses the branch:

`ledger` (`run run`): an even balance takes branch a, an odd one branch b. One answer is right: samples can vote.
`route` (`>s3 >s7`): every branch is free, and the last line must go to one of these two states. All lines that obey the
    rules and end there are right, and `grade_route` reads each of them. Its count is written `#9 :5`.

Each line needs the one before (state, balance, count) and, from far away, the page of its rule or an earlier line that
used it. One wrong token spoils what follows.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

import numpy as np

from kinetics_jax.tasks.grading import Grade, last_boxed

LEDGER, ROUTE = "ledger", "route"
MODULUS = 53
POOL = 32  # names of states
STATES = 16  # states of a held-out problem
LINE = 8  # tokens of a line, and of a page of two rules
MOST_LINES = 127
LINES = (32, MOST_LINES)  # fewest and most of the held-out problems
MAX_OUTPUT = LINE * MOST_LINES + 5  # the boxed answer and the end token
TEMPERATURE = 0.6  # at which the family is sampled, as the paper samples
EOS, UNK, STOP, RUN, AT, BOX, UNBOX = "<|endoftext|>", "<unk>", ";", "run", "at", "\\boxed{", "}"
BRANCHES = "ab"
ONES = {LEDGER: ".", ROUTE: ":"}

# (multiplier, addend), most frequent first; frequencies fall off as rank ** -ZIPF.
OPERATIONS = ((1, 5), (2, 1), (3, 7), (1, 23), (5, 2), (7, 11), (1, 40), (4, 9))
ZIPF = 0.7
_cumulative = np.cumsum(np.arange(1, len(OPERATIONS) + 1) ** -ZIPF)
_cumulative /= _cumulative[-1]

RULE = re.compile(r"(s\d+[ab]) (?:\*(\d+))?\+(\d+) >(s\d+) ;")
ANSWER = re.compile(r">s\d+\s+\d+")
START = re.compile(r"#(\d+) (?:\.(\d) run run|:(\d) >(s\d+) >(s\d+)) >(s\d+) at (\d+) ;$")


@dataclasses.dataclass(frozen=True)
class LedgerProblem:
    """One problem: texts of space-separated tokens. `solution` ends with the end token, and is one of many for `route`.
    `lines` of it are lines of the ledger.
    """

    question: str
    solution: str
    answer: str
    lines: int


@dataclasses.dataclass(frozen=True)
class Book:
    """A question, read. `rules` by name: multiplier, addend, next state. `goals` of a route: the states to end at."""

    rules: dict[str, tuple[int, int, str]]
    lines: int
    state: str
    balance: int
    goals: tuple[str, ...] = ()


def operation(index: int) -> str:
    """The token of an operation: `*5+2`, or `+5` if it multiplies by 1."""
    multiplier, addend = OPERATIONS[index]
    return f"+{addend}" if multiplier == 1 else f"*{multiplier}+{addend}"


def count_tokens(lines: int, task: str) -> list[str]:
    """How many lines are to go, as a line begins: tens and ones. The ones say which task it is, line by line."""
    return [f"#{lines // 10}", f"{ONES[task]}{lines % 10}"]


def vocabulary() -> list[str]:
    """All tokens in the order of their ids; the end token is 0."""
    return [
        *(EOS, UNK, STOP, RUN, AT, BOX, UNBOX),
        *(f"#{tens}" for tens in range(MOST_LINES // 10 + 1)),
        *(f"{mark}{ones}" for mark in ONES.values() for ones in range(10)),
        *(f"s{state}{branch}" for state in range(POOL) for branch in BRANCHES),
        *(f">s{state}" for state in range(POOL)),
        *map(operation, range(len(OPERATIONS))),
        *map(str, range(MODULUS)),
    ]


def make_problem(
    rng: np.random.Generator,
    task: str,
    *,
    states: int = STATES,
    operations: int = len(OPERATIONS),
    most: int = MOST_LINES,
    lines: int | None = None,
) -> LedgerProblem:
    """Draws a problem of `states` of the 32 states and the first `operations`.

    `lines` are to go. `route`: the states to end at are the last one of a walk of random branches and any other.
    `solution` holds the first `most` lines, and no answer if it ends before the last. Raises ValueError unless 2 <=
    states <= 32 and 1 <= lines <= 127.
    """
    lines = MOST_LINES if lines is None else lines
    if not 2 <= states <= POOL or not 1 <= lines <= MOST_LINES:
        raise ValueError(f"need 2 <= states <= {POOL} and 1 <= lines <= {MOST_LINES}, got {states} and {lines}")
    names = [f"s{name}" for name in rng.permutation(POOL)[:states].tolist()]
    applied = np.searchsorted(_cumulative, rng.random((states, 2)) * _cumulative[operations - 1]).tolist()
    following = _transitions(rng, states)
    state, balance = int(rng.integers(states)), int(rng.integers(MODULUS))
    free = rng.integers(2, size=lines).tolist() if task == ROUTE else None
    start = f">{names[state]}", AT, str(balance), STOP
    walk = []
    for step in range(lines):
        branch = balance % 2 if free is None else free[step]
        index, target = applied[state][branch], following[state][branch]
        multiplier, addend = OPERATIONS[index]
        after = (multiplier * balance + addend) % MODULUS
        walk.append((names[state] + BRANCHES[branch], operation(index), f">{names[target]}", str(balance), str(after)))
        state, balance = target, after
    goal = [RUN, RUN]
    if task == ROUTE:
        other = (state + int(rng.integers(1, states))) % states
        goal = [f">{names[place]}" for place in rng.permutation([state, other]).tolist()]
    answer = f"{walk[-1][2]} {walk[-1][4]}"
    pages = []
    for index in rng.permutation(states).tolist():
        for branch, target in enumerate(following[index]):
            pages += [names[index] + BRANCHES[branch], operation(applied[index][branch]), f">{names[target]}", STOP]
    tokens = []
    for left, line in zip(range(lines - 1, -1, -1), walk[:most], strict=False):
        tokens += [*count_tokens(left, task), *line, STOP]
    if lines <= most:
        tokens += [BOX, *answer.split(), UNBOX, EOS]
    question = " ".join([*pages, *count_tokens(lines, task), *goal, *start])
    return LedgerProblem(question, " ".join(tokens), answer, lines)


def _transitions(rng: np.random.Generator, states: int) -> list[list[int]]:
    """Next state of each state and branch: one way round through all states, so that none is a dead end, and another
    state at random.
    """
    order = rng.permutation(states)
    round_trip = np.empty(states, np.int64)
    round_trip[order] = np.roll(order, -1)
    both = np.stack([round_trip, (np.arange(states) + rng.integers(1, states, size=states)) % states], axis=1)
    swapped = rng.random(states) < 0.5
    both[swapped] = both[swapped, ::-1]
    return both.tolist()


def read_book(question: str) -> Book:
    """A question from its text alone. Raises ValueError for what is none."""
    start = START.search(question)
    rules = {name: (int(by or 1), int(plus), target) for name, by, plus, target in RULE.findall(question)}
    if start is None or len(question.split()) != LINE * (len(rules) // 2 + 1) or len(rules) % 2:
        raise ValueError(f"not a rule book with a line to begin with: {question!r:.80}")
    tens, ones, ones_of_route, goal, other, state, balance = start.groups()
    lines = 10 * int(tens) + int(ones or ones_of_route)
    return Book(rules, lines, state, int(balance), (goal, other) if goal else ())


def solve(question: str) -> str:
    """State and balance at the end of a `ledger` question, from its text alone. Raises ValueError for what is none."""
    book = read_book(question)
    if book.goals:
        raise ValueError(f"a route question has many solutions: {question!r:.80}")
    state, balance = book.state, book.balance
    for _ in range(book.lines):
        multiplier, addend, state = book.rules[state + BRANCHES[balance % 2]]
        balance = (multiplier * balance + addend) % MODULUS
    return f">{state} {balance}"


def grade_ledger(text: str, answer: str) -> Grade:
    r"""The last `\boxed{…}` against the known state and balance, word by word. Never raises."""
    boxed = _box(text)
    return Grade(correct=boxed is not None and boxed == " ".join(answer.split()), answer=boxed)


def _box(text: str) -> str | None:
    """The words of the last box."""
    boxed = last_boxed(text)
    return None if boxed is None else " ".join(boxed.split())


def ledger_fault(answer: str) -> str | None:
    """Why a text is no state and balance; None if it is."""
    return None if ANSWER.fullmatch(answer.strip()) else "not a state and a balance, as in >s9 25"


def route_fault(answer: str) -> str | None:
    """Why a text is no question that `grade_route` could hold a solution to; None if it is one."""
    try:
        return None if read_book(answer).goals else "asks for no route"
    except ValueError:
        return "not a rule book with a line to begin with"


def grade_route(text: str, answer: str) -> Grade:
    r"""A `route` solution held to the rules, line by line; `answer` is the question.

    Right if every line obeys its rule, the count runs out, the last line goes to one of the states to end at, and that
    state and the last balance are boxed. The answer extracted is the branches taken, as in `abba`: samples that went
    other ways disagree. Raises ValueError when `answer` is no such question.
    """
    if why := route_fault(answer):
        raise ValueError(f"{answer!r:.80}: {why}")
    book = read_book(answer)
    before, boxed, _ = text.partition(BOX)
    taken = "".join(name[-1] for name in re.findall(r"\bs\d+[ab]\b", before)) or None
    words = before.split()
    lines = [words[i : i + LINE] for i in range(0, len(words), LINE)]
    right = bool(boxed) and len(lines) == book.lines and lines == list(obeying_lines(book, taken or ""))
    if right:
        _, _, _, _, last, _, balance, _ = lines[-1]
        right = last[1:] in book.goals and _box(text) == f"{last} {balance}"
    return Grade(correct=right, answer=taken)


def obeying_lines(book: Book, branches: str) -> Iterator[list[str]]:
    """The lines of a route that takes these branches, at most as many as are to go."""
    state, balance = book.state, book.balance
    for left, branch in zip(range(book.lines - 1, -1, -1), branches, strict=False):
        multiplier, addend, target = book.rules[state + branch]
        after = (multiplier * balance + addend) % MODULUS
        spelled = f"+{addend}" if multiplier == 1 else f"*{multiplier}+{addend}"
        yield [*count_tokens(left, ROUTE), state + branch, spelled, f">{target}", str(balance), str(after), STOP]
        state, balance = target, after


def held_out_problems(task: str, count: int = 128, seed: int = 2**32 - 1) -> list[LedgerProblem]:
    """The problems that come with the package, of 32 to 127 lines: any 12 successive ones are spread evenly over that
    range.
    """
    rng = np.random.default_rng([seed, 1 + (task == ROUTE)])
    low, high = LINES
    span = high - low + 1
    return [make_problem(rng, task, lines=low + (index * 37 + 31) % span) for index in range(count)]
