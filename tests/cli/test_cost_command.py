"""`kinetics cost`, mostly called in this process; test_cli.py meets the command line in processes of its own."""

import dataclasses
import json
import subprocess
import sys

import pytest

from kinetics_jax.assets import builtin_models
from kinetics_jax.cli.cost import cost
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.batching import room
from kinetics_jax.costs.hardware import HARDWARE, Hardware, save_hardware
from kinetics_jax.errors import UserError

QWEN = {"model": "Qwen/Qwen3-8B", "output": (16384,), "trials": 32, "attention": "block_topk:page_size=16,pages=64"}
SCRIPT = "from kinetics_jax.cli.main import main\ntry: main()\nfinally: import sys; assert 'jax' not in sys.modules"


def run(*arguments, code=0):
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def printed(capsys, **arguments):
    cost(**arguments, as_json=True)
    return json.loads(capsys.readouterr().out)


def test_the_published_example_without_jax():
    line = "cost --model Qwen/Qwen3-8B --prompt 256 --output 16384 --trials 32 --convention upstream --intensity 562.5"
    costs = json.loads(run(*line.split(), "--attention", QWEN["attention"], "--json").stdout)
    for name, golden in {"compute": 8980.5692, "memory": 54890.89, "total": 63871.459}.items():
        assert float(f"{costs[name]:.8g}") == golden
    assert sum(costs["parts"].values()) == pytest.approx(costs["total"])
    assert costs["priced_on"] is None


def test_a_user_s_mistake_is_one_line():
    assert run("cost", "--model", "Qwen/Qwen3-9B", "--output", "9", code=2).stderr.count("\n") == 1


def test_expected_cost_over_lengths(capsys):
    case = {"model": "14B", "prompt": 200, "trials": 4, "convention": "upstream", "intensity": 562.5}
    costs = printed(capsys, **case, output=(4000, 8000, 16000))
    assert float(f"{costs['total']:.8g}") == 22108.316
    assert costs["output_tokens"] == [4000, 8000, 16000]


def test_seconds_and_room_on_every_chip(capsys):
    costs = printed(capsys, **QWEN, batch=8)
    rows = {row["name"]: row for row in costs["hardware"]}
    assert list(rows) == list(HARDWARE)
    assert costs["priced_on"] == "h100"
    assert rows["h100"]["seconds"] == pytest.approx(costs["roofline"] * 1e12 / HARDWARE["h100"].flops)
    assert rows["h100"]["additive_seconds"] == pytest.approx(costs["total"] * 1e12 / HARDWARE["h100"].flops)
    assert rows["h100"]["price"] is None
    assert rows["h200"]["seconds"] < rows["h100"]["seconds"]
    assert rows["h200"]["fits"] > rows["h100"]["fits"] > 0
    assert rows["tpu-v5e"]["fits"] == 0
    assert rows["tpu-v5e"]["least_chips"] == 2


def test_chips_share_the_work_and_kv_heads_bound_it(capsys, tmp_path):
    """On chips whose link is not known, which a line says; on others they wait for each other too."""
    path = tmp_path / "alone.json"
    save_hardware(path, dataclasses.replace(HARDWARE["h100"], name="alone", link_bandwidth=None))
    case = {**QWEN, "price": 2.0, "attention": "dense", "batch": "none"}
    linked = [printed(capsys, **case, hardware="h100", chips=chips)["hardware"][0] for chips in (1, 8)]
    assert linked[1]["seconds"] > linked[0]["seconds"] / 8
    assert linked[1]["price"] > linked[0]["price"]
    case["hardware"] = str(path)
    cost(**{**case, "as_json": True}, chips=2)
    assert "alone: nothing is known of the link between its chips" in capsys.readouterr().err
    one, eight, sixteen = (printed(capsys, **case, chips=chips)["hardware"][0] for chips in (1, 8, 16))
    assert eight["seconds"] == pytest.approx(one["seconds"] / 8)
    assert sixteen["seconds"] == pytest.approx(eight["seconds"])  # reads bound it, and there are eight KV heads
    assert sixteen["additive_seconds"] < eight["additive_seconds"]
    assert one["price"] == pytest.approx(one["seconds"] / 1800)
    assert eight["price"] == pytest.approx(one["price"])


def test_types_of_cache_weights_and_arithmetic(capsys):
    wide = printed(capsys, **QWEN, batch=8)
    narrow = printed(capsys, **QWEN, batch=8, kv_dtype="float8", weight_dtype="int8")
    assert narrow["compute"] == wide["compute"]
    assert narrow["memory"] == pytest.approx(wide["memory"] / 2)
    faster = printed(capsys, **QWEN, compute_dtype="float8")
    assert faster["intensity"] == pytest.approx(1979e12 / 3.35e12)
    assert [row["name"].split()[0] for row in faster["hardware"]] == [
        name for name, chip in HARDWARE.items() if "float8" in chip.peaks
    ]


