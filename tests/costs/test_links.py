"""What chips that share every sequence say to each other, by hand and against bounds worked out separately."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.cost import generation_cost
from kinetics_jax.costs.hardware import HARDWARE, Hardware, HardwareError, hardware, save_hardware
from kinetics_jax.costs.links import LINKS, communication_seconds, unknown_link
from kinetics_jax.costs.step_time import padded_prompt, prefill_seconds, step_seconds

H100 = HARDWARE["h100"]
ALONE = dataclasses.replace(H100, link_bandwidth=None)


def test_two_all_reduces_a_layer():
    config = ModelConfig.named("8B")
    message = 16 * config.hidden_size * 2
    each = 8e-6 + 2 * 7 / 8 * message / 450e9
    assert communication_seconds(config, H100, 8, 16) == pytest.approx(2 * config.num_layers * each)
    assert communication_seconds(config, H100, 1, 16) == 0
    assert communication_seconds(config, ALONE, 8, 16) == 0
    assert communication_seconds(config, H100, 8, [1, 16], activation_bytes=4)[1] > 2 * config.num_layers * each


def test_every_chip_has_a_link_and_says_where_from():
    for name, chip in HARDWARE.items():
        assert (chip.link_bandwidth, chip.all_reduce_seconds) == LINKS[name][:2], name
        assert LINKS[name].source
    assert unknown_link(H100, 8) is None
    assert unknown_link(ALONE, 1) is None
    assert "so communication between the 8 is not counted; give link_bandwidth" in str(unknown_link(ALONE, 8))


def test_steps_and_prefills_wait():
    config = ModelConfig.named("0.6B")
    contexts, case = np.full(16, 2000), {"prompt_tokens": [300, 5000], "page_size": 16}
    for chips in (1, 2, 8):
        linked, alone = (step_seconds(config, Dense(), chip, contexts=contexts, chips=chips) for chip in (H100, ALONE))
        assert linked - alone == pytest.approx(communication_seconds(config, H100, chips, 16))
        prefills = [prefill_seconds(config, chip, chips=chips, **case) for chip in (H100, ALONE)]
        chunk, tokens = padded_prompt([300, 5000], 16)
        np.testing.assert_array_equal(tokens / chunk, [1, 3])
        waits = communication_seconds(config, H100, chips, chunk) * (tokens / chunk)
        np.testing.assert_allclose(prefills[0] - prefills[1], waits, rtol=1e-9, atol=1e-15)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 3000), st.integers(2, 3000), st.integers(1, 500), st.sampled_from([2, 4, 8, 16]))
def test_a_cost_over_chips_is_the_steps_of_a_batch(prompt, output, batch, chips):
    """Per sequence, a step's wait is the batch's by its size; and it is priced as arithmetic that did not happen."""
    config = ModelConfig.named("8B")
    cost = generation_cost(config, prompt_tokens=prompt, output_tokens=output, batch=batch, chips=chips)
    step = communication_seconds(config, H100, chips, batch) / batch
    prefill = communication_seconds(config, H100, chips, prompt)
    flops = chips * H100.flops * (step * (output - 1) + prefill)
    assert cost.communication * 1e12 == pytest.approx(flops)
    assert cost.parts["communication"] + cost.parts["prefill_communication"] == pytest.approx(cost.communication)
    assert cost.shared["prefill_communication"] == pytest.approx(cost.parts["prefill_communication"])
    alone = generation_cost(
        config, prompt_tokens=prompt, output_tokens=output, batch=batch, chips=chips, hardware=ALONE
    )
    assert cost.seconds - alone.seconds == pytest.approx(step * (output - 1) + prefill)
    one = generation_cost(config, prompt_tokens=prompt, output_tokens=output, batch=batch)
    assert cost.compute == pytest.approx(one.compute)
    assert cost.weight_reads == pytest.approx(one.weight_reads)
    assert cost.kv_reads == pytest.approx(one.kv_reads * max(1, chips / 8))  # beyond 8 KV heads chips read copies


@pytest.mark.parametrize(
    ("name", "attention", "batch", "times"),
    [
        ("0.6B", Dense(), 1, 1.2),
        ("0.6B", BlockTopK(budget=1024), 16, 2.0),
        ("8B", Dense(), 8, 4.9),
        ("8B", Dense(), 21, 5.7),
        ("8B", BlockTopK(budget=1024), 16, 4.3),
        ("32B", Dense(), 16, 6.2),
    ],
)
def test_eight_chips_are_not_eight_times_one(name, attention, batch, times):
    """The mean step of outputs of 16K tokens; at 8 microseconds an all-reduce the latency is most of what is lost."""
    config, contexts = ModelConfig.named(name), np.full(batch, 256 + 8192)
    one, eight = (step_seconds(config, attention, H100, contexts=contexts, chips=chips) for chips in (1, 8))
    assert one / eight == pytest.approx(times, abs=0.06)


def test_profiles_say_their_link(tmp_path):
    chip = Hardware("mine", 1e14, 1e12, 24e9, link_bandwidth=1e10, all_reduce_seconds=2e-5)
    save_hardware(tmp_path / "mine.json", chip)
    assert hardware(tmp_path / "mine.json") == chip
    (tmp_path / "old.json").write_text('{"name": "old", "flops": 1e14, "bandwidth": 1e12, "memory": 2.4e10}')
    assert hardware(tmp_path / "old.json").link_bandwidth is None
    for wrong, says in (
        ({"link_bandwidth": 0}, "link_bandwidth must be a positive number"),
        ({"link_bandwidth": "fast"}, "link_bandwidth must be a positive number"),
        ({"all_reduce_seconds": -1}, "all_reduce_seconds must be a number, at least 0"),
    ):
        with pytest.raises(HardwareError, match=says):
            Hardware("mine", 1e14, 1e12, 24e9, **wrong)
    (tmp_path / "unit.json").write_text(
        '{"name": "unit", "flops": 1e14, "bandwidth": 1e12, "memory": 2.4e10, "link_bandwidth": 450}'
    )
    with pytest.raises(HardwareError, match="link_bandwidth = 450 is read as bytes/s"):
        hardware(tmp_path / "unit.json")
