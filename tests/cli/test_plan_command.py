"""`kinetics plan` and `kinetics calibrate`: what they print, and what they refuse in one line."""

import json
import math
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from tiny import tiny_config, tiny_prompts, write_checkpoint

from kinetics_jax.analysis.planner import PlanError
from kinetics_jax.analysis.samples import SamplesError
from kinetics_jax.analysis.workload import Workload, simulate_decode
from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.cli.calibrate import calibrate as calibrate_command
from kinetics_jax.cli.plan import plan
from kinetics_jax.cli.sources import Unsaid
from kinetics_jax.cli.terminal import print_table
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.hardware import HARDWARE, HardwareError, hardware, save_hardware
from kinetics_jax.devices.calibration import Measurements, Point, calibrate, choose_measurements, interleaved
from kinetics_jax.engine import decoding as decoding_module
from kinetics_jax.engine.engine import Request
from kinetics_jax.errors import UserError
from kinetics_jax.language_model import load
from kinetics_jax.runs.folder import RunWriter
from kinetics_jax.settings import EngineSettings, Sampling

TINY = ModelConfig(131, 32, 48, 2, 4, 2, head_dim=8, tie_word_embeddings=True, max_position_embeddings=256, name="tiny")


def write_run(path, policy, rate, seed):
    """A finished run folder of ten problems, four samples each."""
    rng = np.random.default_rng(seed)
    config = dict(vars(TINY))
    run = {
        "model": "tiny",
        "config": config,
        "policy": policy,
        "dtype": "float32",
        "task": "builtin",
        "n": 4,
        "sampling": {"temperature": 1.0, "max_tokens": 32, "seed": 0},
    }
    problems = [{"id": f"p{i}", "question": f"q{i}", "answer": "1", "prompt": f"q{i}"} for i in range(10)]
    with RunWriter(path, run, problems) as writer:
        for problem in problems:
            for sample in range(4):
                writer.append(
                    {
                        "problem": problem["id"],
                        "sample": sample,
                        "seed": 0,
                        "prompt_tokens": 12,
                        "output_tokens": [5] * int(rng.integers(4, 32)),
                        "text": "",
                        "finish_reason": "stop",
                        "correct": bool(rng.random() < rate),
                        "answer": "1",
                        "grader": "ok",
                        "seconds": 0.1,
                    }
                )
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    sparse = "block_topk:budget=16,page_size=4,dense_layers=none"
    return write_run(folder / "dense", "dense", 0.6, 1), write_run(folder / "sparse", sparse, 0.5, 2)


def test_plan_over_replicas_and_types(runs, capsys):
    plan(runs, seconds=60, replicas=3, as_json=True)
    result = json.loads(capsys.readouterr().out)
    assert (result["chips"], result["replicas"]) == (1, 3)
    plan(runs, seconds=60, replicas=3)
    assert "10 problems on 3 replicas of 1 x h100" in capsys.readouterr().out
    rooms = []
    for types in ({}, {"kv_dtype": "bfloat16"}, {"kv_dtype": "float8", "weight_dtype": "int8"}):
        plan(runs, seconds=60, as_json=True, **types)
        rooms.append(json.loads(capsys.readouterr().out)["chosen"]["fits"])
    assert rooms[0] < rooms[1] < rooms[2]  # the runs are in float32
    with pytest.raises(UserError, match="--replicas must be at least 1"):
        plan(runs, seconds=60, replicas=0)


def test_plan_prints_the_advice_as_a_table_and_as_json(runs, capsys):
    plan(runs, seconds=60, chips=1, as_json=True)
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    chosen = result["chosen"]
    assert chosen["N"] == 4
    assert chosen["seconds"] < 60
    assert result["problems"] == 10
    assert result["interval"][0] <= result["accuracy"] <= result["interval"][1]
    assert result["runner_up"]["why_not"]
    assert not result["calibrated"]
    assert "data sheet" in printed.err
    plan(runs, seconds=60, chips=1)
    text = capsys.readouterr().out
    assert "run this" in text
    assert "runner-up: " in text


