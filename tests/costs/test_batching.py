"""How many sequences share the reads of the weights: by hand, by simulation, and in line with what fits the memory."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.batching import Room, resident_tokens, room, too_many, weight_words
from kinetics_jax.costs.conventions import CostError
from kinetics_jax.costs.cost import generation_cost
from kinetics_jax.costs.hardware import Hardware
from kinetics_jax.costs.memory import fits
from kinetics_jax.costs.widths import widths

MODELS = [ModelConfig.named(name) for name in ("0.6B", "8B", "32B", "30B-A3B")]
sizes = st.lists(st.integers(0, 5000), min_size=1, max_size=6)


def test_a_sequence_holds_its_prompt_and_half_of_its_output():
    assert resident_tokens(100, 1001) == 100 + 500.5  # steps that hold 101 … 1100 tokens
    assert resident_tokens(100, 1) == 101  # no step: the token that prefill drew
    # 10 steps of 1 … 10 tokens and 1000 of 1 … 1000: a step at random is nearly always of the long sample
    assert resident_tokens(0, [11, 1001]) == pytest.approx((55 + 500_500) / 1010)
    assert resident_tokens([7, 9], [3, 3]) == 8 + 1.5


@settings(max_examples=50, deadline=None)
@given(sizes, st.integers(0, 300))
def test_resident_tokens_are_the_mean_over_all_steps(lengths, prompt):
    held = [prompt + step for length in lengths for step in range(1, length)]
    assert resident_tokens(prompt, lengths) == pytest.approx(np.mean(held) if held else prompt + 1)


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(MODELS),
    st.sampled_from([Dense(), BlockTopK(budget=256)]),
    st.integers(1, 400),
    st.lists(st.integers(1, 20_000), min_size=1, max_size=5),
    st.integers(0, 20_000),
    st.sampled_from([1, 4]),
    st.sampled_from([1, 2]),
)
def test_the_batch_is_what_the_memory_holds(config, attention, prompt, lengths, more, chips, width):
    cap = max(lengths) + more
    how = {"chips": chips, "attention": attention, "kv_bytes": width, "weight_bytes": width}
    found = room(config, "h100", prompt_tokens=prompt, output_tokens=lengths, cap=cap, **how)
    assert found.full == fits(config, "h100", tokens=prompt + cap, **how).sequences
    assert found.batch >= found.full
    if not found.full:
        assert found.batch == 0
        return
    resident = math.ceil(resident_tokens(prompt, lengths))
    assert found.batch == fits(config, "h100", tokens=resident, **how).sequences
    shorter = room(config, "h100", prompt_tokens=prompt, output_tokens=np.minimum(lengths, 50), cap=cap, **how)
    assert shorter.batch >= found.batch


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(MODELS),
    st.sampled_from([Dense(), BlockTopK(budget=256)]),
    st.integers(0, 400),
    st.integers(0, 5000),
    st.integers(1, 2000),
    st.integers(1, 2000),
    st.sampled_from([1, 8]),
)
def test_a_larger_batch_never_costs_more_a_sample(config, attention, prompt, output, few, more, chips):
    case = {"prompt_tokens": prompt, "output_tokens": output, "attention": attention, "chips": chips}
    free = generation_cost(config, **case)
    small, large = (generation_cost(config, **case, batch=batch) for batch in (few, few + more))
    assert large.total <= small.total * (1 + 1e-12)
    assert large.seconds <= small.seconds * (1 + 1e-12)
    assert free.total <= large.total * (1 + 1e-12)
    assert large.weight_reads == pytest.approx(large.total - free.total - (large.communication - free.communication))
    both = generation_cost(config, **case, batch=[few, few + more])
    np.testing.assert_allclose(both.total, [small.total, large.total], rtol=1e-12)


def test_a_simulated_engine_holds_that_many():
    """Sequences replaced as they end, each at a random age: what they hold together is the batch times the mean."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 900, 400)
    left = np.zeros(50, int)
    held, ages, prompt = [], np.zeros(50, int), 40
    for step in range(6000):
        ended = left == 0
        left[ended] = rng.choice(lengths, ended.sum()) - 1
        ages[ended] = 0
        ages += 1
        left -= 1
        if step > 1000:
            held.append(np.mean(prompt + ages))
    assert np.mean(held) == pytest.approx(resident_tokens(prompt, lengths), rel=0.02)


def test_one_that_cannot_reach_its_cap_is_no_room():
    chip = Hardware("tight", 1e15, 1e12, 20e9)
    config = ModelConfig.named("8B")
    assert room(config, chip, prompt_tokens=100, output_tokens=200, cap=400) != Room(0, 0)
    assert room(config, chip, prompt_tokens=100, output_tokens=200, cap=40_000) == Room(0, 0)


def test_words():
    assert weight_words("none") == "weights left out"
    assert weight_words("fit") == "weights shared by the batch that fits"
    assert weight_words("given", 64.0) == "weights shared by a batch of 64"
    assert too_many(512, Room(44, 22), "1 x h100").startswith(
        "batch 512 does not fit on 1 x h100: 44 sequences do on average (22 if each may grow to its cap)"
    )


def test_bytes_of_an_element():
    assert widths({}) == widths({"dtype": None}) == (2, 2)
    assert widths({"dtype": "float32"}) == (4, 4)
    assert widths({"dtype": "bfloat16", "kv_dtype": "float8"}) == (1, 2)
    assert widths({"dtype": "float32"}, weight_bytes=1) == (4, 1)
    assert widths({"dtype": "odd"}, kv_bytes=2, weight_bytes=1) == (2, 1)
    with pytest.raises(CostError, match=r"the run's dtype 'odd' is not one of float32, .* give --kv-dtype"):
        widths({"dtype": "odd"})
    with pytest.raises(CostError, match="the run's weight_dtype 'int3' is not one of"):
        widths({"dtype": "float32", "weight_dtype": "int3"})
