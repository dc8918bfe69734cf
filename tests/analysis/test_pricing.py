"""How pools are priced: which batch shares the reads of the weights, what does not fit, and the bytes of a run."""

import dataclasses
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_jax.analysis.adaptive import replay_table
from kinetics_jax.analysis.allocation import allocation_table, best_for_all, best_per_problem, cost_limits
from kinetics_jax.analysis.frontier import cost_frontier
from kinetics_jax.analysis.grid import grid
from kinetics_jax.analysis.planner import list_options
from kinetics_jax.analysis.pricing import Pricing
from kinetics_jax.analysis.samples import RunData, SamplesError, pooled
from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.batching import room
from kinetics_jax.costs.conventions import CostError
from kinetics_jax.costs.cost import generation_cost
from kinetics_jax.costs.hardware import HARDWARE

LENGTHS = [1000, 3000, 9000, 16_000]


def run(size, *, attention=Dense(), lengths=LENGTHS, prompts=(100, 300), cap=16_384, **settings):
    rng = np.random.default_rng(0)
    count = len(lengths)
    return RunData(
        model=f"Qwen/Qwen3-{size}",
        attention=attention,
        config=ModelConfig.named(size),
        problem=[f"p{i}" for i in range(len(prompts)) for _ in range(count)],
        sample=[*range(count)] * len(prompts),
        prompt_tokens=[prompt for prompt in prompts for _ in range(count)],
        output_tokens=list(lengths) * len(prompts),
        correct=[bool(right) for right in rng.random(count * len(prompts)) < 0.5],
        settings={"max_tokens": cap, **settings},
    )


def test_the_batch_that_fits_is_of_each_pool_and_cap():
    runs = [run("8B"), run("8B", attention=BlockTopK(budget=1024))]
    cells = grid(pooled(runs), trials=[1, 2], caps=[2000, 16_384], hardware="h200", chips=2)
    assert cells.batch_rule == "fit"
    rows = cells.configurations
    for (attention, cap), group in rows.groupby(["attention", "cap"]):
        policy = Dense() if attention == "dense" else BlockTopK(budget=1024)
        found = room(
            ModelConfig.named("8B"), "h200", prompt_tokens=np.repeat([100, 300], 4), chips=2, attention=policy,
            output_tokens=np.minimum(LENGTHS * 2, cap), cap=int(cap),
        )  # fmt: skip
        assert set(group["batch"]) == {found.batch}
        assert set(group["batch_full"]) == {found.full}
    batches = rows.set_index(["attention", "cap", "N"])["batch"]
    assert batches["dense", 2000, 1] > batches["dense", 16_384, 1]


def test_what_a_batch_changes_is_the_weights():
    pools = pooled([run("8B"), run("30B-A3B")])
    free, fit, given_ = (grid(pools, trials=[1, 4], batch=batch) for batch in (None, "fit", 7))
    np.testing.assert_array_equal(fit.compute, free.compute)
    np.testing.assert_allclose(fit.cost_without_weights, free.cost, rtol=1e-12)
    np.testing.assert_allclose(given_.cost_without_weights, free.cost, rtol=1e-12)
    assert not np.any(free.weights)
    full = grid(pools[:1], trials=[1, 4], batch=int(fit.configurations["batch_full"][0]))
    np.testing.assert_allclose(fit.cost_full[:2], full.cost, rtol=1e-12)
    some = fit.rows([1, 3])
    np.testing.assert_array_equal(some.cost_full, fit.cost_full[[1, 3]])
    assert some.batch_rule == "fit"


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(["0.6B", "8B", "30B-A3B"]), st.integers(1, 3000), st.integers(1, 3000), st.booleans())
def test_costs_fall_with_the_batch_and_never_below_those_without_weights(size, few, more, sparse):
    pools = pooled([run(size, attention=BlockTopK(budget=512) if sparse else Dense())])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some do not fit
        small, large = (grid(pools, trials=[2], batch=batch).cost for batch in (few, few + more))
    free, fit = (grid(pools, trials=[2], batch=batch) for batch in (None, "fit"))
    assert np.all(large <= small * (1 + 1e-12))
    assert np.all(free.cost <= large * (1 + 1e-12))
    assert np.all(free.cost < fit.cost)
    assert np.all(fit.cost <= fit.cost_full * (1 + 1e-12))


@pytest.mark.parametrize("convention", ["paper", "upstream"])
def test_published_conventions_have_no_weights_and_two_bytes(convention):
    """Whatever the run's type: as the same samples in bfloat16, and as generation_cost alone."""
    one, two = (cost_frontier([run("8B", dtype=dtype)], convention=convention) for dtype in ("float32", "bfloat16"))
    assert one.equals(two)
    assert set(one["batch_rule"]) == {"none"}
    assert one["batch"].isna().all()
    each = [
        generation_cost(
            ModelConfig.named("8B"), prompt_tokens=prompt, output_tokens=LENGTHS, convention=convention, hardware="h100"
        ).total.mean()
        for prompt in (100, 300)
    ]
    assert one["cost"].iloc[0] == pytest.approx(np.mean(each), rel=1e-12)
    for batch in ("fit", 8):
        with pytest.raises(CostError, match=f"no meaning in the {convention} convention"):
            cost_frontier([run("8B")], convention=convention, batch=batch)


