r"""The tasks of the ledger family: a rule book is followed line by line, for hundreds of tokens.

A question holds a page of eight tokens for each of its states, two rules a page, and a line to begin with:

    s3a *5+2 >s9 ; s3b +5 >s12 ;    ...    #9 .6 run run >s3 at 12 ;

A rule says: in state s3, on branch a, apply `*5+2` to the balance (modulo 53) and go to state s9. A solution writes one
line of eight tokens a step: how many lines are to go (`#9 .5`: 95), the rule's name, its operation and its next state,
the balance before and after. At its end it boxes the last state and balance:

    #9 .5 s3a *5+2 >s9 12 9 ;      ...    \boxed{ >s9 9 } <|endoftext|>

The two tasks differ in who chooses the branch, and in where a solution ends:

`ledger` (`run run`): an even balance takes branch a, an odd one branch b, and the line with none to go is the last. One
    answer is right, so that samples can vote.
`route` (`find =31`): every branch is free, and the first line whose balance is 31 is the last and ends with `!`. All
    lines that obey the rules and get there before the count runs out are right, and `grade_route` reads each of them.
    Its count is written `#9 :5`.

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
LINES = (32, MOST_LINES)  # fewest and most of the held-out `ledger` problems
ROUTE_AWAY = 6  # lines of the shortest solution of a held-out `route` problem, at least
MAX_OUTPUT = LINE * MOST_LINES + 5  # the boxed answer and the end token
TEMPERATURE = 0.6  # at which the family is sampled, as the paper samples
EOS, UNK, STOP, FOUND, RUN, FIND, AT, BOX, UNBOX = (
    "<|endoftext|>",
    "<unk>",
    ";",
    "!",
    "run",
    "find",
    "at",
    "\\boxed{",
    "}",
)
BRANCHES = "ab"
ONES = {LEDGER: ".", ROUTE: ":"}

# (multiplier, addend), most frequent first; frequencies fall off as rank ** -ZIPF.
OPERATIONS = ((1, 5), (2, 1), (3, 7), (1, 23), (5, 2), (7, 11), (1, 40), (4, 9))
ZIPF = 0.7
_cumulative = np.cumsum(np.arange(1, len(OPERATIONS) + 1) ** -ZIPF)
_cumulative /= _cumulative[-1]

RULE = re.compile(r"(s\d+[ab]) (?:\*(\d+))?\+(\d+) >(s\d+) ;")
ANSWER = re.compile(r">s\d+\s+\d+")
START = re.compile(r"#(\d+) (?:\.(\d) run run|:(\d) find =(\d+)) >(s\d+) at (\d+) ;$")


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
    """A question, read. `rules` by name: multiplier, addend, next state. `find` is None for `ledger`."""

    rules: dict[str, tuple[int, int, str]]
    lines: int
    state: str
    balance: int
    find: int | None


def operation(index: int) -> str:
    """The token of an operation: `*5+2`, or `+5` if it multiplies by 1."""
    multiplier, addend = OPERATIONS[index]
    return f"+{addend}" if multiplier == 1 else f"*{multiplier}+{addend}"


def sought(balance: int) -> str:
    """The token of a balance to find."""
    return f"={balance}"


def count_tokens(lines: int, task: str) -> list[str]:
    """How many lines are to go, as a line begins: tens and ones. The ones say which task it is, line by line."""
    return [f"#{lines // 10}", f"{ONES[task]}{lines % 10}"]


def vocabulary() -> list[str]:
    """All tokens in the order of their ids; the end token is 0."""
    return [
        *(EOS, UNK, STOP, FOUND, RUN, FIND, AT, BOX, UNBOX),
        *(f"#{tens}" for tens in range(MOST_LINES // 10 + 1)),
        *(f"{mark}{ones}" for mark in ONES.values() for ones in range(10)),
        *(f"s{state}{branch}" for state in range(POOL) for branch in BRANCHES),
        *(f">s{state}" for state in range(POOL)),
        *map(operation, range(len(OPERATIONS))),
        *map(str, range(MODULUS)),
        *map(sought, range(MODULUS)),
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

    `ledger`: `lines` are to go. `route`: the count begins at `lines`, and the balance to find is one that a walk of
    random branches, at most that long, meets for the first time. `solution` holds the first `most` lines, and no answer
    if it ends before the last. Raises ValueError unless 2 <= states <= 32 and 1 <= lines <= 127.
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
    walk, balances = [], [balance]
    for step in range(lines):
        branch = balance % 2 if free is None else free[step]
        index, target = applied[state][branch], following[state][branch]
        multiplier, addend = OPERATIONS[index]
        after = (multiplier * balance + addend) % MODULUS
        walk.append((names[state] + BRANCHES[branch], operation(index), f">{names[target]}", str(balance), str(after)))
        state, balance = target, after
        balances.append(balance)
    goal = (RUN, RUN)
    if task == ROUTE:
        balance = int(rng.permutation(sorted({*balances[1:]} - {balances[0]} or {balances[1]}))[0])
        walk, goal = walk[: balances.index(balance, 1)], (FIND, sought(balance))
    answer = f"{walk[-1][2]} {walk[-1][4]}"
    pages = []
    for index in rng.permutation(states).tolist():
        for branch, target in enumerate(following[index]):
            pages += [names[index] + BRANCHES[branch], operation(applied[index][branch]), f">{names[target]}", STOP]
    tokens = []
    for left, line in zip(range(lines - 1, -1, -1), walk[:most], strict=False):
        tokens += [*count_tokens(left, task), *line, STOP]
    if len(walk) <= most:
        tokens[-1] = STOP if task == LEDGER else FOUND
        tokens += [BOX, *answer.split(), UNBOX, EOS]
    question = " ".join([*pages, *count_tokens(lines, task), *goal, *start])
    return LedgerProblem(question, " ".join(tokens), answer, len(walk))


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
    tens, ones, ones_of_route, find, state, balance = start.groups()
    lines = 10 * int(tens) + int(ones or ones_of_route)
    return Book(rules, lines, state, int(balance), None if find is None else int(find))


def solve(question: str) -> str:
    """State and balance at the end of a `ledger` question, from its text alone. Raises ValueError for what is none."""
    book = read_book(question)
    if book.find is not None:
        raise ValueError(f"a route question has many solutions: {question!r:.80}")
    state, balance = book.state, book.balance
    for _ in range(book.lines):
        multiplier, addend, state = book.rules[state + BRANCHES[balance % 2]]
        balance = (multiplier * balance + addend) % MODULUS
    return f">{state} {balance}"


def shortest_route(question: str) -> int | None:
    """Lines of the shortest solution of a `route` question; None where none is short enough."""
    book = read_book(question)
    reached = {(book.state, book.balance)}
    for step in range(1, book.lines + 1):
        following = set()
        for state, balance in reached:
            for multiplier, addend, target in (book.rules[state + branch] for branch in BRANCHES):
                following.add((target, (multiplier * balance + addend) % MODULUS))
        reached = following
        if any(balance == book.find for _, balance in reached):
            return step
    return None


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
        return "asks for no route" if read_book(answer).find is None else None
    except ValueError:
        return "not a rule book with a line to begin with"


def grade_route(text: str, answer: str) -> Grade:
    r"""A `route` solution held to the rules, line by line; `answer` is the question.

    Right if every line obeys its rule, the balance to find comes up in the last line and in none before, the count has
    not run out, and the last state and that balance are boxed. The answer extracted is the branches taken, as in
    `abba`: samples that found other ways disagree. Raises ValueError when `answer` is no such question.
    """
    if why := route_fault(answer):
        raise ValueError(f"{answer!r:.80}: {why}")
    book = read_book(answer)
    before, boxed, _ = text.partition(BOX)
    taken = "".join(name[-1] for name in re.findall(r"\bs\d+[ab]\b", before)) or None
    words = before.split()
    lines = [words[i : i + LINE] for i in range(0, len(words), LINE)]
    right = bool(boxed) and bool(lines) and lines == list(_obeyed(book, taken or ""))
    return Grade(correct=right and _box(text) == f"{lines[-1][4]} {book.find}", answer=taken)


def _obeyed(book: Book, branches: str) -> Iterator[list[str]]:
    """The lines that these branches make, up to the one that finds the balance; none if they do not find it there."""
    state, balance, lines = book.state, book.balance, []
    for left, branch in zip(range(book.lines - 1, -1, -1), branches, strict=False):
        multiplier, addend, target = book.rules[state + branch]
        after = (multiplier * balance + addend) % MODULUS
        spelled = f"+{addend}" if multiplier == 1 else f"*{multiplier}+{addend}"
        end = FOUND if after == book.find else STOP
        lines.append([*count_tokens(left, ROUTE), state + branch, spelled, f">{target}", str(balance), str(after), end])
        state, balance = target, after
        if balance == book.find:
            break
    yield from lines if balance == book.find and len(lines) == len(branches) else ()


def held_out_problems(task: str, count: int = 128, seed: int = 2**32 - 1) -> list[LedgerProblem]:
    """The problems that come with the package: `ledger` of 32 to 127 lines, any 12 successive ones spread evenly over
    that range; `route` with 127 lines and no solution of fewer than six.
    """
    rng = np.random.default_rng([seed, 1 + (task == ROUTE)])
    if task == LEDGER:
        low, high = LINES
        span = high - low + 1
        return [make_problem(rng, task, lines=low + (index * 37 + 31) % span) for index in range(count)]
    problems: list[LedgerProblem] = []
    while len(problems) < count:
        problem = make_problem(rng, task)
        if (shortest_route(problem.question) or 0) >= ROUTE_AWAY:
            problems.append(problem)
    return problems
