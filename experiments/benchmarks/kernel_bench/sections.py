"""The sections of a suite and their cases, the most important first, as time may run out before the last."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence

from kernel_bench import correctness, device
from kernel_bench.byte_model import Workload
from kernel_bench.choices import Choice, backends, candidates
from kernel_bench.measure import Bench, measure, measure_two_programs
from kernel_bench.peers import measure_peer, peers
from kernel_bench.runner import Case

# Share of the time that a section may take in the first round; a second round has the time left.
SHARES = {"device": 0.1, "correctness": 0.3, "timings": 0.3, "peers": 0.15, "ablations": 0.15}


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The workloads that a suite measures: `headline`, and the product of the lists around it."""

    headline: Workload
    batches: Sequence[int]
    contexts: Sequence[int]
    page_sizes: Sequence[int]
    budgets: Sequence[int]
    groups: Sequence[int]
    shapes: Sequence[correctness.Shape]
    bandwidth_bytes: int
    seconds: float  # of a timing's repeat
    rotate_bytes: int
    max_calls: int  # of one timed program
    interpreted: Sequence[Choice] = ()  # checked beside the platform's own backends


FULL = Sweep(
    headline=Workload(),
    batches=(1, 8, 64, 256),
    contexts=(4096, 32_768, 131_072),
    page_sizes=(16, 32, 64),
    budgets=(512, 1024, 2048),
    groups=(1, 2, 5, 8, 16),
    shapes=correctness.SHAPES,
    bandwidth_bytes=2 << 30,
    seconds=0.08,
    rotate_bytes=256 << 20,
    max_calls=16,
)
# The same code at sizes that a CPU runs in seconds: a rehearsal, whose times mean nothing.
TINY = Sweep(
    headline=Workload(batch=2, context=256, page_size=16, budget=64, kv_heads=2, group=2, head_dim=16, dtype="float32"),
    batches=(1,),
    contexts=(256,),
    page_sizes=(16,),
    budgets=(64,),
    groups=(1,),
    shapes=correctness.TINY_SHAPES,
    bandwidth_bytes=1 << 20,
    seconds=0.002,
    rotate_bytes=1 << 16,
    max_calls=2,
    interpreted=(Choice("triton", (("interpret", True),)),),
)


def sections(sweep: Sweep, bench: Bench, platform: str) -> dict[str, Callable[[], list[Case]]]:
    """A function that makes the cases of each section, by name, in order."""
    return {
        "device": lambda: device.cases(sweep.bandwidth_bytes),
        "correctness": lambda: correctness_cases(sweep, platform),
        "timings": lambda: _cases(bench, timings(sweep, platform)),
        "peers": lambda: peer_cases(sweep, bench, platform),
        "ablations": lambda: [*two_program_cases(sweep, bench, platform), *_cases(bench, ablations(sweep, platform))],
    }


def correctness_cases(sweep: Sweep, platform: str) -> list[Case]:
    """Every op by every backend at the first shape, then at the next; the reference at the first alone."""
    cases = []
    for shape in sweep.shapes:
        for op in correctness.OPS:
            if shape.summary != "mean" and op in ("paged_decode", "sparse_decode") and shape.group == 4:
                continue  # attention reads no summary: same shape as an earlier case
            names = backends(correctness.kernel_of(op), platform)
            choices = [Choice(name) for name in names if name != "xla" or shape == sweep.shapes[0]]
            for choice in (*choices, *(sweep.interpreted if shape == sweep.shapes[0] else ())):
                run = functools.partial(correctness.check, op, shape, choice)
                about = {"op": op, "choice": str(choice), **dataclasses.asdict(shape)}
                cases.append(Case(f"{op} {choice} {shape}", run, about))
    return cases


def kernels(op: str, platform: str) -> list[Choice]:
    """The kernels of an op for a platform, with their own defaults; the reference where there is none."""
    choices = [Choice(name) for name in backends(op, platform) if name != "xla"]
    return choices or [Choice("xla")]


def pairs(platform: str) -> list[tuple[Choice, Choice]]:
    """Selection and attention: every kernel of the one with every kernel of the other."""
    return list(itertools.product(kernels("select_pages", platform), kernels("paged_decode", platform)))


def matched(platform: str) -> list[tuple[Choice, Choice]]:
    """Every kernel of attention with its own backend's selection, or with the first kernel that has one."""
    select = kernels("select_pages", platform)
    return [(decode if decode in select else select[0], decode) for decode in kernels("paged_decode", platform)]


TimedCase = tuple[str, Workload, tuple[Choice, ...]]  # op, workload, choices


