"""A run of an engine that decodes by self-speculation: `Decoding` with rounds in place of steps."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kinetics_jax.attention.reads import join_halves
from kinetics_jax.engine.decoding import Decoding
from kinetics_jax.engine.requests import Running
from kinetics_jax.engine.sampling import IDLE
from kinetics_jax.engine.setup import Finished, Job, Setup
from kinetics_jax.engine.speculation import speculate_chunk
from kinetics_jax.settings import RequestError, patience


@dataclasses.dataclass(frozen=True)
class Speculated(Finished):
    """A sample that was drawn by self-speculation, its first token behind the prompt aside.

    `rounds` are the tokens that each round gave it, drafts that were kept and the dense model's own; tokens behind a
    stop by repetition, which are dropped, are counted. `drafted`: drafts in all of them.
    """

    rounds: tuple[int, ...] = ()
    drafted: int = 0

    @property
    def accepted_length(self) -> float:
        """Tokens of a round in the mean; 1: no draft was ever kept."""
        return sum(self.rounds) / len(self.rounds) if self.rounds else 1.0


def check_speculation(setup: Setup) -> None:
    """Raises RequestError where an engine cannot speculate as its settings ask."""
    if not setup.settings.speculate:
        return
    if setup.mesh is not None:
        raise RequestError("engine: speculate is for one device, not for a mesh; leave one of them out")
    if not setup.policy.sparse_layers(setup.config.num_layers):
        raise RequestError(
            f"engine: speculate drafts by a sparse policy, and {setup.policy} is dense in every layer; give one, as in "
            "block_topk:budget=1024,page_size=16"
        )


class SpeculativeDecoding(Decoding):
    """One run whose slots decode in rounds: drafts under the policy, verified by the dense model."""

    def __init__(self, setup: Setup, job: Job):
        super().__init__(setup, job)
        self._rounds: dict[tuple[str, int], list[int]] = {}

    def _decode(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, None]:
        """As `Decoding._decode`, in rounds: what one reads stands at its first token."""
        for schedule in self.schedules:
            schedule.reserve(self.table)
        setup, before = self.setup, self.slots
        settings, (schedule,) = setup.settings, self.schedules
        waits = bool(schedule.waiting or schedule.preempted)
        options: dict[str, Any] = {**setup.decodes, "ahead": settings.speculate}
        self.cache, self.slots, drawn, reads = speculate_chunk(
            setup.graph,
            setup.weights,
            self.cache,
            before,
            self.place(self.table),
            jnp.int32(patience(settings.slots) if waits else settings.slots),
            setup.known_ids,
            **options,
        )
        first, drawn, active, reads = jax.device_get((before.token, drawn, self.slots.active, reads))
        given = (drawn != IDLE).reshape(settings.slots, -1, settings.speculate + 1).sum(axis=-1)  # [slots, rounds]
        for slot, running in schedule.running.items():
            of = self._rounds.setdefault((running.request.problem, running.sample), [])
            of += given[slot][given[slot] > 0].tolist()
        self._count_rounds(given, drawn, waits)
        counts = np.zeros((*drawn.shape, 2), np.int64)  # [slots, tokens, 2], by a token's number in the chunk
        begins = np.cumsum(given, axis=1) - given
        np.add.at(
            counts,
            (np.arange(settings.slots)[:, None], np.minimum(begins, drawn.shape[1] - 1)),
            join_halves(reads.counts).reshape(*given.shape, -1, 2).sum(axis=2),
        )
        return first, drawn, active, counts, reads.fault, None

    def _count_rounds(self, given: np.ndarray, drawn: np.ndarray, waits: bool) -> None:
        """Steps are rounds here."""
        busy = given > 0
        rounds = int(np.any(busy, axis=0).sum())
        self.counts.steps += rounds
        self.counts.drawn += int((drawn >= 0).sum())
        if waits:
            self.counts.offered += rounds * self.setup.settings.slots
            self.counts.busy += int(busy.sum())

    def _finished(self, running: Running) -> Speculated:
        finished = super()._finished(running)
        rounds = tuple(self._rounds.pop((running.request.problem, running.sample), ()))
        fields = {field.name: getattr(finished, field.name) for field in dataclasses.fields(finished)}
        drafts = drafts_of(rounds, self.setup.settings.speculate, self.setup.sampling.max_tokens)
        return Speculated(**fields, rounds=rounds, drafted=int(drafts.sum()))


def drafts_of(rounds: tuple[int, ...], ahead: int, max_tokens: int) -> np.ndarray:
    """Drafts of each round `[rounds]`: `ahead`, or what the sample may still draw less the round's own token."""
    produced = 1 + np.cumsum([0, *rounds])[: len(rounds)]  # before each round; the prompt gave the first
    return np.clip(max_tokens - produced - 1, 0, ahead)
