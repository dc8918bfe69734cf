"""`kinetics frontier`: accuracy against cost, from stored samples of any format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from kinetics_jax.errors import UserError
from kinetics_jax.terminal import command_line, print_table

if TYPE_CHECKING:
    import pandas as pd

    from kinetics_jax.economics.samples import RunData

FIGURE_KINDS = (".png", ".pdf", ".svg")


def frontier(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    *,
    hardware: str = "h100",
    convention: str = "traffic",
    trials: tuple[int, ...] = (),
    caps: tuple[int, ...] = (),
    shared_prompt: bool = False,
    allocate: Literal["none", "best-of-n", "long-cot"] = "none",
    honest: bool = False,
    limits: Annotated[tuple[float, ...], tyro.conf.arg(metavar="COST")] = (),
    model: str | None = None,
    tokenizer: Path | None = None,
    csv: Path | None = None,
    figure: Path | None = None,
    report: Path | None = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Accuracy against cost over (model, attention, N) of one or several runs.

    With --allocate, instead, the best that every cost per problem can buy: the paper's Algorithm 1 (best-of-n: N, at
    the longest cap) or 2 (long-cot: the cap, at N = 1), each problem with the configuration that suits it.

    Args:
        runs: Run folders, files of samples (.csv, .jsonl, .parquet), or directories of them.
        hardware: Chip, or a .json profile, whose FLOP/byte ratio prices memory traffic.
        convention: How costs are counted: traffic, paper or upstream.
        trials: Numbers of samples N; by default powers of two.
        caps: Most tokens of a sample, several; by default the runs' own.
        shared_prompt: Trials of a problem read its prompt's KV once for all.
        allocate: One row per configuration (none), or one per cost limit.
        honest: Choose on one half of the samples and score on the other (with --allocate).
        limits: Tera-eFLOPs per problem (with --allocate); by default 24 over the range of costs.
        model: The model of files that name none, a published Qwen3 name for a cost.
        tokenizer: A tokenizer.json that counts the tokens of the published traces.
        csv: Write the table here.
        figure: Write the figure here (.png, .pdf, .svg).
        report: Write the whole report here (.html; run folders only).
        as_json: Print the table as JSON.
    """
    from kinetics_jax.economics.frontier import frontier as frontier_table
    from kinetics_jax.economics.readers import read_all
    from kinetics_jax.traces import write_whole

    if not runs:
        raise UserError("frontier: name at least one run folder")
    if figure and figure.suffix not in FIGURE_KINDS:
        raise UserError(f"{figure}: the figure must end in {', '.join(FIGURE_KINDS)}")
    if report and report.suffix != ".html":
        raise UserError(f"{report}: the report must end in .html")
    if allocate == "none" and (honest or limits):
        raise UserError("--honest and --limits go with --allocate best-of-n or long-cot")
    if allocate != "none" and (figure or report):
        raise UserError("--figure and --report show every configuration; with --allocate take --csv or --json")
    if allocate == "best-of-n" and caps:
        raise UserError("--allocate best-of-n chooses N, not a length; --caps goes with --allocate long-cot")
    if allocate == "long-cot" and trials:
        raise UserError("--allocate long-cot chooses a length at N = 1; --trials goes with --allocate best-of-n")
    if report and (caps or shared_prompt):
        raise UserError("--caps and --shared-prompt are not in the report; leave them out, or take --csv or --figure")
    costs: dict[str, Any] = {"convention": convention, "hardware": hardware}
    options: dict[str, Any] = {**costs, "trials": trials or None}
    if report:
        table = _report(report, runs, options)
    else:
        data = read_all(runs, model=model, tokenizer=tokenizer)
        options |= {"caps": caps or None, "shared_prompt": shared_prompt}
        table = (
            frontier_table(data, **options)
            if allocate == "none"
            else _allocated(data, allocate, honest=honest, limits=limits, options=options)
        )
    if csv:
        write_whole(csv, table.to_csv(index=False))
    if figure:
        from kinetics_jax.figure_style import save
        from kinetics_jax.figures import frontier_figure

        save(frontier_figure(table), figure)
    print_table(table, as_json)


def _report(path: Path, runs: tuple[Path, ...], options: dict[str, Any]) -> pd.DataFrame:
    from kinetics_jax.report import tables_of, write_report
    from kinetics_jax.traces import read_run

    read = [read_run(run) for run in runs]
    tables = tables_of(read, **options)
    write_report(path, read, tables, title="Accuracy against cost", command=command_line())
    return tables.frontier


def _allocated(
    runs: list[RunData], how: str, *, honest: bool, limits: tuple[float, ...], options: dict[str, Any]
) -> pd.DataFrame:
    from kinetics_jax.economics.allocation import (
        allocation_table,
        best_per_problem,
        cost_limits,
        honest_allocation,
    )
    from kinetics_jax.economics.grid import grid, longest
    from kinetics_jax.economics.samples import pooled

    pools = pooled(runs)
    if how == "long-cot":
        options["trials"] = [1]
        options["caps"] = options["caps"] or _sixteenths(max(map(longest, pools)))
    cells = grid(pools, **options)
    allowed = limits or cost_limits(cells, 24)
    if honest:
        return honest_allocation(pools, allowed, **options)
    return allocation_table(cells, best_per_problem(cells, allowed))


def _sixteenths(most: int) -> list[int]:
    return sorted({-(-most * step // 16) for step in range(1, 17)})