def test_models_and_chips_from_files(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(ModelConfig.named("8B").to_hf()))
    save_hardware(tmp_path / "chip.json", Hardware("mine", 1e14, 1e12, 24e9, price_per_hour=1.0))
    by_name = printed(capsys, **QWEN, hardware="h100")
    for path in (tmp_path, tmp_path / "config.json"):
        costs = printed(capsys, **{**QWEN, "model": str(path)}, hardware=str(tmp_path / "chip.json"))
        assert costs["compute"] == by_name["compute"]
        assert costs["model"] == tmp_path.name
        assert costs["hardware"][0]["name"] == "mine"
        assert costs["hardware"][0]["price"] > 0
    assert printed(capsys, model=builtin_models()[0], output=(100,))["model"] == builtin_models()[0]


def test_the_batch_that_fits_and_one_that_does_not(capsys):
    case = {"model": "Qwen/Qwen3-8B", "output": (16384,)}
    answer, none = (printed(capsys, **case, batch=batch) for batch in ("fit", "none"))
    fit = room(ModelConfig.named("8B"), "h100", prompt_tokens=256, output_tokens=16384)
    assert (answer["batch_rule"], answer["batch"]) == ("fit", fit.batch)
    assert (none["batch_rule"], none["batch"]) == ("none", None)
    parts = answer["parts"]
    assert answer["total"] - parts["weight_reads"] - parts["prefill_weight_reads"] == pytest.approx(none["total"])
    assert parts["prefill_weight_reads"] > 0
    rows = {row["name"]: row for row in answer["hardware"]}
    assert rows["h200"]["batch"] > rows["h100"]["batch"] == fit.batch > rows["h100"]["fits"] == fit.full
    assert (rows["tpu-v5e"]["batch"], rows["tpu-v5e"]["seconds"]) == (0, None)
    cost(**case, as_json=True, batch=fit.batch)
    answer = capsys.readouterr()
    assert answer.err.count("\n") == 1  # of the chips that are smaller than the one that is priced
    assert f"batch {fit.batch} does not fit, and has no seconds, on l40s (" in answer.err
    assert "tpu-v5e (0)" in answer.err
    seconds = {row["name"]: row["seconds"] for row in json.loads(answer.out)["hardware"]}
    assert seconds["tpu-v5e"] is seconds["l40s"] is None
    assert seconds["h100"] > seconds["h200"] > 0
    cost(**case, as_json=True, batch=512, hardware="h100")
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"batch 512 does not fit on 1 x h100: {fit.batch} sequences do on average ({fit.full} if each" in said
    cost(**case, batch="fit")
    assert f"weights shared by the batch that fits, {fit.batch} sequences" in capsys.readouterr().out.replace("\n", " ")
    cost(**case, batch="none")
    assert "weights left out" in capsys.readouterr().out
    cost(**case)  # as frontiers and plans have it
    said = capsys.readouterr()
    assert f"weights shared by the batch that fits, {fit.batch} sequences" in said.out.replace("\n", " ")
    assert said.err == (
        f"kinetics: weights shared by the {fit.batch} sequences that fit 1 x h100 on average, as in kinetics frontier; "
        "--batch none leaves them out\n"
    )
    answer = printed(capsys, **{**case, "model": "235B-A22B"})
    assert (answer["batch_rule"], answer["batch"]) == ("none", None)
    cost(**{**case, "model": "235B-A22B"}, hardware="h100")
    said = capsys.readouterr()
    assert "not one sequence fits beside the weights on 1 x h100, so the weights are left out" in said.err
    assert "weights left out" in said.out


def test_rates_are_called_what_they_are(capsys):
    for chip, says in (
        ("h100", "at the data sheet's peak rates"),
        ("h100-vllm", "at the rates and with the overheads"),
    ):
        cost(model="Qwen/Qwen3-8B", output=(1000,), hardware=chip)
        said = capsys.readouterr()
        assert f"Seconds of all trials {says}" in said.out
        assert "weights shared by the batch that fits" in said.out.replace("\n", " ")  # which has those overheads
    cost(model="Qwen/Qwen3-8B", output=(1000,), hardware="h100-vllm", batch="none")
    assert "a measured profile takes overheads in every step" in capsys.readouterr().err


def test_prose_is_no_wider_than_a_page(capsys):
    cost(**QWEN, half_width=0.02)
    prose = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert max(map(len, prose)) <= 120


