"""Does the ledger family show the scaling law? Samples its seeds densely and sparsely, and prints three properties.

    python experiments/family_law.py --work family --json experiments/results/family_law.json  # all trained seeds
    python experiments/family_law.py --work family --quick                                     # two sizes, few problems
    python experiments/family_law.py --work family --shipped                                   # the shipped checkpoints

`--work` is the folder of train_family.py: its finished checkpoints are sampled into run folders there, and the same
command continues. Costs are those of float32 weights and KV on an H100 with the weights read at the slots that
ran (64). The properties, each with a 95 % interval over problems and seeds (family_properties.py says how):

1. something is solved, and block top-k's frontier is at least as accurate as the dense one over half of its range of
   costs or more, and ends within 0.02 of it;
2. a larger sparse model beats a smaller dense one at no higher cost, the interval excluding 0;
3. FLOPs and cost choose different sizes at some accuracy, the ratio of costs excluding 1.

What does not hold is printed so. pass@N needs somebody who knows which answer is right; for the ledger task the
accuracy of a majority stands beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from family_properties import Family, dominance, family_of, larger_sparse, two_laws
from train_family import FAMILY, SCORED, SEEDS, TASKS, member, sample_member

from kinetics_jax.analysis.samples import Pool, pooled, run_data
from kinetics_jax.analysis.votes import majority_vote
from kinetics_jax.assets import FAMILIES, LEDGER, family_models
from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.attention.policies.dense import DENSE
from kinetics_jax.cli.demo_grid import SLOTS
from kinetics_jax.files import write_atomic
from kinetics_jax.language_model import load
from kinetics_jax.runs.folder import Run
from kinetics_jax.tasks import ledger

BUDGETS = (64, 128, 48)
COSTS: dict[str, Any] = {"hardware": "h100", "batch": SLOTS, "kv_bytes": 4, "weight_bytes": 4}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is sampled: checkpoints by seed and size, the attention of each, problems and samples of each problem."""

    models: dict[int, dict[str, Path]]
    policies: list[AttentionPolicy]
    problems: int
    samples: int


def plan_of(work: Path, *, quick: bool, shipped: bool, seeds: list[int]) -> Plan:
    """The plan of what there is. Raises SystemExit for a seed that lacks a size, and where there is nothing."""
    if shipped:
        models = {0: {name: FAMILIES[LEDGER] / name for name in family_models(LEDGER)}}
    else:
        folders = {seed: {name: work / "models" / member(name, seed) for name in FAMILY} for seed in seeds}
        models = {seed: {name: f for name, f in each.items() if f.exists()} for seed, each in folders.items()}
        models = {seed: each for seed, each in models.items() if each}
    sizes = {tuple(each) for each in models.values()}
    if len(sizes) != 1 or not all(sizes):
        raise SystemExit(f"{work}: every seed needs the same sizes; trained are {models or 'none'}")
    if quick:
        seed, each = next(iter(models.items()))
        models = {seed: {name: each[name] for name in (next(iter(each)), [*each][-1])}}
    pages: dict[str, Any] = {"page_size": ledger.LINE, "recent_pages": 2, "dense_layers": ()}
    policies: list[AttentionPolicy] = [DENSE, *(BlockTopK(budget=budget, **pages) for budget in BUDGETS)]
    return Plan(models, policies[:2], 8, 4) if quick else Plan(models, policies, *SCORED)


def sampled(plan: Plan, work: Path, task: str) -> dict[int, list[Run]]:
    """Every run of a task, by seed; runs continue where they are."""
    runs: dict[int, list[Run]] = {}
    for seed, models in plan.models.items():
        for folder in models.values():
            lm = load(folder)
            for policy in plan.policies:
                run = sample_member(work, folder, task, plan.problems, plan.samples, policy, lm)
                runs.setdefault(seed, []).append(run)
    return runs


def size_of(model: str) -> str:
    """A size's name, of a member's."""
    return model.rpartition("-s")[0] or model


def majority(pools: list[Pool], task: str) -> list[dict[str, Any]]:
    """Accuracy of a vote among N samples of each run, beside pass@N. Nothing for `route`, whose answers are ways."""
    rows = []
    for pool in pools if task == ledger.LEDGER else []:
        some = list(pool.problems.values())
        counts = [n for n in (1, 2, 4, 8) if n <= min(len(problem.grades) for problem in some)]
        votes = [
            majority_vote(problem.answers, [grade is True for grade in problem.grades], counts) for problem in some
        ]
        means = pd.DataFrame(votes).mean()
        row = {"model": pool.model, "attention": str(pool.attention)}
        rows.append(row | {f"N={n}": round(float(mean), 4) for n, mean in zip(counts, means, strict=True)})
    return rows


