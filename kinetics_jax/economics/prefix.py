"""When it pays to read a shared prompt once for all its samples: bytes of a decode step, `traffic` convention."""

from __future__ import annotations

from collections.abc import Iterable

from kinetics_jax.config import ModelConfig

# What an H100 reads while it starts a layer's second pass and its merge, about 5 µs at 3.3 TB/s.
STARTING = 16 << 20


def prefix_saving(config: ModelConfig, *, prefix: float, samples: int, width: int, itemsize: int) -> float:
    """Bytes that sharing saves in one dense layer and step; negative where it costs more. STARTING is not in it.

    `samples` samples of one prompt, of which whole pages hold `prefix` tokens; `width` of them are read for at once;
    `itemsize` is the bytes of a number. Attention apart reads the prefix `samples` times, together ceil(samples /
    width) times. Together costs beside that, for each sample and query head: its query packed beside others and read
    once more, and two partial outputs with their log-sum-exps (float32) written and read. Products are the same.
    """
    reads = -(-samples // width)
    token = 2 * config.num_kv_heads * config.head_dim * itemsize  # K and V
    merging = config.num_heads * (2 * config.head_dim * itemsize + 2 * 2 * (config.head_dim + 1) * 4)
    return (samples - reads) * prefix * token - samples * merging


def sharing_pays(
    config: ModelConfig, prompts: Iterable[tuple[int, int]], *, slots: int, width: int, itemsize: int
) -> bool:
    """Whether a mean decode step of a run reads less when its dense layers share prefixes.

    `prompts`: tokens in whole pages, and samples, of every prompt. Samples of a prompt decode side by side, and the
    slots are full or hold every sample; a prompt counts as often as it has samples.
    """
    prompts = [(prefix, samples) for prefix, samples in prompts if samples]
    total = sum(samples for _, samples in prompts)
    saved = 0.0
    for prefix, samples in prompts:
        together = min(samples, slots)
        each = prefix_saving(config, prefix=prefix, samples=together, width=width, itemsize=itemsize) / together
        saved += samples / total * each
    return saved * min(slots, total) > STARTING
