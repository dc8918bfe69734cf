"""Measures this device with the engine's own steps and fits the hardware profile that predicts them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from kinetics_kernels.backends import Backend, chosen_backend

from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.hardware import Hardware
from kinetics_jax.costs.step_fit import FittedProfile, Prefill, Step, fit, relative_errors
from kinetics_jax.devices.random_decode import RandomDecode, random_graph, random_weights, read_bandwidth
from kinetics_jax.engine.capacity import device_memory
from kinetics_jax.engine.engine import Engine, Request
from kinetics_jax.settings import EngineSettings, Sampling

Clock = Callable[[], float]

STEPS = 8  # decode steps of a timed chunk
ROUNDS = 5  # turns of every measurement
TURN_SECONDS = 0.03  # of a turn, at least
SAMPLING = Sampling(temperature=1.0, max_tokens=1)  # draws from the whole vocabulary, as runs do
MAX_WORK = 1e9  # parameters times batch: larger batches of larger models take too long on a CPU
PREFILLS = (48, 192, 768)  # prompt tokens: each is padded to another length, also in a model of 512 positions
PROMPTS = 4  # prefilled in a turn, a slot for each
LATER = 8  # starts in a turn, beyond the first


@dataclasses.dataclass(frozen=True)
class Measurements:
    """What is measured: decode steps that are `fitted`, others that are `held_out`; models by name (`shapes`), and the
    prompt tokens of the `prefills` of each.
    """

    shapes: dict[str, ModelConfig]
    fitted: list[Point]
    held_out: list[Point]
    prefills: tuple[int, ...]

    @property
    def parts(self) -> int:
        """How often `calibrate` calls `on_part`."""
        measured = len(self.fitted) + len(self.held_out) + len(self.shapes) * (len(self.prefills) + 1)
        return len(self.programs) + ROUNDS * measured + 2

    @property
    def programs(self) -> list[tuple[str, int, AttentionPolicy, int]]:
        """What is compiled once: shape, batch, policy and width. Dense steps of all contexts share the widest one's."""
        return list(dict.fromkeys(point.program for point in (*self.fitted, *self.held_out)))


