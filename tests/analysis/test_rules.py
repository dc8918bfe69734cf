"""Decision rules against every set of N samples, one by one; what they lack; own costs, and frontiers made of them."""

import dataclasses
import json
from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from kinetics_jax.analysis.advice import advise
from kinetics_jax.analysis.allocation import honest_allocation
from kinetics_jax.analysis.frontier import cost_frontier, crossings
from kinetics_jax.analysis.grid import grid
from kinetics_jax.analysis.planner import Budget, list_options
from kinetics_jax.analysis.readers import read_all
from kinetics_jax.analysis.rule_names import AXES, WORDS
from kinetics_jax.analysis.rules import drawn_noise, lacks, rule_accuracy
from kinetics_jax.analysis.samples import RunData, SamplesError, pooled
from kinetics_jax.analysis.token_frontier import token_frontier
from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.hardware import HARDWARE
from kinetics_jax.report.figures import frontier_figure, pass_at_k_figure
from kinetics_jax.stats.intervals import accuracy_interval, difference_interval

RULES = tuple(WORDS)
SPARSE = BlockTopK(budget=256)


def graded_run(seed, attention=Dense(), *, problems=5, samples=6, caps=(), **changes) -> RunData:
    """Answers "4" are right; the texts cut at `caps` answer something of their own."""
    rng = np.random.default_rng(seed)
    count = problems * samples
    said = rng.choice(["4", "4", "7", "5", ""], count)
    cut = rng.choice(["4", "7", "5", ""], (count, len(caps)))
    lengths = rng.integers(50, 400, count)
    within = [[said[i] if n <= cap else c for cap, c in zip(caps, cut[i], strict=True)] for i, n in enumerate(lengths)]
    return dataclasses.replace(
        RunData(
            model="Qwen/Qwen3-0.6B",
            attention=attention,
            config=ModelConfig.named("0.6B"),
            problem=[f"p{i}" for i in range(problems) for _ in range(samples)],
            sample=list(range(samples)) * problems,
            prompt_tokens=[20] * count,
            output_tokens=lengths.tolist(),
            correct=[answer == "4" for answer in said],
            answers=[answer or None for answer in said],
            scores=rng.choice([0.0, 0.5, 0.5, 1.0], count).tolist(),
            caps=caps,
            correct_within=[[answer == "4" for answer in row] for row in within],
            answers_within=[[answer or None for answer in row] for row in within],
        ),
        **changes,
    )


def decided(rule, answers, right, scores):
    """What a rule makes of one set of samples, ties in expectation."""
    if rule == "pass":
        return float(any(right))
    if rule == "average":
        return float(np.mean(right))
    if rule == "best-of-verifier":
        best = [r for r, s in zip(right, scores, strict=True) if s == max(scores)]
        return float(np.mean(best))
    votes = {}
    for answer, score in zip(answers, scores, strict=True):
        if answer is not None:
            votes[answer] = votes.get(answer, 0) + (score if rule == "weighted" else 1)
    leaders = [answer for answer, weight in votes.items() if weight == max(votes.values())]
    return float(np.mean([answer == "4" for answer in leaders])) if leaders else 0.0


def enumerated(rule, votes, n):
    each = [
        decided(rule, *([column[i] for i in drawn] for column in (votes.answers, votes.right, votes.scores)))
        for drawn in combinations(range(len(votes.right)), n)
    ]
    return np.mean(each)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_the_mean_over_all_sets_of_samples(rule):
    (pool,) = pooled([graded_run(0)])
    got = rule_accuracy(pool, rule, [1, 3, 6])
    wanted = [[enumerated(rule, p.votes_under(None), n) for n in (1, 3, 6)] for p in pool.problems.values()]
    np.testing.assert_allclose(got, wanted, atol=1e-12)
    table = cost_frontier([pool], trials=[1, 3, 6], rule=rule)
    assert set(table["rule"]) == {rule}
    np.testing.assert_allclose(table["accuracy"], np.mean(wanted, axis=0), atol=1e-12)
    np.testing.assert_allclose(table[["low", "high"]].T, accuracy_interval(got))
    assert ("majority" in table) == (rule == "pass")
    assert WORDS[rule] in table.attrs["picks"][0]
    by_tokens = token_frontier([pool], trials=[1, 3, 6], rule=rule)
    np.testing.assert_allclose(by_tokens["accuracy"], table["accuracy"])


