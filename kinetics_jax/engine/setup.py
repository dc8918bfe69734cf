"""What a run of an engine is made of, and what comes out of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Bool
from kinetics_kernels.backends import Backend

from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.shared_prefix import SharedPrefix, prefix_width, share_prefixes
from kinetics_jax.config import ModelConfig
from kinetics_jax.engine.capacity import bytes_per_page, describe_pool
from kinetics_jax.engine.requests import Request, Running
from kinetics_jax.padding import table_width
from kinetics_jax.settings import EngineSettings, Sampling
from kinetics_jax.sharding.mesh import row_shards


@dataclasses.dataclass(frozen=True)
class Finished:
    """One finished sample: its token ids, the end token included, and why it ended: `stop` (it drew an end token),
    `length` (it has max_tokens), `repetition` (its last `Sampling.repetition_window` tokens repeat) or `nonfinite` (the
    logits of its next token were not finite; it may have no token). `attended_tokens` and `summary_vectors` are what
    its decode steps read, over layers and KV heads, as the device counted it.
    """

    problem: str
    sample: int
    prompt_tokens: int
    output_tokens: list[int]
    finish_reason: str
    seconds: float
    attended_tokens: int
    summary_vectors: int


@dataclasses.dataclass
class Counts:
    """What a run has done so far: decode `steps`; tokens `drawn`; of the rows of steps `offered` while samples waited,
    those that were `busy`; `prefills`, repeated ones included; how often a sample was `preempted`.
    """

    steps: int = 0
    drawn: int = 0
    offered: int = 0
    busy: int = 0
    prefills: int = 0
    preempted: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """What all runs of an engine have in common: the arguments that it was made of."""

    graph: nnx.GraphDef
    weights: nnx.State
    config: ModelConfig
    policy: AttentionPolicy
    sampling: Sampling
    settings: EngineSettings
    cache_dtype: DTypeLike
    backend: Backend | None
    mesh: Mesh | None
    known_ids: Bool[Array, " vocab"] | None = None  # that may be drawn; None: all

    @property
    def shards(self) -> int:
        """How many shards slots and pages are split into."""
        return row_shards(self.mesh)

    @property
    def page_bytes(self) -> int:
        """Bytes of a page's K and V on one device."""
        return bytes_per_page(self.config, page_size=self.policy.page_size, dtype=self.cache_dtype, mesh=self.mesh)

    @property
    def draws(self) -> dict[str, Any]:
        """Static arguments of every program that draws tokens.

        max_tokens, seed and the ids that may be drawn are traced values and repetition is checked on the host, so
        changing them must not recompile.
        """
        sampling = dataclasses.replace(self.sampling, max_tokens=1, seed=0, repetition_window=0, known_ids_only=False)
        return {"sampling": sampling, "eos": self.config.eos_token_ids}

    @property
    def decodes(self) -> dict[str, Any]:
        """Static arguments of `decode_chunk`."""
        return {**self.draws, "policy": self.policy, "chunk": self.settings.chunk, "backend": self.backend}

    def describe_pool(self, num_pages: int) -> str:
        """See `capacity.describe_pool`."""
        return describe_pool(num_pages, page_size=self.policy.page_size, page_bytes=self.page_bytes, mesh=self.mesh)


@dataclasses.dataclass(frozen=True)
class Job:
    """Requests that an engine has checked, and what it decided by all of them: the width of the page table, the pages
    in the pool (those of all shards), and whether dense layers share prefixes.

    Made by `Engine.check`. Requests without samples count too: a run that is continued computes at the widths of the
    whole one.
    """

    requests: Sequence[Request]
    table_width: int
    num_pages: int
    shared_prefix: bool
    longest: int = 0  # tokens that a prompt may have, where requests come later

    @property
    def samples(self) -> int:
        """How many samples are wanted."""
        return sum(len(request.samples) for request in self.requests)

    @property
    def longest_prompt(self) -> int:
        """In tokens."""
        return max((len(request.prompt) for request in self.requests), default=self.longest)

    def without(self, done: Collection[tuple[str, int]]) -> Job:
        """The job without the samples of `done`, (problem, sample) each."""
        left = [
            dataclasses.replace(
                request, samples=[sample for sample in request.samples if (request.problem, sample) not in done]
            )
            for request in self.requests
        ]
        return dataclasses.replace(self, requests=left)


def shared_prefix(setup: Setup, job: Job, running: Mapping[int, Running]) -> SharedPrefix | None:
    """Which of the running samples, by slot, share prompt pages in the next chunk; None for a job without sharing."""
    if not job.shared_prefix:
        return None
    slots, page_size = setup.settings.slots, setup.policy.page_size
    return share_prefixes(
        ((slot, run.pages, len(run.request.prompt) // page_size) for slot, run in running.items()),
        slots=slots,
        width=prefix_width(slots, setup.config.group, setup.backend),
        prefix_pages=min(table_width(max(job.longest_prompt // page_size, 1)), job.table_width),
        max_pages=job.table_width,
        page_size=page_size,
    )
