"""A model of an engine's decode steps, fitted to measurements of it, and its error on models that it has not seen.

A step takes what the data sheet says for its reads and its arithmetic, added up, each times a factor of at least 1
(nothing is faster than the data sheet, nothing overlaps), and overheads: of a step, of a layer, of a sequence and
layer, of a sequence and entry of the vocabulary, and of an all-reduce where chips share the step. Factors and overheads
are those that minimise the sum of squared relative errors. Fixed at a factor of 1 is the arithmetic of attention, a
hundredth of what its reads take, and whatever measurements cannot tell from an earlier quantity (at batch 1, the
overhead of a sequence from that of a layer); such an overhead is 0. What all-reduces move takes what the link's data
sheet says.

Energy: watts for as long as a step takes, and joules for every FLOP and byte.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kinetics_jax.attention.policies.dense import DENSE
from kinetics_jax.costs.cost import UNIT, generation_cost, split_over_chips
from kinetics_jax.costs.hardware import Hardware, hardware
from kinetics_jax.costs.links import ALL_REDUCES, communication_seconds
from kinetics_jax.costs.measurements import Measured
from kinetics_jax.costs.step_fit import FitError, relative_nnls
from kinetics_jax.costs.step_time import step_amounts

OVERHEADS: tuple[str, ...] = ("step_seconds", "layer_seconds", "row_seconds", "logit_seconds", "all_reduce_seconds")
WORK: tuple[str, ...] = ("weight_reads", "kv_reads", "linear", "attention", "prefill_linear", "prefill_attention")
COLUMNS: tuple[str, ...] = (*OVERHEADS, "communication", *WORK)
FLOOR = np.array([0.0] * len(OVERHEADS) + [1.0] * (1 + len(WORK)))
FIXED = ("communication", "attention")  # at the data sheet's rate
ALIKE = 1 - 1e-9  # cosine from which two columns are one
LEAST_MODELS = 3  # for one to be left out
FLOOR_ROUNDING = 0.995  # of the data sheet's seconds: times are rounded
LEAST_ENERGIES = 3  # as many as unknowns


@dataclasses.dataclass(frozen=True)
class StepModel:
    """`times`: seconds of each of OVERHEADS, and how many times the data sheet's seconds each of WORK takes;
    `energy`: watts, joules of a FLOP and of a byte, of a chip (None: not measured); `free`: what was fitted.
    """

    times: Mapping[str, float]
    energy: tuple[float, float, float] | None
    free: tuple[str, ...]

    def seconds(self, rows: Sequence[Measured]) -> np.ndarray:
        """Seconds of one token of a sequence, `[rows]`."""
        return self._seconds(_design(rows))

    def joules(self, rows: Sequence[Measured]) -> np.ndarray | None:
        """Joules of one token, over all chips and at the model's own seconds, `[rows]`."""
        return self._joules(_design(rows))

    def _seconds(self, design: _Design) -> np.ndarray:
        return design.columns @ np.array([self.times[name] for name in COLUMNS])

    def _joules(self, design: _Design) -> np.ndarray | None:
        return None if self.energy is None else design.energy(self._seconds(design)) @ np.array(self.energy)

    def hardware(self, name: str, chip: Hardware, source: str) -> Hardware:
        """The profile of the chip under the engine: what is not a kind of work that was fitted keeps the data sheet's
        rate, but that page summaries are read as fast as KV is.
        """
        peak = {kind: 1 / (chip.bandwidth if kind.endswith("_reads") else chip.flops) for kind in WORK}
        units = {kind: self.times[kind] * peak[kind] for kind in WORK}
        overheads = {field: self.times[field] for field in OVERHEADS}
        if "all_reduce_seconds" not in self.free:  # measured on single chips
            overheads["all_reduce_seconds"] = chip.all_reduce_seconds
        watts, flop, byte = self.energy or (None, None, None)
        return dataclasses.replace(
            chip,
            name=name,
            source=source,
            form="sum",
            unit_seconds=units | {"search_reads": units["kv_reads"]},
            watts=watts,
            joules_per_flop=flop,
            joules_per_byte=byte,
            **overheads,
        )


@dataclasses.dataclass(frozen=True)
class _Design:
    """Measurements as arrays: of one token of a sequence, how often each overhead falls due and the data sheet's
    seconds of each kind of work on the busiest chip, `columns [rows, COLUMNS]`; FLOPs and bytes of one token of every
    sequence there, `work [rows, 2]`; `share` of one token over all chips; what was measured (NaN: no joules), `[rows]`.
    """

    columns: np.ndarray
    work: np.ndarray
    share: np.ndarray
    seconds: np.ndarray
    joules: np.ndarray

    def of(self, chosen: np.ndarray) -> _Design:
        """The design of some rows: indices, or a bool for each."""
        return _Design(*(getattr(self, field.name)[chosen] for field in dataclasses.fields(self)))

    def energy(self, seconds: np.ndarray) -> np.ndarray:
        """Chip-seconds, FLOPs and bytes of one token, over all chips, `[rows, 3]`."""
        return np.column_stack([seconds, self.work]) * self.share[:, None]


