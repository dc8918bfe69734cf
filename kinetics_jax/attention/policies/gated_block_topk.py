"""Block top-k by a learned linear gate."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from kinetics_jax.attention.policies.base import PolicyError
from kinetics_jax.attention.policies.block_topk import BlockTopK

if TYPE_CHECKING:
    from jaxtyping import Float

    from kinetics_jax.attention.decode_step import DecodeStep, Pages

DIGEST = 16  # hexadecimal digits of the file's SHA-256 that a spelling shows


@dataclasses.dataclass(frozen=True)
class GatedBlockTopK(BlockTopK):
    """Block top-k whose pages are scored for A q̄, a learned linear map of the group's mean query, instead of q̄.

    `gate` is a safetensors file with A `[kv_heads, head_dim, head_dim]`, float32 or float16, for every sparse layer, as
    "layers.N.gate". With mean keys μ the score q̄ᵀAᵀμ is that of two linear maps, of query and of pooled keys, as in
    SeerAttention-R (arXiv 2506.08889), both folded into A. `digest`, the beginning of the file's SHA-256, is read from
    the file where it is not given; a file with another one is refused.
    """

    gate: str = ""
    digest: str = ""

    kind: ClassVar[str] = "gated_block_topk"
    place: ClassVar[int] = 10
    spelled: ClassVar[tuple[str, ...]] = ("budget", "page_size", "gate", "digest")

    def __post_init__(self) -> None:
        if not isinstance(self.gate, str) or not self.gate:
            raise PolicyError(f"{self.kind}: give gate= (the path of a safetensors file)")
        if not self.digest:
            object.__setattr__(self, "digest", _digest(_read(self.gate)))
        super().__post_init__()

    def choose(self, step: DecodeStep) -> Pages:
        """Selection by the kernels, given the mapped queries."""
        import jax
        import jax.numpy as jnp

        head_dim = step.queries.shape[-1]
        maps = self.maps(step.layer, head_dim)
        whole = isinstance(step.first_kv_head, int)  # one device holds all KV heads
        if len(maps) % step.kv_heads or (whole and len(maps) != step.kv_heads):
            raise PolicyError(
                f"{self.kind}: {self.gate}: layers.{step.layer}.gate is of {len(maps)} KV heads, not of the model's"
            )
        of_device = jax.lax.dynamic_slice_in_dim(jnp.asarray(maps), step.first_kv_head, step.kv_heads)
        query = jnp.einsum("hed,bhd->bhe", of_device, step.mean_query, precision=jax.lax.Precision.HIGHEST)
        gated = dataclasses.replace(step, group_queries=query.astype(step.queries.dtype))
        return gated.select_pages(summary=self.summary, **self.choice(step))

    def maps(self, layer: int, head_dim: int) -> Float[np.ndarray, "kv_heads head_dim head_dim"]:
        """A of a layer, float32. Raises PolicyError where the file is another one, or does not hold it."""
        name = f"layers.{layer}.gate"
        tensors = _tensors(self.gate, self.digest)
        if name not in tensors:
            raise PolicyError(f"{self.kind}: {self.gate}: holds no {name}; list the layer in dense_layers, or add it")
        if tensors[name].shape[1:] != (head_dim, head_dim):
            raise PolicyError(
                f"{self.kind}: {self.gate}: {name} has the shape {list(tensors[name].shape)}; the model needs "
                f"[kv_heads, {head_dim}, {head_dim}]"
            )
        return tensors[name].astype(np.float32)


@functools.lru_cache(maxsize=2)
def _tensors(path: str, digest: str) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    data = _read(path)
    if _digest(data) != digest:
        raise PolicyError(f"gated_block_topk: {path}: its digest is {_digest(data)}, not {digest}: another file")
    try:
        return load(data)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise PolicyError(
            f"gated_block_topk: {path}: is no safetensors file of float32 or float16 ({error})"
        ) from error


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise PolicyError(f"gated_block_topk: {path}: cannot be read ({error.strerror})") from error


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:DIGEST]
