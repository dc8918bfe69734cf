"""`kinetics demo`: everything on the built-in models, from sampling to the report."""

from __future__ import annotations

import sys
from pathlib import Path

from kinetics_jax.cli.arguments import CompileCacheArg, JsonArg
from kinetics_jax.cli.checks import require, require_between, require_devices, require_figures
from kinetics_jax.cli.demo_grid import run_demo
from kinetics_jax.cli.terminal import print_table, sample_bar, say


def demo(
    *,
    out: Path = Path("demo"),
    quick: bool = False,
    seed: int = 0,
    compile_cache: CompileCacheArg = None,
    as_json: JsonArg = False,
) -> None:
    """Everything on the built-in models: sample densely and sparsely, grade, cost, frontier, report.html.

    Args:
        out: Folder for the runs, frontier.csv, the figures and report.html; an interrupted demo continues there.
        quick: Run a smaller grid, in about a minute.
        seed: Another seed draws other samples.
        as_json: Print the frontier as JSON.
    """
    from kinetics_jax.compile_cache import use_compile_cache

    require(not out.exists() or out.is_dir(), f"{out}: is a file; name a folder for the runs and the report")
    require_between("--seed", seed, 0, 2**32 - 1)
    require_figures()
    require_devices()
    use_compile_cache(compile_cache)
    table = run_demo(out, quick=quick, seed=seed, bar=sample_bar)
    for line in table.attrs.get("picks", ()):
        say(line)
    print_table(table, as_json)
    print(f"report: {out / 'report.html'}", file=sys.stderr if as_json else sys.stdout)