def _design(rows: Sequence[Measured]) -> _Design:
    work = [work_amounts(row) for row in rows]
    reads = np.array([sum(amounts[kind] for kind in WORK if kind.endswith("_reads")) for amounts in work])
    flops = np.array([sum(amounts.values()) for amounts in work]) - reads
    return _Design(
        columns=np.array([_units(row, amounts) for row, amounts in zip(rows, work, strict=True)]),
        work=np.stack([flops, reads], axis=1),
        share=np.array([row.chips / row.batch for row in rows]),
        seconds=np.array([row.seconds for row in rows]),
        joules=np.array([np.nan if row.joules is None else row.joules for row in rows]),
    )


def fit_measured(rows: Sequence[Measured]) -> StepModel:
    """The model that is closest to measurements of one engine on one kind of chip. Raises FitError for none."""
    if not rows:
        raise FitError("there is no measurement to fit")
    return _fit(_design(rows))


def _fit(design: _Design) -> StepModel:
    free = _told_apart(design.columns / design.seconds[:, None])
    left = design.seconds - design.columns @ FLOOR
    coefficients = FLOOR.copy()
    coefficients[free] += relative_nnls(design.columns[:, free], design.seconds, left)
    times = dict(zip(COLUMNS, coefficients.tolist(), strict=True))
    return StepModel(times, _fit_energy(design), tuple(COLUMNS[column] for column in free))


def _fit_energy(design: _Design) -> tuple[float, float, float] | None:
    measured = design.of(~np.isnan(design.joules))
    if len(measured.joules) < LEAST_ENERGIES:
        return None
    watts, flop, byte = relative_nnls(measured.energy(measured.seconds), measured.joules).tolist()
    return watts, flop, byte


def _told_apart(columns: np.ndarray) -> list[int]:
    """Of `[rows, columns]`, those that are not all zero and not a multiple of an earlier one."""
    lengths = np.linalg.norm(columns, axis=0)
    kept: list[int] = []
    for column in np.flatnonzero(lengths):
        if COLUMNS[column] in FIXED:
            continue
        unit = columns[:, column] / lengths[column]
        if all(unit @ columns[:, other] / lengths[other] < ALIKE for other in kept):
            kept.append(int(column))
    return kept


def _units(row: Measured, work: Mapping[str, float]) -> list[float]:
    """One row of `_Design.columns`."""
    layers, chip = row.config.num_layers, _chip(row)
    counts = {
        "step_seconds": 1.0,
        "layer_seconds": layers,
        "row_seconds": layers * row.batch,
        "logit_seconds": row.config.vocab_size * row.batch,
        "all_reduce_seconds": ALL_REDUCES * layers * (row.chips > 1),
    }
    peak = {True: chip.bandwidth, False: chip.flops}  # by whether it is reads
    bare = dataclasses.replace(chip, all_reduce_seconds=0.0)
    moved = communication_seconds(row.config, bare, row.chips, row.batch)  # but for the latency, which is fitted
    return [*counts.values(), float(moved), *(work[kind] / peak[kind.endswith("_reads")] for kind in WORK)]


def work_amounts(row: Measured) -> dict[str, float]:
    """FLOPs and bytes of one token of every sequence on the busiest chip, by kind of WORK; the prompt's prefill by the
    share that falls to one token.
    """
    amounts = step_amounts(
        row.config,
        DENSE,
        contexts=np.full(row.batch, row.context),
        kv_bytes=row.kv_bytes,
        weight_bytes=row.weight_bytes,
    )
    if row.prompt_tokens:
        prompt = generation_cost(row.config, prompt_tokens=row.prompt_tokens, output_tokens=1, intensity=1)
        share = UNIT * row.batch / row.output_tokens
        amounts |= {name: share * part for name, part in prompt.parts.items() if name.startswith("prefill")}
    mine = split_over_chips(amounts, row.config, row.chips)
    kinds = sorted(WORK, key=len, reverse=True)  # `prefill_linear` ends in `linear`
    work = dict.fromkeys(WORK, 0.0)
    for name, amount in mine.items():
        kind = next((kind for kind in kinds if name.endswith(kind)), None)
        if kind is not None:
            work[kind] += float(amount)
    return work


