"""Fits what a device's decode steps cost: non-negative least squares in relative error, additive and max form."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import get_args

import numpy as np

from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.hardware import KINDS, Form, Hardware
from kinetics_jax.costs.step_time import prefill_amounts, prefill_seconds, step_amounts, step_seconds
from kinetics_jax.errors import UserError

FOLDS = 5
OVERHEADS = ("step_seconds", "layer_seconds", "row_seconds", "logit_seconds")


class FitError(UserError):
    """Measurements to which no step-time model can be fitted; the message says what is missing."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A measured decode step: `batch` sequences of `context` tokens each, the step's own included, in tables `width`
    tokens wide; its `seconds`.
    """

    config: ModelConfig
    policy: AttentionPolicy
    batch: int
    context: int
    width: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Prefill:
    """A measured prefill of one prompt, its first token drawn."""

    config: ModelConfig
    page_size: int
    prompt_tokens: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class FittedProfile:
    """A fitted profile, and the mean relative error of each form when a fifth of the steps is left out in turn."""

    hardware: Hardware
    cross_validated: dict[str, float]


def fit(
    device: Hardware,
    steps: Sequence[Step],
    prefills: Sequence[Prefill] = (),
    *,
    kv_bytes: float = 4,
    weight_bytes: float = 4,
) -> FittedProfile:
    """The profile whose step times come closest to the measured ones, in the form that predicts left-out steps better.

    `device` gives what is not fitted: name, `flops`, `bandwidth`, `memory`, `padded`, price. Raises FitError for fewer
    steps than there are unknowns or a time that is not positive.
    """
    if len(steps) < 2 * FOLDS:
        raise FitError(f"{len(steps)} measured steps are too few to fit a profile; at least {2 * FOLDS} are needed")
    if not all(measured.seconds > 0 for measured in (*steps, *prefills)):
        raise FitError("a measured time is not positive; measure again")
    bytes_of = {"kv_bytes": kv_bytes, "weight_bytes": weight_bytes}
    fold = np.random.default_rng(0).permutation(len(steps)) % FOLDS

    def fitted(form: Form, chosen: Sequence[Step]) -> Hardware:
        return _fit_steps(dataclasses.replace(device, form=form), chosen, **bytes_of)

    errors: dict[str, float] = {}
    for form in get_args(Form):
        left_out = np.empty(len(steps))
        for index in range(FOLDS):
            profile = fitted(form, [step for step, part in zip(steps, fold, strict=True) if part != index])
            held = [step for step, part in zip(steps, fold, strict=True) if part == index]
            left_out[fold == index] = relative_errors(profile, held, **bytes_of)
        errors[form] = float(np.mean(np.abs(left_out)))
    best: Form = "max" if errors["max"] < errors["sum"] else "sum"
    profile = fitted(best, steps)
    return FittedProfile(_fit_prefills(profile, prefills, weight_bytes) if prefills else profile, errors)


def relative_errors(
    hardware: Hardware, steps: Sequence[Step], *, kv_bytes: float = 4, weight_bytes: float = 4
) -> np.ndarray:
    """(predicted - measured) / measured of every step, float64 `[steps]`."""
    return np.array(
        [
            step_seconds(
                step.config,
                step.policy,
                hardware,
                contexts=np.full(step.batch, step.context),
                width=step.width,
                kv_bytes=kv_bytes,
                weight_bytes=weight_bytes,
            )
            / step.seconds
            - 1
            for step in steps
        ]
    )


def _fit_steps(device: Hardware, steps: Sequence[Step], kv_bytes: float, weight_bytes: float) -> Hardware:
    kinds = [kind for kind in KINDS if not kind.startswith("prefill")]
    work = np.zeros((len(steps), len(kinds)))
    for row, step in enumerate(steps):
        amounts = step_amounts(
            step.config,
            step.policy,
            contexts=np.full(step.batch, step.context),
            width=step.width,
            kv_bytes=kv_bytes,
            weight_bytes=weight_bytes,
            padded=device.padded,
        )
        for name, amount in amounts.items():
            kind = next((at for at, kind in enumerate(kinds) if name.endswith(kind)), None)
            if kind is not None:
                work[row, kind] += amount
    layers, vocab, batch = (
        np.array(column, np.float64)
        for column in zip(*((s.config.num_layers, s.config.vocab_size, s.batch) for s in steps), strict=True)
    )
    overheads = np.stack([np.ones(len(steps)), layers, layers * batch, vocab * batch], axis=1)
    seconds = np.array([step.seconds for step in steps])
    reads = np.array([kind.endswith("_reads") for kind in kinds])
    if device.form == "sum":
        coefficients = relative_nnls(np.concatenate([overheads, work], axis=1), seconds)
    else:
        coefficients = _max_form(overheads, work, reads, seconds)
    units = dict(zip(kinds, coefficients[len(OVERHEADS) :].tolist(), strict=True))
    return dataclasses.replace(
        device, unit_seconds=units, **dict(zip(OVERHEADS, coefficients[: len(OVERHEADS)].tolist(), strict=True))
    )


def _max_form(overheads: np.ndarray, work: np.ndarray, reads: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Alternates between which side of the max every step is on and the best coefficients; the best fit met.

    Begins from a fit in which nothing overlaps, and from rooflines with their ridge between any two eighths of the
    steps by FLOPs per byte.
    """
    sides = np.stack([work * ~reads, work * reads])  # [side, steps, kinds]
    both = relative_nnls(np.concatenate([overheads, work], axis=1), seconds)[overheads.shape[1] :]
    intensity = np.argsort(np.argsort(sides[0].sum(1) / sides[1].sum(1))) / len(seconds)
    best, least = np.zeros(overheads.shape[1] + work.shape[1]), np.inf
    for side in (np.argmax(sides @ both, axis=0), *((intensity < ridge / 8).astype(int) for ridge in range(9))):
        for _ in range(20):
            active = sides[side, np.arange(len(seconds))]
            coefficients = relative_nnls(np.concatenate([overheads, active], axis=1), seconds)
            fixed, units = coefficients[: overheads.shape[1]], coefficients[overheads.shape[1] :]
            both_sides = sides @ units
            error = float(np.sum(np.square((overheads @ fixed + both_sides.max(0)) / seconds - 1)))
            if error < least:
                best, least = coefficients, error
            after = np.argmax(both_sides, axis=0)
            if np.array_equal(after, side):
                break
            side = after
    return best