def named(family: Family, row: int) -> str:
    """A configuration in words."""
    model, attention, n = family.configurations.loc[row, ["model", "attention", "N"]]
    return f"{model} {attention} N={n}"


def properties(family: Family) -> dict[str, Any]:
    """The three properties as measured, and whether each holds."""
    share, behind = dominance(family)
    found: dict[str, Any] = {
        "1": {"share": share._asdict(), "behind_at_the_end": behind._asdict()}
        | {"holds": share.value >= 0.5 and behind.value <= 0.02 and bool(family.accuracy.any())},
    }
    if pair := larger_sparse(family):
        found["2"] = {
            "smaller": named(family, pair.smaller),
            "larger": named(family, pair.larger),
            "difference": pair.difference._asdict(),
            "cost_ratio": pair.cost_ratio,
            "holds": pair.difference.low > 0 and pair.cost_ratio <= 1,
        }
    if laws := two_laws(family):
        found["3"] = {
            "accuracy": laws.level,
            "by_flops": named(family, laws.flops),
            "by_cost": named(family, laws.cost),
            "cost_ratio": laws.ratio._asdict(),
            "gain_of_flops": laws.gain._asdict(),
            "holds": laws.ratio.low > 1,
        }
    return found


def printed(task: str, found: dict[str, Any]) -> str:
    """The properties in lines."""

    def text(value: dict[str, float]) -> str:
        return "{value:.3f} [{low:.3f}, {high:.3f}]".format(**value)

    one = found["1"]
    share, behind = text(one["share"]), text(one["behind_at_the_end"])
    lines = [
        f"{task}:",
        f"  1 {_verdict(one)}: sparse at least as accurate over {share} of the costs, ends {behind} behind",
    ]
    if two := found.get("2"):
        gain, ratio = text(two["difference"]), two["cost_ratio"]
        lines.append(
            f"  2 {_verdict(two)}: {two['larger']} gains {gain} on {two['smaller']}, at {ratio:.2f} of its cost"
        )
    if three := found.get("3"):
        choices = f"FLOPs choose {three['by_flops']}, cost chooses {three['by_cost']}"
        lines.append(f"  3 {_verdict(three)}: for an accuracy of {three['accuracy']:.2f} {choices};")
        lines.append(f"    {text(three['cost_ratio'])} x the cost, accuracy {text(three['gain_of_flops'])} higher")
    lines += [f"  {number} not found" for number in "23" if number not in found]
    return "\n".join(lines)


def _verdict(found: dict[str, Any]) -> str:
    return "holds" if found["holds"] else "does not hold"


def table_of(family: Family) -> list[dict[str, Any]]:
    """Every configuration's accuracy (its mean and the lowest and highest seed's), FLOPs and cost in MeFLOPs."""
    by_seed = family.accuracy.mean(axis=2)
    rows = family.configurations.assign(
        accuracy=by_seed.mean(axis=0).round(4),
        lowest_seed=by_seed.min(axis=0).round(4),
        highest_seed=by_seed.max(axis=0).round(4),
        flops=(family.compute.mean(axis=(0, 2)) * 1e6).round(2),
        cost=((family.compute + family.memory).mean(axis=(0, 2)) * 1e6).round(2),
    )
    return rows.to_dict(orient="records")


def main() -> None:
    parser = argparse.ArgumentParser(description="Samples the ledger family and measures what it shows of the law.")
    parser.add_argument("--work", type=Path, required=True, help="the folder of train_family.py")
    parser.add_argument("--quick", action="store_true", help="two sizes of one seed, few problems")
    parser.add_argument("--shipped", action="store_true", help="the checkpoints that come with the package")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(SEEDS)))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--json", type=Path, help="file to write everything to")
    arguments = parser.parse_args()
    plan = plan_of(arguments.work, quick=arguments.quick, shipped=arguments.shipped, seeds=arguments.seeds)
    document: dict[str, Any] = {
        "seeds": list(plan.models),
        "problems": plan.problems,
        "samples": plan.samples,
        "temperature": ledger.TEMPERATURE,
        "costs": COSTS,
    }
    for task in arguments.tasks:
        pools = {seed: list(pooled(map(run_data, runs))) for seed, runs in sampled(plan, arguments.work, task).items()}
        family = family_of(pools, size_of, **COSTS)
        found = properties(family)
        votes = [row for some in pools.values() for row in majority(some, task)]
        document[task] = {"properties": found, "configurations": table_of(family), "majority": votes}
        print(printed(task, found), flush=True)
    if arguments.json:
        write_atomic(arguments.json, json.dumps(document, indent=1) + "\n")
        print(f"written: {arguments.json}", file=sys.stderr)


if __name__ == "__main__":
    main()
