"""What the demo runs and writes: the built-in models over a grid of policies, from sampling to the report."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinetics_jax.assets import CHASE, LEDGER, builtin_models, family_models
from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.attention.policies.random_blocks import RandomBlocks
from kinetics_jax.attention.policies.registry import slug
from kinetics_jax.attention.policies.sliding_window import SlidingWindow
from kinetics_jax.settings import EngineSettings, Sampling
from kinetics_jax.tasks import ledger
from kinetics_jax.tasks.problems import BUILTIN, load_problems

if TYPE_CHECKING:
    import pandas as pd

    from kinetics_jax.runs.best_of_n import Progress

Bar = Callable[[str], contextlib.AbstractContextManager[Callable[["Progress"], None]]]

PAGE_SIZE = 2  # the built-in task's statements are single tokens in random order: larger pages mix unrelated ones
SLOTS = 64
MAX_TOKENS = 72  # the longest solution has 67
SLOTS = 64


@dataclasses.dataclass(frozen=True)
class DemoGrid:
    """What the demo runs of one task: which models, token budgets, problems, and samples of each.

    `rivals`: budgets that the last model is also given for other choices of what to attend to. `page_size` and
    `recent_pages` are those of block top-k.
    """

    models: list[str]
    budgets: tuple[int, ...]
    problems: int
    samples: int
    rivals: tuple[int, ...] = ()
    task: str = BUILTIN
    page_size: int = PAGE_SIZE
    recent_pages: int = 1
    temperature: float = 1.0
    max_tokens: int = MAX_TOKENS

    def policies(self, model: str) -> list[AttentionPolicy]:
        """Dense, then block top-k by falling budget, then its rivals: a window, and random pages.

        All in every layer. The oracle is left out: no convention charges for finding its tokens.
        """
        policies: list[AttentionPolicy] = [Dense()]
        pages: dict[str, Any] = {"page_size": self.page_size, "recent_pages": self.recent_pages, "dense_layers": ()}
        policies += [BlockTopK(budget=budget, **pages) for budget in self.budgets]
        if model == self.models[-1]:
            policies += [SlidingWindow(budget=budget, dense_layers=()) for budget in self.rivals]
            policies += [RandomBlocks(budget=budget, **pages) for budget in self.rivals]
        return policies


def demo_grid(*, quick: bool) -> DemoGrid:
    """The full grid, or one that takes about a minute."""
    models = builtin_models()
    if quick:
        return DemoGrid([models[0], models[-1]], budgets=(64, 32), problems=32, samples=4)
    return DemoGrid(models, budgets=(96, 64, 32, 16), problems=96, samples=8, rivals=(96, 64))


def ledger_grid(task: str, *, quick: bool) -> DemoGrid:
    """The grid of a task of the ledger family: pages of a line, of which the last two are always attended to."""
    models = family_models(LEDGER)
    lines: dict[str, Any] = {"page_size": ledger.LINE, "recent_pages": 2}
    lines |= {"task": task, "temperature": ledger.TEMPERATURE, "max_tokens": ledger.MAX_OUTPUT}
    if quick:
        ends = [*dict.fromkeys([*models[:1], *models[-1:]])]
        return DemoGrid(ends, budgets=(128, 48), problems=8, samples=4, **lines)
    return DemoGrid(models, budgets=(256, 128, 64, 48, 32), problems=64, samples=8, rivals=(128, 64), **lines)


def family_grids(family: str, *, quick: bool) -> dict[str, DemoGrid]:
    """What a family's demo runs, by the folder in its own that each task's results go to."""
    if family == CHASE:
        return {"": demo_grid(quick=quick)}
    return {task: ledger_grid(task, quick=quick) for task in (ledger.LEDGER, ledger.ROUTE)}


def run_demo(out: Path, *, quick: bool, seed: int, bar: Bar, family: str = CHASE) -> dict[Path, pd.DataFrame]:
    """Runs the grids of a family. Returns the frontier table of each by the report that shows it.

    `bar(title)` is entered around each run and gives its `on_progress`. Equal arguments give equal files, but for the
    seconds in samples.jsonl.
    """
    options = "".join([f" --family {family}" if family != CHASE else "", " --quick" if quick else ""])
    command = f"kinetics demo{options} --seed {seed}"
    tables = {}
    for folder, grid in family_grids(family, quick=quick).items():
        tables[out / folder / "report.html"] = run_grid(grid, out / folder, seed=seed, bar=bar, command=command)
    return tables


def run_grid(grid: DemoGrid, out: Path, *, seed: int, bar: Bar, command: str) -> pd.DataFrame:
    """Samples a grid into `out/<model>-<policy>`, writes frontier.csv, length.csv, budget.csv, their figures and
    report.html. Returns the frontier table.
    """
    from kinetics_jax.files import write_atomic
    from kinetics_jax.language_model import load
    from kinetics_jax.report.figure_style import save_figure
    from kinetics_jax.report.figures import budget_figure, frontier_figure, length_figure, pass_at_k_figure
    from kinetics_jax.report.report import report_tables, write_report
    from kinetics_jax.runs.best_of_n import best_of_n

    problems = load_problems(grid.task, limit=grid.problems)
    sampling = Sampling(temperature=grid.temperature, max_tokens=grid.max_tokens, seed=seed)
    runs: list[Any] = []
    for model in grid.models:
        lm = load(model)
        for policy in grid.policies(model):
            with bar(f"{model} {policy}") as on_progress:
                run = best_of_n(
                    lm,
                    problems,
                    task=grid.task,
                    n=grid.samples,
                    policy=policy,
                    sampling=sampling,
                    out=out / f"{model}-{slug(policy)}",
                    settings=EngineSettings(slots=SLOTS),
                    command=command,
                    on_progress=on_progress,
                )
            runs.append(run)
    tables = report_tables(runs, hardware="h100", batch=SLOTS)  # the weights at the slots that were run
    for name, table in vars(tables).items():
        write_atomic(out / f"{name}.csv", table.to_csv(index=False))
    save_figure(frontier_figure(tables.frontier), out / "frontier.png")
    save_figure(pass_at_k_figure(tables.frontier), out / "pass_at_k.png")
    save_figure(length_figure(tables.length), out / "length.png")
    save_figure(budget_figure(tables.budget), out / "budget.png")
    write_report(out / "report.html", runs, tables, title="kinetics demo", command=command)
    return tables.frontier