@dataclasses.dataclass(frozen=True)
class Point:
    """A decode step to be timed: `batch` sequences of `context` tokens in page tables for `width` tokens."""

    shape: str
    policy: AttentionPolicy
    batch: int
    context: int
    width: int

    @property
    def program(self) -> tuple[str, int, AttentionPolicy, int]:
        """What it is compiled for: shape, batch, policy and width."""
        return self.shape, self.batch, self.policy, self.width


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The fitted profile, every measured step with its relative error, the mean errors of the forms that were fitted
    (cross-validated), and the measured prefills.
    """

    hardware: Hardware
    fitted: list[tuple[Step, float]]
    held_out: list[tuple[Step, float]]
    cross_validated: dict[str, float]
    prefills: list[Prefill]

    @property
    def error(self) -> float:
        """Mean absolute relative error over the held-out steps."""
        return _mean_error(self.held_out)

    @property
    def fitted_error(self) -> float:
        """Mean absolute relative error over the fitted steps."""
        return _mean_error(self.fitted)

    def record(self) -> dict[str, Any]:
        """Profile, errors and every measurement, for JSON."""

        def rows(steps: list[tuple[Step, float]]) -> list[dict[str, Any]]:
            return [
                {
                    "shape": step.config.name,
                    "attention": str(step.policy),
                    "batch": step.batch,
                    "context": step.context,
                    "seconds": step.seconds,
                    "error": round(error, 4),
                }
                for step, error in steps
            ]

        return {
            "hardware": dataclasses.asdict(self.hardware),
            "held_out_error": self.error,
            "fitted_error": self.fitted_error,
            "cross_validated_error": self.cross_validated,
            "held_out": rows(self.held_out),
            "fitted": rows(self.fitted),
            "prefills": [
                {"shape": prefill.config.name, "prompt_tokens": prefill.prompt_tokens, "seconds": prefill.seconds}
                for prefill in self.prefills
            ],
        }


def _mean_error(steps: list[tuple[Step, float]]) -> float:
    return float(np.mean([abs(error) for _, error in steps]))


def _shape(layers: int, hidden: int, heads: int, kv_heads: int, head_dim: int, ffn: int, vocab: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        tie_word_embeddings=True,
        name=f"{layers} layers of {hidden}",
    )


# Small decoders that differ in depth, width, grouping and vocabulary, so that no two kinds of work grow together.
SHAPES = {
    shape.name: shape
    for shape in (
        _shape(4, 256, 8, 2, 64, 768, 4096),
        _shape(8, 384, 8, 8, 64, 1024, 1024),
        _shape(4, 1024, 8, 4, 128, 3072, 8192),
    )
}


def choose_measurements(
    shapes: dict[str, ModelConfig] | None = None,
    policies: Sequence[AttentionPolicy] = (),
    *,
    batches: Sequence[int] = (),
    quick: bool = False,
) -> Measurements:
    """Chooses batches, contexts and policies for every shape; what is held out has another batch, context and budget.

    `policies` are measured beside dense attention, by default block top-k at budgets that suit the contexts; where they
    are given, what is held out has the same budgets. `batches` are fitted; twice each but the last are held out.
    """
    shapes = shapes or (dict(itertools.islice(SHAPES.items(), 2)) if quick else SHAPES)
    chosen = sorted(set(batches or ((4, 16) if quick else (2, 8, 32))))
    between = [batch * 2 for batch in chosen[:-1]] or [chosen[0] * 2]
    fitted: list[Point] = []
    held_out: list[Point] = []
    for name, shape in shapes.items():
        longest = min(512 if quick else 1024, shape.max_position_embeddings - STEPS)
        short, middle, half = longest // 16, longest // 4, longest // 2
        heavy = shape.matmul_parameters * chosen[-1] > MAX_WORK
        for batch in chosen[:-1] if heavy else chosen:
            widest = longest if batch <= 32 else half
            fitted += [Point(name, Dense(), batch, context, widest) for context in (short, middle, widest)]
            sparse = policies or [_sparse(middle // 2)]
            fitted += [
                Point(name, policy, batch, context, context) for policy in sparse for context in (middle, widest)
            ]
        for batch in between[:-1] if heavy and len(between) > 1 else between:
            held_out += [Point(name, Dense(), batch, context, half) for context in (short * 3, half)]
            held_out += [Point(name, policy, batch, half, half) for policy in policies or [_sparse(middle)]]
    return Measurements(shapes, fitted, held_out, PREFILLS[::2] if quick else PREFILLS)


def _sparse(budget: int) -> BlockTopK:
    size = 16 if budget >= 64 else 4
    return BlockTopK(budget=budget // size * size, page_size=size, dense_layers=())


def calibrate(
    measurements: Measurements,
    *,
    name: str | None = None,
    backend: Backend | None = None,
    price_per_hour: float | None = None,
    on_part: Callable[[str], None] = lambda what: None,
    clock: Clock = time.perf_counter,
) -> Calibration:
    """Takes the measurements, fits a profile to them, and compares it with the steps that were not fitted.

    `on_part` is called with what is measured next, `measurements.parts` times. `clock` returns seconds; with
    time.process_time the profile predicts CPU seconds of a run on a host, which other work there disturbs less. Raises
    FitError for too few steps.
    """
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    size = jnp.dtype(dtype).itemsize
    chosen = backend or chosen_backend("paged_decode")[0]
    memory = device_memory()
    on_part("memory bandwidth")
    bandwidth = read_bandwidth(256)
    on_part("matrix products")
    flops = matmul_rate(dtype)
    seconds: dict[Point | tuple[str, int], float] = {}
    for shape_name in measurements.shapes:
        seconds |= _shape_seconds(
            measurements,
            shape_name,
            dtype,
            backend=backend,
            on_part=on_part,
            clock=clock,
            cache_bytes=memory[0] / 4 if memory else math.inf,
        )
    prefills = [
        Prefill(shape, Dense.page_size, _prompt_tokens(shape, tokens), seconds[name, tokens])
        for name, shape in measurements.shapes.items()
        for tokens in measurements.prefills
    ]

    def steps(points: Sequence[Point]) -> list[Step]:
        return [
            # The chunk's steps go on from `context`: on average they see half a chunk more, and their own token.
            Step(
                measurements.shapes[point.shape],
                point.policy,
                point.batch,
                point.context + STEPS // 2,
                point.width + STEPS,
                seconds[point],
            )
            for point in points
        ]

    device = Hardware(
        name=name or f"{jax.devices()[0].device_kind} {chosen}",
        flops=flops,
        bandwidth=bandwidth,
        memory=float(memory[0] if memory else 1),
        price_per_hour=price_per_hour,
        source=f"kinetics calibrate, jax {jax.__version__}, {chosen} kernels, {jnp.dtype(dtype).name}",
        peaks={jnp.dtype(dtype).name: flops},
        padded=chosen == "xla",
    )
    fitted, held_out = steps(measurements.fitted), steps(measurements.held_out)
    best: FittedProfile = fit(device, fitted, prefills, kv_bytes=size, weight_bytes=size)
    later = max(statistics.median(seconds[name, 0] for name in measurements.shapes), 0.0)
    profile = dataclasses.replace(best.hardware, start_seconds=later)

    def with_errors(steps: list[Step]) -> list[tuple[Step, float]]:
        errors = relative_errors(profile, steps, kv_bytes=size, weight_bytes=size)
        return list(zip(steps, errors.tolist(), strict=True))

    found = Calibration(profile, with_errors(fitted), with_errors(held_out), best.cross_validated, prefills)
    errors = f"steps {found.fitted_error:.1%} off in the mean" + (f", others {found.error:.1%}" if held_out else "")
    return dataclasses.replace(found, hardware=dataclasses.replace(profile, source=f"{profile.source}; {errors}"))


def _shape_seconds(
    measurements: Measurements,
    shape_name: str,
    dtype: Any,
    *,
    backend: Backend | None,
    on_part: Callable[[str], None],
    clock: Clock,
    cache_bytes: float,
) -> dict[Point | tuple[str, int], float]:
    """Seconds of every decode step of a shape, of its prefills by (shape, tokens), and of a start by (shape, 0).

    What is measured takes turns, all at once unless the KV caches have more than `cache_bytes` together.
    """
    shape = measurements.shapes[shape_name]
    weights = random_weights(shape, dtype)
    measures: dict[Any, Callable[[], float]] = {
        (shape_name, tokens): prefill_measure(shape, weights, tokens, dtype, backend, clock)
        for tokens in measurements.prefills
    }
    measures[shape_name, 0] = start_measure(shape, weights, min(measurements.prefills), dtype, backend, clock)
    seconds: dict[Point | tuple[str, int], float] = {}
    held = 0
    programs = [program for program in measurements.programs if program[0] == shape_name]
    for program in programs:
        _, batch, policy, width = program
        on_part(f"{shape_name}, {batch} x {width} tokens, {policy.kind}: compile")
        decode = RandomDecode(
            shape,
            weights,
            batch=batch,
            context=width,
            policy=policy,
            steps=STEPS,
            sampling=SAMPLING,
            dtype=dtype,
            backend=backend,
            clock=clock,
        )
        for point in (*measurements.fitted, *measurements.held_out):
            if point.program == program:
                measures[point] = functools.partial(decode.seconds_per_step, point.context)
        held += decode.cache_bytes
        if program == programs[-1] or held > cache_bytes:
            seconds |= interleaved(measures, functools.partial(on_part, f"{shape_name}: time"))
            measures, held = {}, 0
    return seconds


def matmul_rate(dtype: Any, size: int = 1024) -> float:
    """FLOP/s of a product of two `[size, size]` matrices of `dtype`."""
    left, right = jnp.ones((size, size), dtype), jnp.ones((size, size), dtype)
    product = jax.jit(lambda x, y: jnp.einsum("...i,oi->...o", x, y))
    product(left, right).block_until_ready()

    def once() -> float:
        began = time.perf_counter()
        product(left, right).block_until_ready()
        return time.perf_counter() - began

    return 2 * size**3 / interleaved({"product": once})["product"]


def interleaved(
    measures: Mapping[Any, Callable[[], float]], on_turn: Callable[[], None] = lambda: None, *, rounds: int = ROUNDS
) -> dict[Any, float]:
    """Seconds of each measure, by its own clock: all take turns, `rounds` times over, in another order every time.

    A turn is a call that warms the caches and then calls for TURN_SECONDS, of which the median counts; of the turns
    counts the lower quartile, since interference comes in bursts and only ever slows a measurement down.
    """
    medians: dict[Any, list[float]] = {key: [] for key in measures}
    keys, rng = list(measures), np.random.default_rng(0)
    for _ in range(rounds):
        for index in rng.permutation(len(keys)).tolist():
            on_turn()
            measures[keys[index]]()
            turn: list[float] = []
            began = time.perf_counter()
            while not turn or time.perf_counter() - began < TURN_SECONDS:
                turn.append(measures[keys[index]]())
            medians[keys[index]].append(statistics.median(turn))
    return {key: float(np.quantile(turns, 0.25)) for key, turns in medians.items()}


def _prompt_tokens(shape: ModelConfig, tokens: int) -> int:
    """So many tokens, or as many as the model's positions hold beside an output."""
    return min(tokens, shape.max_position_embeddings - 2)


