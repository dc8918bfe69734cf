"""Fits to measurements of engines that are known, since they were made up, and their error on models left out."""

import dataclasses

import numpy as np
import pytest

from kinetics_jax.attention.policies.dense import DENSE
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.cost import generation_cost
from kinetics_jax.costs.hardware import hardware
from kinetics_jax.costs.measured_fit import COLUMNS, data_sheet_seconds, fit_measured, held_out, strata, summary
from kinetics_jax.costs.measurements import Measured
from kinetics_jax.costs.step_fit import FitError
from kinetics_jax.costs.step_time import step_amounts, step_joules, step_seconds

H100 = hardware("h100")
ENGINE = dataclasses.replace(
    H100,
    name="engine",
    form="sum",
    step_seconds=4e-4,
    layer_seconds=5e-5,
    row_seconds=1e-6,
    unit_seconds={"weight_reads": 1.25 / H100.bandwidth, "kv_reads": 1.5 / H100.bandwidth, "linear": 2 / H100.flops},
    watts=250.0,
    joules_per_flop=1e-12,
    joules_per_byte=6e-11,
)


def measured(name, batch, context, **more):
    """A row that the made-up engine would have given."""
    config = ModelConfig.named(name)
    contexts = np.full(batch, context)
    seconds = step_seconds(config, DENSE, ENGINE, contexts=contexts)
    joules = step_joules(config, DENSE, ENGINE, seconds, contexts=contexts) / batch
    return Measured(name, config, "h100", batch, context, float(seconds), joules=float(joules), **more)


@pytest.fixture(scope="module")
def rows():
    sizes = [(1, 3000), (8, 200), (8, 8000), (64, 500), (64, 4000), (256, 900)]
    return [measured(name, *size) for name in ("1.7B", "8B", "14B", "30B-A3B") for size in sizes]


def test_a_known_engine_is_found_again(rows):
    model = fit_measured(rows)
    want = dict.fromkeys(COLUMNS, 0.0) | dict.fromkeys(
        ("communication", "attention", "prefill_linear", "prefill_attention"), 1.0
    )
    want |= {"weight_reads": 1.25, "kv_reads": 1.5, "linear": 2.0}
    want |= {"step_seconds": 4e-4, "layer_seconds": 5e-5, "row_seconds": 1e-6}
    for name, value in want.items():
        assert model.times[name] == pytest.approx(value, rel=2e-3, abs=2e-9), name
    np.testing.assert_allclose(model.energy, (250, 1e-12, 6e-11), rtol=1e-3)
    profile = model.hardware("mine", H100, "made up")
    for row in rows[::5]:
        case = {"contexts": np.full(row.batch, row.context)}
        seconds = step_seconds(row.config, DENSE, profile, **case)
        assert seconds == pytest.approx(row.seconds, rel=1e-4)
        assert model.seconds([row])[0] == pytest.approx(seconds, rel=1e-9)
        drawn = step_joules(row.config, DENSE, profile, seconds, **case) / row.batch
        assert model.joules([row])[0] == pytest.approx(drawn, rel=1e-9)
    assert profile.unit_seconds["search_reads"] == profile.unit_seconds["kv_reads"]
    assert (profile.flops, profile.memory) == (H100.flops, H100.memory)


def test_a_model_left_out_is_predicted_and_its_shape_counts(rows):
    errors = held_out(rows)
    assert [error.row for error in errors] == rows
    assert max(abs(error.seconds) for error in errors) < 2e-3
    assert max(abs(error.joules) for error in errors) < 2e-3
    # One model twice as slow as all say: the others cannot know, and it is off by half, under whatever name.
    slow = [
        dataclasses.replace(row, seconds=2 * row.seconds, model=f"any {number}") if row.model == "8B" else row
        for number, row in enumerate(rows)
    ]
    (part,) = strata(error for error in held_out(slow) if error.row.config.name == "Qwen/Qwen3-8B").values()
    assert (part["rows"], part["models"]) == (6, 1)
    assert part["median_error"] == pytest.approx(0.5, abs=2e-3)
    assert part["worst_error"] == pytest.approx(0.5, abs=2e-3)


