"""Planning by a decision rule: which model, attention and number of samples, when any right answer of N counts (pass@N,
which somebody has to know) and when the most frequent one does (a majority, which needs nobody).

    python examples/planning.py [FOLDER]

Samples two built-in models into run folders (about half a minute on two CPU cores; the same command continues them)
and asks twice for the quickest way to nine of ten problems. The same on the command line: `kinetics plan FOLDER --rule
majority --target-accuracy 0.9`.
"""

import sys
from pathlib import Path

import kinetics_jax as kj
from kinetics_jax.analysis.advice import advise
from kinetics_jax.analysis.frontier import cost_frontier
from kinetics_jax.analysis.planner import Budget, list_options
from kinetics_jax.analysis.samples import pooled, run_data
from kinetics_jax.costs.hardware import hardware
from kinetics_jax.runs.best_of_n import best_of_n
from kinetics_jax.tasks.problems import load_problems

TARGET = 0.9
RUNS = {
    "small": ("chase-151k", kj.Dense()),
    "large": ("chase-212k", kj.Dense()),
    "large-sparse": ("chase-212k", kj.BlockTopK(budget=64, page_size=2, dense_layers=())),
}


def draw(folder: Path) -> list:
    """Eight samples of each of 24 problems a run."""
    problems = load_problems("builtin", limit=24)
    sampling = kj.Sampling(temperature=1.0, max_tokens=72, seed=0)
    models = {name: kj.load(name) for name, _ in RUNS.values()}
    return [
        best_of_n(models[model], problems, task="builtin", n=8, policy=policy, sampling=sampling, out=folder / name)
        for name, (model, policy) in RUNS.items()
    ]


def main(folder: Path) -> None:
    pools = pooled([run_data(run) for run in draw(folder)])
    for rule in ("pass", "majority"):
        table = cost_frontier(pools, hardware="h100", batch=64, rule=rule)
        shown = ["rule", "model", "attention", "N", "accuracy", "low", "high", "cost"]
        print(table.loc[table["on_frontier"], shown].to_string(index=False))
        advice = advise(list_options(pools, hardware("h100"), rule=rule, batches=[64]), Budget(target_accuracy=TARGET))
        row = advice.row(advice.chosen)
        print(
            f"{rule}: {TARGET} by {row['model']} {row['attention']}, N = {row['N']}: measured {advice.accuracy:.3f}, "
            f"95 % {advice.low:.3f} … {advice.high:.3f}; {len(advice.alternatives) - 1} others may be as right\n"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "planning-runs"))
