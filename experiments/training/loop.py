"""Training that can be stopped and continued anywhere: step, parameters and moments lie in one file."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kinetics_jax.config import ModelConfig
from kinetics_jax.files import write_atomic
from kinetics_jax.tasks.ledger import LINE
from training.decoder import Params, attend_in_blocks, attend_to_pages, merge, plain
from training.ledger_data import Batch

SAVE_EVERY = 25  # steps


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long and how fast: AdamW with a warm-up and a cosine down to 3 % of the rate."""

    steps: int
    rate: float = 3e-3
    warm_up: int = 40

    def optimizer(self) -> optax.GradientTransformation:
        """The same for every step: its state holds how far it is."""
        rate = optax.warmup_cosine_decay_schedule(0.0, self.rate, self.warm_up, self.steps, 0.03 * self.rate)
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98, weight_decay=0.01))


@dataclasses.dataclass(frozen=True)
class Progress:
    """After a step: how many are done, the mean loss of its tokens, and the share of them predicted right."""

    step: int
    loss: float
    right: float


class StateError(ValueError):
    """A state file of another training; the message names it."""


def train(
    config: ModelConfig,
    schedule: Schedule,
    initial: Callable[[], dict[str, np.ndarray]],
    batch: Callable[[int], Batch],
    state: Path,
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> Params:
    """Plain parameters after all steps. Continues from the file `state`, and keeps it up to date.

    `batch(step)` must give the same batch whenever it is asked. Raises StateError where the file is of another
    training; an exception from `on_step` ends it, at most 25 steps after what is kept.
    """
    optimizer = schedule.optimizer()
    described = json.dumps({"config": config.to_hf(), "schedule": dataclasses.asdict(schedule)}, sort_keys=True)
    params: Params = {name: jnp.asarray(value) for name, value in initial().items()}
    moments = optimizer.init(params)
    done = 0
    if state.exists():
        done, params, moments = _read(state, described, params, moments)

    @functools.partial(jax.jit, static_argnums=(5, 6), donate_argnums=(0, 1))
    def advance(params: Params, moments: Any, tokens, positions, counted, prompt: int, pages: int):
        measure = functools.partial(loss_of, config=config, prompt=prompt, pages=pages)
        (loss, right), gradient = jax.value_and_grad(measure, has_aux=True)(params, tokens, positions, counted)
        updates, moments = optimizer.update(gradient, moments, params)
        return optax.apply_updates(params, updates), moments, loss, right

    for step in range(done, schedule.steps):
        params, moments, loss, right = advance(params, moments, *batch(step))
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == schedule.steps:
            _write(state, described, step + 1, params, moments)
        on_step(Progress(step + 1, float(loss), float(right)))
    return plain(params)


def loss_of(params: Params, tokens, positions, counted, *, config: ModelConfig, prompt: int, pages: int = 0):
    """Mean cross-entropy over the whole vocabulary of the counted tokens after the prompt, and the share that is
    predicted right. tokens, positions [batch, time] int32; counted [batch, time] float32. `pages`: attention is sparse,
    to so many pages of a line; 0: dense.
    """
    model = merge(config, plain(params))
    sparse = functools.partial(attend_to_pages, page_size=LINE, pages=pages)
    hidden, _ = model(tokens[:, :-1], positions[:, :-1], sparse if pages else attend_in_blocks)
    logits = model.logits(hidden[:, prompt - 1 :])
    targets, counted = tokens[:, prompt:], counted[:, prompt:]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    right = jnp.argmax(logits, axis=-1) == targets
    return (losses * counted).sum() / counted.sum(), (right * counted).sum() / counted.sum()


def _write(path: Path, described: str, step: int, params: Params, moments: Any) -> None:
    buffer = io.BytesIO()
    leaves = jax.tree.leaves((params, moments))
    arrays: dict[str, Any] = {f"leaf{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
    np.savez(buffer, described=described, step=step, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())


def _read(path: Path, described: str, params: Params, moments: Any) -> tuple[int, Params, Any]:
    with np.load(path, allow_pickle=False) as held:
        if str(held["described"]) != described:
            raise StateError(f"{path}: holds the training of another model or schedule; move it away or name another")
        tree = jax.tree.structure((params, moments))
        leaves = [jnp.asarray(held[f"leaf{i}"]) for i in range(tree.num_leaves)]
        return int(held["step"]), *jax.tree.unflatten(tree, leaves)
