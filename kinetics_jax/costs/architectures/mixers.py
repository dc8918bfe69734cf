"""How one layer mixes tokens, as far as its price goes: what a decode step computes, reads and writes, what is kept.

Every mixer answers for one layer and one sequence. `decode` gives amounts by component, as pairs (of each trial, of the
prompt's share that all trials read alike): FLOPs, or bytes where the name ends in `_reads`. `prompt [...]` and
`steps [...]` are float64 whole numbers that broadcast; a step at length n has n tokens, its own included.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol

import numpy as np

from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.counts import Counts, Cut, Share, dense_counts, split_steps, triangle

STATE_BYTES = 4  # an element of a recurrent state: float32, as the published models keep it (`mamba_ssm_dtype`)
STATE_FLOPS = 7  # per state element and token: decay, S k, the delta's outer product and sum, S q (gated delta rule)

Amounts = dict[str, Share]


class Mixer(Protocol):
    """What `traffic` and `memory` ask of a layer's token mixing."""

    def decode(
        self, policy: AttentionPolicy, dense: bool, prompt: np.ndarray, steps: np.ndarray, kv_bytes: float
    ) -> Amounts:
        """FLOPs and bytes of the decode steps, by component. `dense`: the policy leaves this layer alone."""
        ...

    def prefill_flops(self, prompt: np.ndarray) -> Any:
        """FLOPs of mixing a prompt's tokens, projections excluded."""
        ...

    def cache_bytes(self, tokens: Any, kv_bytes: float, page_size: int) -> Any:
        """Bytes that a sequence of `tokens` tokens keeps in this layer, in whole pages."""
        ...

    def largest_share(self, chips: int) -> float:
        """The part of the cache and its reads that falls to the fullest of `chips` chips."""
        ...

    def follows(self, policy: AttentionPolicy) -> bool:
        """Whether a policy changes what the layer attends to."""
        ...


@dataclasses.dataclass(frozen=True)
class FullAttention:
    """Softmax attention to all tokens: `heads` query heads over `kv_heads` KV heads, keys of `key_dim` elements and
    values of `value_dim`. The only mixer, with latent attention, that a policy makes sparse.
    """

    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int

    @property
    def elements(self) -> int:
        """K and V elements of one token."""
        return self.kv_heads * (self.key_dim + self.value_dim)

    @property
    def token_flops(self) -> int:
        """FLOPs of attending to one token: a dot product with its key, and its value added."""
        return 2 * self.heads * (self.key_dim + self.value_dim)

    def decode(
        self, policy: AttentionPolicy, dense: bool, prompt: np.ndarray, steps: np.ndarray, kv_bytes: float
    ) -> Amounts:
        """All tokens, or those that the policy counts. Whole pages of the prompt are read alike by all its trials."""
        if not dense:
            return self.amounts(policy.sparse_counts(prompt, steps), kv_bytes)
        once = np.floor(prompt / policy.page_size) * policy.page_size * steps
        return self.amounts(Counts(dense=Share(dense_counts(prompt, steps).dense.total - once, once)), kv_bytes)

    def amounts(self, counts: Counts, kv_bytes: float) -> Amounts:
        """Tokens, scores and summary vectors of each KV head, as FLOPs and bytes."""
        vector = self.kv_heads * self.key_dim
        named = {"dense": counts.dense, "forced": counts.forced, "chosen": counts.chosen}
        return {
            **{f"{name}_attention": share.times(self.token_flops) for name, share in named.items()},
            **{f"{name}_kv_reads": share.times(kv_bytes * self.elements) for name, share in named.items()},
            "search": counts.vectors.times(2 * vector),
            "top_k": counts.scores.times(self.kv_heads),
            "search_reads": counts.vectors.times(kv_bytes * vector),
        }

    def prefill_flops(self, prompt: np.ndarray) -> Any:
        """Each token attends to all before it and itself."""
        return self.token_flops * triangle(prompt)

    def cache_bytes(self, tokens: Any, kv_bytes: float, page_size: int) -> Any:
        """K and V of whole pages."""
        return kv_bytes * self.elements * page_size * np.ceil(tokens / page_size)

    def summary_bytes(self, policy: AttentionPolicy, tokens: Any, kv_bytes: float) -> Any:
        """Page summaries of a sparse layer."""
        vectors = policy.summary_vectors * np.ceil(tokens / policy.page_size)
        return kv_bytes * self.kv_heads * self.key_dim * vectors

    def largest_share(self, chips: int) -> float:
        """KV heads go to chips whole; beyond their number chips keep copies."""
        return math.ceil(self.kv_heads / chips) / self.kv_heads

    def follows(self, policy: AttentionPolicy) -> bool:
        """Yes."""
        return True