def timings(sweep: Sweep, platform: str) -> list[TimedCase]:
    """The headline by every backend, its other page sizes and single sequence, then the product, nearest first."""
    head = sweep.headline
    rows: list[TimedCase] = []
    for name in backends("paged_decode", platform):
        rows.append(("dense", head, (Choice(name),)))
    rows += [("block_topk", head, pair) for pair in pairs(platform)]
    rows += [("attend", head, (Choice(name),)) for name in backends("paged_decode", platform)]
    rows += [("select", head, (Choice(name),)) for name in backends("select_pages", platform)]
    rows += [("block_topk", head, (Choice("xla"), Choice("xla")))]
    rows.sort(key=lambda timing: Choice("xla") in timing[2])  # the reference last: it compiles and runs long
    for load in (
        *(dataclasses.replace(head, page_size=size) for size in sweep.page_sizes),
        *(dataclasses.replace(head, batch=batch) for batch in sweep.batches),
    ):
        rows += _by_kernels(load, head, platform)
    short = dataclasses.replace(head, context=min(sweep.contexts))  # an append does not read the context
    rows += [("append", short, (Choice(name),)) for name in backends("append_kv", platform)]
    grid = [
        dataclasses.replace(head, batch=batch, context=context, page_size=page_size, budget=budget)
        for batch, context, page_size, budget in itertools.product(
            sweep.batches, sweep.contexts, sweep.page_sizes, sweep.budgets
        )
    ]
    for load in sorted(grid, key=lambda load: _distance(load, head)):
        rows += [timing for timing in _by_kernels(load, head, platform) if timing[0] in ("dense", "block_topk")]
    return list(dict.fromkeys(rows))


def _by_kernels(load: Workload, head: Workload, platform: str) -> list[TimedCase]:
    """All four ops; the dense one, which has no budget, under the headline's."""
    dense = dataclasses.replace(load, budget=head.budget)
    return [
        *(("dense", dense, (choice,)) for choice in kernels("paged_decode", platform)),
        *(("block_topk", load, pair) for pair in matched(platform)),
        *(("select", load, (choice,)) for choice in kernels("select_pages", platform)),
        *(("attend", load, (choice,)) for choice in kernels("paged_decode", platform)),
    ]


def _distance(load: Workload, head: Workload) -> float:
    names = ("batch", "context", "page_size", "budget")
    return sum(abs(math.log2(getattr(load, name) / getattr(head, name))) for name in names)


def ablations(sweep: Sweep, platform: str) -> list[TimedCase]:
    """Kinds of summary, scattered pages (runs of 1), kernel options at three batches, query heads per KV head."""
    head = sweep.headline
    rows: list[TimedCase] = []
    for summary in ("mean", "min_max", "mean_std"):
        load = dataclasses.replace(head, summary=summary)
        rows += [("select", load, (choice,)) for choice in kernels("select_pages", platform)]
        rows += [("block_topk", load, pair) for pair in matched(platform)]
    for page_size in dict.fromkeys((head.page_size, sweep.page_sizes[0])):
        rows += _by_kernels(dataclasses.replace(head, page_size=page_size, run=1), head, platform)
    for batch in (sweep.batches[0], head.batch, *sweep.batches[1:2]):
        load = dataclasses.replace(head, batch=batch)
        for op, kernel in (("dense", "paged_decode"), ("attend", "paged_decode"), ("select", "select_pages")):
            for choice in kernels(kernel, platform):
                rows += [(op, load, (tried,)) for tried in candidates(kernel, choice.backend)]
    for group in sweep.groups:
        load = dataclasses.replace(head, group=group)
        rows += [("dense", load, (choice,)) for choice in kernels("paged_decode", platform)]
    return list(dict.fromkeys(rows))


def _cases(bench: Bench, rows: Sequence[TimedCase]) -> list[Case]:
    cases = []
    for op, load, choices in rows:
        about = _about(op, load, choices)
        run = functools.partial(measure, bench, op, load, choices)
        cases.append(Case(f"{op} {about['choice']} {load}", run, about))
    return cases


def _about(op: str, load: Workload, choices: Sequence[Choice]) -> dict:
    return {"op": op, "choice": " + ".join(map(str, choices)), **dataclasses.asdict(load)}


def two_program_cases(sweep: Sweep, bench: Bench, platform: str) -> list[Case]:
    """Selection and attention as two programs, beside the one program of both in the timings."""
    cases = []
    for load in (sweep.headline, dataclasses.replace(sweep.headline, batch=1)):
        for pair in pairs(platform):
            about = _about("block_topk", load, pair) | {"programs": 2}
            run = functools.partial(measure_two_programs, bench, load, pair)
            cases.append(Case(f"two programs {about['choice']} {load}", run, about))
    return cases


def peer_cases(sweep: Sweep, bench: Bench, platform: str) -> list[Case]:
    """Every peer at the headline, then with a single sequence."""
    cases = []
    for load in (sweep.headline, dataclasses.replace(sweep.headline, batch=1)):
        runs = {name: functools.partial(measure_peer, bench, name, load, platform) for name in peers(platform)}
        if platform != "tpu":
            from kernel_bench import torch_peers

            for name in torch_peers.NAMES:
                runs[name] = functools.partial(torch_peers.measure_torch_peer, bench, name, load)
        for name, run in runs.items():
            about = {"op": "block_topk" if "top_k" in name else "dense", "peer": name, **dataclasses.asdict(load)}
            cases.append(Case(f"{name}: {load}", run, about))
    return cases
