"""end_to_end.py: bytes, order, table and aims by hand, workers that die, and a sweep of a tiny shape."""

import dataclasses
import json
import os
import subprocess
import sys

import end_to_end
import numpy as np
import pandas as pd
import pytest
import step_scaling
from decode_bench.aims import aims
from decode_bench.points import TINY, Point, Settings, shape
from decode_bench.summary import COLUMNS, table
from decode_bench.worker import Worker, WorkerDied
from paths import BENCHMARKS

from kinetics_jax.costs.hardware import Hardware, save_hardware

H100 = {"platform": "gpu", "device": "NVIDIA H100 80GB HBM3", "memory": 78 * 10**9}


def test_a_step_reads_weights_cache_and_summaries():
    settings = Settings(page_size=64, budget=1024, steps=1, itemsize=2)
    config = shape("1.7B")
    layers, batch, context = config.num_layers, 32, 16383  # the step's own token makes whole pages
    token = 2 * 2 * config.num_kv_heads * config.head_dim
    weights = 2 * config.matmul_parameters
    dense = settings.step_bytes(Point("1.7B", layers, "dense", batch, context))
    assert dense == weights + batch * layers * token * 16384
    sparse = settings.step_bytes(Point("1.7B", layers, "sparse", batch, context))
    searched = 256 * token / 2  # a vector for every full page
    assert sparse == pytest.approx(weights + batch * (token * 16384 + (layers - 1) * (token * 1024 + searched)))
    assert settings.policy("dense", config).dense_layers == tuple(range(layers))


def test_a_cut_shape_keeps_all_but_its_depth():
    assert shape("0.6B", 3) == dataclasses.replace(shape("0.6B"), num_layers=3)
    assert shape("tiny") == TINY