def test_every_rule_makes_the_same_of_one_sample():
    (pool,) = pooled([graded_run(1)])
    one = [rule_accuracy(pool, rule, [1]) for rule in RULES]
    np.testing.assert_allclose(one, [one[0]] * len(RULES), atol=1e-12)
    whatever_n = rule_accuracy(pool, "average", [1, 2, 6])
    np.testing.assert_allclose(whatever_n, np.repeat(one[0], 3, axis=1), atol=1e-12)


@pytest.mark.parametrize("rule", ["pass", "majority"])
def test_cut_texts_vote_for_what_they_say(rule):
    """At a cap whose cut texts were graded, and at one where a longer sample says nothing."""
    pools = pooled([graded_run(2, caps=(120,))])
    cells = grid(pools, trials=[1, 3], caps=[120, 200], rule=rule)
    for i, (cap, n) in enumerate(zip(cells.configurations["cap"], cells.configurations["N"], strict=True)):
        wanted = []
        for p in pools[0].problems.values():
            said = list(p.answers) if cap == 200 else [row[0] for row in p.answers_within]
            if cap == 200:
                said = [answer if n <= cap else None for answer, n in zip(said, p.lengths, strict=True)]
            sets = [[said[i] for i in drawn] for drawn in combinations(range(6), n)]
            wanted.append(np.mean([decided(rule, s, [a == "4" for a in s], [1] * n) for s in sets]))
        np.testing.assert_allclose(cells.accuracy[i], wanted, atol=1e-12)
    assert lacks(pools[0], "best-of-verifier", 120)
    np.testing.assert_allclose(rule_accuracy(pools[0], "best-of-verifier", [1], 200), grid(
        pools, trials=[1], caps=[200]).accuracy.T)  # fmt: skip


def test_the_frontier_the_choice_and_the_differences_follow_the_rule():
    """Dense attention has more distinct right answers, the sparse one more agreement on them."""
    said = {Dense(): ["4", "5", "5", "5"], SPARSE: ["4", "4", "4", "6"]}
    runs = []
    for attention, answers in said.items():
        run = graded_run(0, attention, problems=4, samples=4, scores=())
        answers = answers * 3 + (["4"] * 4 if attention == Dense() else ["5"] * 4)
        runs.append(dataclasses.replace(run, answers=answers, correct=[a == "4" for a in answers],
                                        output_tokens=[300] * 16, prompt_tokens=[200] * 16))  # fmt: skip
    pools = pooled(runs)
    by = {rule: cost_frontier(pools, trials=[4], rule=rule).set_index("attention") for rule in ("pass", "majority")}
    assert by["pass"]["accuracy"].tolist() == [1, 0.75]
    assert by["majority"]["accuracy"].tolist() == [0.25, 0.75]
    assert by["pass"]["on_frontier"].tolist() == [True, True]
    assert by["majority"]["on_frontier"].tolist() == [False, True]  # cheaper, and more often right
    row = by["majority"].loc[str(SPARSE)]
    assert row["difference"] == 0.5
    low, high = difference_interval([1, 1, 1, 0.0], [0, 0, 0, 1.0])
    assert (row["difference_low"], row["difference_high"]) == (low, high)
    assert by["majority"]["difference"].isna().tolist() == [True, False]
    leads = {rule: crossings(table.reset_index()) for rule, table in by.items()}
    assert [name.split()[-1] for _, name in leads["pass"]] == [str(SPARSE), "dense"]
    assert leads["pass"][1][0] == by["pass"].loc["dense", "cost"]
    assert [name.split()[-1] for _, name in leads["majority"]] == [str(SPARSE)]
    chosen = {}
    for rule in ("pass", "majority"):
        options = list_options(pools, HARDWARE["h100"], trials=[4], caps=[300], batches=[8], rule=rule)
        assert options.rule == rule
        advice = advise(options, Budget(seconds=60))
        chosen[rule] = advice.row(advice.chosen)["attention"], advice.accuracy
        assert 0 <= advice.regret <= 1
    assert chosen == {"pass": ("dense", 1.0), "majority": (str(SPARSE), 0.75)}
    honest = honest_allocation(pools, [1e9], trials=[2], splits=2, rule="majority")
    assert set(honest["rule"]) == {"majority"}
    for rule, table in by.items():
        for figure in (frontier_figure(table.reset_index()), pass_at_k_figure(table.reset_index())):
            words = [axes.get_ylabel() for axes in figure.axes] + [getattr(figure._supylabel, "_text", "")]
            assert AXES[rule] in words


