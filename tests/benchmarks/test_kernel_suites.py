"""The kernel measurements on a CPU: what the scripts say there, and every part of what they do elsewhere."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time

import jax.numpy as jnp
import kinetics_kernels
import numpy as np
import pytest
import tune_kernels
from kernel_bench import byte_model, correctness, measure, oracle, peers, runner, sections, summary, timing
from kernel_bench.byte_model import Workload, floor_bytes
from kernel_bench.choices import Choice, backends, candidates, options_of
from kernel_bench.states import make_state
from paths import BENCHMARKS

TINY = sections.TINY.headline
XLA = Choice("xla")


def run_script(name: str, *arguments: str, timeout: int = 120) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["JAX_PLATFORMS"] = "cpu"
    command = [sys.executable, str(BENCHMARKS / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpu_suite", "tpu_suite", "tune_kernels"])
def test_without_an_accelerator_the_scripts_say_so_and_end_well(name, tmp_path):
    found = run_script(f"{name}.py", "--out", str(tmp_path / "results"))
    assert found.returncode == 0, found.stderr
    assert "no accelerator" in found.stdout
    assert not (tmp_path / "results").exists()
    if name != "tune_kernels":
        assert "Floors, not measurements" in found.stdout
        assert "8591122432" in found.stdout.split()  # a dense step of 64 sequences of 32K tokens at page 64


def test_the_suites_need_nothing_but_jax_and_the_kernels_of_their_checkout(tmp_path):
    names = [path.stem for path in (BENCHMARKS / "kernel_bench").glob("[!_]*.py")]
    code = "import sys; import " + ", ".join(f"kernel_bench.{name}" for name in names) + ", tune_kernels\n"
    code += "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    (tmp_path / "kinetics_kernels.py").write_text("raise ImportError('the kernels of somewhere else')")
    paths = str(BENCHMARKS), str(tmp_path)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    loaded = {*found.stdout.split()}
    assert {"jax", "numpy", "kinetics_kernels"} <= loaded
    assert not loaded & {"kinetics_jax", "flax", "jaxtyping", "tyro", "tqdm", "torch", "flashinfer", "pandas"}


@pytest.mark.slow
def test_a_rehearsal_writes_every_section_it_was_asked_for(tmp_path):
    found = run_script("gpu_suite.py", "--tiny", "--out", str(tmp_path), "--only", "correctness", "--seconds", "100")
    assert found.returncode == 0, found.stdout + found.stderr
    stored = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert stored.keys() == {"gpu_suite_device", "gpu_suite_correctness", "gpu_suite_summary"}
    rows = stored["gpu_suite_correctness"]["rows"]
    assert {row["op"] for row in rows} == {*correctness.OPS}
    assert {row["choice"] for row in rows} == {"xla", "triton(interpret=True)"}
    assert {row["status"] for row in rows} == {"ok"}
    limits = {row["case"]: row for row in stored["gpu_suite_device"]["rows"]}
    assert limits["bandwidth"]["read_best"] > 0
    assert limits["bandwidth"]["copy"] > 0
    assert limits["launch"]["kernel_us"] > 0
    assert {aim["measured"] for aim in stored["gpu_suite_summary"]["aims"]} == {"not measured"}
    assert "not measured" in found.stdout


@pytest.fixture(scope="module")
def bench() -> measure.Bench:
    """One for all tests: its state and what the reference gives for it are made once."""
    return tiny_bench()


def tiny_bench() -> measure.Bench:
    return measure.Bench(memory=1 << 28, bandwidth=1e12, seconds=0.002, rotate_bytes=3 << 16, max_calls=2)


@pytest.mark.slow
@pytest.mark.parametrize("op", [*measure.STEPS])
def test_an_op_is_checked_timed_and_held_against_its_floor(op, bench):
    row = measure.measure(bench, op, TINY, (XLA, XLA))
    assert row["status"] == "ok"
    assert row["error"] < 1e-5
    assert row["us_least"] <= row["us"] <= row["us_most"]
    assert row["bytes"] == floor_bytes(op, TINY)
    assert row["fraction"] == pytest.approx(row["bytes"] / 1e12 / (1e-6 * row["us"]))
    assert row["sets"] > 1
    assert not row["impossible"]


@pytest.mark.slow
def test_two_programs_are_timed_too(bench):
    assert measure.measure_two_programs(bench, TINY, (XLA, XLA))["us"] > 0


BROKEN = {
    "paged_decode": lambda q, k, v, table, lengths: scaled(k, q, k, v, table, lengths),
    "select_pages": lambda *arrays, **settings: shifted(*arrays, **settings),
    "append_kv": lambda k, v, s, k_new, v_new, *rest, **kind: kinetics_kernels.append_kv(
        k, v, s, v_new, k_new, *rest, **kind
    ),
}


def scaled(_, *arrays):
    out, lse = kinetics_kernels.paged_decode(*arrays)
    return out * 1.02, lse


def shifted(q, summaries, table, lengths, **settings):
    return kinetics_kernels.select_pages(-q, summaries, table, lengths, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("op", correctness.OPS)
def test_a_kernel_that_is_wrong_is_found_out_in_the_cases_and_never_timed(op, bench, monkeypatch):
    shape, kernel = correctness.TINY_SHAPES[0], correctness.kernel_of(op)
    assert correctness.check(op, shape, XLA)["status"] == "ok"
    monkeypatch.setattr(Choice, "function", lambda self, name: BROKEN[kernel] if name == kernel else None)
    found = correctness.check(op, shape, XLA)
    assert found["status"] == "wrong"
    assert found["why"]
    timed = {"paged_decode": "dense", "sparse_decode": "attend", "select_pages": "select", "append_kv": "append"}[op]
    row = measure.measure(bench, timed, TINY, (XLA, XLA))
    assert row["status"] == "wrong"
    assert "us" not in row


@pytest.mark.slow
def test_selections_are_judged_to_the_last_page():
    shape = dataclasses.replace(correctness.TINY_SHAPES[0], table_pages=9)
    state = shape.state()
    run = lambda: kinetics_kernels.select_pages(  # noqa: E731
        state.q, jnp.asarray(state.summaries), state.page_table, state.lengths, page_size=8, pages=correctness.PAGES
    )
    selected, covered = map(np.array, run())
    assert oracle.check_selection(state, (selected, covered), pages=correctness.PAGES)[1] == ""
    full = int(np.argmax(state.lengths))
    for change in ("order", "pad", "covered", "forced"):
        wrong, tokens = selected.copy(), covered.copy()
        if change == "order":
            wrong[full, 0, [1, 2]] = wrong[full, 0, [2, 1]]
        elif change == "pad":
            wrong[full, 0, 1] = -1
        elif change == "covered":
            tokens[full, 0] -= 1
        else:
            places = [0, 1, 2, 3, 4]
            wrong[full, 0] = state.page_table[full, places]
        assert oracle.check_selection(state, (wrong, tokens), pages=correctness.PAGES)[1], change


def test_nan_and_unwritten_rows_are_errors():
    assert oracle.close([np.nan, 0.0], [1.0, 0.0], "bfloat16")[1]
    assert oracle.close([1e-9, 0.0], [0.0, 0.0], "bfloat16")[1]  # an idle row is 0
    assert oracle.close([0.0, 0.0], [0.0, 0.0], "bfloat16") == (0.0, "")
    assert oracle.close_lse([1.0], [-np.inf])[1]
    assert oracle.close_lse([-np.inf], [-np.inf]) == (0.0, "")


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["a page", "a 64th"])
def test_a_kernel_that_skips_tokens_of_a_long_context_is_not_timed(missing, bench, monkeypatch):
    """Where outputs are small and log-sum-exps large."""
    load = dataclasses.replace(TINY, batch=1, context=16_384, dtype="bfloat16")

    def skips(q, k, v, table, lengths):
        out, lse = kinetics_kernels.paged_decode(q, k, v, table, lengths)
        fewer = lengths - (load.page_size if missing == "a page" else load.context // 64)
        short_out, short_lse = kinetics_kernels.paged_decode(q, k, v, table, fewer)
        return (out, short_lse) if missing == "a page" else (short_out, lse)

    assert measure.measure(bench, "dense", load, (XLA,))["status"] == "ok"
    monkeypatch.setattr(Choice, "function", lambda self, name: skips)
    row = measure.measure(bench, "dense", load, (XLA,))
    assert row["status"] == "wrong"
    assert "us" not in row


def test_an_append_is_checked_on_pools_that_it_may_overwrite(bench):
    """At full size the device has no room for a copy of them."""
    state = bench.state("append", TINY)
    given = state.keys
    assert measure.CHECKS["append"](bench, state, (XLA,)) == (0.0, "")
    assert given.is_deleted()
    assert bench.held is None
    assert jnp.isfinite(state.keys).all()


def test_states_of_the_cases_are_what_every_kernel_takes():
    """Pools of a multiple of 8 pages: a TPU's append would refuse every case of another."""
    rng, shape = np.random.default_rng(0), {"kv_heads": 1, "group": 1, "head_dim": 1, "page_size": 8}
    states = [oracle.random_state(rng, [8 * pages], max_pages=9, **shape) for pages in range(1, 10)]
    assert {state.k_pages.shape[1] for state in states} == {8, 16}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*peers.peers("cpu")])