def test_plan_decides_by_a_rule_under_either_name(runs, capsys):
    results = []
    for named in ({}, {"rule": "majority"}, {"pick": "majority"}, {"rule": "majority", "pick": "majority"}):
        plan(runs, seconds=60, trials=(4,), as_json=True, **named)
        results.append(json.loads(capsys.readouterr().out))
    assert [(each["rule"], each["pick"]) for each in results] == [("pass", "any")] + [("majority", "majority")] * 3
    assert results[1] == results[2] == results[3]
    assert results[1]["accuracy"] == results[1]["picked"]["majority"]["accuracy"]
    plan(runs, seconds=60, trials=(4,), rule="average")
    text = capsys.readouterr().out.replace("\n", " ")
    assert "as measured, by average (of N samples, each by itself); chosen" in text
    with pytest.raises(UserError, match="--rule majority and --pick any name two rules; leave --pick out"):
        plan(runs, seconds=60, rule="majority", pick="any")
    with pytest.raises(PlanError, match=r"--rule weighted: .*no verifier scored the samples; fill in a column score"):
        plan(runs, seconds=60, rule="weighted")


def test_plan_takes_a_profile_and_a_price(runs, tmp_path, capsys):
    path = tmp_path / "mine.json"
    save_hardware(path, HARDWARE["h100"])
    plan(
        runs,
        hardware=str(path),
        dollars=1.0,
        price=2.0,
        problems=5,
        trials=(2,),
        caps=(16,),
        batches=(4,),
        as_json=True,
    )
    result = json.loads(capsys.readouterr().out)["chosen"]
    assert (result["N"], result["cap"], result["batch"]) == (2, 16, 4)
    assert result["dollars"] == pytest.approx(result["seconds"] / 3600 * 2)


def write_table(path, *, prompts=True, answers=True):
    """Samples of two models without a published name, as a .csv, .jsonl or .parquet."""
    rng = np.random.default_rng(0)
    rows = [
        {"model": model, "problem": f"p{i}", "sample": j, "tokens": int(rng.integers(20, 90))}
        | {"correct": bool(right := rng.random() < rate)}
        | ({"prompt_tokens": 30} if prompts else {})
        | ({"answer": "1" if right else str(rng.integers(2, 4))} if answers else {})
        for model, rate in (("mine-1b", 0.1), ("mine-2b", 0.6))
        for i in range(10)
        for j in range(4)
    ]
    table = pd.DataFrame(rows)
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_parquet(path)
    return path


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """--config of both models of `write_table`."""
    folder = tmp_path_factory.mktemp("configs")
    given = []
    for name, layers in (("mine-1b", 2), ("mine-2b", 3)):
        path = folder / f"{name}.json"
        path.write_text(json.dumps(tiny_config(num_hidden_layers=layers)))
        given.append(f"{name}={path}")
    return tuple(given)


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_plan_reads_tables(ending, configs, tmp_path, capsys):
    path = write_table(tmp_path / f"samples{ending}")
    plan((path,), seconds=60, trials=(4,), unsaid=Unsaid(config=configs), as_json=True)
    result = json.loads(capsys.readouterr().out)
    assert result["chosen"]["model"] == "mine-2b"
    assert 0 < result["chosen"]["first_answer"] <= result["chosen"]["seconds"]
    assert result["alternatives"][0]["probability_best"] == result["probability_best"]
    assert result["regret"] >= 0
    assert result["picked"]["majority"]["accuracy"] < result["accuracy"]
    with pytest.raises(UserError, match="--trials 5: mine-1b dense has 4 graded samples"):
        plan((path,), seconds=60, trials=(5,), unsaid=Unsaid(config=configs), pick="majority")
    plan((path,), seconds=60, trials=(4,), unsaid=Unsaid(config=configs), pick="majority")
    text = capsys.readouterr().out
    assert "majority (the most frequent answer): 0." in text
    assert "pass@N" not in text


def test_plan_says_what_tables_leave_out(configs, tmp_path, capsys):
    path = write_table(tmp_path / "samples.csv", prompts=False, answers=False)
    with pytest.raises(SamplesError, match=r"architecture is not known, .* \(--config MODEL=config\.json\)"):
        plan((path,), seconds=60)
    with pytest.raises(SamplesError, match=r"prompt token counts are missing .* \(--prompt-tokens N\)"):
        plan((path,), seconds=60, unsaid=Unsaid(config=configs))
    with pytest.raises(PlanError, match=r"--rule majority: .* what the samples answered is not known"):
        plan((path,), seconds=60, unsaid=Unsaid(config=configs, prompt_tokens=30), pick="majority")
    plan((path,), seconds=60, trials=(4,), unsaid=Unsaid(config=configs, prompt_tokens=30))
    text = capsys.readouterr().out
    assert "It is the most accurate within the budget with probability" in text
    assert "The data cannot tell" in text
    assert "pass@N (any of N right): it needs someone who knows which answer is right" in text
    assert "What a majority would pick is not known" in text


