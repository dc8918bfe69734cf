"""Variable chasing with modular arithmetic: the built-in task.

A problem states, in shuffled order, one edge (`n12>n7`, or `n12>end`) and one operation (`n12:*5+3`) for each of some
nodes, and asks for the value that `start 42 at n12` ends with when every node on the way to `end` applies its operation
to the value modulo 97. A solution writes four tokens a hop (operation, value, node, next node), then the boxed answer:

    *5+3 19 @n12 n7  +5 24 @n7 end  \\boxed{24} <|endoftext|>

Every statement, node, value and operation is one token, so a model must find each statement again in its context, at
places that only the context tells, and one wrong token spoils the answer.
"""

from __future__ import annotations

import dataclasses
import itertools
import re

import numpy as np

MODULUS = 97
NODES = 32
HOPS = (6, 16)  # fewest and most hops of the held-out problems
TOKENS_PER_HOP = 4
MAX_OUTPUT = TOKENS_PER_HOP * HOPS[1] + 2  # the boxed answer and the end token
EOS, UNK = "<|endoftext|>", "<unk>"
START, AT, END = "start", "at", "end"

# (multiplier, addend), most frequent first; frequencies fall off as rank ** -ZIPF.
OPERATIONS = ((1, 5), (2, 1), (3, 7), (1, 23), (5, 2), (7, 11), (1, 48), (4, 9), (10, 3), (1, 71), (6, 13), (9, 4))
ZIPF = 0.7
_cumulative = np.cumsum(np.arange(1, len(OPERATIONS) + 1) ** -ZIPF)
_cumulative /= _cumulative[-1]


@dataclasses.dataclass(frozen=True)
class ChaseProblem:
    """One problem: texts of space-separated tokens. `solution` ends with the end token."""

    question: str
    solution: str
    answer: int
    hops: int


def node(index: int) -> str:
    """A node where the chain arrives: what its operation is looked up by."""
    return f"n{index}"


def echo(index: int) -> str:
    """The same node written again after its value: what its edge is looked up by."""
    return f"@n{index}"


def operation(index: int) -> str:
    """The token of an operation: `*5+3`, or `+5` if it multiplies by 1."""
    multiplier, addend = OPERATIONS[index]
    return f"+{addend}" if multiplier == 1 else f"*{multiplier}+{addend}"


def boxed(value: int) -> str:
    """The token of a final answer."""
    return f"\\boxed{{{value}}}"


def edge(source: int, target: str) -> str:
    """The statement that a node leads to another, or to `end`."""
    return f"{node(source)}>{target}"


def applied_at(source: int, what: str) -> str:
    """The statement that a node applies an operation."""
    return f"{node(source)}:{what}"


def vocabulary() -> list[str]:
    """All tokens in the order of their ids; the end token is 0."""
    indices = range(NODES)
    operations = [operation(index) for index in range(len(OPERATIONS))]
    return [
        *(EOS, UNK, START, AT, END),
        *map(node, indices),
        *map(echo, indices),
        *map(str, range(MODULUS)),
        *operations,
        *map(boxed, range(MODULUS)),
        *(edge(a, target) for a in indices for target in (*(node(b) for b in indices if b != a), END)),
        *(applied_at(a, what) for a, what in itertools.product(indices, operations)),
    ]


def make_problem(
    rng: np.random.Generator, nodes: int = NODES, hops: int = HOPS[1], operations: int = len(OPERATIONS)
) -> ChaseProblem:
    """Draws a problem of `nodes` of the 32 nodes and the first `operations`, whose answer is `hops` hops away.

    The nodes form two chains that both run to `end`: the one that is asked for and, of the other nodes, a distractor.
    Raises ValueError unless 1 <= hops <= nodes <= 32.
    """
    if not 1 <= hops <= nodes <= NODES:
        raise ValueError(f"need 1 <= hops <= nodes <= {NODES}, got hops={hops}, nodes={nodes}")
    names = rng.permutation(NODES)[:nodes].tolist()
    applied = np.searchsorted(_cumulative, rng.random(nodes) * _cumulative[operations - 1]).tolist()
    value = start = int(rng.integers(MODULUS))
    targets = [node(name) for name in names[1:]] + [END]
    targets[hops - 1] = END
    statements = [edge(name, target) for name, target in zip(names, targets, strict=True)]
    statements += [applied_at(name, operation(index)) for name, index in zip(names, applied, strict=True)]
    shuffled = [statements[index] for index in rng.permutation(2 * nodes).tolist()]
    steps = []
    for name, index, target in zip(names[:hops], applied, targets, strict=False):
        multiplier, addend = OPERATIONS[index]
        value = (multiplier * value + addend) % MODULUS
        steps += [operation(index), str(value), echo(name), target]
    question = " ".join([*shuffled, START, str(start), AT, node(names[0])])
    return ChaseProblem(question, " ".join([*steps, boxed(value), EOS]), value, hops)


def solve(question: str) -> int:
    """The answer of a question, from its text alone. Raises ValueError if it asks for nothing."""
    edges = dict(re.findall(r"(n\d+)>(\w+)", question))
    operations = {
        name: (multiplier, addend) for name, multiplier, addend in re.findall(r"(n\d+):(?:\*(\d+))?\+(\d+)", question)
    }
    query = re.search(r"start (\d+) at (n\d+)$", question)
    if query is None:
        raise ValueError(f"no `start VALUE at NODE` at the end of {question!r}")
    value, place = int(query[1]), query[2]
    while place != "end":
        multiplier, addend = operations[place]
        value = (value * int(multiplier or 1) + int(addend)) % 97
        place = edges[place]
    return value


def held_out_problems(count: int = 132, seed: int = 2**32 - 1) -> list[ChaseProblem]:
    """The problems of assets/problems.jsonl: every number of hops equally often, mixed so that any prefix is."""
    rng = np.random.default_rng([seed, 0])
    low, high = HOPS
    span = high - low + 1
    return [make_problem(rng, NODES, low + index * 7 % span) for index in range(count)]
