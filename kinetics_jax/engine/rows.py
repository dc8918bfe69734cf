"""The host's side of `logits.Rows`: which settings the running samples have, as arrays with a row for each slot.

An array is there from the first request on that asks for what it holds: then the programs are compiled anew, once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

from kinetics_jax.engine.logits import IN_OUTPUT, IN_PROMPT, Rows
from kinetics_jax.engine.requests import Draw, Running
from kinetics_jax.engine.sampling import IDLE


@dataclasses.dataclass(frozen=True)
class Column:
    """One number of each slot: how it is read from a request's `Draw`, and what idle slots have; that is also what
    requests have that do not ask for it.
    """

    read: Callable[[Draw], float]
    idle: float
    dtype: DTypeLike


COLUMNS = {
    "temperature": Column(lambda draw: draw.sampling.temperature, 1.0, np.float32),
    "top_k": Column(lambda draw: draw.sampling.top_k, 0, np.int32),
    "top_p": Column(lambda draw: draw.sampling.top_p, 1.0, np.float32),
    "min_p": Column(lambda draw: draw.sampling.min_p, 0.0, np.float32),
    "min_tokens": Column(lambda draw: draw.rules.min_tokens, 0, np.int32),
    "repetition_penalty": Column(lambda draw: draw.rules.repetition_penalty, 1.0, np.float32),
    "presence_penalty": Column(lambda draw: draw.rules.presence_penalty, 0.0, np.float32),
}


class RowTable:
    """Settings of all slots. `known [vocab]` are the ids for `Sampling.known_ids_only`; an output has at most
    `positions` tokens; `to_device` places arrays with a row for each slot.
    """

    def __init__(
        self,
        *,
        slots: int,
        vocab: int,
        positions: int,
        known: Callable[[], Bool[np.ndarray, " vocab"]],
        to_device: Callable[[np.ndarray], jax.Array],
    ):
        self.slots, self.vocab, self.positions = slots, vocab, positions
        self.known, self.to_device = known, to_device
        self.asked = {"temperature"}  # columns, and "allowed", "stop_ids" and "log_probs"
        self.hooks: tuple[Callable[..., Any], ...] = ()
        self.stops = 0  # the most stop ids that a request has, rounded up to a power of two
        self.greedy = True
        self.first: list[tuple[Bool[np.ndarray, " slots"], Any]] = []  # log-probabilities of first tokens, by who began
        self._settled: tuple[list[tuple[int, Draw]], Rows | None] = ([], None)

    def note(self, draw: Draw) -> None:
        """Has what a request asks for from now on."""
        self.asked |= {name for name, column in COLUMNS.items() if column.read(draw) != column.idle}
        self.greedy &= draw.sampling.temperature == 0
        if draw.rules.allowed is not None or draw.sampling.known_ids_only:
            self.asked.add("allowed")
        if draw.rules.log_probs:
            self.asked.add("log_probs")
        if draw.rules.hook is not None and draw.rules.hook not in self.hooks:
            self.hooks = (*self.hooks, draw.rules.hook)
        if draw.rules.stop_ids:
            self.stops = max(self.stops, 1 << (len(draw.rules.stop_ids) - 1).bit_length())
        self._settled = [], None

    def rows(self, running: Mapping[int, Running]) -> Rows:
        """The settings of samples by slot, on the device."""
        draws = [(slot, run.request.draw) for slot, run in running.items() if run.request.draw is not None]
        before, settled = self._settled
        if settled is None or [(slot, id(draw)) for slot, draw in before] != [(slot, id(draw)) for slot, draw in draws]:
            settled = self._settings(draws)
            self._settled = draws, settled
        seen = self._seen(running) if self.asked & {"repetition_penalty", "presence_penalty"} else None
        output = self._output(running) if self.hooks else None
        return dataclasses.replace(
            settled,
            seen=None if seen is None else self.to_device(seen),
            output=None if output is None else self.to_device(output),
        )

    def forced(self, running: Mapping[int, Running], chunk: int) -> Int[np.ndarray, "slots chunk"]:
        """The tokens that samples are given in the next chunk, -1 where they draw."""
        forced = np.full((self.slots, chunk), -1, np.int32)
        for slot, run in running.items():
            given = run.forced[0 if run.tokens else 1 :][:chunk]  # the first token comes from prefill
            forced[slot, : len(given)] = given
        return forced

    def first_forced(self, started: Mapping[int, Running]) -> Int[np.ndarray, " slots"]:
        """The first tokens that samples are given as they start, -1 where they draw."""
        forced = np.full(self.slots, -1, np.int32)
        for slot, run in started.items():
            forced[slot] = run.forced[0] if run.forced else -1
        return forced

    def chances(
        self, chances: Float[np.ndarray, "slots chunk 2"], drawn: Int[np.ndarray, "slots chunk"]
    ) -> list[list[tuple[float, float]]]:
        """Log-probabilities of the tokens of a chunk by slot, those of first tokens before them."""
        counts = np.sum(drawn != IDLE, axis=1)
        by_slot = [[(float(a), float(b)) for a, b in chances[slot, : counts[slot]]] for slot in range(self.slots)]
        for chosen, first in self.first:
            first = np.asarray(first)
            for slot in np.flatnonzero(chosen):
                by_slot[slot].insert(0, (float(first[slot, 0]), float(first[slot, 1])))
        self.first = []
        return by_slot

    def _settings(self, draws: list[tuple[int, Draw]]) -> Rows:
        """What does not change while a sample runs."""
        arrays: dict[str, np.ndarray] = {}
        for name in self.asked & COLUMNS.keys():
            arrays[name] = np.full(self.slots, COLUMNS[name].idle, COLUMNS[name].dtype)
            for slot, draw in draws:
                arrays[name][slot] = COLUMNS[name].read(draw)
        if self.stops:
            arrays["stop_ids"] = np.full((self.slots, self.stops), -1, np.int32)
            for slot, draw in draws:
                arrays["stop_ids"][slot, : len(draw.rules.stop_ids)] = draw.rules.stop_ids
        if "allowed" in self.asked:
            arrays["allowed"] = np.ones((self.slots, self.vocab), bool)
            for slot, draw in draws:
                if draw.rules.allowed is not None:
                    arrays["allowed"][slot] = False
                    arrays["allowed"][slot, list(draw.rules.allowed)] = True
                if draw.sampling.known_ids_only:
                    arrays["allowed"][slot] &= self.known()
        if self.hooks:
            arrays["hook"] = np.full(self.slots, -1, np.int32)
            for slot, draw in draws:
                arrays["hook"][slot] = -1 if draw.rules.hook is None else self.hooks.index(draw.rules.hook)
        placed: dict[str, Any] = {name: self.to_device(array) for name, array in arrays.items()}
        return Rows(**placed, hooks=self.hooks, greedy=self.greedy, log_probs="log_probs" in self.asked)

    def _seen(self, running: Mapping[int, Running]) -> np.ndarray:
        seen = np.zeros((self.slots, self.vocab), np.uint8)
        for slot, run in running.items():
            seen[slot, np.asarray(run.request.prompt, int)] |= IN_PROMPT
            seen[slot, np.asarray(run.tokens, int)] |= IN_OUTPUT
        return seen

    def _output(self, running: Mapping[int, Running]) -> np.ndarray:
        output = np.full((self.slots, self.positions), -1, np.int32)
        for slot, run in running.items():
            output[slot, : len(run.tokens)] = run.tokens
        return output