@dataclasses.dataclass(frozen=True)
class LatentAttention(FullAttention):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434), decoded in its absorbed form.

    All heads share one key of `key_dim` = rank + rotary elements, whose first `value_dim` = rank elements are the value
    too: read once. `prompt_dims` are the widths of a head's query-key and value products in prefill, where K and V are
    formed. One KV head is all there is, so that every chip keeps the whole cache.
    """

    prompt_dims: tuple[int, int] = (0, 0)

    @property
    def elements(self) -> int:
        """The latent and the rotary key, once."""
        return self.key_dim

    def prefill_flops(self, prompt: np.ndarray) -> Any:
        """Per head, as ordinary attention."""
        return 2 * self.heads * sum(self.prompt_dims) * triangle(prompt)


@dataclasses.dataclass(frozen=True)
class WindowAttention(FullAttention):
    """Attention to the last `window` tokens, the current one among them: what it reads and keeps stops growing.

    A policy leaves it alone: there is nothing far away to select.
    """

    window: int = 0

    def decode(
        self, policy: AttentionPolicy, dense: bool, prompt: np.ndarray, steps: np.ndarray, kv_bytes: float
    ) -> Amounts:
        """The window; each trial reads its own."""
        short, long = split_steps(prompt, steps, self.window)
        tokens = Share(triangle(prompt + short) - triangle(prompt) + long * self.window)
        return {
            "window_attention": tokens.times(self.token_flops),
            "window_kv_reads": tokens.times(kv_bytes * self.elements),
        }

    def prefill_flops(self, prompt: np.ndarray) -> Any:
        """Each token attends to its window."""
        short = np.minimum(prompt, self.window)
        return self.token_flops * (triangle(short) + (prompt - short) * self.window)

    def cache_bytes(self, tokens: Any, kv_bytes: float, page_size: int) -> Any:
        """The pages that a window can touch."""
        return super().cache_bytes(np.minimum(tokens, self.window + page_size - 1), kv_bytes, page_size)

    def follows(self, policy: AttentionPolicy) -> bool:
        """No."""
        return False


@dataclasses.dataclass(frozen=True)
class IndexedAttention:
    """Attention that selects by design: an indexer scores blocks of `block` tokens and keeps the best.

    A step reads a key of `index_dim` elements for every whole block (one key head), multiplies it with `index_heads`
    queries, and attends over `inner` to the best `budget / block` blocks and to the tokens of the unfinished block.
    Steps that would keep everything search nothing. With `block` = 1 this is DeepSeek sparse attention (DeepSeek-V3.2),
    with 4 Qwen sparse attention (Qwen3.8-Flash-Next). A policy leaves it alone: the model has chosen already.
    """

    inner: FullAttention
    budget: int
    block: int
    index_heads: int
    index_dim: int

    def decode(
        self, policy: AttentionPolicy, dense: bool, prompt: np.ndarray, steps: np.ndarray, kv_bytes: float
    ) -> Amounts:
        """The budget's tokens and the unfinished block, after a search over all whole blocks."""
        whole, choosing = split_steps(prompt, steps, self.budget + self.block - 1)
        start, end = Cut(prompt + whole, self.block), Cut(prompt + steps, self.block)
        # Tokens beyond the whole blocks, and whole blocks, summed over the choosing steps.
        tails = end.remainders() - start.remainders()
        blocks = end.full_pages() - start.full_pages()
        everything = triangle(prompt + whole) - triangle(prompt)
        amounts = self.inner.amounts(
            Counts(forced=Share(tails), chosen=Share(everything + choosing * self.budget)), kv_bytes
        )
        return amounts | {
            "search": Share(2.0 * self.index_heads * self.index_dim * blocks),
            "top_k": Share(blocks),
            "search_reads": Share(kv_bytes * self.index_dim * blocks),
        }

    def prefill_flops(self, prompt: np.ndarray) -> Any:
        """The indexer's scores of all earlier blocks, and attention to the selected tokens."""
        short = np.minimum(prompt, self.budget)
        attended = triangle(short) + (prompt - short) * self.budget
        inner = self.inner.prefill_flops(np.array(1.0)) * attended
        return inner + 2 * self.index_heads * self.index_dim * triangle(prompt) / self.block

    def cache_bytes(self, tokens: Any, kv_bytes: float, page_size: int) -> Any:
        """K and V, and the index keys."""
        keys = kv_bytes * self.index_dim * np.ceil(tokens / self.block)
        return self.inner.cache_bytes(tokens, kv_bytes, page_size) + keys

    def largest_share(self, chips: int) -> float:
        """That of K and V; the index keys, a small part, are taken to be split alike."""
        return self.inner.largest_share(chips)

    def follows(self, policy: AttentionPolicy) -> bool:
        """No."""
        return False


@dataclasses.dataclass(frozen=True)
class LinearAttention:
    """Gated delta net (arXiv 2412.06464): a state of `key_dim` x `value_dim` for each of `value_heads` heads, read and
    written in every step, however long the sequence; beside it the last inputs of a short convolution (`conv_elements`,
    of the cache's type). Prefill counts the recurrent form; the chunked forms compute more.
    """

    value_heads: int
    key_dim: int
    value_dim: int
    conv_elements: int

    @property
    def state_elements(self) -> int:
        """Elements of the recurrent state."""
        return self.value_heads * self.key_dim * self.value_dim

    def decode(
        self, policy: AttentionPolicy, dense: bool, prompt: np.ndarray, steps: np.ndarray, kv_bytes: float
    ) -> Amounts:
        """The state, read and written: `state_reads` counts both."""
        many = Share(steps + 0 * prompt)
        return {
            "state": many.times(STATE_FLOPS * self.state_elements),
            "state_reads": many.times(2 * self.cache_bytes(0, kv_bytes, 1)),
        }

    def prefill_flops(self, prompt: np.ndarray) -> Any:
        """As many as decoding takes."""
        return STATE_FLOPS * self.state_elements * prompt

    def cache_bytes(self, tokens: Any, kv_bytes: float, page_size: int) -> Any:
        """The state, of any sequence."""
        return STATE_BYTES * self.state_elements + kv_bytes * self.conv_elements + 0.0 * np.asarray(tokens)

    def largest_share(self, chips: int) -> float:
        """Heads go to chips whole."""
        return math.ceil(self.value_heads / chips) / self.value_heads

    def follows(self, policy: AttentionPolicy) -> bool:
        """No."""
        return False
