"""What fits, against sums by hand, and what must hold as chips and lengths grow."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.attention.policies.litesys_block_topk import LiteSysBlockTopK
from kinetics_jax.attention.policies.token_topk import TokenTopK
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.conventions import CostError
from kinetics_jax.costs.hardware import Hardware, HardwareError, hardware
from kinetics_jax.costs.memory import fits, kv_bytes_per_token, least_chips, total_parameters


def test_parameters_and_kv_bytes_are_the_published_ones():
    assert total_parameters(ModelConfig.named("30B-A3B")) == pytest.approx(30.53e9, rel=1e-3)
    assert total_parameters(ModelConfig.named("235B-A22B")) == pytest.approx(235.1e9, rel=1e-3)
    assert total_parameters(ModelConfig.named("8B")) == pytest.approx(8.19e9, rel=1e-3)
    assert kv_bytes_per_token(ModelConfig.named("30B-A3B")) == 98_304
    gib = {"0.6B": 3.5, "1.7B": 3.5, "4B": 4.5, "8B": 4.5, "14B": 5.0, "32B": 8.0, "30B-A3B": 3.0}
    for name, at_32k in gib.items():
        assert kv_bytes_per_token(ModelConfig.named(name)) * 32_768 / 2**30 == at_32k
        assert kv_bytes_per_token(ModelConfig.named(name), kv_bytes=1) * 32_768 / 2**30 == at_32k / 2


def test_summaries_take_their_share():
    config = ModelConfig.named("8B")  # 36 layers, 8 KV heads of 128
    plain = kv_bytes_per_token(config)
    assert kv_bytes_per_token(config, TokenTopK(64)) == plain
    assert kv_bytes_per_token(config, BlockTopK(pages=4)) == plain + 35 * 8 * 128 * 2 / 16
    assert kv_bytes_per_token(config, LiteSysBlockTopK(4)) == plain + 35 * 8 * 128 * 2 / 16
    two = BlockTopK(pages=4, page_size=32, summary="min_max", dense_layers=(0, 1, 99))
    assert kv_bytes_per_token(config, two) == plain + 34 * 8 * 2 * 128 * 2 / 32


def test_sequences_beside_the_weights_counted_by_hand():
    config = ModelConfig.named("8B")
    fit = fits(config, "h100", tokens=16_640)
    free = 0.9 * 81_559 * 2**20 - 2 * total_parameters(config)  # what an H100 reports, 85.5 GB, not 80
    assert fit.free == pytest.approx(free)
    assert fit.sequence == 16_640 * 147_456
    assert fit.sequences == math.floor(free / fit.sequence) == 24
    assert fits(config, "h100", tokens=16_640, shared_tokens=256).shared == 256 * 147_456
    ragged = fits(config, "h100", tokens=100, shared_tokens=40, attention=BlockTopK(pages=3))
    assert ragged.sequence == (7 - 2) * (16 * 147_456 + 35 * 8 * 128 * 2)  # whole pages, the two full ones shared
    assert fits(ModelConfig.named("32B"), "l40s", tokens=10).sequences == 0
    assert fits(ModelConfig.named("32B"), "l40s", tokens=10).free < 0
    assert least_chips(ModelConfig.named("32B"), "l40s", tokens=32_768) == 2
    assert least_chips(ModelConfig.named("32B"), Hardware("watch", 1e12, 1e9, 1e8), tokens=1, most=64) == 0


def test_more_chips_than_kv_heads_keep_copies():
    config = ModelConfig.named("30B-A3B")  # 4 KV heads
    four, eight, three = (fits(config, "h100", tokens=32_768, chips=chips) for chips in (4, 8, 3))
    assert four.sequence == 32_768 * 98_304 / 4
    assert eight.sequence == four.sequence
    assert three.sequence == 2 * four.sequence  # one of three chips has two heads
    per_head = 2 * 2 * config.num_layers * config.hidden_size * config.head_dim
    assert 8 * eight.weights == pytest.approx(2 * total_parameters(config) + 4 * per_head)  # a second copy of each head
    assert eight.sequences > four.sequences  # by the weights that moved away


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["0.6B", "8B", "30B-A3B"]),
    st.integers(1, 40_000),
    st.integers(0, 400),
    st.integers(0, 4),
    st.sampled_from([Dense(), BlockTopK(pages=8), BlockTopK(pages=8, summary="mean_std")]),
)
def test_room_grows_with_chips_and_shrinks_with_length(name, tokens, shared, log_chips, attention):
    config, shared = ModelConfig.named(name), min(shared, tokens - 1)
    case = {"attention": attention, "shared_tokens": shared}
    base = fits(config, "h200", tokens=tokens, chips=2**log_chips, **case)
    assert fits(config, "h200", tokens=tokens, chips=2 ** (log_chips + 1), **case).sequences >= base.sequences
    assert fits(config, "h200", tokens=tokens + 1, chips=2**log_chips, **case).sequences <= base.sequences
    assert fits(config, "h200", tokens=tokens, chips=2**log_chips, kv_bytes=1, **case).sequences >= base.sequences
    used = base.weights + base.shared + base.sequences * base.sequence
    assert base.sequences == 0 or used <= hardware("h200").memory * 0.9 * (1 + 1e-12)
    assert used + base.sequence > hardware("h200").memory * 0.9 * (1 - 1e-12)


def test_what_cannot_be_meant_is_refused():
    config = ModelConfig.named("8B")
    for wrong in ({"chips": 0}, {"tokens": 0}, {"shared_tokens": 10}, {"kv_bytes": 0}, {"reserve": 1.0}):
        with pytest.raises(CostError):
            fits(config, "h100", **{"tokens": 10, **wrong})
    with pytest.raises(HardwareError, match="did you mean h100"):
        fits(config, "h10", tokens=10)
