"""Measured decode speeds as files hold them: a CSV of one's own, with columns by name, checked value by value.

One's own layout has a row a measurement. Columns, in any order:

`model`: a published name, or what else `config_of` takes; `gpu`: a chip by name, or its .json; `batch`: sequences
decoded side by side; `context`: tokens that a sequence attends to in a step, on average; and one of `seconds_per_token`
(between two tokens of one sequence) and `tokens_per_second` (of all sequences together). Optional: `chips` that share
every sequence (1); `weight_dtype` and `kv_dtype` (bfloat16; see WEIGHT_BYTES and KV_BYTES); one of `watts` and
`joules_per_token`, of all chips; `prompt_tokens` and `output_tokens`, where the time of a token includes its share of
the prompt's prefill; `workload` and `engine`, any text.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import functools
import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kinetics_jax.costs.hardware import HARDWARE, hardware
from kinetics_jax.errors import UserError, shown, spelled
from kinetics_jax.files import open_regular

if TYPE_CHECKING:
    from kinetics_jax.config import ModelConfig

# Bytes of a stored weight. int4 as AWQ and GPTQ keep it: with a scale of 16 bits and a zero of 4 for 128 weights each.
WEIGHT_BYTES = {"bfloat16": 2.0, "float16": 2.0, "float32": 4.0, "float8": 1.0, "int8": 1.0, "int4": 0.5 + 20 / 8 / 128}
KV_BYTES = {name: size for name, size in WEIGHT_BYTES.items() if name != "int4"}
SIXTEEN_BITS = 2.0  # of the output matrix, which quantised checkpoints leave as it is
NEEDED = ("model", "gpu", "batch", "context")
TIMES = ("seconds_per_token", "tokens_per_second")
ENERGIES = ("watts", "joules_per_token")
COLUMNS = (
    *NEEDED,
    *TIMES,
    "chips",
    "weight_dtype",
    "kv_dtype",
    *ENERGIES,
    "prompt_tokens",
    "output_tokens",
    "workload",
    "engine",
)
MAX_BYTES = 64 << 20
MAX_TOKENS, MAX_BATCH, MAX_CHIPS, MAX_NUMBER = 1 << 31, 1 << 16, 1024, 1e12


class MeasurementError(UserError):
    """Measurements that cannot be read; the message says in which file and line, and what is wrong."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """One measured decode: `batch` sequences of `context` tokens each on `chips` chips that share them, `seconds` from
    one token of a sequence to its next, `joules` of one token over all chips (None: not measured).

    `model` is its name in the file, `weights` and `kv_bytes` what it was stored in; `prompt_tokens` are those whose
    prefill is part of the time of `output_tokens` tokens (0: none is); `workload` and `engine` are labels.
    """

    model: str
    config: ModelConfig
    gpu: str
    batch: int
    context: int
    seconds: float
    chips: int = 1
    weights: str = "bfloat16"
    kv_bytes: float = 2.0
    joules: float | None = None
    prompt_tokens: int = 0
    output_tokens: int = 1
    workload: str = ""
    engine: str = ""

    @functools.cached_property
    def weight_bytes(self) -> float:
        """Bytes of a matrix parameter on average: quantised, but for the output matrix."""
        size = WEIGHT_BYTES[self.weights]
        if size >= SIXTEEN_BITS:
            return size
        head = self.config.vocab_size * self.config.hidden_size / self.config.matmul_parameters
        return size * (1 - head) + SIXTEEN_BITS * head

    @property
    def geometry(self) -> ModelConfig:
        """The shape, whatever its name: what is left out together when a model is."""
        return dataclasses.replace(self.config, name="")


def read_rows(path: Path) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """The column names and the rows of a CSV file, both as text without blanks at the ends.

    Raises MeasurementError for a file that is no CSV of named columns, FileNotFoundError for none.
    """
    name = shown(str(path), 400)
    with open_regular(path, at_most=MAX_BYTES, error=MeasurementError) as file:
        raw = file.read()
    try:
        reader = csv.DictReader(io.StringIO(raw.decode("utf-8-sig"), newline=""), strict=True)
        columns = tuple(column.strip() for column in reader.fieldnames or ())
        if len(set(columns)) != len(columns) or not all(columns):
            raise MeasurementError(f"{name}: its first line must name every column once, got {spelled(columns)}")
        rows = [_row(row, columns, f"{name}, line {reader.line_num}") for row in reader]
    except UnicodeDecodeError as error:
        raise MeasurementError(f"{name}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except csv.Error as error:
        raise MeasurementError(f"{name}: is not valid CSV ({error})") from error
    if not rows:
        raise MeasurementError(f"{name}: holds no measurement; below the line of column names stands one a line")
    return columns, rows


def _row(row: Mapping[str | None, str | list[str] | None], columns: tuple[str, ...], where: str) -> dict[str, str]:
    values = list(row.values())
    if None in row or None in values:
        raise MeasurementError(f"{where}: has another number of values than the {len(columns)} columns")
    return dict(zip(columns, (str(value).strip() for value in values), strict=True))


def own_measurements(
    path: Path, columns: tuple[str, ...], rows: list[dict[str, str]], config_of: Callable[[str], ModelConfig]
) -> list[Measured]:
    """Measurements in one's own layout. Raises MeasurementError, in one line, for the first row that cannot be."""
    name = shown(str(path), 400)
    for column in columns:
        if column not in COLUMNS:
            near = difflib.get_close_matches(column, COLUMNS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(COLUMNS)}"
            raise MeasurementError(f"{name}: {shown(column)} is not a column of measurements ({hint})")
    if missing := [column for column in NEEDED if column not in columns]:
        raise MeasurementError(f"{name}: column {', '.join(missing)} is missing")
    if not set(TIMES) & set(columns):
        raise MeasurementError(f"{name}: one of the columns {' and '.join(TIMES)} is needed")
    known = functools.cache(config_of)
    return [_own(row, f"{name}, line {line}", known) for line, row in enumerate(rows, 2)]