def test_peers_that_run_here_are_checked_and_timed(name, bench):
    row = peers.measure_peer(bench, name, TINY, "cpu")
    assert row["status"] == "ok"
    assert row["us"] > 0


@pytest.mark.parametrize(
    ("platform", "start"),
    [("gpu", "pallas.ops.gpu.decode"), ("gpu", "pallas.ops.gpu.paged"), ("tpu", "pallas.ops.tpu")],
)
def test_peers_of_other_devices_fail_by_name_here(platform, start, bench):
    names = {*peers.peers(platform)} - {*peers.peers("cpu")}
    name = min(name for name in names if name.startswith(start))
    row = runner.run_case(runner.Case(name, lambda: peers.measure_peer(bench, name, TINY, platform)))
    assert row["status"] in ("failed", "refused")
    assert row["why"]


@pytest.mark.slow
def test_torch_is_a_peer_where_it_is_installed(bench):
    from kernel_bench import torch_peers

    name = torch_peers.NAMES[3]
    row = runner.run_case(runner.Case(name, lambda: torch_peers.measure_torch_peer(bench, name, TINY)))
    try:
        import torch  # noqa: F401
    except ImportError:
        assert row["status"] == "absent"
    else:
        assert row["status"] == "ok", row
        assert row["error"] < 1e-5


