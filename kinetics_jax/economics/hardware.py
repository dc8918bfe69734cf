"""Peak arithmetic, memory bandwidth and memory of accelerators, from their vendors' data sheets."""

from __future__ import annotations

import dataclasses
import difflib

from kinetics_jax.errors import UserError


class HardwareError(UserError):
    """Hardware that is not known or cannot exist; the message names it and the cure."""


@dataclasses.dataclass(frozen=True)
class Hardware:
    """One chip. `flops`: peak FLOP/s of dense (not structured-sparse) matrix products, bf16 unless the name says
    otherwise; `bandwidth`: bytes/s of its memory; `memory`: bytes; `price_per_hour`: in any one currency, None when
    not given; `source`: where the numbers are from. Raises HardwareError for a number that is not positive.
    """

    name: str
    flops: float
    bandwidth: float
    memory: float
    price_per_hour: float | None = None
    source: str = ""

    def __post_init__(self) -> None:
        for field in ("flops", "bandwidth", "memory"):
            if not getattr(self, field) > 0:
                raise HardwareError(f"hardware {self.name!r}: {field} must be positive, got {getattr(self, field)}")
        if self.price_per_hour is not None and self.price_per_hour < 0:
            raise HardwareError(f"hardware {self.name!r}: price_per_hour is negative, {self.price_per_hour}")

    @property
    def intensity(self) -> float:
        """FLOPs that fit in the time of reading one byte: I in the paper's equation (3)."""
        return self.flops / self.bandwidth


HARDWARE: dict[str, Hardware] = {
    chip.name: chip
    for chip in (
        Hardware("a100", 312e12, 2.039e12, 80e9, source="NVIDIA A100 80GB SXM data sheet"),
        Hardware("h100", 989.5e12, 3.35e12, 80e9, source="NVIDIA H100 SXM data sheet"),
        Hardware("h200", 989.5e12, 4.8e12, 141e9, source="NVIDIA H200 SXM data sheet"),
        Hardware("b200", 2250e12, 8e12, 180e9, source="NVIDIA DGX B200 data sheet, one of eight GPUs"),
        # The paper's I = 562.5: fp8 arithmetic, which it charges on two-byte KV all the same.
        Hardware("b200-fp8", 4500e12, 8e12, 180e9, source="NVIDIA DGX B200 data sheet, one of eight GPUs, fp8"),
        Hardware("l40s", 362.05e12, 864e9, 48e9, source="NVIDIA L40S data sheet"),
        Hardware("mi300x", 1307.4e12, 5.3e12, 192e9, source="AMD Instinct MI300X data sheet"),
        Hardware("tpu-v4", 275e12, 1.228e12, 32 * 2**30, source="Google Cloud TPU v4 documentation"),
        Hardware("tpu-v5e", 197e12, 819e9, 16e9, source="Google Cloud TPU v5e documentation"),
        Hardware("tpu-v5p", 459e12, 2.765e12, 95 * 2**30, source="Google Cloud TPU v5p documentation"),
        Hardware("tpu-v6e", 918e12, 1.638e12, 32 * 2**30, source="Google Cloud TPU v6e documentation"),
        Hardware("tpu-v7x", 2307e12, 7.38e12, 192 * 2**30, source="Google Cloud TPU7x documentation"),
    )
}


def hardware(name: str) -> Hardware:
    """The chip of that name in HARDWARE; case, spaces and underscores do not matter (`H100`, `TPU v5e`).

    Raises HardwareError, with the closest name where there is one.
    """
    key = name.strip().lower().replace(" ", "-").replace("_", "-")
    if key not in HARDWARE:
        near = difflib.get_close_matches(key, HARDWARE, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise HardwareError(f"no hardware named {name!r}{hint} (known: {', '.join(HARDWARE)})")
    return HARDWARE[key]
