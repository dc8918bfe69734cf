"""Run folders, tables of samples, traces and hardware files, broken in every way a seed can think of: each is read, or
refused in one line, in time; grading again never loses a record.
"""

import dataclasses
import json
import random
import warnings

import pandas as pd
import pytest
from mutate import mutate_bytes, mutate_json, outcome, replace_file

from kinetics_jax.analysis.ablations import length_ablation
from kinetics_jax.analysis.frontier import cost_frontier
from kinetics_jax.analysis.readers import read_all
from kinetics_jax.analysis.samples import pooled, run_data
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.cost import generation_cost
from kinetics_jax.costs.hardware import HARDWARE, hardware, save_hardware
from kinetics_jax.errors import UserError
from kinetics_jax.runs.folder import RunWriter, read_run, regrade

pytestmark = pytest.mark.slow
PARTS = 8  # of every kind, so that a failure is found again soon
HEADER = {
    "model": "Qwen/Qwen3-0.6B",
    "config": dataclasses.asdict(ModelConfig.named("0.6B")),
    "weights": "0" * 32,
    "dtype": "float32",
    "policy": "block_topk:budget=64,page_size=16",
    "sampling": {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0, "max_tokens": 64, "seed": 0},
    "task": "builtin",
    "n": 2,
    "slots": 4,
    "chunk": 8,
}
PROBLEMS = [{"id": name, "question": "1 + 1?", "answer": "2", "prompt": "1 + 1 ="} for name in ("a", "b")]
CONFIG = ModelConfig.named("0.6B")


def records() -> list[dict]:
    return [
        {
            "problem": problem,
            "sample": sample,
            "seed": 0,
            "prompt_tokens": 3,
            "output_tokens": [5, 6, 7, 8, 9],
            "text": f"mark-{problem}-{sample} \\boxed{{2}}",
            "finish_reason": "stop" if sample else "length",
            "correct": bool(sample),
            "answer": "2",
            "grader": "ok",
            "seconds": 0.25,
        }
        for problem in ("a", "b")
        for sample in (0, 1)
    ]


def write_run(path):
    with RunWriter(path, HEADER, PROBLEMS) as writer:
        for record in records():
            writer.append(record)
    lines = [{"schema": 1, "grader": "g", "tokenizer": "t"}, {"caps": [2, 4]}]
    lines += [
        {"problem": r["problem"], "seed": 0, "sample": r["sample"], "of": "x", "cap": 2, "correct": False}
        for r in records()
    ]
    (path / "cut_grades.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def mutate_lines(data: bytes, rng: random.Random) -> bytes:
    """A file of lines of which one is changed (`mutate_json`), or the whole of it as bytes."""
    if rng.random() < 0.4:
        return mutate_bytes(data, rng)
    lines = data.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    lines[at] = mutate_json(lines[at].decode(), rng) + b"\n"
    if rng.random() < 0.2:
        rng.shuffle(lines)
    return b"".join(lines)


def judge(case: int, what: str, call) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = outcome(call)
    assert result.kind != "fault", f"case {case} ({what}): {result.text}"


def tables(runs) -> None:
    """What the commands make of samples."""
    pools = pooled(runs)
    cost_frontier(pools)
    length_ablation(pools)


@pytest.mark.parametrize("part", range(PARTS))
def test_broken_run_folders(tmp_path, part):
    """55 cases a part; where grading again succeeds, every record that was in the file still is."""
    marks = [f"mark-{r['problem']}-{r['sample']}".encode() for r in records()]
    for case in range(part * 55, part * 55 + 55):
        rng = random.Random(case)
        folder = write_run(tmp_path / str(case))
        name = rng.choice(["run.json", "problems.jsonl", "samples.jsonl", "samples.jsonl", "cut_grades.jsonl"])
        path = folder / name
        if rng.random() < 0.12:
            what = replace_file(path, rng)
        else:
            what = "mutated"
            change = mutate_lines if name.endswith("l") else lambda data, rng: mutate_json(data.decode(), rng)
            path.write_bytes(change(path.read_bytes(), rng))
        judge(case, f"{name} {what}", lambda folder=folder: tables([run_data(read_run(folder))]))
        before = path.read_bytes() if path.is_file() and path.stat().st_size < 1 << 20 else b""

        def grade_again(folder=folder):
            regrade(folder, lambda record, answer: {"correct": True, "answer": "2", "grader": "ok"})

        judge(case, f"{name} {what}, graded again", grade_again)
        if before and name == "samples.jsonl":
            after = path.read_bytes()
            assert [mark in after for mark in marks] == [mark in before for mark in marks], f"case {case} loses records"
        judge(case, f"{name} {what}, continued", lambda folder=folder: RunWriter(folder, HEADER, PROBLEMS).__exit__())


TABLE = [
    {
        "problem": p,
        "sample": s,
        "tokens": 5,
        "correct": s % 2,
        "prompt_tokens": 9,
        "model": "0.6B",
        "attention": "dense",
    }
    for p in "ab"
    for s in range(3)
]
TRACE = [
    {"attn_local": 0, "attn_block_topk": 64, "attn_block_size": 16, "task": "aime24", "model": "0.6B"},
    *({"query": f"{q}?", "choices": ["3"], "prediction": ["so 3"], "score": 100.0} for q in range(3)),
]


def write_table(path):
    table = pd.DataFrame(TABLE)
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        rows = TRACE if path.name.startswith("trace") else TABLE
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("name", ["table.csv", "table.jsonl", "table.parquet", "trace.jsonl"])
@pytest.mark.parametrize("part", range(2))
def test_broken_tables_and_traces(tmp_path, name, part):
    """35 cases a part and format."""
    path = tmp_path / name
    for case in range(part * 35, part * 35 + 35):
        rng = random.Random(case)
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        else:
            path.rmdir()
        write_table(path)
        if rng.random() < 0.12:
            what = replace_file(path, rng)
        else:
            what = "mutated"
            change = mutate_lines if name.endswith("l") else mutate_bytes
            path.write_bytes(change(path.read_bytes(), rng))

        def compare():
            runs = read_all([path])
            tables([dataclasses.replace(run, config=run.config or CONFIG) for run in runs])

        judge(case, f"{name} {what}", compare)


def test_broken_hardware_files(tmp_path):
    path = tmp_path / "mine.json"
    chip = dataclasses.replace(
        HARDWARE["h100"], price_per_hour=2.5, step_seconds=1e-4, unit_seconds={"linear": 1e-14, "kv_reads": 1e-12}
    )
    save_hardware(path, chip, record={"steps": [1, 2, 3]})
    whole = path.read_text()
    for case in range(120):
        path.write_bytes(mutate_json(whole, random.Random(case)))

        def price():
            cost = generation_cost(CONFIG, prompt_tokens=9, output_tokens=99, hardware=hardware(path), batch=2)
            assert float(cost.seconds) >= 0

        judge(case, "mine.json", price)


def test_a_refusal_is_told_from_a_fault():
    """The tests above can fail: an error of another kind, and a message that is unfit for a terminal, are faults."""

    def stumble():
        raise TypeError("'int' object is not iterable")

    def flood():
        raise UserError("x" * 10_000)

    assert outcome(stumble).kind == outcome(flood).kind == "fault"
    assert outcome(lambda: None).kind == "loaded"
