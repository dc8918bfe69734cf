"""Joules beside seconds and money, where the energy of the hardware was measured: cost, plan and frontier."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from kinetics_jax.analysis.planner import Budget, PlanError, list_options, within_joules
from kinetics_jax.analysis.readers import read_all
from kinetics_jax.analysis.samples import pooled
from kinetics_jax.analysis.workload import Workload, workload_seconds
from kinetics_jax.attention.policies.dense import DENSE, Dense
from kinetics_jax.cli.cost import cost
from kinetics_jax.cli.frontier import frontier
from kinetics_jax.cli.plan import plan
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.cost import best_of_n_cost, generation_cost
from kinetics_jax.costs.hardware import HardwareError, hardware, measured_energy
from kinetics_jax.costs.step_time import prefill_amounts, prefill_seconds, step_amounts, step_seconds
from kinetics_jax.errors import UserError

CHIP = hardware("h100-vllm")
UNIT = 1e12


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """One published model, six samples of each of eight problems."""
    path, rng = tmp_path_factory.mktemp("tables") / "samples.csv", np.random.default_rng(0)
    columns = {
        "model": "Qwen/Qwen3-8B",
        "attention": "dense",
        "problem": np.repeat(np.arange(8), 6),
        "sample": np.tile(np.arange(6), 8),
        "prompt_tokens": 200,
        "tokens": rng.integers(100, 4000, 48),
        "correct": rng.random(48) < 0.5,
    }
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


def test_a_cost_draws_power_for_its_seconds_and_more_for_its_work():
    case = {"prompt_tokens": 100, "output_tokens": 2000, "trials": 3, "batch": 8, "hardware": CHIP}
    spent = generation_cost(ModelConfig.named("8B"), **case)
    want = CHIP.watts * spent.seconds
    want += CHIP.joules_per_flop * spent.compute * UNIT + CHIP.joules_per_byte * spent.memory * UNIT / CHIP.intensity
    assert spent.joules == pytest.approx(want)
    assert generation_cost(ModelConfig.named("8B"), **{**case, "hardware": "h100"}).joules is None
    assert generation_cost(ModelConfig.named("8B"), **{**case, "hardware": None, "intensity": 300}).joules is None


def test_cost_lists_the_chips_whose_energy_was_measured(capsys):
    case = {"model": "8B", "output": (4000,), "batch": 16, "as_json": True}
    cost(**case, joules=True)
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["hardware"]}
    assert list(rows) == [chip.name for chip in measured_energy()]
    assert all(row["joules"] > 0 for row in rows.values())
    cost(**case, hardware="h100-vllm", chips=2)
    (two,) = json.loads(capsys.readouterr().out)["hardware"]
    assert two["seconds"] < rows["h100-vllm"]["seconds"]
    assert two["joules"] > rows["h100-vllm"]["joules"]  # both chips draw all the while
    with pytest.raises(HardwareError, match="'h100': its energy was not measured"):
        cost(**case, hardware="h100", joules=True)


def test_joules_of_a_workload_by_hand():
    config, work = ModelConfig.named("8B"), Workload(np.array([64]), np.array([[3, 3]]))
    took = workload_seconds(config, Dense(), CHIP, work, slots=2, cap=3, chips=2)
    case = {"prompt_tokens": np.array([64]), "page_size": Dense().page_size}
    prefill = prefill_seconds(config, CHIP, chips=2, **case)[0]
    assert took.prefill == pytest.approx(prefill)
    amounts = {name: amount[0] / 2 for name, amount in prefill_amounts(config, **case).items()}
    want = 2 * CHIP.joules(amounts, prefill)
    for context in (65, 66):
        contexts = np.full(2, context)
        each = step_seconds(config, DENSE, CHIP, contexts=contexts, chips=2)
        step = {name: amount / 2 for name, amount in step_amounts(config, DENSE, contexts=contexts).items()}
        want += 2 * CHIP.joules(step, each)
    assert took.joules == pytest.approx(want, rel=1e-6)
    assert workload_seconds(config, Dense(), hardware("h100"), work, slots=2, cap=3).joules is None


def test_a_plan_within_joules(samples, capsys):
    options = list_options(pooled(read_all([samples])), CHIP, batches=[1, 8], trials=[1, 4])
    drawn = options.table["joules"].to_numpy()
    assert np.all(drawn > 0)
    assert list(np.argsort(drawn)) != list(np.argsort(options.table["seconds"]))[::-1]
    most = float(np.sort(drawn)[len(drawn) // 2])
    kept = within_joules(options, most)
    assert len(kept.table) == len(kept.solved) == np.sum(drawn <= most)
    assert kept.table["joules"].max() <= most
    with pytest.raises(PlanError, match=r"no configuration draws 1 J or less for 8 problems; the least is .* J"):
        within_joules(options, 1.0)
    plan((samples,), hardware="h100-vllm", joules=most, batches=(1, 8), trials=(1, 4), as_json=True)
    chosen = json.loads(capsys.readouterr().out)["chosen"]
    assert 0 < chosen["joules"] <= most
    with pytest.raises(HardwareError, match="its energy was not measured"):
        plan((samples,), joules=most)
    with pytest.raises(PlanError, match="--joules must be a positive number, got -1"):
        Budget(joules=-1.0)
    with pytest.raises(PlanError, match="give a budget, --seconds, --dollars or --joules"):
        Budget()


def test_a_frontier_with_joules(samples, capsys):
    case = {"hardware": "h100-vllm", "trials": (1, 4), "as_json": True}
    frontier((samples,), **case, joules=True)
    rows = json.loads(capsys.readouterr().out)
    (pool,) = pooled(read_all([samples]))
    (room,) = {row["batch"] for row in rows}
    assert room > 1

    def by_hand(trials: int) -> float:
        drawn = [
            best_of_n_cost(
                pool.priced(),
                prompt_tokens=200,
                output_lengths=problem.lengths,
                trials=trials,
                hardware=CHIP,
                batch=room,
            ).joules
            for problem in pool.problems.values()
        ]
        return float(np.mean(drawn))

    assert [row["joules"] for row in rows] == pytest.approx([by_hand(1), by_hand(4)])
    frontier((samples,), **case)
    assert "joules" not in json.loads(capsys.readouterr().out)[0]
    with pytest.raises(HardwareError, match="its energy was not measured"):
        frontier((samples,), joules=True)
    with pytest.raises(UserError, match="--joules stands beside the costs of the traffic convention"):
        frontier((samples,), hardware="h100-vllm", joules=True, convention="paper")


def test_energy_needs_seconds_in_the_form_of_the_chip():
    """Overlapping changes how long a chip draws power, not what its work adds."""
    case = {"prompt_tokens": 100, "output_tokens": 2000, "batch": 64}
    config = ModelConfig.named("8B")
    added = generation_cost(config, hardware=CHIP, **case)
    overlapped = generation_cost(config, hardware=dataclasses.replace(CHIP, form="max"), **case)
    gap = added.joules - overlapped.joules
    assert gap == pytest.approx(CHIP.watts * (added.seconds - overlapped.seconds))
    assert gap > 0
