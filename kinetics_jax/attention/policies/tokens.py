"""What policies that choose single tokens have in common: they compute every logit and mask."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from kinetics_jax.attention.policies.base import AttentionPolicy

if TYPE_CHECKING:
    import jax
    from jaxtyping import Array, Bool, Float, Int

    from kinetics_jax.attention.decode_step import DecodeStep


class TokenPolicy(AttentionPolicy):
    """A policy over tokens: exact, on the reference path only, and no faster than dense attention."""

    masks_logits: ClassVar[bool] = True
    ops: ClassVar[tuple[str, ...]] = ("token_logits", "masked_decode")

    def mask(
        self, logits: Float[Array, "batch heads time"], lengths: Int[Array, " batch"], kv_heads: int
    ) -> Bool[Array, "batch heads time"]:
        """The tokens to attend to, true = attended; `logits` as `kinetics_kernels.token_logits` gives them."""
        raise NotImplementedError(f"{self.kind} has no mask")

    def attend(self, step: DecodeStep) -> jax.Array:
        """Attention over the tokens of the mask."""
        logits = step.token_logits()
        return step.attend_tokens(logits, self.mask(logits, step.lengths, step.kv_heads))
