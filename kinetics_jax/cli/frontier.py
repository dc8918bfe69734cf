"""`kinetics frontier`: accuracy against cost, from stored samples of any format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from kinetics_jax.analysis.rule_names import Rule, rule_line
from kinetics_jax.cli.arguments import (
    MAX_SAMPLES,
    JsonArg,
    KvDtypeArg,
    Positional,
    WeightDtypeArg,
    batch_of,
    bytes_of,
)
from kinetics_jax.cli.checks import require, require_between, require_ending, require_figures, require_outputs
from kinetics_jax.cli.run_summary import ending_lines, run_summary
from kinetics_jax.cli.sources import ALL_SAID, UnsaidArgs
from kinetics_jax.cli.terminal import command_line, count_bar, print_table, say, table_without_noise

if TYPE_CHECKING:
    import pandas as pd

    from kinetics_jax.analysis.samples import Pool

FIGURE_KINDS = (".png", ".pdf", ".svg")
DEFAULT_LIMITS = 24  # cost limits of an allocation
MAX_CAP = 1 << 31  # tokens
MAX_CHIPS = 1024
MOST_LEADS = 6  # that are printed
MAX_SPLITS = 10_000  # halvings; more say nothing that these do not
Allocate = Literal["none", "best-of-n", "long-cot", "adaptive"]


def frontier(
    runs: Positional[tuple[Path, ...]],
    *,
    against: Literal["cost", "tokens", "seconds"] = "cost",
    rule: Rule | None = None,
    hardware: str = "h100",
    convention: str = "traffic",
    bare_questions: bool = False,
    trials: Annotated[tuple[int, ...], tyro.conf.arg(metavar="N …")] = (),
    caps: Annotated[tuple[int, ...], tyro.conf.arg(metavar="TOKENS …")] = (),
    batch: Annotated[str | None, tyro.conf.arg(metavar="fit|N|none")] = None,
    chips: int = 1,
    kv_dtype: KvDtypeArg = None,
    weight_dtype: WeightDtypeArg = None,
    shared_prompt: bool = False,
    costs_from: Literal["formula", "counts"] | None = None,
    joules: bool = False,
    allocate: Allocate = "none",
    law: Literal["eFLOPs", "FLOPs", "max"] = "eFLOPs",
    honest: bool = False,
    splits: int = 20,
    limits: Annotated[tuple[float, ...], tyro.conf.arg(metavar="COST …")] = (),
    wave: int = 1,
    probe: int | None = None,
    unsaid: UnsaidArgs = ALL_SAID,
    csv: Path | None = None,
    figure: Path | None = None,
    report: Path | None = None,
    as_json: JsonArg = False,
) -> None:
    """Accuracy against cost over (model, attention, N) of one or several runs.

    With --allocate, instead, what every cost per problem can buy: the paper's Algorithm 1 (best-of-n: N, at the longest
    cap) or 2 (long-cot: the cap, at N = 1), with the best configuration of each problem and with one for all. Or
    (adaptive) what is saved by sampling each problem until it is solved, or its vote decided, in waves, against N
    samples for all.

    Args:
        runs: Run folders, files of samples (.csv, .jsonl, .parquet), or directories of them.
        against: What accuracy is set against: cost; generated tokens, which needs no architecture and no prompts; or
            seconds, those of a table's column seconds.
        rule: What becomes of N answers: pass (any of N right, which somebody has to know), majority, weighted and
            best-of-verifier (by a table's column score), or average (of single samples). Default: pass, with what a
            majority and a verifier would pick beside it.
        hardware: Chip, or a .json profile, whose FLOP/byte ratio prices memory traffic.
        convention: How costs are counted: traffic, paper or upstream (see the documentation of costs).
        bare_questions: Prompts of the paper's traces without the 80 tokens around a question, as its code prices
            long chains of thought (with --convention upstream).
        trials: Numbers of samples N; default: powers of two, up to each configuration's own samples.
        caps: Tokens of a sample at most, one or more caps; default: the runs' own.
        batch: Sequences that decode side by side and share the reads of the weights: fit (as many as the hardware holds
            on average), a number, or none (the weights cost nothing); default: fit, in the traffic convention.
        chips: Chips that work on every sequence together (tensor parallel).
        shared_prompt: Trials of a problem read whole pages of its prompt's KV once for all, in dense layers.
        costs_from: What prices attention and search: the policy's formula, or what each sample counted while it ran
            (runs of this version); default: the formula, and counts for a policy that has none.
        joules: What the N samples of a problem draw, on average; needs hardware whose energy was measured, such as
            h100-vllm.
        allocate: One row per configuration (none), per cost limit, or per configuration sampled adaptively.
        law: What counts as cost when choosing: eFLOPs, FLOPs (arithmetic alone), or the larger of arithmetic and reads.
        honest: Choose on one half of the samples and score on the other (with --allocate).
        splits: Random halvings with --honest.
        limits: Cost limits per problem, in Tera-eFLOPs (with --allocate); default: 24 over the range of costs.
        wave: Samples drawn side by side (with --allocate adaptive).
        probe: Give a problem up after N samples without success (with --allocate adaptive).
        csv: Write the table to this file.
        figure: Write the figure to this file (.png, .pdf, .svg).
        report: Write the whole report to this file (.html; run folders only).
        as_json: Print the table as JSON.
    """
    from kinetics_jax.analysis.counted import costs_lines, mark_costs, with_costs_from
    from kinetics_jax.analysis.energy import frontier_joules
    from kinetics_jax.analysis.frontier import cost_frontier, crossings
    from kinetics_jax.analysis.pricing import Pricing
    from kinetics_jax.analysis.rules import require_rule
    from kinetics_jax.analysis.samples import pooled
    from kinetics_jax.analysis.token_frontier import token_frontier
    from kinetics_jax.costs.hardware import hardware as hardware_named
    from kinetics_jax.costs.hardware import measured_energy
    from kinetics_jax.files import write_atomic

    require(runs != (), "frontier: name at least one run folder")
    require_ending(figure, "the figure", *FIGURE_KINDS)
    require_ending(report, "the report", ".html")
    require_outputs(csv, figure, report)
    unsaid.check()
    require(
        not bare_questions or convention == "upstream",
        "--bare-questions is what the published code does: it goes with --convention upstream",
    )
    for flag, values, most in (("--trials", trials, MAX_SAMPLES), ("--caps", caps, MAX_CAP)):
        for value in values:
            require_between(flag, value, 1, most)
    trials, caps = (tuple(dict.fromkeys(values)) for values in (trials, caps))  # a row once
    limits = tuple(dict.fromkeys(limits))
    require_between("--splits", splits, 1, MAX_SPLITS)
    require_between("--wave", wave, 1, MAX_SAMPLES)
    require(
        probe is None or 1 <= probe <= MAX_SAMPLES, f"--probe must be at least 1 and at most {MAX_SAMPLES}, got {probe}"
    )
    require(
        against == "cost"
        or not (
            report or caps or shared_prompt or batch or chips != 1 or kv_dtype or weight_dtype or allocate != "none"
        ),
        f"--against {against} has no caps, batch, chips, types, shared prompts, allocation or report; leave those out",
    )
    require(
        not joules or (against == "cost" and allocate == "none" and convention == "traffic" and not report),
        "--joules stands beside the costs of the traffic convention; leave out --against, --allocate, --convention and "
        "--report",
    )
    chip = hardware_named(hardware)  # a name that is not known is refused, used or not
    require(
        costs_from is None or (against == "cost" and not report),
        "--costs-from says how costs are counted, in tables; leave out --against and --report",
    )
    if joules:
        measured_energy(chip)  # refuses hardware without
    if figure or report:
        require_figures()
    _check_allocation(allocate, caps=caps, trials=trials, limits=limits, honest=honest, law=law, wave=wave, probe=probe)
    require(
        allocate != "adaptive" or rule in (None, "pass", "majority"),
        f"--allocate adaptive stops by what is right (--rule pass) or by votes (--rule majority), not by {rule}",
    )
    require(
        probe is None or rule != "majority",
        "--probe gives up where no sample is right (--rule pass), and a vote does not know; leave one of them out",
    )
    require(
        not report or allocate == "none",
        "--report shows every configuration; with --allocate take --csv, --figure or --json",
    )
    require(not figure or allocate != "adaptive", "--allocate adaptive draws no figure; take --csv or --json")
    require(
        not report or not (caps or shared_prompt or bare_questions or unsaid.given),
        "--report is of run folders as they are: leave out --caps, --shared-prompt, --bare-questions, --model, "
        "--attention, --config, --tokenizer, --prompt-tokens",
    )
    require_between("--chips", chips, 1, MAX_CHIPS)
    options: dict[str, Any] = {"convention": convention, "hardware": hardware, "trials": trials or None}
    if allocate != "adaptive":
        options["rule"] = rule or "pass"
    options |= {"chips": chips, "kv_bytes": bytes_of(kv_dtype), "weight_bytes": bytes_of(weight_dtype)}
    if batch is not None:
        options["batch"] = batch_of(batch)
    if report:
        table = _report(report, runs, options | {"undecided": unsaid.undecided})
    else:
        samples = unsaid.read(runs, bare_questions=bare_questions)
        data = with_costs_from(pooled(samples, undecided=unsaid.undecided), costs_from)
        for line in ending_lines(samples):
            say(line)
        if against == "cost":
            _say_own_costs(data)
            for line in costs_lines(data):
                say(line)
        options |= {"caps": caps or None, "shared_prompt": shared_prompt}
        if rule and allocate != "long-cot":
            require_rule(data, rule, () if caps else (None,))
        if against != "cost":
            Pricing(convention=convention)  # refuses one that is not known
            table = token_frontier(data, trials=trials or None, rule=rule or "pass", amount=against)
        elif allocate == "none":
            table = cost_frontier(data, **options)
            if joules:
                of_row = ("hardware", "chips", "kv_bytes", "weight_bytes", "shared_prompt")
                drawn = frontier_joules(data, table, Pricing(**{name: options[name] for name in of_row}))
                table.insert(list(table.columns).index("cost") + 1, "joules", drawn)
        elif allocate == "adaptive":
            table = _adaptive(data, wave=wave, probe=probe, rule=rule, options=options)
        else:
            table = _allocated(
                data, allocate, law=law, splits=splits if honest else None, limits=limits, options=options
            )
        table = mark_costs(table, data)
    if against == "cost" and (line := _weights_line(table, chips=chips, hardware=hardware)):
        say(line)
    table = _with_reasons(table)
    if csv:
        write_atomic(csv, table_without_noise(table).to_csv(index=False))
    if figure:
        from kinetics_jax.report.figure_style import save_figure
        from kinetics_jax.report.figures import allocation_figure, frontier_figure

        save_figure((frontier_figure if allocate == "none" else allocation_figure)(table), figure)
    for line in table.attrs.get("picks", [rule_line(rule or "pass")] if allocate == "best-of-n" else ()):
        say(line)
    if allocate == "none" and len(leads := crossings(table, against)) > 1:
        say(_leads_line(leads))
    print_table(table, as_json)


def _say_own_costs(pools: list[Pool]) -> None:
    """Of which pools the cost is what their samples' source states, and that nothing is computed there."""
    if own := [str(pool) for pool in pools if pool.owns("cost")]:
        more = f" and {len(own) - 1} more" if len(own) > 1 else ""
        say(
            f"{own[0]}{more}: costs are the column cost of the samples, taken as Tera-eFLOPs a sample; none is computed"
        )


def _leads_line(leads: list[tuple[float, str]]) -> str:
    """Which configuration leads the frontier from which cost on."""
    said = [f"{name} from {spent:.4g}" for spent, name in leads[:MOST_LEADS]]
    more = f", and {len(leads) - MOST_LEADS} more changes" if len(leads) > MOST_LEADS else ""
    return f"the frontier is led by {', '.join(said)}{more}"


def _with_reasons(table: pd.DataFrame) -> pd.DataFrame:
    """An allocation's table that says of rows without a number that nothing can be afforded."""
    if "afforded" not in table or all(table["afforded"]):
        return table
    table = table.copy()
    notes = [None if afforded else "cannot be afforded" for afforded in table["afforded"]]
    table.insert(list(table.columns).index("limit") + 1, "note", notes)
    return table


def _weights_line(table: pd.DataFrame, *, chips: int, hardware: str) -> str | None:
    """What the costs of a table hold of the weights, in a line; None where none are computed."""
    from kinetics_jax.analysis.frontier import weights_in
    from kinetics_jax.costs.batching import weight_words
    from kinetics_jax.costs.hardware import chips_words

    rule, batch = weights_in(table)
    if rule == "own":
        return None
    where = f" {chips_words(chips, hardware)} on average"
    more = {"fit": where, "none": ", as if endlessly many sequences shared their reads"}
    return f"costs: {weight_words(rule, batch)}{more.get(rule, '')}"


def _check_allocation(allocate: Allocate, **given: Any) -> None:
    """Raises UserError for flags that have no meaning with this --allocate."""
    require(
        allocate in ("best-of-n", "long-cot") or not (given["honest"] or given["limits"] or given["law"] != "eFLOPs"),
        "--honest, --limits and --law go with --allocate best-of-n or long-cot",
    )
    require(
        allocate == "adaptive" or (given["wave"] == 1 and given["probe"] is None),
        "--wave and --probe go with --allocate adaptive",
    )
    require(
        allocate not in ("best-of-n", "adaptive") or not given["caps"],
        f"--allocate {allocate} is about N, not a length; --caps goes with --allocate long-cot",
    )
    require(
        allocate != "long-cot" or not given["trials"],
        "--allocate long-cot chooses a length at N = 1; --trials goes with --allocate best-of-n",
    )


def _report(path: Path, runs: tuple[Path, ...], options: dict[str, Any]) -> pd.DataFrame:
    from kinetics_jax.report.report import report_tables, write_report
    from kinetics_jax.runs.folder import read_run

    for run in runs:
        require(
            not run.is_file(), f"{run}: --report is of run folders, and this is a file; take --csv, --figure or --json"
        )
    read = [read_run(run) for run in runs]
    for run in read:
        say(f"{run.path}: {run_summary(run)}")
    tables = report_tables(read, **options)
    for line in tables.frontier.attrs["costs_from"]:
        say(line)
    write_report(path, read, tables, title="Accuracy against cost", command=command_line())
    return tables.frontier


def _allocated(
    pools: list[Pool],
    how: str,
    *,
    law: str,
    splits: int | None,
    limits: tuple[float, ...],
    options: dict[str, Any],
) -> pd.DataFrame:
    """The tables of both choices, one below the other; on unseen samples if `splits` says how often to halve them."""
    import pandas as pd

    from kinetics_jax.analysis.allocation import (
        allocation_table,
        best_for_all,
        best_per_problem,
        cost_limits,
        honest_allocation,
    )
    from kinetics_jax.analysis.defaults import default_caps
    from kinetics_jax.analysis.grid import grid

    if how == "long-cot":
        options["trials"] = [1]
        options["caps"] = options["caps"] or default_caps(pools)
    cells = grid(pools, **options)
    allowed = limits or cost_limits(cells, DEFAULT_LIMITS, law=law)
    if splits is not None:
        with count_bar("honest", "halving") as on_progress:
            table = honest_allocation(pools, allowed, law=law, splits=splits, on_progress=on_progress, **options)
    else:
        tables = []
        for name, rule in (("per_problem", best_per_problem), ("for_all", best_for_all)):
            part = allocation_table(cells, rule(cells, allowed, law=law))
            part.insert(1, "choice", name)
            tables.append(part)
        table = pd.concat(tables, ignore_index=True)
    table.attrs |= {"law": law, "rule": options.get("rule", "pass")}
    return table


def _adaptive(
    pools: list[Pool], *, wave: int, probe: int | None, rule: str | None, options: dict[str, Any]
) -> pd.DataFrame:
    from kinetics_jax.analysis.adaptive import replay_table

    del options["caps"]  # --caps is refused with --allocate adaptive
    return replay_table(pools, wave=wave, probe=probe, rule=rule, **options)
