"""Finds the fastest backend and options of every kernel on this device and writes them as a tuning table.

    python experiments/benchmarks/tune_kernels.py [--out FOLDER] [--seconds LIMIT]

Writes <device>.json into kernels/kinetics_kernels/tuned, where `kinetics_kernels.tuning` reads it, and
tune_kernels_<op>.json, with every combination tried, into results/<device> beside this script; with --out, both into
that folder. A kernel with a wrong result at a key is named, and is no candidate there; a key has no entry unless all
its cases were tried. Without an accelerator it says so and ends; `--tiny` rehearses on any device (on a CPU with the
reference alone) into --out. Needs jax and NumPy; the kernels are those of this checkout.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import itertools
import json
import pathlib
import sys
import time
from collections.abc import Sequence

from kernel_bench.byte_model import Workload
from kernel_bench.choices import backends, candidates, options_of
from kernel_bench.runner import Case, SectionFile, run_section, supervise
from kernel_bench.suite import RESULTS, STALL_SECONDS, STATE_SHARE, path_of, probe
from kinetics_kernels import tuning

# The timed ops, and the kernel that each runs.
DECODE, SPARSE, SELECT, APPEND = "dense", "attend", "select", "append"
KERNELS = {DECODE: "paged_decode", SPARSE: "paged_decode", SELECT: "select_pages", APPEND: "append_kv"}
SHARES = {DECODE: 0.35, SPARSE: 0.3, SELECT: 0.25, APPEND: 0.1}
NAME = "tune_kernels"
TINY = Workload(batch=2, context=256, page_size=16, budget=64, kv_heads=2, group=2, head_dim=16, dtype="float32")


def loads(op: str, tiny: bool) -> list[Workload]:
    """The workloads whose keys are measured, the usual ones first."""
    if tiny:
        return [TINY, dataclasses.replace(TINY, batch=1)]
    pages, groups, batches = (64, 16, 32), (4, 2, 5, 8), (64, 8, 1, 256)
    if op == DECODE:
        grid = itertools.product(groups, ("mean",), pages, batches, (32_768, 4096), (1024,))
    elif op == SPARSE:
        grid = itertools.product(groups, ("mean",), pages, batches, (4096,), (1024, 2048))
    elif op == SELECT:
        grid = itertools.product((4,), ("mean", "min_max"), pages, batches, (32_768, 4096, 131_072), (1024,))
    else:
        grid = itertools.product((1,), ("mean",), pages, (64, 1), (4096,), (1024,))
    return [
        Workload(batch, context, page_size, budget, group=group, summary=summary)
        for group, summary, page_size, batch, context, budget in grid
    ]


def key_of(op: str, load: Workload) -> tuning.Key:
    """The key under which a call of this workload is looked up; `tuning.*_key` give the same from its arrays."""
    kinds = {DECODE: "per_sequence", SPARSE: "per_head", SELECT: load.summary, APPEND: load.summary}
    return tuning.Key(
        load.dtype,
        load.page_size,
        load.head_dim,
        1 if op == APPEND else load.group,
        kinds[op],
        load.batch * load.kv_heads,
        load.pages if op == SPARSE else load.table_pages,
    )


def cases(op: str, tiny: bool, platform: str, bench) -> list[Case]:
    """Every backend with every combination of options at every key."""
    from kernel_bench.measure import measure

    cases_of_op = []
    for load in loads(op, tiny):
        for backend in backends(KERNELS[op], platform):
            for choice in candidates(KERNELS[op], backend):
                about = {
                    "kernel": KERNELS[op],
                    "key": dataclasses.asdict(key_of(op, load)),
                    "backend": choice.backend,
                    "options": dict(choice.options),
                }
                run = functools.partial(measure, bench, op, load, (choice,))
                cases_of_op.append(Case(f"{op} {choice} {load}", run, about))
    return cases_of_op


def work(arguments: argparse.Namespace) -> None:
    """The worker: measures every op within its share of the time, then the unfinished ones in the time left."""
    import jax
    from kernel_bench import device
    from kernel_bench.measure import Bench
    from kernel_bench.timing import bandwidths

    memory = device.memory_bytes(jax.devices()[0]) or 16 << 30
    read = bandwidths(1 << 20 if arguments.tiny else 1 << 30)["read_best"]
    bench = Bench(memory=int(STATE_SHARE * memory), bandwidth=read, seconds=0.03)
    if arguments.tiny:
        bench.seconds, bench.rotate_bytes, bench.max_calls = 0.002, 1 << 16, 1
    platform, began, until = jax.default_backend(), time.time(), arguments.worker
    for last_round in (False, True):
        for op, share in SHARES.items():
            kernel = KERNELS[op]
            untried = {each: options_of(kernel, each) for each in backends(kernel, platform) if each != "xla"}
            header = {"op": op, "versions": device.facts()["versions"], "options_of_kernels": untried}
            file = SectionFile(path_of(arguments.out, NAME, op), header)
            end = until if last_round else time.time() + (until - began) * share
            run_section(file, cases(op, arguments.tiny, platform, bench), min(until, end), device.healthy)


def fastest_entries(rows: list[dict], left: Sequence[str] = ()) -> tuple[list[dict], list[str]]:
    """The fastest right row of every key, as entries of a tuning table, and a line for every wrong row.

    A key with a case in `left` has no entry: the untried choice, even the reference, may be faster.
    """
    fastest: dict[str, dict] = {}
    wrong, cut = [], {_call(case) for case in left}
    for row in rows:
        if row["status"] in ("wrong", "crashed", "hung"):
            wrong.append(f"{row['case']}: {row['status']}: {row['why']}")
        if row["status"] != "ok" or row["impossible"] or _call(row["case"]) in cut:
            continue
        held = fastest.setdefault(json.dumps([row["kernel"], row["key"]]), row)
        if row["us"] < held["us"]:
            fastest[json.dumps([row["kernel"], row["key"]])] = row
    entries = [
        tuning.Entry(row["kernel"], tuning.Key(**row["key"]), row["backend"], row["options"], 1e-6 * row["us"])
        for row in fastest.values()
    ]
    return [tuning.entry_json(entry) for entry in entries], wrong


def _call(case: str) -> tuple[str, str]:
    """Op and workload of a case named `<op> <choice> <workload>`."""
    op, _, load = case.split(" ", 2)
    return op, load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, help="folder of the table and the rows (default: see above)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=540,
        help="stop after so many seconds; rows measured by then are kept (%(default)s)",
    )
    parser.add_argument("--tiny", action="store_true", help="rehearse at tiny shapes on any device, into --out")
    parser.add_argument("--worker", type=float, metavar="UNTIL", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    until = time.time() + arguments.seconds
    if arguments.worker is not None:
        return work(arguments)
    platform, kind = probe()
    if platform not in ("gpu", "tpu") and not arguments.tiny:
        print(f"no accelerator: found {platform} ({kind}); tuning needs a GPU or a TPU")
        return None
    if arguments.tiny and arguments.out is None:
        parser.error("--tiny needs --out: its times mean nothing and must not become the device's table")
    slug = tuning.device_slug(kind)
    folder = arguments.out or RESULTS / slug
    folder.mkdir(parents=True, exist_ok=True)
    for op in SHARES:
        path_of(folder, NAME, op).unlink(missing_ok=True)
    command = [sys.executable, sys.argv[0], "--worker", str(until), "--out", str(folder)]
    command += ["--tiny"] if arguments.tiny else []
    code = supervise(command, folder, NAME, seconds=until - time.time(), stall=STALL_SECONDS)
    files = [json.loads(path.read_text()) for op in SHARES if (path := path_of(folder, NAME, op)).exists()]
    entries, wrong = fastest_entries(*([row for file in files for row in file[part]] for part in ("rows", "left")))
    if not entries:
        sys.exit(code or "tune_kernels: nothing was measured; the tune_kernels_*.json files say why")
    table = SectionFile((arguments.out or tuning.TUNED) / f"{slug}.json", {})
    table.content = {
        "device": kind,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": files[0]["versions"],
        "tiny": arguments.tiny,
        "entries": entries,
    }
    table.write()
    tuning.load_table(slug, arguments.out)  # raises if it is not a valid table
    for line in wrong:
        print(f"left out: {line}")
    print(f"{len(entries)} keys in {table.path}")
    sys.exit(code)


if __name__ == "__main__":
    main()