def test_plan_says_that_own_costs_are_not_its_prices(configs, tmp_path, capsys):
    path = write_table(tmp_path / "samples.csv")
    plan((path,), seconds=60, trials=(4,), unsaid=Unsaid(config=configs))
    before = capsys.readouterr()
    pd.read_csv(path).assign(cost=5.0).to_csv(path, index=False)
    plan((path,), seconds=60, trials=(4,), unsaid=Unsaid(config=configs))
    after = capsys.readouterr()
    assert after.out == before.out
    assert "plans price plain decoding" not in before.err
    assert "mine-1b dense: its samples state what they cost, and plans price plain decoding instead" in after.err


def test_plan_says_that_others_are_as_accurate(tmp_path, capsys):
    rows = [f"p{i},{j},1000,30,Qwen/Qwen3-{size},1" for size in ("0.6B", "8B") for i in range(6) for j in range(2)]
    path = tmp_path / "all.csv"
    path.write_text("\n".join(["problem,sample,tokens,prompt_tokens,model,correct", *rows]) + "\n")
    plan((path,), seconds=1000, caps=(1000,))
    text = capsys.readouterr().out
    assert "It is the cheapest of those as accurate (" in text
    assert "probability 0.00" not in text
    plan((path,), seconds=1000, caps=(1000,), as_json=True)
    result = json.loads(capsys.readouterr().out)
    assert result["probability_best"] == 1 / (1 + len(result["as_accurate"]))


def test_printed_numbers_have_no_noise(capsys):
    table = pd.DataFrame({"name": ["a", "b", "c"], "gain": [2.22e-16, -0.0, 0.25], "cost": [-1.11e-16, math.nan, 1e-9]})
    print_table(table, True)
    rows = json.loads(capsys.readouterr().out)
    assert [str(row["gain"]) for row in rows] == ["0.0", "0.0", "0.25"]
    assert [row["cost"] for row in rows] == [0, None, 1e-9]
    print_table(table, False)
    text = capsys.readouterr().out
    assert "e-16" not in text
    assert "-0" not in text.replace("1e-09", "")
    assert table["gain"][0] == 2.22e-16  # the table itself stays


def test_the_advice_has_no_noise(runs, capsys, monkeypatch):
    monkeypatch.setattr("kinetics_jax.analysis.advice._optimism", lambda *_: 2.22e-16)
    plan(runs, seconds=60, as_json=True)
    assert json.loads(capsys.readouterr().out)["optimism"] == 0


def test_plan_says_how_many_samples_a_half_width_takes(tmp_path, capsys):
    path = write_table(tmp_path / "samples.csv", prompts=False)  # neither architecture nor prompts are needed
    plan((path,), half_width=0.05, trials=(1, 2, 1), as_json=True)
    rows = json.loads(capsys.readouterr().out)
    assert len({(row["model"], row["N"], row["samples"]) for row in rows}) == len(rows)
    assert {row["N"] for row in rows} == {1, 2}
    assert all(row["samples_in_all"] == row["samples"] * row["problems"] for row in rows)
    plan((path,), half_width=0.05)
    assert "± 0.05 over all problems" in capsys.readouterr().out
    other = {"hardware": "h200", "chips": 2, "replicas": 2, "kv_dtype": "float8", "weight_dtype": "int8", "seed": 1}
    other |= {"seconds": 0.0, "dollars": 0.0, "joules": 0.0, "target_accuracy": 0.0, "pick": "majority", "price": 1.0}
    other |= {"problems": 5, "caps": (64,), "batches": (4,), "unsaid": Unsaid(prompt_tokens=30)}
    for name, value in other.items():
        flag = "--prompt-tokens" if name == "unsaid" else "--" + name.replace("_", "-")
        with pytest.raises(UserError, match=f"--half-width .*: leave out {flag}$"):
            plan((path,), half_width=0.05, **{name: value})
    with pytest.raises(UserError, match=r"leave out --seconds, --pick$"):
        plan((path,), half_width=0.05, seconds=60, pick="majority")
    with pytest.raises(
        UserError, match=r"--trials 9: mine-1b dense has 4 graded samples of a problem, so N is at most 4"
    ):
        plan((path,), half_width=0.05, trials=(1, 9))
    with pytest.raises(UserError, match=r"--half-width must be at least 0\.0005 and below 0\.5"):
        plan((path,), half_width=5)


