"""The command line as users meet it, mostly called in this process.

In processes of their own: here one command of each way to end, and those of test_streams.py, test_interrupted_runs.py
and test_demo.py.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
from command_line import kinetics
from kinetics_kernels.summaries import registry
from kinetics_kernels.summaries.kind import SummaryKind

from kinetics_jax.assets import ASSETS, builtin_models, family_models
from kinetics_jax.cli.doctor import doctor
from kinetics_jax.runs.folder import read_run
from kinetics_jax.runs.truncation import grade_cuts
from kinetics_jax.tasks.problems import load_problems

SMALLEST = builtin_models()[0]
SPARSE = "block_topk:budget=32,page_size=2,dense_layers=none"


def process(*arguments, code: int = 0) -> subprocess.CompletedProcess:
    """The command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "kinetics_jax", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_help_needs_no_jax():
    script = (
        "import sys; sys.argv = ['kinetics', '--help']\n"
        "from kinetics_jax.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: print('jax' in sys.modules, 'pandas' in sys.modules, 'matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False False False\n")


@pytest.mark.slow
def test_doctor_lists_the_builtin_models_smallest_first():
    machine = json.loads(kinetics("doctor", "--json").stdout)
    assert machine["builtin_models"] == builtin_models()
    assert len(machine["builtin_models"]) >= 2
    assert machine["ledger_models"] == family_models("ledger")  # apart
    assert not set(machine["ledger_models"]) & set(machine["builtin_models"])
    assert machine["ops"]["paged_decode"]["cpu"] == {
        "backend": "xla",
        "why": "the jnp reference; no kernel is made for cpu",
    }
    assert {tuple(platforms) for platforms in machine["ops"].values()} == {("cpu", "cuda", "tpu")}
    text = process("doctor").stdout
    assert SMALLEST in text
    assert "paged_decode on cuda: triton (by heuristic for NVIDIA GPUs of compute capability 8.0 and newer" in text
    assert "paged_decode on tpu: mosaic_tpu (by heuristic for TPU v5e, v5p and v6e, not measured on such a" in text
    assert "masked_decode everywhere: xla" in text
    assert machine["kernels"]["grouped_matmul"] == ["xla", "triton"]
    kernels = ["triton", "mosaic_gpu", "mosaic_tpu"]
    assert machine["summaries"]["mean"] == {
        "vectors": 1,
        "kernels": dict.fromkeys(("append_kv", "select_pages"), kernels),
    }
    assert "min_max, 2 vectors a page: append_kv on triton, mosaic_gpu, mosaic_tpu, elsewhere on the reference" in text


def test_doctor_says_which_kinds_of_summary_run_on_the_reference(monkeypatch, capsys):
    kind = SummaryKind("ends", 2, lambda keys: (keys[..., 0, :], keys[..., -1, :]), lambda q, v, s, dot: dot(q, v[0]))
    monkeypatch.setattr(registry, "_kinds", {**registry._kinds})
    registry.register_summary(kind)
    doctor()
    assert (
        "ends, 2 vectors a page: append_kv on the reference alone; select_pages on the ref" in capsys.readouterr().out
    )


@pytest.mark.slow
def test_a_chat_needs_a_chat_template():
    refused = kinetics("generate", SMALLEST, "--prompt", "1", "--chat", code=2)
    assert "no chat template; take plain prompts instead" in refused.stderr


@pytest.mark.slow
def test_a_backend_of_another_device_is_refused():
    refused = kinetics("generate", SMALLEST, "--prompt", "1", "--backend", "triton", code=2)
    assert "backend 'triton' does not run on a cpu; there: xla" in refused.stderr
    refused = kinetics("generate", SMALLEST, "--prompt", "1", "--backend", "append_kv=xla,paged_decode=cuda", code=2)
    assert "paged_decode: backend 'cuda' is not known (known: xla, triton" in refused.stderr
    refused = kinetics("generate", SMALLEST, "--prompt", "1", "--backend", "cuda", code=2)
    assert "backend 'cuda' is not known (known: xla, triton" in refused.stderr


