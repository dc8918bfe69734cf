"""Tokens per second of whole-model decoding over batch and context, beside the bytes that a step must read.

    python experiments/benchmarks/end_to_end.py --models 0.6B --json out.json           # on this device
    python experiments/benchmarks/end_to_end.py --peer-python ../torch-env/bin/python   # torch from another environment
    python experiments/benchmarks/end_to_end.py --quick                                 # a tiny shape, in seconds

The engine's own decode chunk over random weights and a random cache: dense, and block top-k at the same page size. The
limit is the time to read the weights, the attended K and V and the searched summaries once, at the bandwidth measured
in the same run. On a CPU all runners of a point take turns, so that other work on the machine slows them alike; on an
accelerator they run one after another, the largest batch that fits first. Every row is appended to `--rows` at once and
not measured again: the same command continues. A point that does not fit in memory becomes a row that says so.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from decode_bench.aims import PEER_BATCH, aims
from decode_bench.points import ENGINE, PEERS, Point, Settings, shape
from decode_bench.summary import COLUMNS, HOST_COLUMNS, table
from decode_bench.worker import Worker, WorkerDied, engine_worker, transformers_worker
from kernel_bench.byte_model import print_table
from tqdm import tqdm

from kinetics_jax.costs.hardware import Hardware
from kinetics_jax.costs.memory import fits
from kinetics_jax.files import write_atomic

SETTLED = ("ok", "out of memory")
ACCELERATOR = {"models": ["8B", "1.7B", "0.6B"], "batches": ["fit", "32", "8", "1"], "contexts": [16384, 4096, 32768]}
HOST = {"models": ["0.6B"], "batches": ["8", "1"], "contexts": [512, 2048, 4096]}
QUICK = {"models": ["tiny"], "batches": ["2", "1"], "contexts": [64, 256]}
RESERVE = 0.1  # of the memory, for activations and logits, when the batch is the largest that fits


class Rows:
    """The JSON lines of a sweep. Continues a file of the same settings; exits on one of other settings."""

    def __init__(self, path: Path, setup: dict[str, Any]):
        self.path = path
        stored = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        if stored and stored[0] != {"row": "setup", **setup}:
            differ = [name for name, value in setup.items() if stored[0].get(name) != value]
            raise SystemExit(
                f"{path} was measured with another {', '.join(differ)}; give another --rows, or move it away"
            )
        self.rows: list[dict[str, Any]] = stored
        if not stored:
            self.add({"row": "setup", **setup})

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["row"] == kind]

    def settled(self, point: Point) -> bool:
        """Whether a point needs no more measuring; the next run retries one that failed."""
        wanted = dataclasses.asdict(point)
        return any(row["status"] in SETTLED and wanted.items() <= row.items() for row in self.of_kind("point"))


class Workers:
    """The worker processes, started when needed; `exclusive`: one at a time, as they cannot share the device."""

    def __init__(self, arguments: argparse.Namespace, first: Worker, exclusive: bool):
        self.arguments, self.exclusive = arguments, exclusive
        self.running: dict[str, Worker] = {"engine": first}

    def worker(self, runner: str) -> Worker:
        """The worker of a runner. Raises WorkerDied if it does not start."""
        kind = "engine" if runner in ENGINE else "peer"
        if kind not in self.running:
            if self.exclusive:
                self.close()
            make = (
                engine_worker
                if kind == "engine"
                else lambda **how: transformers_worker(self.arguments.peer_python, **how)
            )
            self.running[kind] = make(patience=self.arguments.patience)
        return self.running[kind]

    def lose(self, runner: str) -> None:
        """Drops the worker of a runner, which died."""
        if lost := self.running.pop("engine" if runner in ENGINE else "peer", None):
            lost.close()

    def close(self) -> None:
        for worker in self.running.values():
            worker.close()
        self.running.clear()


def measure(workers: Workers, points: Sequence[Point], settings: Settings, turns: int) -> list[dict[str, Any]]:
    """Measures points in turns, all in memory at once: makes them, times each `turns` times, drops them; their rows."""
    rows = {point: {"row": "point", **dataclasses.asdict(point)} for point in points}
    turns_of: dict[Point, list[float]] = {}
    cpu: dict[Point, list[float]] = {point: [] for point in points}

    def ask(point: Point, do: str, /, **more: Any) -> dict[str, Any]:
        try:
            answer = workers.worker(point.runner).ask(do, **more)
        except WorkerDied as died:
            workers.lose(point.runner)
            for other in list(turns_of):  # what that worker held is gone too
                if (other.runner in ENGINE) == (point.runner in ENGINE):
                    rows[other] |= {"status": "crashed", "why": str(died)}
                    del turns_of[other]
            answer = {"status": "crashed", "why": str(died)}
        rows[point] |= {name: value for name, value in answer.items() if not name.endswith("seconds")}
        return answer

    for point in points:
        wanted = dataclasses.asdict(point) | {
            "steps": settings.steps,
            "settings": dataclasses.asdict(settings),
            "shape": shape(point.model, point.layers).to_hf(),
        }
        if ask(point, "make", point=wanted)["status"] == "ok":
            turns_of[point] = []
    for _ in range(turns):
        for point in list(turns_of):
            answer = ask(point, "time", runner=point.runner)
            if answer["status"] == "ok":
                turns_of[point].append(answer["seconds"])
                cpu[point].append(answer["cpu_seconds"] / settings.steps)
            else:
                turns_of.pop(point, None)
    for point, seconds in turns_of.items():
        rows[point] |= {"seconds": statistics.median(seconds), "turns": seconds}
        rows[point] |= {"cpu_seconds": statistics.median(cpu[point])}  # of the host; little where the device is another
    for worker in workers.running.values():
        worker.ask("drop")
    return list(rows.values())


def groups(arguments: argparse.Namespace, facts: dict[str, Any], settings: Settings) -> list[list[Point]]:
    """Groups of points measured together, in order. On an accelerator each point is alone, those with an aim first."""
    on_host = facts["platform"] == "cpu"
    places: dict[tuple[str, int, int, int], bool] = {}  # place → whether its batch is the largest that fits
    for model in arguments.models:
        layers = shape(model, arguments.layers).num_layers
        for batch in arguments.batches:
            for context in arguments.contexts:
                sequences = largest_batch(model, layers, context, facts, settings) if batch == "fit" else int(batch)
                if sequences:
                    places.setdefault((model, layers, sequences, context), batch == "fit")
    points = [
        [Point(model, layers, runner, batch, context) for runner in (*ENGINE, *arguments.peers)]
        for model, layers, batch, context in places
    ]
    if on_host:
        return points

    def rank(point: Point) -> tuple[int, bool, int]:
        peer, largest = point.runner not in ENGINE, places[point.model, point.layers, point.batch, point.context]
        first = largest and point.context == arguments.contexts[0]
        tier = 0 if first and not peer else 1 if point.batch == PEER_BATCH else 2
        return tier, peer, arguments.models.index(point.model)

    peers_at = {PEER_BATCH, *arguments.peer_batches}
    each = [point for group in points for point in group if point.runner in ENGINE or point.batch in peers_at]
    return [[point] for point in sorted(each, key=rank)]


def largest_batch(model: str, layers: int, context: int, facts: dict[str, Any], settings: Settings) -> int:
    """Sequences whose cache fits beside the weights; 0 if the device does not report its memory."""
    if facts["memory"] is None:
        return 0
    config = shape(model, layers)
    chip = Hardware(facts["device"], 1.0, 1.0, float(facts["memory"]))
    sparse = settings.policy("sparse", config)
    sizes = {"kv_bytes": settings.itemsize, "weight_bytes": settings.itemsize, "reserve": RESERVE}
    return fits(config, chip, tokens=context + settings.steps, attention=sparse, **sizes).sequences


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", help="published shapes: 0.6B, 1.7B, 8B, … (default: 8B 1.7B 0.6B; on a CPU 0.6B)"
    )
    parser.add_argument(
        "--layers", type=int, default=0, help="keep only the first N layers of every model (default: all)"
    )
    parser.add_argument("--batches", nargs="+", help="numbers, or `fit` for the largest that an accelerator holds")
    parser.add_argument("--contexts", type=int, nargs="+", help="tokens in the cache, in the order to measure them")
    parser.add_argument("--page-size", type=int, default=64)
    parser.add_argument("--budget", type=int, default=1024, help="tokens that a sparse layer attends to")
    parser.add_argument("--steps", type=int, help="decode steps per turn (default: 32; on a CPU 4)")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument(
        "--peers", nargs="*", choices=PEERS, help="transformers, eager or compiled (default: both; on a CPU eager)"
    )
    parser.add_argument(
        "--peer-batches",
        nargs="*",
        type=int,
        default=[1],
        help="batches of the peers on an accelerator, beside 32 (default: 1)",
    )
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter with torch and transformers")
    parser.add_argument(
        "--rows", type=Path, default=Path("end_to_end.jsonl"), help="JSON lines to append to (%(default)s)"
    )
    parser.add_argument("--json", type=Path, help="write table, aims and rows here")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no point after so many seconds")
    parser.add_argument(
        "--patience", type=float, default=300, help="seconds that a worker may take for one answer (%(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="a tiny shape, to try this script")
    return parser.parse_args(words)


def main() -> None:
    arguments = parse()
    until = time.monotonic() + arguments.seconds
    try:
        engine = engine_worker(patience=arguments.patience)
    except WorkerDied as died:
        raise SystemExit(f"the engine does not start: {died}") from died
    on_host = engine.facts["platform"] == "cpu"
    defaults = QUICK if arguments.quick else HOST if on_host else ACCELERATOR
    for name, value in defaults.items():
        setattr(arguments, name, getattr(arguments, name) or value)
    if arguments.peers is None:
        arguments.peers = PEERS[:1] if on_host else PEERS
    small = {"page_size": 16, "budget": 64} if arguments.quick else {}
    settings = Settings(
        page_size=small.get("page_size") or arguments.page_size,
        budget=small.get("budget") or arguments.budget,
        steps=arguments.steps or (4 if on_host else 32),
        itemsize=4 if engine.facts["dtype"] == "float32" else 2,
    )
    setup = {name: engine.facts[name] for name in ("device", "platform", "dtype", "jax", "backends")}
    setup["cores"] = os.cpu_count() if on_host else None
    workers = Workers(arguments, engine, exclusive=not on_host)
    try:
        rows = Rows(arguments.rows, setup | dataclasses.asdict(settings))
        answer = engine.ask("bandwidth")
        rows.add({"row": "bandwidth", **answer})
        wanted = groups(arguments, engine.facts, settings)
        left = [[point for point in group if not rows.settled(point)] for group in wanted]
        left = [group for group in left if group]
        for group in tqdm(left, desc="points", unit="group", disable=not sys.stderr.isatty()):
            if time.monotonic() > until:
                print("out of time: the same command continues")
                break
            for row in measure(workers, group, settings, arguments.turns):
                rows.add({**row, "load_average": os.getloadavg()[0]})
                tqdm.write(describe(row))
            if on_host:
                rows.add({"row": "bandwidth", **workers.worker(ENGINE[0]).ask("bandwidth")})
    finally:
        workers.close()
    report(rows, settings, arguments.json)


def describe(row: dict[str, Any]) -> str:
    """A row as a line of text."""
    where = f"{row['model']} batch {row['batch']} context {row['context']} {row['runner']}: "
    if row["status"] != "ok":
        return f"{where}{row['status']}: {row['why']}"
    return f"{where}{row['batch'] / row['seconds']:.1f} tokens/s, {1e3 * row['seconds']:.2f} ms a step"


def report(rows: Rows, settings: Settings, path: Path | None) -> None:
    """Prints the table and the aims; writes them with the rows."""
    setup = rows.of_kind("setup")[0]
    bandwidth = max(row["bytes_per_second"] for row in rows.of_kind("bandwidth") if row["status"] == "ok")
    lines = table(rows.of_kind("point"), settings, bandwidth)
    print(f"\n{setup['device']}, {setup['dtype']}, jax {setup['jax']}; reads up to {bandwidth / 1e9:.1f} GB/s")
    print(f"page {settings.page_size}, budget {settings.budget}; limit: the bytes of a step at that rate")
    if lines:
        columns = HOST_COLUMNS if setup["platform"] == "cpu" else COLUMNS
        print_table([{name: row[name] for name in columns} for row in lines])
    aim_rows = aims(lines, setup["device"])
    if aim_rows:
        print()
        print_table(aim_rows)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"setup": setup, "bandwidth": bandwidth, "table": lines, "aims": aim_rows, "rows": rows.rows[1:]}
        write_atomic(path, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