def prefill_measure(
    shape: ModelConfig,
    weights: Any,
    tokens: int,
    dtype: Any = jnp.float32,
    backend: Backend | None = None,
    clock: Clock = time.perf_counter,
) -> Callable[[], float]:
    """Measures a prompt through the engine: it is computed, its sample is started and ends with its first token.

    Returns a function of no arguments that returns the seconds of one prompt.
    """
    run = _engine_run(shape, weights, [_prompt_tokens(shape, tokens)] * PROMPTS, 1, dtype, backend, clock)
    return lambda: run() / PROMPTS


def start_measure(
    shape: ModelConfig,
    weights: Any,
    tokens: int,
    dtype: Any = jnp.float32,
    backend: Backend | None = None,
    clock: Clock = time.perf_counter,
) -> Callable[[], float]:
    """Measures a start of a prompt's further samples through the engine, with the chunk and the host's part of it.

    Every sample ends with its first token, so that samples beyond the slots start in later chunks. Returns a function
    of no arguments that returns the seconds of one start.
    """
    many = _engine_run(shape, weights, [_prompt_tokens(shape, tokens)], PROMPTS * (1 + LATER), dtype, backend, clock)
    one = _engine_run(shape, weights, [_prompt_tokens(shape, tokens)], PROMPTS, dtype, backend, clock)
    return lambda: (many() - one()) / LATER


def _engine_run(
    shape: ModelConfig,
    weights: Any,
    prompts: list[int],
    samples: int,
    dtype: Any,
    backend: Backend | None,
    clock: Clock,
) -> Callable[[], float]:
    """Returns a function that returns the engine's seconds for prompts of so many tokens each, with `samples` samples
    of one token each of every prompt.
    """
    engine = Engine(
        random_graph(shape),
        weights,
        shape,
        policy=Dense(),
        sampling=SAMPLING,
        settings=EngineSettings(slots=PROMPTS, chunk=STEPS),
        cache_dtype=dtype,
        backend=backend,
    )
    rng = np.random.default_rng(2)
    requests = [
        Request(str(index), rng.integers(shape.vocab_size, size=tokens).tolist(), range(samples))
        for index, tokens in enumerate(prompts)
    ]

    def once() -> float:
        began = clock()
        drawn = sum(1 for _ in engine.run(requests))
        assert drawn == samples * len(prompts)
        return clock() - began

    once()  # compiles
    return once
