"""Reads the public samples: counts and verdicts that were extracted from other people's published runs.

A file is read strictly: a missing column, a broken number or a sample that is there twice is an error that names it.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kinetics_jax.analysis.samples import Pool, RunData, pooled
from kinetics_jax.analysis.tables import read_rows
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.config import ModelConfig
from kinetics_jax.errors import UserError, spelled

# Each s1.1 model was tuned from the Qwen2.5 of its size, whose shape it has.
FAMILY = {f"s1.1-{size}": f"Qwen2.5-{size}-Instruct" for size in ("3B", "7B", "14B", "32B")}
MAX_TOKENS = 1 << 24


class DataError(UserError):
    """Public samples that are not there, or not as their description says."""


@dataclasses.dataclass(frozen=True)
class Stratum:
    """The texts of one way of prompting: the same questions, in the same languages, answered by every model once.

    `pools`: one per model, smallest first; a problem is a text, `017-en` for question 17 in English.
    """

    name: str
    languages: tuple[str, ...]
    questions: int
    pools: list[Pool]

    @property
    def texts(self) -> int:
        """Texts of one model."""
        return len(self.pools[0].problems)


def question_of(problem: str) -> str:
    """The question of a text: what its translations have in common."""
    return problem.rpartition("-")[0]


def read_columns(path: Path, readers: Mapping[str, Callable[[str], Any]]) -> list[dict[str, Any]]:
    """The named columns of a table, each cell parsed. Raises DataError for a missing file or column, or a bad cell."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; give the folder that holds {path.parent.name}/{path.name}")
    rows = read_rows(path)
    if not rows:
        raise DataError(f"{path}: holds no rows")
    if missing := [name for name in readers if name not in rows[0][1]]:
        raise DataError(f"{path}: has no column {', '.join(missing)}")
    return [
        {name: _cell(path, where, name, fields[name], reader) for name, reader in readers.items()}
        for where, fields in rows
    ]


def _cell(path: Path, where: str, name: str, text: Any, reader: Callable[[str], Any]) -> Any:
    try:
        return reader(str(text))
    except ValueError as error:
        raise DataError(f"{path}, {where}: {name} cannot be {spelled(text)} ({error})") from error


def count(text: str) -> int:
    """A number of tokens. Raises ValueError for anything else."""
    if not text.isdecimal() or int(text) > MAX_TOKENS:
        raise ValueError(f"a whole number up to {MAX_TOKENS:,} is needed")
    return int(text)


def verdict(text: str) -> bool:
    """1 or 0, true or false. Raises ValueError for anything else."""
    known = {"1": True, "0": False, "true": True, "false": False}
    if text.lower() not in known:
        raise ValueError("1, 0, true or false is needed")
    return known[text.lower()]


def one_of(*known: str) -> Callable[[str], str]:
    """A reader that takes these words alone."""

    def read(text: str) -> str:
        if text not in known:
            raise ValueError(f"one of {', '.join(known)} is needed")
        return text

    return read


FAMILY_COLUMNS: dict[str, Callable[[str], Any]] = {
    "model": one_of(*FAMILY),
    "strategy": str,
    "language": str,
    "problem": count,
    "prompt_tokens": count,
    "tokens": count,
    "thinking_tokens": count,
    "correct": verdict,
}


def read_family(path: Path) -> tuple[list[Stratum], list[str]]:
    """The complete strata of the s1.1 samples, largest first, and a line for everything that is left out.

    A (strategy, language) is complete where all four models answer every question of the file once; the complete
    languages of a strategy make a stratum. Raises DataError for a text that a model answers twice, or without a
    complete stratum.
    """
    rows = read_columns(path, FAMILY_COLUMNS)
    questions = {row["problem"] for row in rows}
    cells: dict[tuple[str, str], dict[str, dict[int, dict[str, Any]]]] = collections.defaultdict(
        lambda: {model: {} for model in FAMILY}
    )
    for row in rows:
        answered = cells[row["strategy"], row["language"]][row["model"]]
        if row["problem"] in answered:
            raise DataError(
                f"{path}: {row['model']} answers question {row['problem']} of {row['strategy']} {row['language']} "
                "twice; keep one"
            )
        answered[row["problem"]] = row
    complete: dict[str, list[str]] = collections.defaultdict(list)
    left_out = []
    for (strategy, language), by_model in sorted(cells.items()):
        short = {model: len(answered) for model, answered in by_model.items() if answered.keys() != questions}
        if short:
            has = ", ".join(f"{model} has {found} of {len(questions)}" for model, found in short.items())
            left_out.append(f"{strategy} {language}: {has}")
        else:
            complete[strategy].append(language)
    if not complete:
        raise DataError(f"{path}: no strategy and language that all of {', '.join(FAMILY)} answered completely")
    strata = [
        Stratum(
            strategy,
            tuple(languages),
            len(questions),
            pooled(
                [
                    _run(model, [cells[strategy, language][model][q] for language in languages for q in questions])
                    for model in FAMILY
                ]
            ),
        )
        for strategy, languages in complete.items()
    ]
    return sorted(strata, key=lambda stratum: -stratum.texts), left_out


def _run(model: str, rows: Sequence[Mapping[str, Any]]) -> RunData:
    return RunData(
        model=model,
        attention=Dense(),
        config=dataclasses.replace(ModelConfig.named(FAMILY[model]), name=model),
        problem=[f"{row['problem']:03d}-{row['language']}" for row in rows],
        sample=[0] * len(rows),
        prompt_tokens=[row["prompt_tokens"] for row in rows],
        output_tokens=[row["tokens"] for row in rows],
        correct=[row["correct"] for row in rows],
        settings={"temperature": 0.0},
    )


def with_shapes(stratum: Stratum, shapes: Mapping[str, str]) -> Stratum:
    """The same texts, priced as if each model had the shape of a published one."""
    pools = [
        dataclasses.replace(pool, config=dataclasses.replace(ModelConfig.named(shapes[pool.model]), name=pool.model))
        for pool in stratum.pools
    ]
    return dataclasses.replace(stratum, pools=pools)


def lengths_of(pool: Pool) -> tuple[np.ndarray, np.ndarray]:
    """Prompt and output tokens of every sample of a pool, float64."""
    prompts = [p.prompt_tokens for p in pool.problems.values() for _ in p.lengths]
    outputs = [length for p in pool.problems.values() for length in p.lengths]
    return np.array(prompts, np.float64), np.array(outputs, np.float64)