def test_an_intensity_alone_has_no_memory():
    """So that its default leaves the weights out, and says so; `fit` is refused."""
    table = cost_frontier([run("8B")], intensity=200.0)
    assert set(table["batch_rule"]) == {"none"}
    assert table["cost"].equals(table["cost_without_weights"])
    with pytest.raises(CostError, match="batch fit needs hardware, whose memory says what fits"):
        cost_frontier([run("8B")], intensity=200.0, batch="fit")
    counted = cost_frontier([run("8B")], intensity=200.0, batch=16)
    assert (counted["cost"] > counted["cost_without_weights"]).all()
    assert counted["batch_full"].isna().all()
    for wrong in ("all", 2.5, 0, -1, True):
        with pytest.raises(CostError, match='batch must be "fit", None or a whole number from 1 up'):
            Pricing(batch=wrong)


def test_bytes_are_those_of_the_run_for_frontier_and_plan():
    wide, narrow = (cost_frontier([run("8B", dtype=dtype)], batch=4) for dtype in ("float32", "bfloat16"))
    np.testing.assert_allclose(wide["memory"], 2 * narrow["memory"])
    assert wide["compute"].equals(narrow["compute"])
    asked = cost_frontier([run("8B", dtype="float32")], batch=4, kv_bytes=2, weight_bytes=2)
    assert asked["memory"].equals(narrow["memory"])
    room_of = {
        dtype: list_options(pooled([run("8B", dtype=dtype)]), HARDWARE["h100"], trials=[1], batches=[1]).table
        for dtype in ("float32", "bfloat16")
    }
    room_of = {dtype: table["fits_full"] for dtype, table in room_of.items()}
    assert (room_of["float32"] < room_of["bfloat16"]).all()
    for dtype, table in (("float32", wide), ("bfloat16", narrow)):
        assert room_of[dtype].max() == room_of[dtype].iloc[0]  # caps of 8192 and 16384
        assert room_of[dtype].min() == table["batch_full"].iloc[0]


def test_what_does_not_fit_is_marked_and_named():
    pools = pooled([run("0.6B"), run("32B")])
    says = r"Qwen/Qwen3-32B dense: not one sequence of 16684 tokens fits .* 1 x l40s, .*; give --chips 2, larger"
    with pytest.warns(UserWarning, match=says):
        cells = grid(pools, trials=[1, 2], hardware="l40s")
    assert list(cells.configurations["batch"] == 0) == [False, False, True, True]
    assert np.all(np.isinf(cells.cost[2:]))
    assert np.all(np.isfinite(cells.cost[:2]))
    limits = cost_limits(cells, 4)
    assert np.all(np.isfinite(limits))
    for choice in (best_per_problem(cells, [*limits, 1e30]), best_for_all(cells, [*limits, 1e30])):
        assert choice.choice.max() < 2  # never what cannot run
        assert set(allocation_table(cells, choice)["batch_rule"]) == {"fit"}
    with pytest.warns(UserWarning, match="not one sequence"):
        table = cost_frontier(pools, trials=[1, 2], hardware="l40s")
    assert table["cost"].isna().tolist() == [False, False, True, True]
    assert not table["on_frontier"][2:].any()
    with pytest.warns(UserWarning, match="not one sequence"):
        replayed = replay_table(pools, trials=[2], hardware="l40s", rule="pass")
    assert replayed[["cost", "fixed_cost", "saved"]].isna().all(axis=1).tolist() == [False, True]
    with pytest.warns(UserWarning, match="not one"), pytest.raises(SamplesError, match="no configuration fits"):
        cost_limits(grid(pools[1:], hardware="l40s"))


def test_more_than_fit_is_said():
    with pytest.warns(UserWarning, match=r"8B dense: batch 512 does not fit on 1 x h100: \d+ sequences do on average"):
        table = cost_frontier([run("8B")], batch=512)
    assert set(table["batch"]) == {512}
    assert table["cost"].notna().all()
    unlinked = dataclasses.replace(HARDWARE["h100"], link_bandwidth=None)
    with pytest.warns(UserWarning, match="nothing is known of the link between its chips"):
        cost_frontier([run("8B")], hardware=unlinked, chips=4)
    with pytest.raises(CostError, match="several chips have a meaning in the traffic convention"):
        cost_frontier([run("8B")], convention="paper", chips=2)


def test_chips_make_room_and_wait_for_each_other():
    one, eight = (grid(pooled([run("8B")]), trials=[1, 2], hardware="h100", chips=chips) for chips in (1, 8))
    assert (eight.configurations["batch"] > 8 * one.configurations["batch"]).all()
    assert np.all(eight.weights < one.weights)
    assert not np.any(one.communication)
    assert np.all(eight.communication > 0)
    np.testing.assert_allclose(eight.cost, eight.compute + eight.memory + eight.communication)
    np.testing.assert_allclose(eight.spent("max"), np.maximum(eight.compute, eight.memory) + eight.communication)