def test_nothing_is_faster_than_the_data_sheet(rows):
    quick = [dataclasses.replace(row, seconds=0.5 * data_sheet_seconds(row)) for row in rows]
    times = fit_measured(quick).times
    assert [times[name] for name in ("weight_reads", "kv_reads", "linear")] == [1.0, 1.0, 1.0]
    assert times["step_seconds"] == times["layer_seconds"] == times["row_seconds"] == 0.0


def test_the_data_sheet_is_the_roofline(rows):
    for row in rows[::7]:
        amounts = step_amounts(row.config, DENSE, contexts=np.full(row.batch, row.context))
        assert data_sheet_seconds(row) == pytest.approx(float(H100.seconds(amounts)))
    with_prompt = dataclasses.replace(rows[0], prompt_tokens=4000, output_tokens=100)
    prompt = generation_cost(rows[0].config, prompt_tokens=4000, output_tokens=1, intensity=1)
    more = 1e12 * (prompt.parts["prefill_linear"] + prompt.parts["prefill_attention"]) / H100.flops / 100
    assert data_sheet_seconds(with_prompt) == pytest.approx(data_sheet_seconds(rows[0]) + more)


def test_what_a_batch_of_one_cannot_tell_is_left_alone():
    one = [measured(name, 1, context) for name in ("1.7B", "8B", "14B", "32B") for context in (100, 4000, 30_000)]
    model = fit_measured([dataclasses.replace(row, joules=None) for row in one])
    assert set(model.free) == {"step_seconds", "layer_seconds", "weight_reads", "kv_reads"}
    assert model.times["row_seconds"] == model.times["logit_seconds"] == 0
    assert model.times["linear"] == 1  # grows with the weights, so it stays at the data sheet's rate
    assert model.energy is None
    assert model.joules(one) is None
    assert model.hardware("mine", H100, "").watts is None


def test_chips_that_share_a_step_wait_for_each_other(rows):
    """An all-reduce of 10 microseconds, twice a layer, on rows of two chips, is told from all else."""
    shared = []
    for row in rows:
        alone = fit_measured(rows).seconds([dataclasses.replace(row, chips=2)])[0]
        waits = 2 * row.config.num_layers * 10e-6
        shared.append(dataclasses.replace(row, chips=2, seconds=float(alone) + waits))
    model = fit_measured([*rows, *shared])
    assert model.hardware("mine", H100, "").all_reduce_seconds == pytest.approx(10e-6, rel=1e-3)
    assert fit_measured(rows).hardware("mine", H100, "").all_reduce_seconds == H100.all_reduce_seconds
    assert model.times["all_reduce_seconds"] == pytest.approx(10e-6, rel=1e-3)
    assert model.times["layer_seconds"] == pytest.approx(5e-5, rel=1e-3)


def test_eight_bit_floats_are_multiplied_at_their_own_peak(rows):
    row = dataclasses.replace(rows[-1], weights="float8")
    lighter, full = data_sheet_seconds(row), data_sheet_seconds(rows[-1])
    assert lighter < full
    compute_bound = dataclasses.replace(rows[5], batch=8192, context=1)
    ratio = data_sheet_seconds(dataclasses.replace(compute_bound, weights="float8")) / data_sheet_seconds(compute_bound)
    assert ratio == pytest.approx(0.5, rel=1e-3)
    integer = dataclasses.replace(compute_bound, weights="int8")  # unpacked, then multiplied in 16 bits
    assert data_sheet_seconds(integer) == pytest.approx(data_sheet_seconds(compute_bound))


def test_too_little_to_fit(rows):
    with pytest.raises(FitError, match="no measurement to fit"):
        fit_measured([])
    with pytest.raises(FitError, match=r"measurements of 3 or more are needed, got 2 \(1.7B, 8B\)"):
        held_out(rows[:12])
    assert summary(held_out(rows))["models"] == 4
