"""`kinetics demo`: everything on the built-in models, from sampling to the report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kinetics_jax.assets import CHASE, family_models
from kinetics_jax.cli.arguments import CompileCacheArg, JsonArg
from kinetics_jax.cli.checks import require, require_between, require_devices, require_figures
from kinetics_jax.cli.demo_grid import run_demo
from kinetics_jax.cli.terminal import print_table, sample_bar, say

if TYPE_CHECKING:
    import pandas as pd


def demo(
    *,
    out: Path | None = None,
    family: Literal["chase", "ledger"] = "chase",
    quick: bool = False,
    seed: int = 0,
    compile_cache: CompileCacheArg = None,
    as_json: JsonArg = False,
) -> None:
    """Everything on the built-in models: sample densely and sparsely, grade, cost, frontier, report.html.

    Args:
        out: Folder for the runs, frontier.csv, the figures and report.html (default: demo, or demo-FAMILY); an
            interrupted demo continues there.
        family: Models and their tasks: chase takes minutes, ledger hours, with a folder and a report for each task.
        quick: Run a smaller grid, of chase in about a minute.
        seed: Another seed draws other samples.
        as_json: Print the frontier as JSON, of ledger by task.
    """
    from kinetics_jax.compile_cache import use_compile_cache

    out = out or Path("demo" if family == CHASE else f"demo-{family}")
    require(not out.exists() or out.is_dir(), f"{out}: is a file; name a folder for the runs and the report")
    require_between("--seed", seed, 0, 2**32 - 1)
    require(
        bool(family_models(family)),
        f"--family {family}: this installation holds no checkpoint of it; kinetics_jax/assets/README.md says how they "
        "are trained",
    )
    require_figures()
    require_devices()
    use_compile_cache(compile_cache)
    tables = run_demo(out, quick=quick, seed=seed, bar=sample_bar, family=family)
    for line in dict.fromkeys(line for table in tables.values() for line in table.attrs.get("picks", ())):
        say(line)
    print_table(_by_task(tables), as_json)
    for report in tables:
        print(f"report: {report}", file=sys.stderr if as_json else sys.stdout)


def _by_task(tables: dict[Path, pd.DataFrame]) -> pd.DataFrame:
    """One table; where there are several, each row's task stands in its first column."""
    import pandas as pd

    if len(tables) == 1:
        return next(iter(tables.values()))
    each = [table.assign(task=path.parent.name)[["task", *table]] for path, table in tables.items()]
    return pd.DataFrame(pd.concat(each))
