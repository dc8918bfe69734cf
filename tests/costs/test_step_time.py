"""Seconds of steps and workloads against sums taken token by token, and the fit of a device that is made up."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_jax.analysis.samples import Pool, ProblemSamples
from kinetics_jax.analysis.workload import Workload, simulate_decode, simulate_schedule, workload, workload_seconds
from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.attention.policies.sliding_window import SlidingWindow
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.cost import generation_cost
from kinetics_jax.costs.hardware import Hardware, HardwareError, hardware, save_hardware
from kinetics_jax.costs.step_fit import FitError, Prefill, Step, fit, relative_errors
from kinetics_jax.costs.step_time import padded_prompt, prefill_amounts, prefill_seconds, step_amounts, step_seconds

CONFIG = ModelConfig(512, 64, 128, 3, 4, 2, head_dim=16, name="three")
SPARSE = BlockTopK(budget=32, page_size=8, dense_layers=(0,))
CHIP = Hardware("chip", 2e9, 1e8, 1e9)
PROFILE = Hardware(
    "profile",
    2e9,
    1e8,
    1e9,
    form="sum",
    step_seconds=3e-4,
    layer_seconds=2e-5,
    row_seconds=1e-5,
    logit_seconds=2e-8,
    prompt_seconds=4e-3,
    unit_seconds={
        "linear": 2e-11,
        "attention": 1e-10,
        "search": 0.0,
        "top_k": 3e-8,
        "weight_reads": 5e-11,
        "kv_reads": 2e-10,
        "search_reads": 1e-9,
        "prefill_linear": 1e-11,
        "prefill_attention": 5e-11,
    },
)


@pytest.mark.parametrize("policy", [Dense(), SPARSE, SlidingWindow(budget=24)])
def test_steps_of_a_generation_add_up_to_its_cost(policy):
    """One sequence by itself: the sum over its steps is the closed form of generation_cost."""
    prompt, output = 21, 80
    cost = generation_cost(
        CONFIG, prompt_tokens=prompt, output_tokens=output, attention=policy, hardware=CHIP, kv_bytes=4, batch=1
    )
    contexts = np.arange(prompt + 1, prompt + output)[:, None]
    amounts = step_amounts(CONFIG, policy, contexts=contexts, kv_bytes=4, weight_bytes=2)
    for name, amount in amounts.items():
        part = cost.parts[name] - cost.shared.get(name, 0)
        unit = CHIP.intensity if name.endswith("_reads") else 1
        np.testing.assert_allclose(amount.sum() * unit / 1e12, part, rtol=1e-12, err_msg=name)


def test_a_padded_device_takes_the_longest_for_all_and_searches_the_whole_table():
    contexts = np.array([40, 7, 0, 100])
    ragged = step_amounts(CONFIG, SPARSE, contexts=contexts)
    padded = step_amounts(CONFIG, SPARSE, contexts=contexts, width=200, padded=True)
    alone = step_amounts(CONFIG, SPARSE, contexts=np.array([100]))
    assert padded["dense_kv_reads"] == 4 * alone["dense_kv_reads"] > ragged["dense_kv_reads"]
    wide = step_amounts(CONFIG, SPARSE, contexts=np.array([200]))
    assert padded["search_reads"] == 4 * wide["search_reads"] > 0
    # below its budget a sparse step still scores every page
    assert step_amounts(CONFIG, SPARSE, contexts=np.array([9]), width=200, padded=True)["search_reads"] > 0
    window, dense = SlidingWindow(budget=24, dense_layers=()), Dense()
    masked = step_amounts(CONFIG, window, contexts=contexts, width=200, padded=True)
    assert masked["dense_kv_reads"] == 4 * step_amounts(CONFIG, dense, contexts=np.array([200]))["dense_kv_reads"]


def test_idle_slots_cost_their_rows():
    busy = step_seconds(CONFIG, Dense(), PROFILE, contexts=np.array([50]))
    idle = step_seconds(CONFIG, Dense(), PROFILE, contexts=np.array([50, 0, 0]))
    rows = 2 * (3 * PROFILE.row_seconds + 512 * PROFILE.logit_seconds + 2 * CONFIG.matmul_parameters * 2e-11)
    np.testing.assert_allclose(idle - busy, rows, rtol=1e-9)


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=60), slots=st.integers(1, 24), chunk=st.integers(1, 40)
)
def test_schedule_against_a_step_by_step_engine(lengths, slots, chunk):
    start, steps = simulate_schedule(np.array(lengths), slots, chunk=chunk)
    # The engine, literally: fill idle slots, run a chunk, take out what has stopped.
    left: dict[int, int] = {}
    waiting, began, now = list(range(len(lengths))), {}, 0
    while waiting or left:
        while waiting and len(left) < slots:
            sample = waiting.pop(0)
            began[sample], left[sample] = now, lengths[sample] - 1
        at_first = sum(tokens > 0 for tokens in left.values())
        patience = max(1, slots // 8) if waiting else slots
        for _ in range(chunk):
            running = [sample for sample, tokens in left.items() if tokens > 0]
            if not running or at_first - len(running) >= patience:
                break
            for sample in running:
                left[sample] -= 1
            now += 1
        left = {sample: tokens for sample, tokens in left.items() if tokens > 0}
    assert start.tolist() == [began[sample] for sample in range(len(lengths))]
    assert steps == now


def test_workload_seconds_against_every_step():
    rng = np.random.default_rng(0)
    work = Workload(np.array([20.0, 33.0, 9.0]), rng.integers(2, 70, size=(3, 5)).astype(float))
    slots = 4
    start, steps = simulate_schedule(work.lengths.ravel(), slots)
    prompts = np.repeat(work.prompts, 5)
    total = 0.0
    for now in range(steps):
        running = (start <= now) & (now < start + work.lengths.ravel() - 1)
        contexts = np.zeros(slots)
        contexts[: running.sum()] = (prompts + now - start + 1)[running]
        total += step_seconds(CONFIG, SPARSE, PROFILE, contexts=contexts, width=33 + 70)
    found = workload_seconds(CONFIG, SPARSE, PROFILE, work, slots=slots, cap=70)
    assert found.steps == steps
    np.testing.assert_allclose(found.decode, total, rtol=0.02)  # 48 moments of about 130 steps
    each = [prefill_seconds(CONFIG, PROFILE, prompt_tokens=tokens, page_size=8) for tokens in work.prompts]
    np.testing.assert_allclose(found.prefill, np.sum(each))
    alone = workload_seconds(CONFIG, SPARSE, PROFILE, Workload(np.array([5.0]), np.array([[1.0]])), slots=1, cap=1)
    assert alone.decode == 0
    assert alone.prefill > PROFILE.prompt_seconds


def test_samples_that_begin_later_are_paid_for():
    """Three samples a prompt through two slots: of the first two prompts each, some begin after a chunk of others."""
    work = Workload(np.array([6.0, 5.0]), np.array([[4.0, 9.0, 4.0], [4.0, 4.0, 4.0]]))
    contexts, steps, starts = simulate_decode(work, 2)
    start, last = simulate_schedule(work.lengths.ravel(), 2)
    assert start.tolist() == [0, 0, 3, 6, 8, 9]  # a slot is free whenever a sample ends: one start each after the first
    assert (steps, starts) == (last, 5)
    assert contexts.shape == (steps, 2)
    assert contexts[0].tolist() == [7, 7]
    dear = dataclasses.replace(PROFILE, start_seconds=0.5)
    cheap, paid = (workload_seconds(CONFIG, SPARSE, chip, work, slots=2, cap=9) for chip in (PROFILE, dear))
    assert paid.decode == cheap.decode
    assert paid.prefill == pytest.approx(cheap.prefill + 3 * 0.5)  # each prompt's first start is its own


def test_prompts_are_padded_as_the_engine_pads_them():
    chunk, tokens = padded_prompt([1, 8, 9, 16, 17, 64, 65, 2048, 2049, 33_000], 8)
    assert chunk.tolist() == [8, 8, 16, 16, 32, 64, 128, 2048, 2048, 2048]
    assert tokens.tolist() == [8, 8, 16, 16, 32, 64, 128, 2048, 4096, 34_816]


def test_a_long_prompt_reads_the_weights_for_every_chunk():
    config = ModelConfig.named("Qwen/Qwen3-0.6B")
    short, long = (prefill_amounts(config, prompt_tokens=n, page_size=16) for n in (2048, 33_000))
    assert long["weight_reads"] == pytest.approx(17 * short["weight_reads"])


def test_workload_keeps_the_mean_length():
    problems = {
        str(i): ProblemSamples(10.0 + i, [float(x) for x in range(1 + i, 41 + i)], [True] * 40) for i in range(8)
    }
    pool = Pool("three", Dense(), CONFIG, {}, problems)
    exact = np.mean([np.mean(problem.lengths) for problem in problems.values()])
    assert workload(pool, trials=40).lengths.mean() == exact
    assert abs(workload(pool, problems=4, trials=10).lengths.mean() - exact) < 1
    assert workload(pool, problems=19, trials=2).lengths.shape == (19, 2)
    assert workload(pool, trials=7, cap=12).lengths.max() == 12
    assert workload(pool, problems=1, trials=1).prompts.tolist() == [14.0]


CONFIGS = [
    ModelConfig(512, 64, 128, 2, 4, 4, head_dim=32, name="a"),
    ModelConfig(4096, 128, 384, 6, 8, 2, head_dim=64, name="b"),
    ModelConfig(1024, 512, 1536, 4, 8, 4, head_dim=64, name="c"),
]


def made_up(profile: Hardware, noise: float = 0.0) -> list[Step]:
    rng = np.random.default_rng(5)
    steps = []
    for config in CONFIGS:
        for batch in (1, 4, 32):
            for context in (48, 300, 1500):
                for policy in (Dense(), BlockTopK(budget=128, page_size=16)):
                    contexts = np.full(batch, context)
                    true = step_seconds(
                        config, policy, profile, contexts=contexts, width=1600, kv_bytes=4, weight_bytes=4
                    )
                    steps.append(Step(config, policy, batch, context, 1600, float(true * np.exp(noise * rng.normal()))))
    return steps


@pytest.mark.slow
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("form", ["sum", "max"])
def test_fit_recovers_a_made_up_device(form, padded):
    truth = dataclasses.replace(PROFILE, form=form, padded=padded)
    steps = made_up(truth)
    found = fit(Hardware("device", 1e9, 1e9, 1e9, padded=padded), steps)
    assert found.hardware.form == form
    assert found.cross_validated[form] < 0.01
    assert np.abs(relative_errors(found.hardware, steps)).max() < 0.01
    if form == "sum":
        for name in ("step_seconds", "row_seconds"):
            np.testing.assert_allclose(getattr(found.hardware, name), getattr(truth, name), rtol=1e-3, err_msg=name)
        for kind in ("linear", "weight_reads"):
            np.testing.assert_allclose(found.hardware.unit_seconds[kind], truth.unit_seconds[kind], rtol=1e-3)


def test_fit_of_a_noisy_device_predicts_what_it_did_not_see():
    found = fit(Hardware("device", 1e9, 1e9, 1e9), made_up(PROFILE, noise=0.05))
    fresh = [
        Step(config, Dense(), 12, 700, 1600, float(step_seconds(config, Dense(), PROFILE, contexts=np.full(12, 700),
             kv_bytes=4, weight_bytes=4)))
        for config in CONFIGS
    ]  # fmt: skip
    assert np.abs(relative_errors(found.hardware, fresh)).max() < 0.06
    assert found.cross_validated["sum"] < 0.08


def test_prefill_is_fitted_beside_the_steps():
    def prefill(config: ModelConfig, tokens: int) -> Prefill:
        seconds = prefill_seconds(config, PROFILE, prompt_tokens=tokens, page_size=16, weight_bytes=4)
        return Prefill(config, 16, tokens, float(seconds))

    prefills = [prefill(config, tokens) for config in CONFIGS for tokens in (30, 300, 2000)]
    found = fit(Hardware("device", 1e9, 1e9, 1e9), made_up(PROFILE), prefills).hardware
    for kind in ("prefill_linear", "prefill_attention"):
        np.testing.assert_allclose(found.unit_seconds[kind], PROFILE.unit_seconds[kind], rtol=0.02, err_msg=kind)
    np.testing.assert_allclose(found.prompt_seconds, PROFILE.prompt_seconds, rtol=0.02)


def test_fit_refuses_too_little():
    with pytest.raises(FitError, match="too few"):
        fit(CHIP, made_up(PROFILE)[:9])
    with pytest.raises(FitError, match="not positive"):
        fit(CHIP, [*made_up(PROFILE), Step(CONFIG, Dense(), 1, 5, 5, 0.0)])


def test_profile_round_trips_and_prices_costs(tmp_path):
    path = tmp_path / "cpu.json"
    save_hardware(path, PROFILE, record={"error": 0.1})
    assert hardware(path) == PROFILE
    assert hardware(str(path)).calibrated
    assert not CHIP.calibrated
    sizes = {"prompt_tokens": 30, "output_tokens": 50, "attention": SPARSE, "batch": 4}
    cost = generation_cost(CONFIG, hardware=PROFILE, **sizes)
    expected = cost.overhead_seconds
    for name, part in cost.parts.items():
        kind = next(kind for kind in sorted(PROFILE.unit_seconds, key=len, reverse=True) if name.endswith(kind))
        reads = name.endswith("_reads")
        expected += part * 1e12 / (PROFILE.intensity if reads else 1) * PROFILE.unit_seconds[kind]
    np.testing.assert_allclose(cost.seconds, expected)
    np.testing.assert_allclose(cost.overhead_seconds, 49 / 4 * PROFILE.overhead_seconds(3, 512, 4))
    path.write_text('{"name": "x", "flops": 1, "bandwidth": 1, "memory": 1, "unit_seconds": {"kv": 1}, "padded": 1}')
    with pytest.raises(HardwareError, match=r"padded must be true or false.*unit_seconds\.kv"):
        hardware(path)
