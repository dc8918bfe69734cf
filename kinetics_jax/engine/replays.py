"""What a language model offers of samples that were drawn: its replays, as methods of `LanguageModel`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.registry import as_policy
from kinetics_jax.engine.agreement import ROWS, Agreement, agreements
from kinetics_jax.engine.chosen_pages import ChosenPages, chosen_pages
from kinetics_jax.engine.prompts import prompt_ids
from kinetics_jax.engine.replay import Drawn
from kinetics_jax.engine.sampling import prompt_digest, prompt_name
from kinetics_jax.errors import spelled
from kinetics_jax.settings import RequestError, sample_indices, whole_number

if TYPE_CHECKING:
    from flax import nnx
    from jax.sharding import Mesh
    from kinetics_kernels.backends import Backend

    from kinetics_jax.config import ModelConfig

NO_MESH = "{}: is for one device, not for a mesh; load the model without mesh"


class Replays:
    """Agreement and chosen pages, for a model of these attributes."""

    graph: nnx.GraphDef
    weights: nnx.State
    config: ModelConfig
    mesh: Mesh | None
    backend: Backend | None

    @property
    def dtype(self) -> Any:
        """The dtype of the KV cache."""
        raise NotImplementedError

    def encode(self, text: str, *, add_special_tokens: bool | None = None) -> list[int]:
        """Token ids of a text."""
        raise NotImplementedError

    def agreement(
        self,
        prompt: str | Sequence[int],
        tokens: Sequence[int],
        *,
        attention: AttentionPolicy | str,
        problem: str | None = None,
        sample: int = 0,
        seed: int = 0,
    ) -> Agreement:
        """How far a policy and dense attention agree on `tokens` drawn behind a prompt: see `Agreement`.

        `problem` (a sample's `id`; by default that of a prompt without one), `sample` and `seed` fix the draws of a
        random policy, as when the tokens were drawn. Raises RequestError for what is no prompt or no token, and on a
        mesh.
        """
        drawn = self._drawn("agreement", prompt, tokens, problem, sample)
        return self.agreements([drawn], attention=attention, seed=seed)[0]

    def agreements(
        self, samples: Sequence[Drawn], *, attention: AttentionPolicy | str, seed: int = 0, rows: int = ROWS
    ) -> list[Agreement]:
        """`agreement` of many samples, at most `rows` side by side."""
        return list(self.each_agreement(samples, attention=attention, seed=seed, rows=rows))

    def each_agreement(
        self, samples: Sequence[Drawn], *, attention: AttentionPolicy | str, seed: int = 0, rows: int = ROWS
    ) -> Iterator[Agreement]:
        """`agreements`, one by one as they are known."""
        policy, checked = self._replayed("agreement", attention, samples)
        options: Any = {"seed": seed, "cache_dtype": self.dtype, "backend": self.backend}
        rows = max(1, min(rows, len(checked)))
        return agreements(self.graph, self.weights, self.config, checked, policy=policy, rows=rows, **options)

    def chosen_pages(
        self,
        prompt: str | Sequence[int],
        tokens: Sequence[int],
        *,
        attention: AttentionPolicy | str,
        at: Sequence[int] | None = None,
        problem: str | None = None,
        sample: int = 0,
        seed: int = 0,
        rows: int = 1,
    ) -> ChosenPages:
        """The pages that a policy chose while it drew `tokens` behind a prompt, layer by layer, and the attention mass
        they hold: see `ChosenPages`.

        `at`: of these tokens alone, by output position from 1 on (the first token takes no decode step). `problem`,
        `sample` and `seed` are as for `agreement`; `rows` as for `engine.chosen_pages`. Raises RequestError as well.
        """
        drawn = self._drawn("chosen_pages", prompt, tokens, problem, sample)
        policy, (drawn,) = self._replayed("chosen_pages", attention, [drawn])
        if at is not None:
            if isinstance(at, str) or not hasattr(at, "__iter__"):
                raise RequestError(f"chosen_pages: at must be a list of output positions, got {spelled(at, 40)}")
            at = [whole_number(place, "chosen_pages: an output position of at", RequestError) for place in at]
        if (rows := whole_number(rows, "chosen_pages: rows", RequestError)) < 1:
            raise RequestError(f"chosen_pages: rows must be at least 1, got {rows}")
        if wrong := [place for place in at or () if not 1 <= place < len(drawn.tokens)]:
            raise RequestError(f"chosen_pages: at must hold positions in 1 … {len(drawn.tokens) - 1}, got {wrong[0]}")
        return chosen_pages(
            self.graph, self.weights, self.config, drawn, policy=policy, seed=seed, at=at, rows=rows,
            cache_dtype=self.dtype, backend=self.backend,
        )  # fmt: skip

    def _drawn(
        self, what: str, prompt: str | Sequence[int], tokens: Sequence[int], problem: str | None, sample: int
    ) -> Drawn:
        ids = self.encode(prompt) if isinstance(prompt, str) else prompt_ids(what, prompt, self.config.vocab_size)
        return Drawn(ids, tokens, prompt_name(prompt_digest(ids), 0) if problem is None else problem, sample)

    def _replayed(
        self, what: str, attention: AttentionPolicy | str, samples: Sequence[Drawn]
    ) -> tuple[AttentionPolicy, list[Drawn]]:
        """The policy and the samples, checked. Raises RequestError, beginning with `what`."""
        if self.mesh is not None:
            raise RequestError(NO_MESH.format(what))
        vocab, limit = self.config.vocab_size, self.config.max_position_embeddings
        policy = as_policy(attention)
        if (layer := policy.missing_layer(self.config.num_layers)) is not None:
            raise RequestError(f"{policy}: there is no layer {layer}; the model has {self.config.num_layers}")
        checked = []
        for index, drawn in enumerate(samples):
            where = f"{what}: sample {index}"
            if not isinstance(drawn, Drawn):
                raise RequestError(f"{where}: give a Drawn(prompt, tokens), got {spelled(drawn, 40)}")
            if not isinstance(drawn.problem, str):
                raise RequestError(f"{where}: problem must be a text, got {spelled(drawn.problem, 40)}")
            sample_indices([drawn.sample], RequestError)
            tokens = prompt_ids(f"{where}, its tokens", drawn.tokens, vocab) if len(drawn.tokens) else []
            checked.append(dataclasses.replace(drawn, prompt=prompt_ids(where, drawn.prompt, vocab), tokens=tokens))
            if (length := len(checked[-1].prompt) + len(tokens)) > limit:
                raise RequestError(f"{where}: {length} tokens exceed the model's {limit} positions")
        return policy, checked