def test_names_that_look_like_several_chips(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_hardware("2 x c6.json", Hardware("2 x c6", 1e13, 1e11, 4e10))
    cost(model="Qwen/Qwen3-8B", output=(16384,), hardware="2 x c6.json", batch=999)
    assert 'batch 999 does not fit on 1 x "2 x c6": ' in capsys.readouterr().err
    with pytest.raises(UserError, match="no hardware named '2 x h100'; several chips are --hardware h100 --chips 2"):
        cost(model="Qwen/Qwen3-8B", output=(16384,), hardware="2 x h100")


def test_problems_for_a_half_width_at_worst(capsys):
    result = printed(capsys, model="0.6B", output=(100,), half_width=0.02)
    assert result["problems_needed"] == 2404
    assert result["cost_of_problems"] == pytest.approx(2404 * result["total"])


def test_the_table_names_every_part(capsys):
    cost(**QWEN, batch=4, hardware="b200", price=4.0)
    text = capsys.readouterr().out
    for words in ("chosen kv reads", "search reads", "top k", "weight reads", "roofline (max)", "price", "least_chips"):
        assert words in text
    assert "100.0%" in text
    cost(model="0.6B", output=(0,), prompt=0)
    assert "total" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model": "Qwen/Qwen3-9B"}, "no published model named 'Qwen/Qwen3-9B'"),
        ({"model": "/nowhere/config.json"}, "nor is it a config.json"),
        ({"attention": "block_topk"}, "give budget="),
        ({"convention": "flops"}, "'flops' is not known"),
        ({"hardware": "h10"}, "did you mean h100"),
        ({"hardware": "none.json"}, "no such hardware profile"),
        ({"hardware": "h100", "intensity": 3.0}, "not both"),
        ({"hardware": "a100", "compute_dtype": "float8"}, "no peak for 'float8'"),
        ({"compute_dtype": "float8", "intensity": 3.0}, "--compute-dtype picks"),
        ({"compute_dtype": "fp5"}, "no peak for 'fp5'"),
        ({"intensity": float("nan")}, "intensity must be positive"),
        ({"price": 1.0}, "--price needs --hardware"),
        ({"price": -1.0, "hardware": "h100"}, "price_per_hour must be"),
        ({"chips": 0}, "--chips must be at least 1"),
        ({"output": ()}, "--output needs a number"),
        ({"output": (-1,)}, "output_tokens must be whole"),
        ({"output": (1, -1)}, "output_lengths must be whole"),
        ({"prompt": -1}, "prompt_tokens must be whole"),
        ({"trials": 0}, "trials must be whole"),
        ({"batch": 0}, "--batch must be fit, none, or a number"),
        ({"batch": "all"}, "--batch must be fit, none, or a number in 1 … 65536, got all"),
        ({"batch": "fit", "intensity": 3.0}, "--batch fit is what a chip's memory holds"),
        ({"batch": "fit", "convention": "paper"}, "--batch fit is what a chip's memory holds"),
        (
            {"batch": "fit", "hardware": "tpu-v5e", "model": "32B"},
            "not one sequence fits beside the weights on 1 x tpu",
        ),
        ({"shared_prompt": True, "chips": 2}, "shared_prompt is for one chip"),
        ({"convention": "paper", "batch": 4}, "no meaning in the paper"),
        ({"convention": "upstream", "kv_dtype": "float8"}, "fixes two bytes"),
        ({"convention": "upstream", "model": "30B-A3B"}, "no parameter count"),
        ({"shared_prompt": True, "output": (9, 10)}, "cannot be estimated from 2 values"),
    ],
)
def test_bad_input_is_refused(wrong, message):
    with pytest.raises(UserError, match=message) as raised:
        cost(**{**QWEN, **wrong})
    assert "\n" not in str(raised.value)


def test_speculation_is_priced(capsys):
    """A draft that is always kept is cheaper than one that never is; the parts are of drafts and dense passes."""
    asked = {"model": "Qwen/Qwen3-8B", "output": (16384,), "attention": "block_topk:pages=64,page_size=16"}
    asked["batch"] = "none"
    kept, refused = (printed(capsys, **asked, speculate=4, accept=accept) for accept in (1.0, 0.0))
    dense = printed(capsys, **{**asked, "attention": "dense"})
    assert kept["dense_total"] == pytest.approx(dense["total"])
    assert kept["total"] < dense["total"] < refused["total"]
    assert kept["parts"]["verify_dense_kv_reads"] < 0.21 * dense["parts"]["dense_kv_reads"]
    assert {name.split("_")[0] for name in kept["parts"]} == {"prefill", "draft", "verify"}
    cost(**asked, speculate=4, accept=0.8)
    assert "4 drafts a round, 0.8 of them kept" in capsys.readouterr().out
    for wrong, words in (
        ({"speculate": 4}, "go together"),
        ({"accept": 0.5}, "go together"),
        ({"speculate": 4, "accept": 1.5}, "accept must be in 0 … 1"),
        ({"speculate": 4, "accept": 0.5, "chips": 2}, "on one chip"),
        ({"speculate": 4, "accept": 0.5, "attention": "dense"}, "sparse --attention"),
        ({"speculate": 65, "accept": 0.5}, "--speculate must be"),
    ):
        with pytest.raises(UserError, match=words):
            cost(**{**asked, **wrong})
