"""What callers hold: a model, a policy and a sampling, checked against requests before anything is computed.

Prompts are prefilled once; their samples share the prompt's pages and fill a fixed set of slots (`engine.decoding`).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Bool
from kinetics_kernels.backends import Backend

from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.registry import as_policy
from kinetics_jax.attention.shared_prefix import prefix_obstacle, sharing_chosen
from kinetics_jax.config import ModelConfig
from kinetics_jax.engine.abstract import abstract_cache, abstract_rows, abstract_scalar, abstract_slots
from kinetics_jax.engine.capacity import SMALLER_POOL, device_memory, pool_size, worst_case
from kinetics_jax.engine.decoding import Decoding
from kinetics_jax.engine.programs import decode_chunk
from kinetics_jax.engine.prompts import Count, prompt_ids
from kinetics_jax.engine.requests import Request
from kinetics_jax.engine.setup import Finished, Job, Setup, shared_prefix
from kinetics_jax.engine.speculative_decoding import SpeculativeDecoding, check_speculation
from kinetics_jax.settings import EngineSettings, RequestError, Sampling, sample_indices, whole_number
from kinetics_jax.sharding.mesh import check_mesh, mesh_spelling

DEFAULT_LENGTH = 4096  # tokens of a sequence in an open decoder, unless it is told otherwise


class Engine:
    """Decodes requests under one policy and one sampling; yields samples as they finish.

    `graph, weights` are `nnx.split(model)`; `backend` forces the kernels' backend. On a `mesh` (the model's) slots and
    pages are split among its shards: a sample decodes where its pages are, and a prompt is prefilled on each shard that
    draws samples of it. `known_ids` are the ids that may be drawn, for `Sampling.known_ids_only`. It holds no run: any
    number may go on at once, each with a cache of its own. Raises MeshError
    if the mesh does not divide the model, RequestError if it does not divide the slots.
    """

    def __init__(
        self,
        graph: nnx.GraphDef,
        weights: nnx.State,
        config: ModelConfig,
        *,
        policy: AttentionPolicy | str,
        sampling: Sampling,
        settings: EngineSettings = EngineSettings(),
        cache_dtype: DTypeLike = jnp.float32,
        backend: Backend | None = None,
        mesh: Mesh | None = None,
        known_ids: Bool[np.ndarray, " vocab"] | None = None,
    ):
        policy = as_policy(policy)
        for name, value, kind in (("sampling", sampling, Sampling), ("settings", settings, EngineSettings)):
            if not isinstance(value, kind):
                article = "an" if kind is EngineSettings else "a"
                raise RequestError(f"engine: {name} must be {article} {kind.__name__}, got {value!r:.60}")
        if sampling.known_ids_only and known_ids is None:
            raise RequestError(
                "engine: known_ids_only needs known_ids, which LanguageModel.engine takes from its tokenizer"
            )
        known = None if known_ids is None else jnp.asarray(known_ids)
        self.setup = Setup(graph, weights, config, policy, sampling, settings, cache_dtype, backend, mesh, known)
        if mesh is not None:
            check_mesh(mesh, config)
            if settings.slots % self.setup.shards:
                raise RequestError(
                    f"engine: {settings.slots} slots cannot be split over mesh {mesh_spelling(mesh)!r}; make slots a "
                    f"multiple of {self.setup.shards}"
                )
        check_speculation(self.setup)

    def run(
        self, requests: Iterable[Request], *, on_chunk: Callable[[int], None] = lambda tokens: None
    ) -> Iterator[Finished]:
        """Yields every requested sample in the order they finish; `on_chunk` is called with the number of tokens that
        each chunk drew.

        Raises RequestError, before anything is computed, if a request cannot be run.
        """
        job = self.check(list(requests))
        if job.samples:
            yield from self.start(job).run(on_chunk)

    def start(self, job: Job) -> Decoding:
        """A run of its own over a job that `check` returned; its pool is allocated here, and iterating `run` decodes.

        Raises RequestError where the device has no room for the pool.
        """
        return (SpeculativeDecoding if self.setup.settings.speculate else Decoding)(self.setup, job)

    def check(self, requests: Sequence[Request], *, began_sharing: bool | None = None) -> Job:
        """Checks requests, and decides what is decided by all of them. Raises RequestError naming the first one that
        cannot be run; `began_sharing`: see `shares_prefix`.
        """
        requests = self._checked(requests)
        if not requests:
            return Job([], 0, 0, shared_prefix=False)
        setup = self.setup
        longest = max(len(request.prompt) for request in requests)
        width, num_pages = self._pool(longest + setup.sampling.max_tokens)
        shares = self.shares_prefix(requests, began_sharing=began_sharing)
        job = Job(requests, width, num_pages, shared_prefix=shares)
        if setup.backend:
            self._check_backend(job)
        return job

    def open_job(self, max_length: Count | None) -> tuple[Job, int]:
        """A job whose requests come later (`engine.open`), and the most tokens that any of its sequences may have: the
        model's positions, but at most DEFAULT_LENGTH, unless given. Raises RequestError for what cannot be held.
        """
        setup, positions = self.setup, self.setup.config.max_position_embeddings
        if setup.settings.speculate:
            raise RequestError(
                "open: speculate is for generate and sample, whose requests all draw alike; leave it out"
            )
        self._check_layers()
        longest = min(positions, DEFAULT_LENGTH)
        if max_length is not None:
            longest = whole_number(max_length, "open: max_length", RequestError)
            if not 2 <= longest <= positions:
                raise RequestError(f"open: max_length must be in 2 … {positions}, the model's positions, got {longest}")
        num_pages, worst = setup.settings.num_pages, worst_case(longest, setup.policy.page_size)
        if num_pages is not None and num_pages // setup.shards < worst:
            each = f" on each of {setup.shards} shards" if setup.shards > 1 else ""
            raise RequestError(
                f"open: {num_pages // setup.shards} pages of {setup.policy.page_size} tokens{each} cannot hold the "
                f"{worst} of a sequence; raise num_pages or lower max_length"
            )
        width, num_pages = self._pool(longest)
        shares = setup.settings.shared_prefix is True and self.shares_prefix([])
        job = Job([], width, num_pages, shared_prefix=shares, longest=longest)
        if setup.backend:
            self._check_backend(job)
        return job, longest

    def _pool(self, tokens: int) -> tuple[int, int]:
        """The page table's width and the pool's pages for sequences of at most `tokens` tokens. Raises RequestError for
        a pool beyond the device's memory.
        """
        setup = self.setup
        width, num_pages = pool_size(
            setup.settings,
            tokens=tokens,
            page_size=setup.policy.page_size,
            page_bytes=setup.page_bytes,
            mesh=setup.mesh,
        )
        memory = device_memory(setup.mesh)
        if memory is not None and num_pages // setup.shards * setup.page_bytes > memory[0]:
            raise RequestError(
                f"{setup.describe_pool(num_pages)}, more than the device's {memory[0] / 1e9:,.1f} GB; {SMALLER_POOL}"
            )
        return width, num_pages

    def shares_prefix(self, requests: Sequence[Request], *, began_sharing: bool | None = None) -> bool:
        """Whether dense layers read the prompts of these requests once for all samples of each.

        As `EngineSettings.shared_prefix` says. Where that leaves it open and the engine can share: as a run that is
        continued `began`, else as the cost model finds that it pays. Raises RequestError if the settings ask for it
        and the engine cannot.
        """
        setup = self.setup
        asked = setup.settings.shared_prefix
        obstacle = prefix_obstacle(
            setup.config, setup.policy, slots=setup.settings.slots, backend=setup.backend, mesh=setup.mesh
        )
        if setup.settings.speculate:
            obstacle = "does not go with speculate, whose dense passes read each sample's own pages"
        if asked and obstacle:
            raise RequestError(f"engine: shared_prefix {obstacle}; leave it out")
        if asked is not None or obstacle:
            return bool(asked)
        if began_sharing is not None:
            return began_sharing
        return sharing_chosen(
            setup.config,
            [(len(request.prompt), len(request.samples)) for request in requests],
            slots=setup.settings.slots,
            page_size=setup.policy.page_size,
            dtype=setup.cache_dtype,
            backend=setup.backend,
        )

    def _check_layers(self) -> None:
        layers = self.setup.config.num_layers
        if (layer := self.setup.policy.missing_layer(layers)) is not None:
            raise RequestError(f"{self.setup.policy}: there is no layer {layer}; the model has {layers}")

    def _checked(self, requests: Sequence[Request]) -> list[Request]:
        """The requests with Python's own numbers."""
        setup = self.setup
        page_size, max_tokens = setup.policy.page_size, setup.sampling.max_tokens
        self._check_layers()
        vocab = setup.config.vocab_size
        requests = [
            dataclasses.replace(
                request,
                prompt=prompt_ids(request.where, request.prompt, vocab),
                samples=sample_indices(request.samples, RequestError),
            )
            for request in requests
        ]
        if odd := [request for request in requests if len(set(request.samples)) < len(request.samples)]:
            raise RequestError(f"problem {odd[0].problem!r}: its samples {list(odd[0].samples)} name one twice")
        counts = collections.Counter(request.problem for request in requests)
        if repeated := [problem for problem, count in counts.items() if count > 1]:
            raise RequestError(f"problem {repeated[0]!r} is requested twice; ids fix the random draws and must differ")
        positions = setup.config.max_position_embeddings
        for request in requests:
            where, tokens = request.where, len(request.prompt)
            if tokens >= positions:
                raise RequestError(
                    f"{where}: {tokens} prompt tokens leave none of the model's {positions} positions to an answer; "
                    "shorten the prompt"
                )
            if tokens + max_tokens > positions:
                raise RequestError(
                    f"{where}: {tokens} prompt tokens and max_tokens {max_tokens} exceed the model's {positions} "
                    f"positions; lower max_tokens to {positions - tokens} at most"
                )
            worst, num_pages = worst_case(tokens + max_tokens, page_size), setup.settings.num_pages
            if num_pages is not None and num_pages // setup.shards < worst:
                each = f" on each of {setup.shards} shards" if setup.shards > 1 else ""
                fits = num_pages // setup.shards >= worst_case(tokens + 1, page_size)
                raise RequestError(
                    f"{where}: {num_pages // setup.shards} pages of {page_size} tokens{each} cannot hold its "
                    f"{worst}; raise num_pages{' or lower max_tokens' if fits else ''}"
                )
        return requests

    def _check_backend(self, job: Job) -> None:
        """Traces a decode step, so that a forced backend refuses what it cannot do before anything is computed."""
        setup, slots = self.setup, self.setup.settings.slots
        cache = abstract_cache(
            setup.policy, setup.config, num_pages=job.num_pages, dtype=setup.cache_dtype, rows=slots, mesh=setup.mesh
        )
        try:
            decode_chunk.eval_shape(
                setup.graph,
                setup.weights,
                cache,
                abstract_slots(slots, setup.mesh),
                abstract_rows((slots, job.table_width), setup.mesh),
                abstract_scalar(setup.mesh),
                shared_prefix(setup, job, {}),
                setup.known_ids,
                **setup.decodes,
            )
        except NotImplementedError as error:
            raise RequestError(str(error)) from error