@pytest.mark.parametrize(
    ("changes", "rule", "says"),
    [
        ({"answers": ()}, "majority", r"dense \(s\.csv\): no majority, since what the samples .* a column answer"),
        ({"scores": ()}, "weighted", r"no weighted vote, since no verifier scored the samples; fill in a column score"),
        ({"scores": ()}, "best-of-verifier", "no best score, since no verifier scored the samples; fill in a column"),
        ({"scores": [-1.0] * 30}, "weighted", "cannot be weighed by scores below 0; shift or scale"),
        ({}, "median", "rule 'median' is not known .known: pass, majority, weighted, best-of-verifier, average."),
    ],
)
def test_what_a_rule_lacks_is_one_line(changes, rule, says):
    pools = pooled([graded_run(0, source="s.csv", **changes)])
    for table in (cost_frontier, token_frontier):
        with pytest.raises(SamplesError, match=says) as caught:
            table(pools, rule=rule)
        assert "\n" not in str(caught.value)


def test_noise_of_drawn_sets_is_stated():
    (small,) = pooled([graded_run(0)])
    assert drawn_noise([small], "weighted", [3]) == 0
    (pool,) = pooled([graded_run(0, problems=4, samples=30)])
    noise = drawn_noise([pool], "weighted", [1, 8])
    assert 0.5 / np.sqrt(4000) / 2 == pytest.approx(noise)  # four problems, each drawn by itself
    assert drawn_noise([pool], "majority", [8]) == 0
    assert f"standard error at most {noise:.1g}" in cost_frontier([pool], trials=[8], rule="weighted").attrs["picks"][1]


def write_methods(path, **columns):
    sample = {"method": "tree search", **columns}
    rows = [{"problem": p, "sample": s, "correct": int(s < 2), **sample} for p in "ab" for s in range(3)]
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_methods_with_costs_of_their_own_stand_on_a_frontier(tmp_path):
    """Without an architecture, or token counts; beside a model that is priced."""
    own = read_all([write_methods(tmp_path / "own.csv", cost=2.5, seconds=3.0)])
    (pool,) = pooled(own)
    assert (pool.model, pool.config, pool.sources) == ("tree search", None, (str(tmp_path / "own.csv"),))
    table = cost_frontier(own, trials=[1, 2])
    np.testing.assert_allclose(table["cost"], [2.5, 5.0])
    np.testing.assert_allclose(table["accuracy"], [2 / 3, 1])
    assert set(table["batch_rule"]) == {"own"}
    assert table[["compute", "memory", "cost_without_weights", "batch"]].isna().all(axis=None)
    (priced,) = pooled([graded_run(0, problems=2, samples=3, problem=["a"] * 3 + ["b"] * 3)])
    both = cost_frontier([priced, pool], trials=[2], rule="pass")
    np.testing.assert_allclose(both["cost"], [cost_frontier([priced], trials=[2])["cost"][0], 5.0])
    assert both["batch_rule"].tolist() == ["fit", "own"]
    seconds = token_frontier([pool], trials=[2], amount="seconds")
    np.testing.assert_allclose(seconds["seconds"], 6)
    with pytest.raises(
        SamplesError, match=r"dense: seconds are missing for 2 of 2 problems .*; fill in a column seconds"
    ):
        token_frontier([priced], amount="seconds")
    with pytest.raises(SamplesError, match="law FLOPs: tree search states costs of its own"):
        grid([pool]).spent("FLOPs")
    with pytest.raises(SamplesError, match=r"own\.csv\): its own costs are of whole samples"):
        grid([pool], caps=[10])
    named = read_all([write_methods(tmp_path / "named.csv", cost=1, model="Qwen/Qwen3-8B", tokens=9)])
    assert named[0].model == "Qwen/Qwen3-8B (tree search)"
    for columns, says in (({"cost": -1}, "cost cannot be '-1'"), ({"seconds": "x"}, "seconds cannot be 'x'")):
        with pytest.raises(SamplesError, match=f"line 2: {says}"):
            read_all([write_methods(tmp_path / "bad.csv", **columns)])
    with pytest.raises(SamplesError, match="no column tokens"):
        read_all([write_methods(tmp_path / "bare.csv")])


def test_seconds_of_a_run_s_records_are_no_costs_of_samples(tmp_path):
    record = {"problem": "a", "sample": 0, "seed": 0, "prompt_tokens": 9, "output_tokens": [1, 2], "text": "",
              "finish_reason": "stop", "correct": True, "answer": "1", "grader": "ok", "seconds": 0.5}  # fmt: skip
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(record) + "\n")
    (run,) = read_all([path], model="4B", attention="dense")
    assert run.own == {}
