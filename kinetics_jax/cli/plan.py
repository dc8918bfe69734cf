"""`kinetics plan`: what to run on a budget, from runs that were made."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kinetics_jax.analysis.rule_names import MONOTONE, WORDS, Rule, rule_line
from kinetics_jax.cli.arguments import JsonArg, KvDtypeArg, Positional, WeightDtypeArg
from kinetics_jax.cli.checks import require, require_between
from kinetics_jax.cli.run_summary import ending_lines
from kinetics_jax.cli.sources import ALL_SAID, UnsaidArgs
from kinetics_jax.cli.terminal import prose, say, without_noise

if TYPE_CHECKING:
    from kinetics_jax.analysis.advice import Advice
    from kinetics_jax.analysis.samples import Pool, RunData, Undecided

PICKS: dict[str, Rule] = {"any": "pass", "majority": "majority"}
PICKS |= {"best-score": "best-of-verifier", "weighted-vote": "weighted"}
OLD_NAMES = {"pass": "any", "majority": "majority", "best-of-verifier": "best_score", "weighted": "weighted_vote"}
OLD_NAMES |= {"average": "average"}  # of rules, in JSON
COLUMNS = ("model", "attention", "N", "cap", "batch", "accuracy", "undecided", "seconds", "first_answer", "dollars")
COLUMNS += ("joules",)
MOST_ALTERNATIVES = 8  # that are printed; JSON has them all
HARDWARE = "h100"
MAX_CHIPS = 1024
MAX_PROBLEMS = 10**6
MAX_TRIALS = 10**4  # N is extrapolated beyond the samples: to no more than that
MAX_CAP = 1 << 24  # tokens
MAX_BATCH = 1 << 16  # sequences


def plan(
    runs: Positional[tuple[Path, ...]],
    *,
    hardware: str = HARDWARE,
    chips: int = 1,
    replicas: int = 1,
    kv_dtype: KvDtypeArg = None,
    weight_dtype: WeightDtypeArg = None,
    costs_from: Literal["formula", "counts"] | None = None,
    seconds: float | None = None,
    dollars: float | None = None,
    joules: float | None = None,
    target_accuracy: float | None = None,
    half_width: float | None = None,
    rule: Rule | None = None,
    pick: Literal["any", "majority", "best-score", "weighted-vote"] | None = None,
    problems: int | None = None,
    trials: tuple[int, ...] = (),
    caps: tuple[int, ...] = (),
    batches: tuple[int, ...] = (),
    price: float | None = None,
    unsaid: UnsaidArgs = ALL_SAID,
    seed: int = 0,
    as_json: JsonArg = False,
) -> None:
    """The best model, N, length, attention and batch on a budget, from stored samples.

    Or, with --half-width, how many problems and samples an accuracy needs to be known so well.

    Args:
        runs: Run folders, files of samples (.csv, .jsonl, .parquet), or directories of them, over the same problems.
        hardware: Chip, or the .json profile that `kinetics calibrate` wrote.
        chips: Chips that share every sequence (tensor parallel).
        replicas: Copies of the model, of --chips chips each, that share the problems (data parallel).
        costs_from: What the steps of attention are priced by: the policy's formula, or what the samples counted while
            they ran (runs of this version); default: the formula, and counts for a policy that has none.
        seconds: Budget in seconds, prefill and decode of all problems.
        dollars: Budget in money, at the hardware's price or --price.
        joules: Budget in joules that the chips draw; needs hardware whose energy was measured, such as h100-vllm.
        target_accuracy: Find the cheapest way to this accuracy.
        half_width: Instead: how many problems and samples for a 95 % interval of ± this (0.02 for two points).
        rule: What becomes of N answers: pass (any of N right, which somebody has to know; the default), majority,
            weighted and best-of-verifier (by a table's column score), or average (of single samples).
        pick: The rule by its earlier names: any is pass, best-score is best-of-verifier, weighted-vote is weighted.
        problems: How many problems are to be solved; default: as many as the runs have.
        trials: Numbers of samples N to choose from; default: powers of two and all samples.
        caps: Caps on the tokens of a sample to choose from; default: the runs' own and half of it.
        batches: Sequences decoded side by side, to choose from; default: what fits, powers of two, equal turns.
        price: Price of a chip-hour, in any currency.
        seed: Seed of the bootstrap and the halvings.
        as_json: Print JSON.
    """
    from kinetics_jax.analysis import planner
    from kinetics_jax.analysis.advice import advise
    from kinetics_jax.analysis.counted import costs_lines, with_costs_from
    from kinetics_jax.analysis.samples import pooled
    from kinetics_jax.costs.hardware import hardware as hardware_named
    from kinetics_jax.costs.hardware import measured_energy

    require(runs != (), "plan: name at least one run folder")
    unsaid.check()
    require_between("--chips", chips, 1, MAX_CHIPS)
    require_between("--replicas", replicas, 1, MAX_CHIPS)
    require(
        problems is None or 1 <= problems <= MAX_PROBLEMS, f"--problems must be in 1 … {MAX_PROBLEMS}, got {problems}"
    )
    for flag, values, most in (
        ("--trials", trials, MAX_TRIALS),
        ("--caps", caps, MAX_CAP),
        ("--batches", batches, MAX_BATCH),
    ):
        for value in values:
            require_between(flag, value, 1, most)
    require_between("--seed", seed, 0, 2**63 - 1)
    if half_width is not None:
        no_meaning = {
            "--hardware": hardware != HARDWARE,
            "--chips": chips != 1,
            "--replicas": replicas != 1,
            "--kv-dtype": kv_dtype is not None,
            "--weight-dtype": weight_dtype is not None,
            "--costs-from": costs_from is not None,
            "--seconds": seconds is not None,
            "--dollars": dollars is not None,
            "--joules": joules is not None,
            "--target-accuracy": target_accuracy is not None,
            "--rule": rule not in (None, "pass"),
            "--pick": pick not in (None, "any"),
            "--problems": problems is not None,
            "--caps": caps != (),
            "--batches": batches != (),
            "--price": price is not None,
            "--seed": seed != 0,
            "--prompt-tokens": unsaid.prompt_tokens is not None,
            "--config": unsaid.config != (),
        }
        given = ", ".join(flag for flag, is_given in no_meaning.items() if is_given)
        require(
            not given, f"--half-width asks how many problems and samples of pass@N, on no hardware: leave out {given}"
        )
        _half_width(unsaid.read(runs), half_width, tuple(dict.fromkeys(trials)) or (1,), unsaid.undecided, as_json)
        return
    by = _rule(rule, pick)
    budget = planner.Budget(seconds, dollars, target_accuracy, joules)
    chip = hardware_named(hardware)
    if joules is not None:
        measured_energy(chip)  # refuses hardware without
    if price is not None:
        chip = dataclasses.replace(chip, price_per_hour=price)
    budget.limit(chip, chips * replicas)  # refuses an impossible budget before the runs are read
    samples = unsaid.read(runs)
    types = {name: dtype for name, dtype in (("kv_dtype", kv_dtype), ("weight_dtype", weight_dtype)) if dtype}
    pools = [
        dataclasses.replace(pool, settings={**pool.settings, **types})
        for pool in with_costs_from(pooled(samples, undecided=unsaid.undecided), costs_from)
    ]
    options = planner.list_options(
        pools,
        chip,
        chips=chips,
        replicas=replicas,
        problems=problems,
        trials=trials or None,
        caps=caps or None,
        batches=batches or None,
        rule=by,
    )
    if joules is not None:
        options = planner.within_joules(options, joules)
    advice = advise(options, budget, seed=seed)
    plain = [
        f"{pool}: its samples state what they cost, and plans price plain decoding instead"
        for pool in pools
        if any("cost" in problem.own for problem in pool.problems.values())
    ]
    for line in (*ending_lines(samples), *costs_lines(pools), *plain, *options.warnings):
        say(line)
    if as_json:
        picked = {OLD_NAMES[name]: found for name, found in chosen_rules(advice, pools).items()}
        sources = {str(pool): "counts" if pool.by_counts else "formula" for pool in pools}
        print(json.dumps({**as_record(advice), "picked": picked, "costs_from": sources}, indent=1, allow_nan=False))
    else:
        _print(advice)
        _print_picks(advice, pools)


def _rule(rule: Rule | None, pick: str | None) -> Rule:
    """The rule by either flag. Raises UserError where they name two."""
    named = PICKS[pick] if pick else rule or "pass"
    require(rule in (None, named), f"--rule {rule} and --pick {pick} name two rules; leave --pick out")
    return named


def _half_width(
    samples: list[RunData], half_width: float, trials: tuple[int, ...], undecided: Undecided, as_json: bool
) -> None:
    from kinetics_jax.analysis.sample_size import half_width_table
    from kinetics_jax.analysis.samples import pooled
    from kinetics_jax.cli.terminal import print_table

    table = half_width_table(pooled(samples, undecided=undecided), half_width, trials)
    print_table(table, as_json)
    if not as_json:
        prose(
            f"\nProblems, with so many samples of each, for a 95 % interval of ± {half_width:g} over all problems of "
            "the kind. half_width_now: what the samples at hand give. these_problems: samples of each of the problems "
            "at hand, for an interval over these alone."
        )
        if any(table["N"] > 1):
            prose(rule_line("pass"))


def as_record(advice: Advice) -> dict[str, Any]:
    """The advice for JSON; null for infinite and missing numbers."""
    from kinetics_jax.analysis.certainty import LEVEL

    def row(index: int | None) -> dict[str, Any] | None:
        if index is None:
            return None
        why = {"why_not": advice.why_not[index]} if index in advice.why_not else {}
        values = advice.row(index)
        return {name: _finite(value) for name, value in values.items()} | why

    return {
        "chosen": row(advice.chosen),
        "accuracy": _finite(advice.accuracy),
        "interval": [_finite(advice.low), _finite(advice.high)],
        "optimism": _finite(advice.optimism),
        "expected_accuracy": _finite(advice.expected_accuracy),
        "run_interval": [_finite(advice.run_low), _finite(advice.run_high)],
        "regret": _finite(advice.regret),
        "probability_best": advice.probabilities[advice.chosen],
        "as_accurate": [row(index) for index in advice.as_accurate],
        "alternatives": [
            {**(row(index) or {}), "probability_best": advice.probabilities[index]} for index in advice.alternatives
        ],
        "alternatives_level": LEVEL,
        "runner_up": row(advice.runner_up),
        "beyond": row(advice.beyond),
        "hardware": advice.options.hardware.name,
        "calibrated": advice.options.hardware.calibrated,
        "chips": advice.options.chips,
        "replicas": advice.options.replicas,
        "problems": advice.options.problems,
        "configurations": len(advice.options.table),
        "rule": advice.options.rule,
        "pick": OLD_NAMES[advice.options.rule],
        "warnings": list(advice.options.warnings),
    }


def chosen_rules(advice: Advice, pools: list[Pool]) -> dict[str, dict[str, Any]]:
    """What every rule but pass@N makes of the N samples of the chosen configuration, with its interval, where they have
    what it takes.
    """
    from kinetics_jax.analysis.defaults import fewest_graded
    from kinetics_jax.analysis.rules import lacks, rule_accuracy
    from kinetics_jax.stats.intervals import accuracy_interval

    row = advice.row(advice.chosen)
    pool = next(pool for pool in pools if (pool.model, str(pool.attention)) == (row["model"], row["attention"]))
    picks = {}
    for rule in ("majority", "best-of-verifier", "weighted"):
        if row["N"] <= fewest_graded(pool) and lacks(pool, rule, row["cap"]) is None:
            solved = rule_accuracy(pool, rule, [row["N"]], row["cap"])[:, 0]
            low, high = accuracy_interval(solved)
            picks[rule] = {"accuracy": float(solved.mean()), "interval": [float(low), float(high)]}
    return picks


def _print_picks(advice: Advice, pools: list[Pool]) -> None:
    from kinetics_jax.analysis.rules import lacks_words

    row = advice.row(advice.chosen)
    if row["N"] == 1:
        return
    prose(rule_line(advice.options.rule))
    picks = chosen_rules(advice, pools)
    for rule, picked in picks.items():
        low, high = picked["interval"]
        prose(f"{WORDS[rule]}: {picked['accuracy']:.3f}, {low:.3f} … {high:.3f}")
    if not picks:
        pool = next(pool for pool in pools if (pool.model, str(pool.attention)) == (row["model"], row["attention"]))
        why = lacks_words(pool, "majority", row["cap"]) or f"N = {row['N']} is more than the samples of a problem"
        prose(f"What a majority would pick is not known: {why}.")


def _finite(value: Any) -> Any:
    """The value without noise; None for an infinite or missing number, which JSON has not."""
    if not isinstance(value, float):
        return value
    return without_noise(value) if math.isfinite(value) else None


def _print(advice: Advice) -> None:
    import pandas as pd

    from kinetics_jax.cli.terminal import print_table
    from kinetics_jax.costs.hardware import chips_words

    labels = {"run this": advice.chosen, "runner-up": advice.runner_up, "out of reach": advice.beyond}
    shown = {label: index for label, index in labels.items() if index is not None}
    table = pd.DataFrame([{"": label} | _columns(advice.row(index)) for label, index in shown.items()])
    print_table(table.dropna(axis=1, how="all"), False)
    options = advice.options
    copies = f"{options.replicas} replicas of " if options.replicas > 1 else ""
    prose(
        f"\n{options.problems} problems on {copies}{chips_words(options.chips, options.hardware.name)}; "
        f"{len(options.table)} configurations.\n"
        f"Accuracy {advice.accuracy:.3f} as measured, by {WORDS[options.rule]}; chosen among many on the same problems "
        f"it looks {advice.optimism:.3f} too good: expect {advice.expected_accuracy:.3f}, 95 % interval "
        f"{advice.low:.3f} … {advice.high:.3f} over problems; the score of one run falls into {advice.run_low:.3f} … "
        f"{advice.run_high:.3f} (95 %).\nfirst_answer: seconds until all N samples of a first problem have ended."
    )
    _print_certainty(advice)
    for label, index in shown.items():
        if index in advice.why_not:
            prose(f"{label}: {advice.why_not[index]}")


def _print_certainty(advice: Advice) -> None:
    """How sure the choice is, and the configurations that may be as right."""
    from kinetics_jax.analysis.certainty import LEVEL

    target, monotone = advice.target_accuracy, advice.options.rule in MONOTONE
    right = "the most accurate within the budget" if target is None else f"the quickest that reaches {target:g}"
    loss = "expected loss against the best" if target is None else f"expected shortfall below {target:g}"
    probability = f"{advice.probabilities[advice.chosen]:.2f}"
    if target is None and advice.as_accurate:
        prose(
            f"It is the cheapest of those as accurate ({len(advice.as_accurate) + 1} configurations), and {right} with "
            f"probability {probability}, shared among those that are alike on every problem; {loss}: "
            f"{advice.regret:.3f} of accuracy."
        )
    else:
        prose(f"It is {right} with probability {probability}; {loss}: {advice.regret:.3f} of accuracy.")
    others = advice.alternatives[1:]
    compared = "all compared with the best" if target is None else "all compared with the target"
    contained = "; fewer samples or a lower cap of the same left out" if target is None and monotone else ""
    prose(
        f"The data cannot tell {len(others)} of {len(advice.probabilities) - 1} other configurations from the right "
        f"one ({LEVEL:.0%}, {compared} at once{contained}){':' if others else '.'}"
    )
    for index in others[:MOST_ALTERNATIVES]:
        row = advice.row(index)
        prose(
            f"  {row['model']} {row['attention']} N={row['N']} cap={row['cap']}: accuracy {row['accuracy']:.3f}, "
            f"{row['seconds']:.4g} s, probability {advice.probabilities[index]:.2f}"
        )
    if len(others) > MOST_ALTERNATIVES:
        print(f"  and {len(others) - MOST_ALTERNATIVES} more (--json)")


def _columns(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] if name != "seconds" or math.isfinite(row[name]) else None for name in COLUMNS}
