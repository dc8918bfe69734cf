"""Records the kernels' ops and a checkpoint's decoding on a machine or backend, and compares two recordings.

    python experiments/benchmarks/compare_backends.py record runs/xla --backend xla
    python experiments/benchmarks/compare_backends.py record runs/triton --backend triton --interpret --model none
    python experiments/benchmarks/compare_backends.py compare runs/xla runs/triton --json difference.json

A recording holds seed, inputs and outputs of a fixed set of op cases (backend_comparison/cases.py), refused cases with
their reason, a checkpoint's logits and token ids, device, versions, and the backend of every op and why it was chosen.
`compare` prints a row for every case. Exit code 0: within the bounds it prints. 1: beyond them, or a case failed. 2:
the two cannot be compared. The op cases need only jax and NumPy; `--model none` skips the checkpoint.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import jax
from backend_comparison.cases import all_states
from backend_comparison.compare_model import compare_model
from backend_comparison.compare_ops import compare_ops
from backend_comparison.ops import check_backend, record_ops
from backend_comparison.recording import ComparisonError, Recording, check_free, read_recording, write_recording
from backend_comparison.tables import print_tables

VERSIONED = ("jax", "jaxlib", "numpy", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "kinetics_jax")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def record(arguments: argparse.Namespace) -> int:
    """Records into a folder; exit code 1 if a case failed."""
    check_free(arguments.out)
    backend = None if arguments.backend == "default" else arguments.backend
    check_backend(backend, arguments.interpret)
    with_model = arguments.model != "none"
    if arguments.interpret and with_model:
        raise ComparisonError("an interpreter is for the op cases: add --model none")
    if with_model:
        from backend_comparison.model import check_model

        check_model(arguments.model, arguments.attention)
    states = [state for state in all_states() if arguments.only in state.name]
    if not states:
        raise ComparisonError(f"no state's name contains {arguments.only!r}: {', '.join(s.name for s in all_states())}")
    command = [arguments.out.name if word == str(arguments.out) else word for word in arguments.typed]
    ops, arrays = record_ops(states, seed=arguments.seed, backend=backend, interpret=arguments.interpret, report=say)
    index: dict[str, Any] = {"ops": ops, **circumstances(command)}
    if with_model:
        from backend_comparison.model import record_model

        index["model"], model_arrays = record_model(
            arguments.model,
            problems=arguments.problems,
            samples=arguments.samples,
            attention=arguments.attention,
            dtype=arguments.dtype,
            max_tokens=arguments.max_tokens,
            seed=arguments.seed,
            backend=backend,
            report=say,
        )
        arrays |= model_arrays
    write_recording(arguments.out, index, arrays)
    counts = {status: sum(case["status"] == status for case in ops["cases"]) for status in ("ok", "refused", "failed")}
    print(f"{arguments.out}: " + ", ".join(f"{count} cases {status}" for status, count in counts.items()))
    return 1 if counts["failed"] or index.get("model", {}).get("status") == "failed" else 0


def circumstances(command: list[str]) -> dict[str, Any]:
    """Device, versions and command of this process."""
    versions: dict[str, str] = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0]
    return {
        "device": {"platform": device.platform, "kind": device.device_kind, "machine": platform.machine()},
        "versions": versions,
        "command": shlex.join(["compare_backends.py", *command]),
    }


def compare(arguments: argparse.Namespace) -> int:
    """Compares two recordings; exit code 1 if they differ beyond the bounds."""
    a, b = read_recording(arguments.a), read_recording(arguments.b)
    ops, model = compare_ops(a, b), compare_model(a, b)
    if not any(row["status"] != "refused" for row in (*ops, *model)):
        raise ComparisonError("nothing to compare: every case is refused on one side or the other")
    beyond = [(row, reason) for row in (*ops, *model) for reason in row["beyond"]]
    to_stdout = arguments.json == "-"
    print_tables(a, b, ops, model, file=sys.stderr if to_stdout else sys.stdout)
    if arguments.json:
        text = as_json({"a": summary(a), "b": summary(b), "within": not beyond, "ops": ops, "model": model})
        sys.stdout.write(text) if to_stdout else Path(arguments.json).write_text(text)
    return 1 if beyond else 0


def summary(recording: Recording) -> dict[str, Any]:
    """A recording's index without its arrays and single cases."""
    index = recording.index
    ops = {name: index["ops"][name] for name in ("seed", "inputs_sha256", "backends")}
    return {name: index[name] for name in ("command", "device", "versions")} | {"ops": ops, "model": index.get("model")}


def as_json(comparison: dict[str, Any]) -> str:
    """JSON with a line per row; infinities and NaN are null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(each) for name, each in value.items()}
        if isinstance(value, list):
            return [plain(each) for each in value]
        if isinstance(value, float):
            return float(f"{value:.6g}") if abs(value) != float("inf") and value == value else None
        return value

    parts = []
    for name, value in plain(comparison).items():
        rows = isinstance(value, list) and value
        text = "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]" if rows else json.dumps(value)
        parts.append(f' "{name}": {text}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("record", help="run the cases and store them in a folder")
    one.set_defaults(run=record)
    one.add_argument("out", type=Path, help="the recording's folder; must be new or empty")
    one.add_argument("--backend", default="default", help="default, xla, triton, mosaic_gpu or mosaic_tpu")
    one.add_argument("--interpret", action="store_true", help="simulate the backend's kernels on this machine")
    one.add_argument("--only", default="", metavar="TEXT", help="only the states with TEXT in their name")
    one.add_argument(
        "--model", default="chase-171k", help="a checkpoint, as kinetics_jax.load takes it, or none (%(default)s)"
    )
    one.add_argument("--problems", type=int, default=8, help="built-in problems to decode (%(default)s)")
    one.add_argument(
        "--samples", type=int, default=2, help="per problem at temperature 1, beside a greedy one (%(default)s)"
    )
    one.add_argument(
        "--attention",
        default="block_topk:pages=6,page_size=8",
        help="attention to decode with, beside dense (%(default)s)",
    )
    one.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the model (%(default)s)"
    )
    one.add_argument("--max-tokens", type=int, default=72)
    one.add_argument("--seed", type=int, default=0)
    two = commands.add_parser("compare", help="report the differences of two recordings")
    two.set_defaults(run=compare)
    two.add_argument("a", type=Path)
    two.add_argument("b", type=Path)
    two.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="write JSON too, into FILE or to standard output"
    )
    typed = sys.argv[1:] if argv is None else argv
    arguments = parser.parse_args(typed)
    arguments.typed = typed
    try:
        return arguments.run(arguments)
    except ComparisonError as error:
        print(f"compare_backends: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
