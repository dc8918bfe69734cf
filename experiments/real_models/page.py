"""Every table and sentence of docs/real_models.md that holds numbers; a test looks for each of them in the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from real_models import tables
from real_models.compare import rows_of
from real_models.tables import FIT, cost_row, ends, factor, level_of, number, percent, whole

LARGE_CAP = 24_576


def fragments(summary: Mapping[str, Any]) -> dict[str, str]:
    """Every table and sentence, by name."""
    family, pruned, pair, loops = (summary[name] for name in ("family", "pruned", "pair", "loops"))
    strata = family["strata"]
    return {
        **{f"short {i}": said for i, said in enumerate(short(summary), start=1)},
        "left out": f"Left out: {'; '.join(family['left_out'])}.",
        "shapes": tables.shapes(family["shapes"]),
        "models": tables.models(strata),
        "neighbours": tables.neighbours(strata),
        "overall": tables.overall(strata),
        "differences": tables.differences(strata),
        "one level": one_level(strata["prefix"]["laws"]["h100"]["fit"]),
        "without long texts": short_caps(family["short_caps"]),
        "equal cost": equal_cost(strata["prefix"]["laws"]["h100"]),
        "what if": tables.what_if(family),
        "pass": tables.passes(pruned),
        "pruned": tables.pruned(pruned),
        "saved": saved(pruned),
        "pair": tables.pair(pair),
        "groups": tables.groups(loops),
        "caps": tables.caps(loops),
        "loops": loops_said(loops),
    }


def short(summary: Mapping[str, Any]) -> list[str]:
    """The findings."""
    family, pruned, pair, loops = (summary[name] for name in ("family", "pruned", "pair", "loops"))
    prefix, wait = (family["strata"][name]["laws"]["h100"] for name in ("prefix", "wait"))
    differ = {w: [laws[w]["overall"]["levels_that_differ"] for laws in (prefix, wait)] for w in prefix}
    overall = prefix["fit"]["overall"]
    at = level_of(prefix["fit"], 0.70)
    sure = sum(row["low"] > 1 for laws in (prefix, wait) for row in rows_of(laws["fit"]["levels"]))
    largest = family["strata"]["prefix"]["neighbours"][-1]
    once = cost_row(pruned, "h100", "fit", "once", "eFLOPs")["per_sample"]
    math = pair["tasks"][0]
    stopped, alone = _stopped(loops), family["short_caps"]
    cap = next(row for row in loops["caps"] if row["cap"] == LARGE_CAP)
    return [
        f"**The two laws mostly choose alike.** Of {overall['levels']} accuracies from 50 to 90 %, on an H100 with the "
        f"weights read for the batch that fits, they take different models at {differ['fit'][0]} (`prefix`) and "
        f"{differ['fit'][1]} (`wait`); with the weights left out at {differ['none'][0]} and {differ['none'][1]}; at "
        f"batch 1 at {differ['alone'][0]} and {differ['alone'][1]}.",
        "**Where they differ at that batch, eFLOPs take the larger model and stop it earlier, as the law says.** To "
        f"solve 70 % FLOPs take 3B and let it run to {at['by_flops_cap']:,} tokens, eFLOPs take 7B and stop it at "
        f"{at['by_eflops_cap']:,}. On questions that the choice has not seen, what FLOPs choose costs "
        f"{number(at['unseen'])} times the eFLOPs {ends(at, 1, 'unseen_low', 'unseen_high')}; over all accuracies "
        f"{factor(overall['unseen'])} times (`prefix`) and {factor(wait['fit']['overall']['unseen'])} times (`wait`).",
        f"**It is a near tie that eFLOPs break.** In {whole(1 - at['redraws_that_differ'])} % of the redraws of the "
        f"questions both laws choose alike even there, and the interval of redraws excludes 1 at {sure} of the single "
        "accuracies. It hangs on texts that ran into the cap of 8,000 thinking tokens: without them the laws differ at "
        f"{alone['prefix']['fit']['levels_that_differ']} of {alone['prefix']['fit']['levels']} (`prefix`) and at "
        f"{alone['wait']['fit']['levels_that_differ']} of {alone['wait']['fit']['levels']} (`wait`).",
        "**The largest model is never chosen, by either law:** 32B solves "
        f"{percent(largest, 'difference')} points more than 14B (`prefix`), and costs more.",
        f"**Pruning the cache (SnapKV)** changes pass@1 by {percent(pruned['pass'][0], 'difference')} points; as its "
        f"published code does it, a sample costs {factor(once)} times the eFLOPs: nothing is saved.",
        f"**Two models of one price in FLOPs, {factor(math['FLOPs'])} to 1, cost {factor(math[FIT])} to 1 in eFLOPs:** "
        "R1-Distill-Llama-8B and -Qwen-7B on MATH-500, whose caches differ.",
        f"**Texts that run into the limit are {whole(stopped['texts'] / loops['problems'])} % of the texts, "
        f"{whole(stopped['shares']['FLOPs']['share'])} % of the FLOPs and {whole(stopped['shares'][FIT]['share'])} % "
        f"of the eFLOPs** (Qwen3-1.7B on LiveCodeBench). A cap of {cap['cap']:,} tokens keeps "
        f"{whole(cap['kept']['share'])} % of what ends by itself, and saves "
        f"{whole(1 - cap['spent'][FIT]['share'])} % of the eFLOPs.",
    ]


def one_level(found: Mapping[str, Any]) -> str:
    row = level_of(found, 0.70)
    return (
        f"At 70 % solved the laws differ in {whole(row['redraws_that_differ'])} % of the redraws and in "
        f"{whole(row['halves_that_differ'])} % of the halves that choose; eFLOPs take the larger model in "
        f"{whole(row['redraws_larger'])} % of the redraws."
    )


def short_caps(found: Mapping[str, Any]) -> str:
    parts = [
        f"`{name}`, {words}: {overall['levels_that_differ']} of {overall['levels']} accuracies, "
        f"{factor(overall['unseen'])} times on unseen questions"
        for name, prices in found.items()
        for weights, words in (("none", "weights left out"), ("fit", "batch that fits"))
        for overall in [prices[weights]]
    ]
    return f"Without caps above 8,000, so that such texts count as wrong, nearly nothing is left ({'; '.join(parts)})."


def equal_cost(found: Mapping[str, Any]) -> str:
    parts = []
    for weights, words in (("none", "With the weights left out"), ("fit", "At the batch that fits")):
        cost, most = found[weights]["equal_cost"], found[weights]["equal_cost"]["largest"]
        mean = f"{number(100 * cost['unseen'], 2)} {ends(cost, times=100)}"
        parts.append(
            f"{words} the largest gain is {percent(most, 'gain')} points, at {number(most['limit'], 0)} Tera-eFLOPs a "
            f"text, on unseen questions {percent(most, 'unseen', 'unseen_low', 'unseen_high')}; the mean over all "
            f"limits is {mean}."
        )
    return " ".join(parts)


def saved(pruned: Mapping[str, Any]) -> str:
    dense, snapkv = pruned["runs"]["dense"], pruned["runs"]["snapkv"]
    once, every = (1 - pruned["attended"][pruning] for pruning in ("once", "every"))
    return (
        f"Pruned texts have {factor(pruned['tokens'])} times the tokens ({snapkv['mean_tokens']:,.0f} against "
        f"{dense['mean_tokens']:,.0f}). Halving once takes {whole(once)} % off what decode steps attend to, halving at "
        f"every request {whole(every)} %. The pruned run took {number(snapkv['seconds'] / dense['seconds'])} times as "
        f"long ({number(snapkv['seconds'])} s a sample against {number(dense['seconds'])} s)."
    )


def loops_said(loops: Mapping[str, Any]) -> str:
    without = _stopped(loops)["texts"] - loops["stopped_and_looped"]
    return (
        f"{loops['problems']:,} texts have {loops['mean_tokens']:,.0f} tokens on average, "
        f"{loops['median_tokens']:,.0f} at the median. In all but {without} of those that the limit stopped, the "
        f"authors found a loop; the longest that ended by itself has {loops['longest_that_ended']:,.0f} tokens."
    )


def _stopped(loops: Mapping[str, Any]) -> dict[str, Any]:
    return next(group for group in loops["groups"] if group["group"] == "stopped at the limit")
