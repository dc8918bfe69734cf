"""Records the kernels' ops and a checkpoint's decoding on a machine or backend, and compares two recordings.

    python experiments/benchmarks/compare_backends.py record runs/xla --backend xla
    python experiments/benchmarks/compare_backends.py record runs/triton --backend triton --interpret --model none
    python experiments/benchmarks/compare_backends.py compare runs/xla runs/triton --json difference.json
    python experiments/benchmarks/compare_backends.py compare runs/xla runs/triton runs/own --format markdown

A recording holds seed, inputs and outputs of a fixed set of op cases (backend_comparison/cases.py), refused cases with
their reason, a checkpoint's logits and token ids, its accuracy on a task if asked, and where it was made: revision,
device and driver, versions, XLA's flags, matmul precision, threads, the backend of every op and why it was chosen.
`compare` prints a row for every case, or tables to cite; of more than two recordings each is compared with the first.
Exit code 0: within the bounds it prints. 1: beyond them, or a case failed. 2: they cannot be compared. The op cases
need only jax and NumPy; `--model none` skips the checkpoint.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from backend_comparison.accuracy import compare_accuracy
from backend_comparison.cases import State, all_states
from backend_comparison.circumstances import circumstances
from backend_comparison.cited import cited
from backend_comparison.compare_model import compare_model
from backend_comparison.compare_ops import compare_ops
from backend_comparison.ops import check_backend, record_ops
from backend_comparison.recording import ComparisonError, Recording, check_free, read_recording, write_recording
from backend_comparison.tables import print_tables
from kernel_options import HELP as OPTION_HELP
from kernel_options import with_options
from kinetics_kernels.kernel_files import register_backends


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def record(arguments: argparse.Namespace) -> int:
    """Records into a folder; exit code 1 if a case failed."""
    check_free(arguments.out)
    try:
        for package in arguments.kernels:
            register_backends(package)
        backend = with_options(None if arguments.backend == "default" else arguments.backend, arguments.option)
    except (ValueError, NotImplementedError) as error:
        raise ComparisonError(str(error)) from error
    check_backend(backend, arguments.interpret)
    with_model = arguments.model != "none"
    if arguments.accuracy < 0 or arguments.task_problems < 1:
        raise ComparisonError("--accuracy and --task-problems count samples and problems")
    if arguments.interpret and with_model:
        raise ComparisonError("an interpreter is for the op cases: add --model none")
    if with_model:
        from backend_comparison.model import check_model

        check_model(arguments.model, arguments.attention, arguments.task)
    elif arguments.accuracy > 0:
        raise ComparisonError("--accuracy needs a checkpoint: name it with --model")
    states = states_of(arguments.only)
    command = [arguments.out.name if word == str(arguments.out) else word for word in arguments.typed]
    ops, arrays = record_ops(states, seed=arguments.seed, backend=backend, interpret=arguments.interpret, report=say)
    index: dict[str, Any] = {"ops": ops, **circumstances()}
    index["command"] = shlex.join(["compare_backends.py", *command])
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
            accuracy=arguments.accuracy,
            task=arguments.task,
            task_problems=arguments.task_problems,
            report=say,
        )
        arrays |= model_arrays
    write_recording(arguments.out, index, arrays)
    counts = {status: sum(case["status"] == status for case in ops["cases"]) for status in ("ok", "refused", "failed")}
    print(f"{arguments.out}: " + ", ".join(f"{count} cases {status}" for status, count in counts.items()))
    return 1 if counts["failed"] or index.get("model", {}).get("status") == "failed" else 0


def states_of(patterns: list[str]) -> list[State]:
    """The states whose names hold one of the patterns, or match it where it has a *, ? or [; without patterns, all.

    Raises ComparisonError for a pattern that no name answers to.
    """
    wanted = [pattern for text in patterns for pattern in text.split(",") if pattern]
    chosen = {pattern: fnmatch.filter([s.name for s in all_states()], f"*{pattern}*") for pattern in wanted}
    for pattern, names in chosen.items():
        if not names:
            raise ComparisonError(f"no state's name contains {pattern!r}: {', '.join(s.name for s in all_states())}")
    return [s for s in all_states() if not wanted or any(s.name in names for names in chosen.values())]


def compare(arguments: argparse.Namespace) -> int:
    """Compares recordings with the first of them; exit code 1 if one differs beyond the bounds."""
    a, *others = [read_recording(path) for path in (arguments.a, arguments.b, *arguments.more)]
    names = [recording.path.name for recording in (a, *others)]
    if len({*names}) < len(names) and arguments.format != "text":
        raise ComparisonError(f"tables name recordings by their folders, and two of these are called alike: {names}")
    pairs = [(b, compare_ops(a, b), [*compare_model(a, b), *compare_accuracy(a, b)]) for b in others]
    for b, ops, model in pairs:
        if not any(row["status"] != "refused" for row in (*ops, *model)):
            with_whom = f" of {a.path} and {b.path}" if len(pairs) > 1 else ""
            raise ComparisonError(f"nothing to compare{with_whom}: every case is refused on one side or the other")
    to_stdout = arguments.json == "-"
    file = sys.stderr if to_stdout else sys.stdout
    if arguments.format == "text":
        for b, ops, model in pairs:
            print_tables(a, b, ops, model, file=file)
    else:
        print(cited([a, *others], [[*ops, *model] for _, ops, model in pairs], arguments.format), end="", file=file)
    within = [not any(row["beyond"] for row in (*ops, *model)) for _, ops, model in pairs]
    if arguments.json:
        found = [
            {"b": summary(b), "within": good, "ops": ops, "model": model}
            for (b, ops, model), good in zip(pairs, within, strict=True)
        ]
        whole = found[0] if len(found) == 1 else {"within": all(within), "comparisons": found}
        text = as_json({"a": summary(a), **whole})
        sys.stdout.write(text) if to_stdout else Path(arguments.json).write_text(text)
    return 0 if all(within) else 1


def summary(recording: Recording) -> dict[str, Any]:
    """A recording's index without its arrays and single cases."""
    index = recording.index
    ops = {name: index["ops"][name] for name in ("seed", "inputs_sha256", "backends")}
    made = ("command", "revision", "device", "versions", "variables", "matmul_precision", "threads")
    return {name: index[name] for name in made if name in index} | {"ops": ops, "model": index.get("model")}


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
    one.add_argument(
        "--backend", default="default", help="default, a backend for all ops, or OP=NAME,OP=NAME: append_kv=xla,…"
    )
    one.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help=OPTION_HELP)
    one.add_argument(
        "--kernels", action="append", default=[], metavar="PACKAGE", help="an importable package of own backends"
    )
    one.add_argument("--interpret", action="store_true", help="simulate the backend's kernels on this machine")
    one.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="TEXT,…",
        help="only states with TEXT in their name, * and ? allowed",
    )
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
    one.add_argument(
        "--accuracy", type=int, default=0, metavar="N", help="also grade N samples of each problem of a task"
    )
    one.add_argument("--task", default="builtin", help="of --accuracy, as `kinetics sample` has it (%(default)s)")
    one.add_argument("--task-problems", type=int, default=32, help="of the task, the first of them (%(default)s)")
    two = commands.add_parser("compare", help="report the differences of two recordings")
    two.set_defaults(run=compare)
    two.add_argument("a", type=Path)
    two.add_argument("b", type=Path)
    two.add_argument("more", type=Path, nargs="*", help="further recordings, each compared with the first")
    two.add_argument(
        "--format", default="text", choices=("text", "markdown", "latex"), help="every case, or tables to cite"
    )
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