@pytest.mark.slow
def test_sample_then_frontier(tmp_path):
    options = ("--n", 2, "--limit", 5, "--max-tokens", 72, "--slots", 8)
    for name, attention in (("dense", "dense"), ("sparse", SPARSE)):
        kinetics("sample", SMALLEST, "--out", tmp_path / name, "--attention", attention, *options)
    done = kinetics("frontier", tmp_path / "dense", tmp_path / "sparse", "--json", "--csv", tmp_path / "frontier.csv")
    rows = json.loads(done.stdout)
    assert [(row["attention"], row["N"]) for row in rows] == [("dense", 1), ("dense", 2), (SPARSE, 1), (SPARSE, 2)]
    assert len((tmp_path / "frontier.csv").read_text().splitlines()) == 5
    kinetics("frontier", tmp_path / "dense", "--figure", tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").stat().st_size > 5000
    before = (tmp_path / "dense" / "samples.jsonl").read_bytes()
    kinetics("sample", SMALLEST, "--out", tmp_path / "dense", *options)  # continues: nothing is left to do
    assert (tmp_path / "dense" / "samples.jsonl").read_bytes() == before
    refused = kinetics("sample", SMALLEST, "--out", tmp_path / "dense", *options, "--seed", 1, code=2)
    assert "holds another run" in refused.stderr
    cut = json.loads(kinetics("grade", tmp_path / "dense", "--caps", "4", "72", "--json").stdout)
    assert [row["cap"] for row in cut] == [4, 72]
    assert cut[0]["mean_tokens"] <= 4
    np.testing.assert_allclose(cut[1]["accuracy"], rows[0]["accuracy"])
    assert cut[1]["mean_tokens"] == rows[0]["mean_output_tokens"]


@pytest.mark.slow
def test_own_problems_graded_again_and_reported(tmp_path):
    rows = [f"{i},{problem.question},{problem.answer}" for i, problem in enumerate(load_problems("builtin", limit=3))]
    (tmp_path / "own.csv").write_text("\n".join(["id,task,result", *rows]) + "\n")
    arguments = ["sample", SMALLEST, "--problems", tmp_path / "own.csv", "--out", tmp_path / "run"]
    arguments += ["--n", 2, "--slots", 4, "--max-tokens", 72, "--template", "bare"]
    assert "--question-column" in kinetics(*arguments, code=2).stderr
    columns = ["--question-column", "task", "--answer-column", "result"]
    assert "not both" in kinetics(*arguments, *columns, "--task", "builtin", code=2).stderr
    assert "6 samples" in kinetics(*arguments, *columns).stdout
    run = read_run(tmp_path / "run")
    assert run.header["task"] == "own.csv"
    assert "0 grades changed" in kinetics("grade", tmp_path / "run").stdout
    samples = tmp_path / "run" / "samples.jsonl"
    flipped = [{**each, "correct": not each["correct"]} for each in run.samples]
    samples.write_text("".join(json.dumps(each) + "\n" for each in flipped))
    assert len(json.loads(kinetics("grade", tmp_path / "run", "--json").stdout)) == 6
    assert read_run(tmp_path / "run").samples == run.samples
    (tmp_path / "own.csv").write_text("\n".join(["id,task,result", *rows, "bad,?,The answer is 42."]) + "\n")
    refused = kinetics(*arguments, *columns, code=2).stderr
    assert "1 known answer cannot be graded: bad: 'The answer is 42.' (a sentence" in refused
    kept = kinetics(*arguments, *columns, "--skip-unreadable")
    assert "6 samples" in kept.stdout
    assert "left out: 1 known answer cannot be graded: bad: " in kept.stderr
    problems = tmp_path / "run" / "problems.jsonl"
    first, *others = [json.loads(line) for line in problems.read_text().splitlines()]
    problems.write_text("".join(json.dumps(each) + "\n" for each in [{**first, "answer": "01-Feb"}, *others]))
    assert f"{first['id']}: '01-Feb' (a date" in kinetics("grade", tmp_path / "run", code=2).stderr
    again = kinetics("grade", tmp_path / "run", "--skip-unreadable")
    assert "2 of 6 undecided (counted as unsolved)" in again.stdout
    assert "left out: 1 known answer" in again.stderr
    with pytest.warns(UserWarning, match="left out: 1 known answer"):
        grade_cuts(tmp_path / "run", [4], workers=1, skip_unreadable=True)
    problems.write_text("".join(json.dumps(each) + "\n" for each in [first, *others]))
    assert "2 grades changed" in kinetics("grade", tmp_path / "run").stdout
    kinetics("frontier", tmp_path / "run", "--report", tmp_path / "report.html")
    assert "own.csv" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_convert_there_and_back(tmp_path):
    kinetics("convert", SMALLEST, tmp_path / "orbax")
    kinetics("convert", tmp_path / "orbax", tmp_path / "back")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "back" / name).read_bytes() == (ASSETS / SMALLEST / name).read_bytes()
    question = load_problems("builtin", limit=1)[0].question
    one, two = (
        json.loads(kinetics("generate", model, "--prompt", question, "--max-tokens", 8, "--json").stdout)
        for model in (SMALLEST, tmp_path / "orbax")
    )
    assert one["output_tokens"] == two["output_tokens"]
    assert "not empty" in kinetics("convert", SMALLEST, tmp_path / "orbax", code=2).stderr


