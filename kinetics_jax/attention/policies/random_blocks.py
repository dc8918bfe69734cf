"""Random blocks."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from kinetics_jax.attention.policies.blocks import BlockPolicy

if TYPE_CHECKING:
    import jax
    from jaxtyping import Array, Float, Int, Key

    from kinetics_jax.attention.decode_step import DecodeStep, Pages

# Folded into a token's key: beyond any vocabulary, whose draws count up from 0 under the same key.
RANDOM_BLOCKS = 0x52424C4B


@dataclasses.dataclass(frozen=True)
class RandomBlocks(BlockPolicy):
    """The forced pages, and distinct others drawn uniformly anew in every step, layer and KV head: the floor that a
    selection has to beat.
    """

    kind: ClassVar[str] = "random_blocks"
    place: ClassVar[int] = 4
    ops: ClassVar[tuple[str, ...]] = ("choose_pages", "paged_decode")
    needs_keys: ClassVar[bool] = True

    def choose(self, step: DecodeStep) -> Pages:
        """The pages with the largest draws."""
        assert step.keys is not None
        scores = random_scores(step.keys, step.layer, step.kv_heads, step.max_pages, step.first_kv_head)
        return step.choose_pages(scores, **self.choice(step))


def random_scores(
    keys: Key[Array, " batch"], layer: int, kv_heads: int, max_pages: int, first_head: Int[Array, ""] | int = 0
) -> Float[Array, "batch kv_heads max_pages"]:
    """What RandomBlocks ranks pages by: uniform draws, one for each row, KV head (from `first_head` on) and page.

    That of a page has the key fold_in(fold_in(fold_in(fold_in(row's key, RANDOM_BLOCKS), layer), KV head), page).
    Neither the slot nor the width of the page table has a part in it, nor where the pages lie.
    """
    import jax
    import jax.numpy as jnp

    def of_page(key: jax.Array, head: jax.Array, page: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(key, RANDOM_BLOCKS), layer)
        return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, head), page))

    over_pages = jax.vmap(of_page, (None, None, 0))
    over_heads = jax.vmap(over_pages, (None, 0, None))
    return jax.vmap(over_heads, (0, None, None))(keys, first_head + jnp.arange(kv_heads), jnp.arange(max_pages))
