"""The command line that the suites share: probe the device, run the sections in a worker, summarise."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence

from kinetics_kernels.tuning import device_slug

from kernel_bench import byte_model, summary, timing
from kernel_bench.runner import SectionFile, run_section, supervise
from kernel_bench.sections import FULL, SHARES, TINY

RESULTS = pathlib.Path(__file__).parent.parent / "results"
STALL_SECONDS = 150  # of one case: compiling, checking and timing the slowest of them
STATE_SHARE = 0.62  # of the memory that a state may take: peers hold a second copy of K and V
WHOLE = "end_to_end"  # the section that decodes whole models, by another script: it needs kinetics_jax and flax
WHOLE_SHARE = 0.3  # of the time, where other sections run too
# Runs in a process of its own: one that has used the device keeps its memory.
PROBE = "import jax; d = jax.devices()[0]; print('probed:', d.platform, d.device_kind, sep='|')"


def main(name: str, platform: str, chips: Sequence[str], description: str) -> None:
    """A suite: `name` is the prefix of its files, `platform` gpu or tpu, `chips` those of the byte model."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=pathlib.Path, help="folder of the JSON files (default: results/<device> beside this script)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=540,
        help="stop after so many seconds; rows measured by then are kept (%(default)s)",
    )
    parser.add_argument(
        "--only", nargs="+", choices=[*SHARES, WHOLE], metavar="SECTION", help=f"{', '.join(SHARES)}, {WHOLE}"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="rehearse at tiny shapes on any device, a CPU too; its times mean nothing"
    )
    parser.add_argument("--worker", type=float, metavar="UNTIL", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    until = time.time() + arguments.seconds
    if arguments.worker is not None:
        return work(name, arguments)
    actual, kind = probe()
    if actual != platform and not arguments.tiny:
        print_byte_model(chips)
        print(f"no accelerator: {name} found {actual} ({kind}), not a {platform}; the times above are floors")
        return None
    folder = arguments.out or RESULTS / device_slug(kind)
    folder.mkdir(parents=True, exist_ok=True)
    asked = arguments.only or [*SHARES, WHOLE]
    sections = [section for section in asked if section not in ("device", WHOLE)]
    code = 0
    if sections or "device" in asked:
        seconds = arguments.seconds * (1 - WHOLE_SHARE * (WHOLE in asked))
        code = measure_kernels(name, folder, ["device", *sections], seconds, arguments.tiny)
    if WHOLE in asked:
        code = code or decode_whole_models(name, folder, until - time.time(), arguments.tiny)
    sys.exit(code)


def measure_kernels(name: str, folder: pathlib.Path, sections: list[str], seconds: float, tiny: bool) -> int:
    """Runs the worker through the sections, from nothing, and summarises; returns the worker's exit code."""
    for section in sections:
        path_of(folder, name, section).unlink(missing_ok=True)
    until = time.time() + seconds
    command = [sys.executable, sys.argv[0], "--worker", str(until), "--out", str(folder), "--only", *sections]
    command += ["--tiny"] if tiny else []
    code = supervise(command, folder, name, seconds=seconds, stall=STALL_SECONDS)
    sum_up(name, folder, tiny)
    return code


def decode_whole_models(name: str, folder: pathlib.Path, seconds: float, tiny: bool) -> int:
    """Runs end_to_end.py, which continues an earlier run; returns its exit code, 0 too where time ran out."""
    script = pathlib.Path(__file__).parents[1] / "end_to_end.py"
    path = path_of(folder, name, WHOLE)
    command = [sys.executable, str(script), "--rows", str(path.with_suffix(".jsonl")), "--json", str(path)]
    command += ["--seconds", str(0.8 * seconds)]  # the point it started last still ends
    command += ["--quick", "--batches", "1", "--contexts", "64", "--turns", "1", "--peers"] if tiny else []
    try:
        return subprocess.run(command, timeout=max(seconds, 1), check=False).returncode
    except subprocess.TimeoutExpired:
        print(f"{WHOLE}: out of time; its rows are in {path.with_suffix('.jsonl')}, the same command continues")
        return 0


def probe() -> tuple[str, str]:
    """Platform and kind of the first device; `no device` and the last line of the error where jax has none."""
    probed = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)
    for line in probed.stdout.splitlines():
        if line.startswith("probed:"):
            _, platform, kind = line.split("|")
            return platform, kind
    return "no device", (probed.stderr.strip().splitlines() or ["jax printed nothing"])[-1]