def _own(row: Mapping[str, str], where: str, config_of: Callable[[str], ModelConfig]) -> Measured:
    batch = whole(row, "batch", where, 1, MAX_BATCH)
    times = {"seconds_per_token": lambda each: each, "tokens_per_second": lambda rate: batch / rate}
    seconds = _either(row, times, where)
    if seconds is None:
        raise MeasurementError(f"{where}: {' or '.join(TIMES)} is needed")
    joules = {"joules_per_token": lambda each: each, "watts": lambda watts: watts * seconds / batch}
    try:
        config, chip = config_of(row["model"]), hardware(row["gpu"])
    except UserError as error:
        raise MeasurementError(f"{where}: {error}") from error
    if chip.calibrated:
        raise MeasurementError(f"{where}: gpu {shown(row['gpu'])} is a measured profile; name the chip that it is of")
    if bool(row.get("prompt_tokens")) != bool(row.get("output_tokens")):
        raise MeasurementError(f"{where}: prompt_tokens and output_tokens go together: seconds are then of both")
    return Measured(
        model=row["model"],
        config=config,
        gpu=chip.name if chip.name in HARDWARE else row["gpu"],  # else the path of its data sheet
        batch=batch,
        context=whole(row, "context", where, 1, MAX_TOKENS),
        seconds=seconds,
        chips=whole(row, "chips", where, 1, MAX_CHIPS, default=1),
        weights=choice(row, "weight_dtype", where, WEIGHT_BYTES),
        kv_bytes=KV_BYTES[choice(row, "kv_dtype", where, KV_BYTES)],
        joules=_either(row, joules, where),
        prompt_tokens=whole(row, "prompt_tokens", where, 0, MAX_TOKENS, default=0),
        output_tokens=whole(row, "output_tokens", where, 1, MAX_TOKENS, default=1),
        workload=row.get("workload", ""),
        engine=row.get("engine", ""),
    )


def _either(row: Mapping[str, str], meaning: Mapping[str, Callable[[float], float]], where: str) -> float | None:
    """What one of two columns means; both must mean the same within 5 %. None where neither says anything."""
    values = [means(number(row, name, where, MAX_NUMBER)) for name, means in meaning.items() if row.get(name)]
    if len(values) == 2 and not math.isclose(*values, rel_tol=0.05):
        raise MeasurementError(f"{where}: {' and '.join(meaning)} contradict each other; keep the right one")
    return values[0] if values else None


def number(row: Mapping[str, str], column: str, where: str, most: float) -> float:
    """A number above 0 and at most `most`; raises MeasurementError for anything else."""
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not 0 < value <= most:
        raise MeasurementError(
            f"{where}: {column} must be a number above 0 and at most {most:g}, got {spelled(row[column])}"
        )
    return value


def whole(row: Mapping[str, str], column: str, where: str, low: int, high: int, *, default: int | None = None) -> int:
    """A whole number in `low` … `high`, `default` where the cell is empty; raises MeasurementError otherwise."""
    text = row.get(column, "")
    if not text and default is not None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (low <= value <= high and value == math.floor(value)):
        raise MeasurementError(f"{where}: {column} must be a whole number in {low} … {high}, got {spelled(text)}")
    return int(value)


def choice(row: Mapping[str, str], column: str, where: str, known: Mapping[str, float]) -> str:
    """One of the known names, bfloat16 where the cell is empty. Raises MeasurementError for another."""
    text = row.get(column) or "bfloat16"
    if text not in known:
        raise MeasurementError(f"{where}: {column} must be one of {', '.join(known)}, got {spelled(text)}")
    return text