def test_every_call_of_a_timed_program_runs_in_turn():
    """The state counts the calls and the tables say which: none is left out, and sets take turns."""
    tables = [jnp.float32(1), jnp.float32(100)]
    step = lambda state, table: (state[0] + 1, state[1] + table)  # noqa: E731
    row, (calls, total) = timing.time_calls(
        step, (jnp.float32(0), jnp.float32(0)), (), tables, seconds=0.001, repeats=3
    )
    assert row.calls == 16
    alone = int(calls) - (2 + row.repeats * row.programs) * row.calls
    assert alone in (2, 4)  # compiled, then up to three times
    assert total == alone * 1 + (calls - alone) / 2 * 101


WORKER = """
import os, pathlib, sys, time
sys.path.insert(0, {experiments!r})
from kernel_bench.runner import Case, SectionFile, run_section

cases = [
    Case("one", lambda: {{"status": "ok"}}, {{"choice": "a"}}),
    Case("two", lambda: {two}, {{"choice": "b"}}),
    Case("three", lambda: 1 / 0),
    Case("four", lambda: {{"status": "ok", "error": float("inf")}}),
]
run_section(SectionFile(pathlib.Path({folder!r}) / "suite_part.json", {{}}), cases, time.time() + 60, lambda: True)
"""


def supervised(folder: pathlib.Path, two: str, **limits: float) -> tuple[int, dict]:
    """Exit code and file of a worker of four cases, the second of which does `two`."""
    code = WORKER.format(experiments=str(BENCHMARKS), folder=str(folder), two=two)
    found = runner.supervise([sys.executable, "-c", code], folder, "suite", **limits)
    return found, json.loads((folder / "suite_part.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(("two", "status"), [("os._exit(9)", "crashed"), ("time.sleep(60)", "hung")])
def test_a_case_that_takes_its_process_along_costs_one_row(two, status, tmp_path):
    code, stored = supervised(tmp_path, two, seconds=90, stall=4)
    rows = {row["case"]: row for row in stored["rows"]}
    assert code == 0
    assert [row["status"] for row in rows.values()] == ["ok", status, "failed", "ok"]
    assert rows["two"]["choice"] == "b"
    assert ("exit code 9" if status == "crashed" else "nothing written for 4 s") in rows["two"]["why"]
    assert "ZeroDivisionError" in rows["three"]["why"]
    assert rows["four"]["error"] == "inf"


@pytest.mark.slow
def test_time_that_runs_out_leaves_what_was_measured(tmp_path):
    code, stored = supervised(tmp_path, "time.sleep(60)", seconds=4, stall=60)
    assert code == 0
    assert [row["case"] for row in stored["rows"]] == ["one"]
    assert stored["left"] == ["two"]
    assert stored["running"] is None
    file = runner.SectionFile(tmp_path / "late.json", {})
    late = [runner.Case("one", lambda: {"status": "ok"})]
    assert not runner.run_section(file, late, time.time() - 1, lambda: True)
    assert json.loads(file.path.read_text())["left"] == ["one"]
    assert runner.run_section(file, late, time.time() + 60, lambda: True)


def test_a_worker_that_fails_before_any_case_is_told(tmp_path, capsys):
    command = [sys.executable, "-c", "raise SystemExit('no device, no suite')"]
    assert runner.supervise(command, tmp_path, "suite", seconds=30, stall=30) == 1
    assert "no device, no suite" in capsys.readouterr().err


def test_a_device_that_is_gone_ends_the_worker(tmp_path):
    file = runner.SectionFile(tmp_path / "part.json", {})
    with pytest.raises(SystemExit) as ended:
        runner.run_section(file, [runner.Case("one", lambda: 1 / 0)], time.time() + 9, lambda: False)
    assert ended.value.code == runner.POISONED
    assert runner.SectionFile(file.path, {}).done == {"one"}


def test_bytes_are_those_of_the_contract():
    """The formulas of the kernels' README, plus queries, tables and results: less than a hundredth."""
    load = Workload()
    dense = 2 * 8 * 128 * 2 * 32_768 * 64
    sparse = (2 * 8 * 128 * 2 * 1024 + 8 * 128 * 2 * 32_768 // 64) * 64
    assert dense < floor_bytes("dense", load) < 1.01 * dense
    assert sparse < floor_bytes("block_topk", load) < 1.01 * sparse
    twice = dataclasses.replace(load, summary="min_max")
    assert floor_bytes("select", twice) - floor_bytes("select", load) == 8 * 128 * 2 * 512 * 64
    with pytest.raises(ValueError, match="op 'sparse' is not known"):
        floor_bytes("sparse", load)


def test_data_sheets_agree_with_the_cost_model():
    from kinetics_jax.costs.hardware import HARDWARE

    for chip, bandwidth in byte_model.DATA_SHEET.items():
        assert HARDWARE[f"tpu-{chip}" if chip.startswith("v") else chip].bandwidth == bandwidth


def test_every_kernel_is_a_choice_on_its_platform():
    assert backends("paged_decode", "gpu")[0] == "triton"
    assert backends("paged_decode", "tpu") == ["mosaic_tpu", "xla"]
    assert backends("paged_decode", "cpu") == ["xla"]
    assert "splits" in options_of("paged_decode", "triton")
    tried = candidates("paged_decode", "triton")
    assert tried[0] == Choice("triton")
    assert Choice("triton", (("splits", 8),)) in tried
    assert candidates("paged_decode", "xla") == [XLA]
    assert Choice("triton", (("fused", False),)) in candidates("select_pages", "triton")


def test_every_option_of_a_kernel_is_tuned():
    for op in ("append_kv", "select_pages", "paged_decode"):
        for backend in {*backends(op, "gpu"), *backends(op, "tpu")}:
            tried = {name for choice in candidates(op, backend) for name, _ in choice.options}
            assert tried == {*options_of(op, backend)}


@pytest.mark.parametrize("run", [1, 4])
def test_pages_of_a_state_come_in_runs_and_once(run):
    load = dataclasses.replace(TINY, run=run)
    tables = np.stack(make_state(load, 2).tables)
    assert sorted(tables.flat) == [*range(tables.size)]
    runs = tables.reshape(-1, run)
    np.testing.assert_array_equal(runs, runs[:, :1] + np.arange(run))
    assert not runs[:, 0].max() % run
    assert (runs[1:, 0] != runs[:-1, -1] + 1).any()


def test_keys_that_were_tried_in_part_are_not_in_a_tuning_table():
    key = dataclasses.asdict(tune_kernels.key_of("dense", TINY))
    long = dataclasses.replace(TINY, context=4096)
    far = dataclasses.asdict(tune_kernels.key_of("dense", long))

    def row(load: Workload, key: dict, backend: str, us: float) -> dict:
        about = {"kernel": "paged_decode", "key": key, "backend": backend, "options": {}}
        return {"status": "ok", "case": f"dense {backend} {load}", "us": us, "impossible": False, **about}

    rows = [row(TINY, key, "triton", 9), row(TINY, key, "xla", 8), row(long, far, "triton", 7)]
    entries, wrong = tune_kernels.fastest_entries(rows, [f"dense xla {long}"])
    assert [(entry["key"], entry["backend"]) for entry in entries] == [(key, "xla")]
    assert not wrong
    assert len(tune_kernels.fastest_entries(rows)[0]) == 2


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_the_most_important_comes_first_and_no_case_twice(platform):
    made = sections.sections(sections.FULL, tiny_bench(), platform)
    names = {section: [case.name for case in make()] for section, make in made.items()}
    assert [*names] == [*sections.SHARES]
    for section, cases in names.items():
        assert len(cases) == len({*cases}), section
    assert str(Workload()) in names["timings"][0]
    first = sections.timings(sections.FULL, platform)[0]
    assert first == ("dense", Workload(), (Choice(backends("paged_decode", platform)[0]),))
    loads = {load for _, load, _ in sections.timings(sections.FULL, platform)}
    assert {(load.batch, load.context, load.page_size, load.budget) for load in loads} >= {
        (batch, context, page, budget)
        for batch in (1, 8, 64, 256)
        for context in (4096, 32_768, 131_072)
        for page in (16, 32, 64)
        for budget in (512, 1024, 2048)
    }


def test_states_too_large_for_the_memory_are_told():
    case = runner.Case("big", lambda: measure.measure(tiny_bench(), "dense", Workload(), (XLA,)))
    row = runner.run_case(case)
    assert row["status"] == "too large"
    assert row["why"].startswith("K, V and summaries take 8.7 GB")


def row_of(op: str, us: float, by: dict, **changes) -> dict:
    load = dataclasses.replace(Workload(), **changes)
    row = {"status": "ok", "op": op, "us": us, "impossible": False, **by, **dataclasses.asdict(load)}
    return row | {"floor_us": 100.0, "fraction": 100.0 / us}


def test_aims_are_judged_by_the_best_right_rows():
    triton, both, peer = {"choice": "triton"}, {"choice": "triton + triton"}, {"peer": "FlashInfer"}
    rows = [
        row_of("dense", 110, triton),
        row_of("dense", 500, {"choice": "xla"}),
        row_of("dense", 90, {"choice": "cheat"}) | {"impossible": True},
        row_of("dense", 50, {"choice": "broken"}) | {"status": "wrong"},
        row_of("dense", 20, triton, batch=1),
        row_of("dense", 95, peer),
        row_of("block_topk", 10, both),
        row_of("select", 111, triton),
    ]
    found = {aim["aim"]: aim for aim in summary.aims(rows, [{"status": "wrong", "choice": "triton"}], Workload())}
    assert [(aim["measured"], aim["met"]) for aim in found.values()] == [
        (0.909, True),
        (11.0, False),
        (9.5, False),
        (11.0, False),
        ("not measured", None),
    ]
    blind = [row | {"fraction": "nan", "floor_us": "nan"} for row in rows]
    assert [aim["met"] for aim in summary.aims(blind, [], Workload())] == [None, False, False, None, None]
    assert found["block top-k: times own dense"]["by"] == "triton + triton / triton (WRONG in 1 cases)"


def test_times_are_of_the_device_that_runs_this():
    """A step that takes long takes long here too: ten times the work, more than three times the time."""
    matrix = jnp.ones((256, 256)) / 256

    def us(products: int) -> float:
        def step(state, _):
            for _ in range(products):
                state = jnp.dot(state, matrix)
            return state

        return timing.time_calls(step, matrix, (), [jnp.float32(0)], seconds=0.02, max_calls=1)[0].us_least

    assert us(20) > 3 * us(2)
