"""What chips that share every sequence say to each other: all-reduces, in bytes over a link and in latency.

Tensor parallelism sums the partial outputs of attention and of the feed-forward of every layer over all chips: two
all-reduces of `tokens x hidden_size` numbers a layer. An all-reduce moves 2 (n - 1) / n times its message over each
chip's link, whether as a ring or as a reduce-scatter and an all-gather through a switch, and it takes a latency however
short the message is. Nothing else of the step overlaps with it: the next matrix product needs the sum. Left out: the
logits that chips gather once a step, and what dispatches experts to chips of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kinetics_jax.costs.architectures.architecture import PricedModel

if TYPE_CHECKING:
    from kinetics_jax.costs.hardware import Hardware

ALL_REDUCES = 2  # of a layer: behind attention, behind the feed-forward


class Link(NamedTuple):
    """How a chip reaches its peers in one machine: bytes/s that it sends, and seconds of an all-reduce of few bytes."""

    bandwidth: float
    all_reduce_seconds: float
    source: str


# The latencies are on no data sheet. Among eight H100 the all-reduce kernels of SGLang and vLLM take 5.7 to 11.8
# microseconds for messages of up to 32 KiB (sgl-project/sglang, pull request 2904). Of PCIe cards and TPUs: taken to be
# 20, through the host's bridge, and 8, a microsecond a hop there and back along four chips.
_SWITCH, _PCIE, _TORUS = 8e-6, 20e-6, 8e-6
_NV3, _NV4, _NV5 = (f"NVLink {n}, half of the two-way bandwidth on NVIDIA's data sheet" for n in (3, 4, 5))
_XGMI = "seven Infinity Fabric links, half of the two-way bandwidth on AMD's data sheet"
_ICI = "half of the bidirectional inter-chip bandwidth per chip on Google Cloud's page of it"
LINKS: dict[str, Link] = {
    "a10": Link(32e9, _PCIE, "PCIe 4.0 x16"),
    "a100": Link(300e9, _SWITCH, _NV3),
    "h100": Link(450e9, _SWITCH, _NV4),
    "h100-pcie": Link(64e9, _PCIE, "PCIe 5.0 x16"),
    "h100-nvl": Link(300e9, _SWITCH, "NVLink bridge of two cards, half of the two-way bandwidth on the data sheet"),
    "h200": Link(450e9, _SWITCH, _NV4),
    "h20": Link(450e9, _SWITCH, _NV4),
    "b200": Link(900e9, _SWITCH, _NV5),
    "b200-fp8": Link(900e9, _SWITCH, _NV5),
    "gb200": Link(900e9, _SWITCH, _NV5),
    "b300": Link(900e9, _SWITCH, _NV5),
    "l40s": Link(32e9, _PCIE, "PCIe 4.0 x16"),
    "rtx-4090": Link(32e9, _PCIE, "PCIe 4.0 x16"),
    "rtx-5090": Link(64e9, _PCIE, "PCIe 5.0 x16"),
    "mi300x": Link(448e9, _SWITCH, _XGMI),
    "mi325x": Link(448e9, _SWITCH, _XGMI),
    "mi355x": Link(537.6e9, _SWITCH, _XGMI),
    "tpu-v4": Link(268e9, _TORUS, "all-reduce bandwidth of a pod over its 4096 chips, Google Cloud's page of it"),
    "tpu-v5e": Link(200e9, _TORUS, _ICI),
    "tpu-v5p": Link(600e9, _TORUS, _ICI),
    "tpu-v6e": Link(400e9, _TORUS, _ICI),
    "tpu-v7x": Link(600e9, _TORUS, _ICI),
}


def communication_seconds(
    config: PricedModel, hardware: Hardware, chips: int, tokens: Any, *, activation_bytes: float = 2
) -> Any:
    """Seconds that `chips` chips spend on the all-reduces of one pass of `tokens` tokens through all layers, `[...]`.

    `tokens [...]`: sequences of a decode step, or tokens of a prompt that are computed at once. 0 for one chip, and
    where the hardware's link is not known (`unknown_link` says so).
    """
    if chips == 1 or hardware.link_bandwidth is None:
        return 0.0 * np.asarray(tokens, np.float64)
    message = np.asarray(tokens, np.float64) * config.hidden_size * activation_bytes
    each = hardware.all_reduce_seconds + 2 * (chips - 1) / chips * message / hardware.link_bandwidth
    return ALL_REDUCES * config.num_layers * each


def activation_bytes(weight_bytes: float) -> float:
    """Bytes of a number that is summed over chips: of the weights' type, but never less than 16 bits."""
    return max(2, weight_bytes)


def unknown_link(hardware: Hardware, chips: int) -> str | None:
    """A line to warn with where chips share the work and nothing is known of what connects them; else None."""
    if chips == 1 or hardware.link_bandwidth is not None:
        return None
    return (
        f"{hardware.name}: nothing is known of the link between its chips, so communication between the {chips} is not "
        "counted; give link_bandwidth (bytes/s) and all_reduce_seconds in its .json profile"
    )