def relative_nnls(columns: np.ndarray, seconds: np.ndarray, target: np.ndarray | None = None) -> np.ndarray:
    """Coefficients >= 0 that minimise Σ ((columns @ x - target) / seconds)²; `target` is `seconds` by default."""
    from scipy.optimize import nnls

    relative = columns / seconds[:, None]
    scale = np.linalg.norm(relative, axis=0)
    scale[scale == 0] = 1  # a kind of work that no step did
    return nnls(relative / scale, (seconds if target is None else target) / seconds)[0] / scale


def _fit_prefills(hardware: Hardware, prefills: Sequence[Prefill], weight_bytes: float) -> Hardware:
    """Adds the rates of prefill and `prompt_seconds`: what the steps' weight reads and overheads leave."""
    kinds = ("prefill_linear", "prefill_attention")
    bare = dataclasses.replace(
        hardware, prompt_seconds=0.0, unit_seconds={**hardware.unit_seconds, **dict.fromkeys(kinds, 0.0)}
    )
    columns, left = [], []
    for prefill in prefills:
        shape = {"prompt_tokens": prefill.prompt_tokens, "page_size": prefill.page_size, "weight_bytes": weight_bytes}
        amounts = prefill_amounts(prefill.config, **shape)
        known = float(prefill_seconds(prefill.config, bare, **shape))
        if hardware.form == "max":  # prefill is arithmetic: its reads of the weights hide behind it
            known -= float(amounts["weight_reads"]) * hardware.unit_seconds["weight_reads"]
        columns.append([float(amounts[kind]) for kind in kinds] + [1.0])
        left.append(max(prefill.seconds - known, 1e-3 * prefill.seconds))
    seconds = np.array([prefill.seconds for prefill in prefills])
    # Weighted by the whole time, of which only a part is left to explain.
    coefficients = relative_nnls(np.array(columns), seconds, np.array(left))
    units = {**hardware.unit_seconds, **dict(zip(kinds, coefficients[:2].tolist(), strict=True))}
    return dataclasses.replace(hardware, unit_seconds=units, prompt_seconds=float(coefficients[2]))
