"""Block top-k as the published code does it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from kinetics_jax.attention.policies.base import PAGE_SIZE, PolicyError, check_settings
from kinetics_jax.attention.policies.block_topk import published_block_search
from kinetics_jax.attention.policies.counts import Counts, Cut, PublishedCounts, Share, split_steps, triangle
from kinetics_jax.attention.policies.tokens import TokenPolicy

if TYPE_CHECKING:
    import jax
    from jaxtyping import Array, Bool, Float, Int

    from kinetics_jax.attention.decode_step import DecodeStep


@dataclasses.dataclass(frozen=True)
class LiteSysBlockTopK(TokenPolicy):
    """Block top-k by the rule of the paper's own code (LiteSys), for comparison with published results.

    Blocks of `page_size` tokens begin after the 4 sink tokens. Every decode step attends to the sinks, to the `pages`
    blocks with the largest mean logit, and to the last `local` tokens with what no whole block covers before them;
    nothing forced counts among `pages`. In force once a sequence holds more than 4 + local + pages * page_size tokens,
    rounded up to whole blocks. With `local = 0` the current token can end a block that is not chosen.
    """

    pages: int = 0
    page_size: int = PAGE_SIZE
    local: int = 0
    dense_layers: tuple[int, ...] = (0,)

    kind: ClassVar[str] = "litesys_block_topk"
    place: ClassVar[int] = 5
    spelled: ClassVar[tuple[str, ...]] = ("pages", "page_size")
    sink_tokens: ClassVar[int] = 4

    def __post_init__(self) -> None:
        check_settings(self)
        for name, least in (("pages", 1), ("local", 0)):
            if getattr(self, name) < least:
                raise PolicyError(f"{self.kind}: {name} must be at least {least}, got {getattr(self, name)}")

    @property
    def nominal_budget(self) -> int:
        """The tokens of its blocks; sink tokens, window and leftover come on top."""
        return self.pages * self.page_size

    @property
    def threshold(self) -> int:
        """The longest sequence that is attended to as a whole."""
        return -(-(self.sink_tokens + self.local + self.nominal_budget) // self.page_size) * self.page_size

    @property
    def published_budget(self) -> float:
        """The tokens of its blocks and its window, as published."""
        return float(self.local + self.nominal_budget)

    @property
    def summary_vectors(self) -> int:
        """The mean key of every whole block: what an engine for this rule would keep. Decoding here computes logits."""
        return 1

    def attend(self, step: DecodeStep) -> jax.Array:
        """Attention over the tokens of the mask, once each block's mean is looked at."""
        import jax.numpy as jnp

        blocks = (step.lengths - self.local - self.sink_tokens) // self.page_size
        step.count(vectors=jnp.where(step.lengths > self.threshold, blocks, 0)[:, None])
        return super().attend(step)

    def mask(
        self, logits: Float[Array, "batch heads time"], lengths: Int[Array, " batch"], kv_heads: int
    ) -> Bool[Array, "batch heads time"]:
        """The sink tokens, the blocks with the largest mean logit, the window and what no whole block covers."""
        import kinetics_kernels as kernels

        return kernels.litesys_mask(
            logits,
            lengths,
            num_kv_heads=kv_heads,
            kind="block_topk",
            pages=self.pages,
            page_size=self.page_size,
            local=self.local,
            sink=self.sink_tokens,
        )

    def sparse_counts(self, prompt: np.ndarray, steps: np.ndarray) -> Counts:
        """Steps up to the threshold attend to everything; the later ones choose among the blocks that end before the
        local window, of which `length - local - sink_tokens` tokens make whole ones, after reading each one's mean key.
        """
        size, outside, free = float(self.page_size), self.local + self.sink_tokens, self.pages * self.page_size
        whole, choosing = split_steps(prompt, steps, self.threshold)
        start, end = prompt + whole - outside, prompt + steps - outside  # tokens to cut into blocks, before and after
        start_cut, end_cut = Cut(start, size), Cut(end, size)
        rest = end_cut.remainders() - start_cut.remainders()
        own = triangle(whole) + choosing * (outside + free) + rest

        in_prompt = np.maximum(prompt - self.sink_tokens, 0)
        first, last = (Cut(np.maximum(tokens, 0), size) for tokens in (prompt - outside + 1, start + 1))
        own_chosen = last.whole_beyond(in_prompt) - first.whole_beyond(in_prompt)
        prompt_chosen = last.whole_beyond(0) - first.whole_beyond(0) - own_chosen
        own_chosen = own_chosen + choosing * free

        # A trial's window may still lie in the prompt: then the blocks under it are not searched yet.
        common = np.floor(in_prompt / size)
        start_below, end_below = (Cut(np.minimum(tokens, common * size), size) for tokens in (start, end))
        below = end_below.full_pages() - start_below.full_pages()
        above = common * (np.maximum(end, common * size) - np.maximum(start, common * size))
        scores = Share(end_cut.full_pages() - start_cut.full_pages() - below - above, below + above)
        return Counts(
            forced=Share(own - own_chosen, prompt * whole - prompt_chosen),
            chosen=Share(own_chosen, prompt_chosen),
            scores=scores,
            vectors=scores,
        )

    def paper_counts(self, prompt: np.ndarray, output: np.ndarray) -> PublishedCounts:
        """As block top-k: the search reads a vector for every block in every step."""
        vectors = (prompt * output + output**2 / 2) / self.page_size
        return self.budget_filled(prompt, output)._replace(vectors=vectors, vectors_read=vectors)

    def upstream_counts(self, prompt: np.ndarray, output: np.ndarray, trials: np.ndarray) -> PublishedCounts:
        """`pages` is its k, beside the local window; sink tokens are not charged."""
        return published_block_search(self.published_budget, self.page_size, prompt, output, trials)