def _chip(row: Measured) -> Hardware:
    """The data sheet at the precision of the products: 8-bit floats are multiplied as such, integers are unpacked."""
    chip = hardware(row.gpu)
    return chip.at("float8") if row.weights == "float8" else chip


def data_sheet_seconds(row: Measured) -> float:
    """What the roofline of the data sheet says of one token of a sequence, prefill and decode each on their own."""
    chip = _chip(row)
    work = work_amounts(row)
    prefill = {name: amount for name, amount in work.items() if name.startswith("prefill")}
    decode = {name: amount for name, amount in work.items() if name not in prefill}
    return float(chip.seconds(decode) + chip.seconds(prefill))


class Floor(NamedTuple):
    """A measurement that is quicker than the data sheet allows, `times` its seconds (below 1)."""

    row: Measured
    times: float


def below_data_sheet(rows: Sequence[Measured]) -> list[Floor]:
    """Measurements that took less than the roofline of the data sheet, the farthest below it first: of another model,
    batch, context or number of chips than they say, or counted otherwise.
    """
    found = [Floor(row, row.seconds / data_sheet_seconds(row)) for row in rows]
    return sorted((each for each in found if each.times < FLOOR_ROUNDING), key=lambda each: each.times)


def in_sample(rows: Sequence[Measured]) -> list[HeldOut]:
    """Every measurement against the fit to all of them, itself included: how well the form of the model can do."""
    design = _design(rows)
    model = _fit(design)
    seconds, energy = model._seconds(design), model._joules(design)
    joules = np.full(len(rows), np.nan) if energy is None else energy
    errors = zip(rows, seconds / design.seconds - 1, joules / design.joules - 1, strict=True)
    return [HeldOut(row, float(error), float(joule)) for row, error, joule in errors]


class HeldOut(NamedTuple):
    """A measurement, what a fit to the other models says of it, and the relative errors of that: `seconds` and `joules`
    (NaN: not measured)."""

    row: Measured
    seconds: float
    joules: float


def held_out(rows: Sequence[Measured]) -> list[HeldOut]:
    """Every measurement against the fit to all others but those of its model, in order. Raises FitError for fewer than
    LEAST_MODELS models (shapes: what differs in training alone is one).
    """
    shapes = list(dict.fromkeys(row.geometry for row in rows))
    if len(shapes) < LEAST_MODELS:
        raise FitError(
            f"to leave a model out, measurements of {LEAST_MODELS} or more are needed, got {len(shapes)} "
            f"({', '.join(dict.fromkeys(row.model for row in rows)) or 'none'})"
        )
    design, of_shape = _design(rows), np.array([shapes.index(row.geometry) for row in rows])
    seconds, joules = np.empty(len(rows)), np.full(len(rows), np.nan)
    for shape in range(len(shapes)):
        left = of_shape == shape
        model, mine = _fit(design.of(~left)), design.of(left)
        seconds[left] = model._seconds(mine)
        if (energy := model._joules(mine)) is not None:
            joules[left] = energy
    errors = zip(rows, seconds / design.seconds - 1, joules / design.joules - 1, strict=True)
    return [HeldOut(row, float(error), float(energy)) for row, error, energy in errors]


def strata(
    errors: Iterable[HeldOut],
    by: Callable[[Measured], tuple[object, ...]] = lambda row: (row.engine, row.weights, row.chips, row.workload),
) -> dict[tuple[object, ...], dict[str, float | int | None]]:
    """Of every stratum: how many measurements of how many models; the median and the worst of the held-out errors of
    seconds and of joules, without sign; and how many times the data sheet's seconds it took, in the median.
    """
    groups: dict[tuple[object, ...], list[HeldOut]] = {}
    for error in errors:
        groups.setdefault(by(error.row), []).append(error)
    return {key: summary(group) for key, group in sorted(groups.items(), key=lambda item: str(item[0]))}


def summary(errors: Sequence[HeldOut]) -> dict[str, float | int | None]:
    """Of some held-out errors: see `strata`."""
    seconds = np.abs([error.seconds for error in errors])
    joules = np.abs([error.joules for error in errors if not np.isnan(error.joules)])
    ratio = [error.row.seconds / data_sheet_seconds(error.row) for error in errors]
    return {
        "rows": len(errors),
        "models": len({error.row.geometry for error in errors}),
        "median_error": float(np.median(seconds)),
        "worst_error": float(np.max(seconds)),
        "median_joules_error": float(np.median(joules)) if len(joules) else None,
        "worst_joules_error": float(np.max(joules)) if len(joules) else None,
        "times_data_sheet": float(np.median(ratio)),
    }
