"""How an engine runs: what the user may set of it, beside policy and sampling. No jax."""

from __future__ import annotations

import dataclasses

from kinetics_jax.errors import UserError
from kinetics_jax.shapes import PREFILL_CHUNK

# Beyond these a setting is a slip of the hand.
MOST = {"slots": 1 << 16, "chunk": 1 << 16, "num_pages": 1 << 30, "prefill_chunk": 1 << 24}


class RequestError(UserError):
    """A request, or engine settings, that cannot be run; the message names the problem or the setting and the cure."""


@dataclasses.dataclass(frozen=True)
class EngineSettings:
    """`slots` sequences decode side by side; a chunk is at most `chunk` steps, and ends early once an eighth of the
    slots has stopped while others wait. `num_pages` bounds the pool (default: every slot's worst case, or as much of it
    as the device's memory holds); when it runs dry, the youngest samples are set aside in the host's memory. On a mesh
    slots and pages are those of all shards. Prompts of more than `prefill_chunk` tokens are prefilled so many at a time
    (rounded up to whole tiles of attention). `shared_prefix`: whether dense layers read the pages of a prompt once for
    all its samples, which rounds differently; None: where it pays, by all prompts and their samples.
    """

    slots: int = 32
    chunk: int = 32
    num_pages: int | None = None
    prefill_chunk: int = PREFILL_CHUNK
    shared_prefix: bool | None = False

    def __post_init__(self) -> None:
        for name, most in MOST.items():
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                raise RequestError(f"engine: {name} must be in 1 … {most}, got {value}")