@pytest.mark.slow
def test_json_of_one_problem_has_no_nan(tmp_path):
    kinetics("sample", SMALLEST, "--out", tmp_path, "--n", 1, "--limit", 1, "--slots", 2, "--max-tokens", 4)
    done = kinetics("frontier", tmp_path, "--json")
    row = json.loads(done.stdout, parse_constant=lambda constant: pytest.fail(constant))[0]
    assert 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1
    assert row["high"] - row["low"] > 0.9  # one problem says next to nothing of others
    assert "cut at max_tokens (4)" in done.stderr


@pytest.mark.slow
def test_generate_prints_samples():
    question = load_problems("builtin", limit=1)[0].question
    done = kinetics("generate", SMALLEST, "--prompt", question, "--n", 2, "--max-tokens", 8, "--json")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["sample"] for record in records] == [0, 1]
    assert all(1 <= len(record["output_tokens"]) <= 8 for record in records)
    assert "tokens" in kinetics("generate", SMALLEST, "--prompt", question, "--max-tokens", 4).stdout


def test_a_mistake_in_a_process_of_its_own(tmp_path):
    refused = process("sample", "no-such-model", "--out", tmp_path / "run", code=2)
    assert refused.stderr.startswith("kinetics: ")
    assert "nor a built-in model" in refused.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sample", "no-such-model", "--out", "OUT"], "nor a built-in model"),
        (["sample", SMALLEST, "--out", "OUT", "--attention", "block_topk:budget=5"], "not a multiple"),
        (["sample", SMALLEST, "--out", "OUT", "--task", "chess"], "known: builtin"),
        (["sample", SMALLEST, "--out", "OUT", "--n", "0"], "--n must be at least 1"),
        (["sample", SMALLEST, "--out", "OUT", "--temperature", "-1"], "temperature must be"),
        (["sample", SMALLEST, "--out", "OUT", "--max-tokens", "100000"], "lower max_tokens"),
        (["sample", SMALLEST, "--out", "/dev/null/run"], "/dev/null/run"),
        (["sample", SMALLEST, "--out", "OUT", "--dtype", "int8"], "int8"),
        (["frontier", "OUT"], "not a run folder"),
        (["frontier", "OUT", "--figure", "x.xyz"], "must end in .png"),
        (["frontier"], ""),
        (["generate", SMALLEST, "--prompt", "n1>end \udcff"], "not Unicode"),
        (["convert", "no-such-model", "OUT"], "nor a built-in model"),
        (["convert", SMALLEST, "/dev/null"], "name a new directory"),
        (["sample", SMALLEST, "--out", "OUT", "--repetition-window", "5"], "repetition_window"),
        (["sample", SMALLEST, "--out", "OUT", "--problems", "/no/such.jsonl"], "/no/such.jsonl"),
        (["grade", "OUT"], "not a run folder"),
        (["grade", "OUT", "--caps", "2k"], ""),
        (["grade", "OUT", "--caps", "0"], "whole numbers of tokens"),
        (["grade", "OUT", "--caps"], "whole numbers of tokens"),
        (["grade", "OUT", "--caps", "8"], "not a run folder"),
        (["grade", "OUT", "--workers", "2"], "go with --caps"),
        (["sample", SMALLEST, "--out", "OUT", "--num-pages", "1000000000"], "GB, more than the device's"),
        (["sample", SMALLEST, "--out", "OUT", "--chunk", "3000000000"], "chunk must be in"),
        (["sample", SMALLEST, "--out", "OUT", "--attention", "sliding_window:budget=10000000000"], "at most"),
        (["generate", SMALLEST, "--prompt", ""], "holds no token"),
        (["sample", "no-such-model", "--out", "OUT", "--mesh", "tenser=4"], "'tenser' is not an axis"),
        (["dream"], ""),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(arguments, says, tmp_path):
    done = kinetics(*[str(tmp_path / "run") if a == "OUT" else a for a in arguments], code=2)
    assert says in done.stderr
    if says:
        lines = [line for line in done.stderr.splitlines() if line.startswith("kinetics: ")]
        assert len(lines) == 1, done.stderr
    assert not (tmp_path / "run").exists() or not (tmp_path / "run" / "samples.jsonl").exists()