def row(runner: str, batch: int, context: int, turns: list[float], model: str = "1.7B") -> dict:
    point = {"model": model, "layers": 28, "runner": runner, "batch": batch, "context": context}
    middle = sorted(turns)[len(turns) // 2]
    return {"row": "point", **point, "status": "ok", "seconds": middle, "turns": turns}


def test_the_table_sets_runners_side_by_side_and_says_what_did_not_fit():
    settings = Settings(itemsize=2, steps=1)
    failed = {**row("transformers", 8, 4096, [1.0]), "status": "out of memory", "why": "too large"}
    del failed["seconds"], failed["turns"]
    rows = [
        row("dense", 8, 4096, [9.0, 9.0, 9.0]),  # measured again below
        row("dense", 8, 4096, [0.02, 0.04, 0.06]),
        row("sparse", 8, 4096, [0.01, 0.01, 0.03]),
        failed,
        row("transformers compiled", 8, 4096, [0.1, 0.16, 0.18]),
        {**failed, "batch": 99},
    ]
    first, second = table(rows, settings, 1e12)
    assert set(COLUMNS) <= first.keys() == second.keys()
    assert first["dense tok/s"] == 8 / 0.04
    assert first["of limit"] == pytest.approx(first["dense bytes"] / 1e12 / 0.04, abs=1e-3)
    assert first["sparse/dense"] == 2.0  # of 2, 4, 2
    assert first["by bytes"] == pytest.approx(first["dense bytes"] / first["sparse bytes"], abs=0.01)
    assert (first["transformers way"], first["dense/transformers"]) == ("transformers compiled", 4.0)
    assert (second["dense tok/s"], second["transformers tok/s"]) == ("-", "out of memory")


def test_the_aims_are_those_of_an_h100_alone():
    settings = Settings(itemsize=2, steps=1)
    seconds = settings.step_bytes(Point("1.7B", 28, "dense", 32, 16384)) / 3e12 / 0.9
    rows = [
        row("dense", 32, 16384, [seconds]),
        row("sparse", 32, 16384, [seconds / 3.5]),
        row("dense", 8, 16384, [9.0]),
        row("transformers", 32, 16384, [4.9 * seconds / 3.5]),
    ]
    found = table(rows, settings, 3e12)
    assert aims(found, "NVIDIA H200") == []
    held = {aim["aim"]: (aim["measured"], aim["met"]) for aim in aims(found, H100["device"])}
    assert held["1.7B: dense, of its byte limit"] == (0.9, True)
    assert held["1.7B: sparse / dense"] == (3.5, False)
    assert held["1.7B: times transformers at batch 32, context 16384"] == (4.9, False)
    nothing = aims(table([{**rows[0], "context": 4096}], settings, 3e12), H100["device"])
    assert {(aim["measured"], aim["met"]) for aim in nothing} == {("not measured", None)}


def test_the_figure_draws_measurements_and_predictions(tmp_path, monkeypatch, capsys):
    settings = Settings(page_size=16, budget=64, steps=4)
    chip = Hardware(
        "cpu", 1e11, 2e10, 1e10, step_seconds=1e-4, form="sum", unit_seconds={"kv_reads": 1e-10}, padded=True
    )
    save_hardware(tmp_path / "profile.json", chip)
    rows = []
    for runner in ("dense", "sparse"):
        for batch, context in ((1, 256), (2, 256), (2, 64), (2, 1024)):
            point = Point("tiny", 2, runner, batch, context)
            rows.append(row(runner, batch, context, [2 * step_scaling.predicted(settings, point, chip)], model="tiny"))
            rows[-1] |= {"layers": 2, "cpu_seconds": rows[-1]["seconds"]}
    setup = {"cores": 2, **dataclasses.asdict(settings)}
    (tmp_path / "found.json").write_text(json.dumps({"setup": setup, "bandwidth": 2e10, "rows": rows}))
    command = ["step_scaling", "found.json", "--profile", "profile.json", "--out", "out"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", command)
    step_scaling.main()
    assert "step_scaling.png" in capsys.readouterr().out
    data = (tmp_path / "out" / "step_scaling.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert 5_000 < len(data) < 300_000
    drawn = pd.read_csv(tmp_path / "out" / "step_scaling.csv")
    by_context = drawn[(drawn["panel"] == "context") & (drawn["runner"] == "dense")]
    assert set(by_context["batch"]) == {2}
    measured = by_context[by_context["measured ms"].notna()]
    assert measured["context"].tolist() == [64, 256, 1024]
    np.testing.assert_allclose(measured["measured ms"], 2 * measured["predicted ms"], rtol=1e-4)
    np.testing.assert_allclose(measured["measured cpu ms"], measured["measured ms"], rtol=1e-4)
    sparse = drawn[(drawn["panel"] == "batch") & (drawn["runner"] == "sparse") & drawn["measured ms"].notna()]
    assert sparse["batch"].tolist() == [1, 2]
    assert set(sparse["context"]) == {256}
    devices = drawn[drawn["panel"] == "devices"]
    assert devices["measured ms"].isna().all()
    for _, mine in devices.groupby("runner"):
        assert (np.diff(mine["predicted ms"]) < 0).all()


def test_on_a_gpu_what_is_aimed_at_comes_first_and_nothing_shares_the_memory():
    arguments = end_to_end.parse([])
    vars(arguments).update(end_to_end.ACCELERATOR, peers=end_to_end.PEERS)
    settings = Settings(itemsize=2, steps=32)
    order = end_to_end.groups(arguments, H100, settings)
    assert {len(group) for group in order} == {1}
    points = [group[0] for group in order]
    assert len(points) == len({*points})
    largest = points[0].batch
    assert (points[0].model, points[0].context) == ("8B", 16384)
    per_sequence = 2 * shape("8B").kv_elements_per_token * 16384
    assert 0.8 * 78e9 < 2 * shape("8B").active_parameters + largest * per_sequence < 0.9 * 78e9
    peers = [point for point in points if point.runner.startswith("transformers")]
    assert {point.batch for point in peers} == {1, 32}
    most = [p for p in points if (p.model, p.context) == ("8B", 16384)]
    assert [p.runner for p in most[:2]] == ["dense", "sparse"]
    assert points.index(peers[0]) > max(points.index(p) for p in points if p.runner == "sparse" and p.batch == 32)


def test_on_a_cpu_the_runners_of_a_point_take_turns():
    arguments = end_to_end.parse(["--layers", "2"])
    vars(arguments).update(end_to_end.HOST, peers=["transformers"])
    order = end_to_end.groups(arguments, {"platform": "cpu", "device": "cpu", "memory": None}, Settings())
    assert all([p.runner for p in group] == ["dense", "sparse", "transformers"] for group in order)
    assert all(len({p.place for p in group}) == 1 and group[0].layers == 2 for group in order)


def test_rows_are_kept_for_the_same_settings_alone(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = end_to_end.Rows(path, {"device": "cpu", "steps": 4})
    done, failed = row("dense", 8, 4096, [1.0]), {**row("sparse", 8, 4096, [1.0]), "status": "crashed"}
    rows.add(done)
    rows.add(failed)
    again = end_to_end.Rows(path, {"device": "cpu", "steps": 4})
    assert again.rows == rows.rows
    assert again.settled(Point("1.7B", 28, "dense", 8, 4096))
    assert not again.settled(Point("1.7B", 28, "sparse", 8, 4096))  # tried again
    with pytest.raises(SystemExit, match=r"another steps; give another --rows"):
        end_to_end.Rows(path, {"device": "cpu", "steps": 8})


SERVER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from serving import check_host_memory, serve
class Program:
    facts = {"device": "none"}
    def make(self, point):
        print("noise")
        if point["runner"] == "large": check_host_memory(1e18)
        if point["runner"] == "wrong": raise ValueError("bad" + chr(10) + "more")
        if point["runner"] == "dies": sys.exit("killed")
        if point["runner"] == "hangs": time.sleep(60)
        return (lambda: 0.25), {"told": 1}
    def out_of_memory(self, error): return False
    def bandwidth(self): return 2.0
serve(Program())
"""


def server(patience: float = 30) -> Worker:
    return Worker([sys.executable, "-c", SERVER, str(BENCHMARKS / "decode_bench")], patience=patience)


def test_a_worker_answers_and_outlives_what_does_not_fit():
    worker = server()
    try:
        assert worker.facts == {"device": "none"}
        assert worker.ask("make", point={"runner": "dense"}) == {"status": "ok", "told": 1}
        found = worker.ask("make", point={"runner": "large"})
        assert found["status"] == "out of memory"
        assert "GB left" in found["why"]
        assert worker.ask("make", point={"runner": "wrong"}) == {"status": "failed", "why": "ValueError: bad"}
        timed = worker.ask("time", runner="dense")
        assert timed["seconds"] == 0.25
        assert 0 <= timed["cpu_seconds"] < 1
        assert worker.ask("bandwidth")["bytes_per_second"] == 2.0
        assert worker.ask("drop") == {"status": "ok"}
        assert worker.ask("time", runner="dense")["status"] == "failed"
    finally:
        worker.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runner", "patience", "words"), [("dies", 30, "exit code 1: .*killed"), ("hangs", 3, "no answer")]
)
def test_a_worker_that_dies_says_how(runner, patience, words):
    worker = server(patience)
    with pytest.raises(WorkerDied, match=words):
        worker.ask("make", point={"runner": runner})
    worker.close()


def test_a_dead_worker_costs_its_points_and_another_takes_the_next(monkeypatch):
    started = []

    def start(**how):
        started.append(how)
        return server()

    monkeypatch.setattr(end_to_end, "engine_worker", start)
    monkeypatch.setattr(end_to_end, "transformers_worker", lambda python, **how: start(**how))
    monkeypatch.setattr(end_to_end, "ENGINE", ("dense", "dies"))
    bench = end_to_end.Workers(end_to_end.parse([]), server(), exclusive=False)
    try:
        points = [Point("tiny", 2, runner, 1, 64) for runner in ("dense", "dies", "transformers")]
        found = {found["runner"]: found for found in end_to_end.measure(bench, points, Settings(), 3)}
        assert [found[point.runner]["status"] for point in points] == ["crashed", "crashed", "ok"]
        assert found["transformers"]["turns"] == [0.25] * 3
        (again,) = end_to_end.measure(bench, points[:1], Settings(), 1)
        assert again["status"] == "ok"
        assert len(started) == 2  # a peer, and another engine
    finally:
        bench.close()


@pytest.mark.slow
def test_the_gpu_suite_measures_the_engine_end_to_end(tmp_path):
    """A rehearsal of the suite's section: the engine's own programs in their worker, from measurement to table."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [
        sys.executable,
        str(BENCHMARKS / "gpu_suite.py"),
        "--tiny",
        "--only",
        "end_to_end",
        "--out",
        str(tmp_path),
    ]
    found = subprocess.run(
        command, capture_output=True, text=True, env=environment | {"JAX_PLATFORMS": "cpu"}, timeout=300, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"gpu_suite_end_to_end.json", "gpu_suite_end_to_end.jsonl"}
    stored = json.loads((tmp_path / "gpu_suite_end_to_end.json").read_text())
    rows = [row for row in stored["rows"] if row["row"] == "point"]
    assert [(row["runner"], row["status"]) for row in rows] == [("dense", "ok"), ("sparse", "ok")]
    (line,) = stored["table"]
    assert line["of limit"] == pytest.approx(
        line["dense bytes"] / stored["bandwidth"] / line["dense seconds"], abs=1e-3
    )
    assert line["transformers tok/s"] == "-"
    assert stored["aims"] == []
    assert "tiny" in found.stdout