def print_byte_model(chips: Sequence[str]) -> None:
    """Prints floors at data-sheet bandwidth: what measurements are compared with, not measurements."""
    head = FULL.headline
    loads = [
        dataclasses.replace(head, batch=batch, context=context, page_size=page_size)
        for batch in (1, 64)
        for context in FULL.contexts
        for page_size in FULL.page_sizes
    ]
    bandwidths = ", ".join(f"{chip} {byte_model.DATA_SHEET[chip] / 1e12:g} TB/s" for chip in chips)
    print(f"Floors, not measurements: bytes a layer's decode step moves, and microseconds at data-sheet {bandwidths}")
    print(f"({head.kv_heads} KV heads x group {head.group} x {head.head_dim}, {head.dtype}, {head.summary} summaries)")
    byte_model.print_table(byte_model.floor_rows(loads, chips))


def path_of(folder: pathlib.Path, name: str, section: str) -> pathlib.Path:
    return folder / f"{name}_{section}.json"


def work(name: str, arguments: argparse.Namespace) -> None:
    """The worker: runs every section within its share of the time, then the unfinished ones in the time left."""
    import jax

    from kernel_bench import device
    from kernel_bench.measure import Bench
    from kernel_bench.sections import sections

    sweep = TINY if arguments.tiny else FULL
    chip, platform = jax.devices()[0], jax.default_backend()
    memory = device.memory_bytes(chip) or 16 << 30
    header = {"device": chip.device_kind, "jax": jax.__version__, "tiny": arguments.tiny, "method": timing.METHOD}
    bench = Bench(
        memory=int(STATE_SHARE * memory),
        bandwidth=1.0,  # until it is measured
        seconds=sweep.seconds,
        rotate_bytes=sweep.rotate_bytes,
        max_calls=sweep.max_calls,
    )
    made = sections(sweep, bench, platform)
    began, until = time.time(), arguments.worker
    shares = sum(SHARES[section] for section in arguments.only)
    for last_round in (False, True):
        for section in arguments.only:
            file = SectionFile(path_of(arguments.out, name, section), {"section": section, **header})
            end = until if last_round else time.time() + (until - began) * SHARES[section] / shares
            run_section(file, made[section](), min(until, end), device.healthy)
            if section == "device":
                bench.bandwidth = measured_bandwidth(file)


def measured_bandwidth(file: SectionFile) -> float:
    """Read bandwidth of the device section, bytes/s; NaN, and so no fraction in any row, if it was not measured."""
    rows = (row for row in file.content["rows"] if row["case"] == "bandwidth" and row["status"] == "ok")
    return next((row["read_best"] for row in rows), float("nan"))


def sum_up(name: str, folder: pathlib.Path, tiny: bool) -> None:
    """Writes and prints the aims and the count of rows by outcome."""
    rows = {
        section: json.loads(path.read_text())["rows"]
        for section in SHARES
        if (path := path_of(folder, name, section)).exists()
    }
    head = (TINY if tiny else FULL).headline
    aims = summary.aims([*rows.get("timings", []), *rows.get("peers", [])], rows.get("correctness", []), head)
    counts = {section: summary.outcomes(section_rows) for section, section_rows in rows.items() if section != "device"}
    file = SectionFile(path_of(folder, name, "summary"), {})
    file.content = {"headline": str(head), "tiny": tiny, "aims": aims, "outcomes": counts}
    file.write()
    for section, choices in counts.items():
        for choice, statuses in choices.items():
            print(f"{section}: {choice}: " + ", ".join(f"{count} {status}" for status, count in statuses.items()))
    print(f"\n{head}" + (" (a rehearsal: its times mean nothing)" if tiny else ""))
    byte_model.print_table(aims)