def test_plan_refuses_in_one_line(runs):
    with pytest.raises(PlanError, match="give a budget"):
        plan(runs)
    with pytest.raises(PlanError, match="nothing fits into 1e-09 seconds; the cheapest, tiny"):
        plan(runs, seconds=1e-9)
    with pytest.raises(PlanError, match="no price per hour"):
        plan(runs, dollars=1)
    with pytest.raises(HardwareError, match="did you mean h100"):
        plan(runs, hardware="h10", seconds=1)
    with pytest.raises(UserError, match="at least one run"):
        plan((), seconds=1)
    with pytest.raises(HardwareError, match="price_per_hour must be a number, at least 0"):
        plan(runs, seconds=1, price=-2)
    with pytest.raises(UserError, match=r"must end in \.json"):
        calibrate_command(out=runs[0])
    with pytest.raises(UserError, match="no published model"):
        calibrate_command(model=("nothing-7b",))


def test_plan_leaves_with_code_2_and_needs_no_jax(runs):
    script = "from kinetics_jax.cli.main import main\ntry: main()\nfinally: import sys; assert 'jax' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", script, "plan", str(runs[0]), "--seconds", "1e-9"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("kinetics: plan: nothing fits into 1e-09 seconds")
    assert "Traceback" not in done.stderr


def test_what_is_held_out_is_not_fitted():
    result = choose_measurements()
    assert not {(point.shape, point.batch) for point in result.fitted} & {
        (point.shape, point.batch) for point in result.held_out
    }
    assert {point.policy for point in result.held_out if point.policy != Dense()}.isdisjoint(
        point.policy for point in result.fitted
    )
    assert choose_measurements(quick=True).parts < result.parts


def test_measures_take_turns_and_spells_of_other_work_do_not_count():
    calls = []

    def measure(name, seconds):
        def once():
            calls.append(name)
            time.sleep(0.02)
            return seconds * (3 if len(calls) > 18 else 1)  # the second half of the measurement is disturbed

        return once

    result = interleaved({"a": measure("a", 1.0), "b": measure("b", 2.0)})
    assert result == {"a": 1.0, "b": 2.0}
    assert {"a", "b"} <= set(calls[:8])


@pytest.mark.slow
def test_an_engine_steps_and_starts_as_the_planner_counts(tmp_path, monkeypatch):
    lm = load(write_checkpoint(tmp_path, tiny_config(), seed=5), dtype="float32")
    starts = []
    counted = decoding_module.start_samples
    monkeypatch.setattr(decoding_module, "start_samples", lambda *a, **k: starts.append(1) or counted(*a, **k))
    requests = [Request(f"p{i}", prompt, range(4)) for i, prompt in enumerate(tiny_prompts(5, first=3))]
    engine = lm.engine(
        sampling=Sampling(temperature=1.0, max_tokens=40, seed=3), attention=Dense(), settings=EngineSettings(slots=3)
    )
    decoding = engine.start(engine.check(requests))
    lengths = {(done.problem, done.sample): len(done.output_tokens) for done in decoding.run()}
    work = Workload(
        np.array([len(request.prompt) for request in requests]),
        np.array([[lengths[request.problem, sample] for sample in request.samples] for request in requests]),
    )
    _, steps, expected = simulate_decode(work, 3)
    assert (decoding.counts.steps, len(starts)) == (steps, expected)
    assert expected > len(requests)


@pytest.mark.slow
def test_calibrate_measures_this_device(tmp_path):
    """A whole calibration on a tiny shape: every time is positive, the profile reads back, every part is reported."""
    sparse = BlockTopK(budget=16, page_size=4, dense_layers=())
    fitted = [
        Point("tiny", policy, batch, context, 64)
        for policy in (Dense(), sparse)
        for batch in (1, 4)
        for context in (8, 32, 64)
    ]
    shape = Measurements({"tiny": TINY}, fitted, [Point("tiny", Dense(), 2, 40, 64)], (20,))
    parts = []
    result = calibrate(shape, price_per_hour=1.5, on_part=parts.append)
    assert len(parts) == shape.parts
    assert all(step.seconds > 0 for step, _ in (*result.fitted, *result.held_out))
    assert np.isfinite([error for _, error in (*result.fitted, *result.held_out)]).all()
    assert result.hardware.calibrated
    assert result.hardware.padded
    assert 0 <= result.hardware.start_seconds < 1
    path = tmp_path / "here.json"
    save_hardware(path, result.hardware, record=result.record())
    assert hardware(path) == result.hardware
    assert hardware(path).price_per_hour == 1.5
