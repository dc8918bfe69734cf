"""experiments/figures: the numbers behind every figure, on small made-up samples and on costs."""

import json
from pathlib import Path

import figure_1a
import figure_1b
import figure_3
import figure_4
import figure_5
import figure_6
import figure_7
import figure_8
import figure_9
import figure_14
import numpy as np
import pandas as pd
import pytest
from paper_figures import frontiers, sparse_gain, tradeoff

from kinetics_jax.analysis import grid
from kinetics_jax.analysis.readers import read_all
from kinetics_jax.analysis.samples import pooled
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.cost import generation_cost
from kinetics_jax.costs.hardware import hardware

PNG = b"\x89PNG\r\n\x1a\n"
LARGEST_PNG = 300_000


def is_figure(path: Path) -> bool:
    data = path.read_bytes()
    return data.startswith(PNG) and 5_000 < len(data) < LARGEST_PNG


def test_figure_3_attention_outweighs_parameters(tmp_path, capsys):
    figure_3.main(["--out", str(tmp_path)])
    assert "figure_3_ratio.csv" in capsys.readouterr().out
    assert is_figure(tmp_path / "figure_3.png")
    ratio = pd.read_csv(tmp_path / "figure_3_ratio.csv")
    assert list(ratio.columns) == ["model", "parameters", "output_tokens", "phi", "weights"]
    for _, rows in ratio.groupby("model"):
        assert (np.diff(rows["phi"]) > 0).all()
    at = ratio[ratio["output_tokens"] == 4096].sort_values(by="parameters")
    assert (np.diff(at["phi"]) < 0).all()  # the smaller the model, the more of its cost is attention
    assert at["phi"].iloc[0] > 100
    memory = pd.read_csv(tmp_path / "figure_3_kv_memory.csv")
    assert 32768 * memory["kv_bytes_per_token"].max() == 8 * 2**30  # the published 8 GiB of 32B at 32K tokens
    assert 0 < memory["exponent"].iloc[0] < 0.25


@pytest.mark.parametrize(("law", "costs"), [("FLOPs", [7.0, 900.0]), ("eFLOPs", [50.0, 2e4])])
def test_figure_3_affordable_lengths_are_the_last_that_fit(law, costs):
    model = ModelConfig.named("4B")
    how = {"prompt": 100, "convention": "traffic", "chip": hardware("h100")}
    table = figure_3.affordable([model], costs, law, **how)
    for cost, tokens in zip(table["cost"], table["output_tokens"], strict=True):
        here, beyond = (
            generation_cost(model, prompt_tokens=100, output_tokens=n, hardware="h100") for n in (tokens, tokens + 1)
        )
        if law == "FLOPs":
            assert here.compute <= cost < beyond.compute
        else:
            assert here.total <= cost < beyond.total
    assert figure_3.affordable([model], [1e-9], law, **how)["output_tokens"].iloc[0] == 0


def test_figure_9_pages_and_budgets(tmp_path):
    figure_9.main(["--out", str(tmp_path), "--output", "4096"])
    assert is_figure(tmp_path / "figure_9.png")
    table = pd.read_csv(tmp_path / "figure_9_cost.csv")
    parts = ["search", "chosen KV", "parameters"]
    np.testing.assert_allclose(table[parts].sum(axis=1), table["total"])
    assert (table["of_dense"] > 0).all()
    for _, rows in table.groupby("page_size"):
        assert (np.diff(rows["total"]) > 0).all()
        assert rows["search"].nunique() == 1  # the paper charges it on every step, whatever the budget
    for _, rows in table.groupby("budget"):
        np.testing.assert_allclose(rows["search"] * rows["page_size"], (rows["search"] * rows["page_size"]).iloc[0])
    assert table["in_paper"].sum() == 5
    with pytest.raises(SystemExit) as stopped:
        figure_9.main(["--out", str(tmp_path), "--budget", "100"])
    assert stopped.value.code == 2


MODELS = {"Qwen/Qwen3-0.6B": 0.25, "Qwen/Qwen3-4B": 0.55, "Qwen/Qwen3-14B": 0.8}
ATTENTIONS = {"dense": 1.0, "block_topk:budget=1024,page_size=16": 0.9, "block_topk:budget=256,page_size=16": 0.6}


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """A table of made-up samples: larger models and budgets solve more, harder problems take longer."""
    rng = np.random.default_rng(0)
    rows = []
    for model, skill in MODELS.items():
        for attention, kept in ATTENTIONS.items():
            for problem in range(10):
                ease = 1.3 - problem / 10
                for sample in range(8):
                    tokens = int(rng.integers(500, 1500) * (1 + problem))
                    right = rng.random() < min(0.98, skill * kept * ease)
                    rows.append([model, attention, f"p{problem}", sample, 100 + problem, tokens, int(right)])
    names = ["model", "attention", "problem", "sample", "prompt_tokens", "tokens", "correct"]
    path = tmp_path_factory.mktemp("samples") / "table.csv"
    pd.DataFrame(rows, columns=names).to_csv(path, index=False)
    return path


FRONTIER = ["law", "budget", "accuracy", "low", "high", "flops", "eflops", "tokens", "N", "cap", "kv_budget"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [[], ["--best-of-n"]])
def test_figure_1a_in_sample_envelopes_are_monotone(samples, tmp_path, strategy):
    figure_1a.main([str(samples), "--out", str(tmp_path), "--in-sample", *strategy])
    assert is_figure(tmp_path / "figure_1a.png")
    table = pd.read_csv(tmp_path / "figure_1a_frontier.csv")
    assert {*FRONTIER, "model"} <= set(table.columns)
    for _, rows in table.groupby("law"):
        assert (np.diff(rows["accuracy"]) >= -1e-9).all()
        assert (rows["accuracy"] >= rows["low"] - 1e-9).all()
        assert (rows["accuracy"] <= rows["high"] + 1e-9).all()
    kinetics = table[table["law"] == "eFLOPs"]
    assert (kinetics["eflops"] <= kinetics["budget"] * (1 + 1e-9)).all()
    assert (table["flops"] < table["eflops"]).all()
    ratio = pd.read_csv(tmp_path / "figure_1a_ratio.csv")
    assert list(ratio.columns) == ["accuracy", "ratio", "low", "high", "previous", "kinetics", "larger", "weights"]
    assert ratio["larger"].between(0, 1).all()
    assert (ratio["low"] <= ratio["high"]).all()
    by_flops = list(table[table["law"] == "FLOPs"]["model"])
    assert by_flops[0] == "Qwen/Qwen3-0.6B"
    assert len(set(by_flops)) > 1


@pytest.mark.slow
def test_choosing_on_the_scored_samples_flatters(samples, tmp_path):
    top = {}
    for flag in ("--in-sample", None):
        out = tmp_path / str(flag)
        figure_4.main([str(samples), "--out", str(out), *filter(None, [flag])])
        table = pd.read_csv(out / "figure_4.csv")
        most = table[table["N"] == table["N"].max()]  # the halves know N = 4 at most
        assert most["N"].iloc[0] <= (8 if flag else 4)
        fewer = table[(table["law"] == "eFLOPs") & (table["budget"] <= table["budget"].quantile(0.6))]
        top[flag] = fewer["accuracy"].mean()
    assert top["--in-sample"] > top[None]


def test_figure_1b_gain_is_the_largest_difference_of_the_envelopes(samples, tmp_path):
    figure_1b.main([str(samples), "--out", str(tmp_path), "--in-sample", "--sparse", "block_topk", "--paper-gain"])
    assert is_figure(tmp_path / "figure_1b.png")
    table = pd.read_csv(tmp_path / "figure_1b_frontier.csv")
    assert {*FRONTIER, "model", "kind", "chosen"} <= set(table.columns)
    for _, rows in table.groupby(["kind", "model"]):
        assert (np.diff(rows.sort_values(by="budget")["accuracy"]) >= -1e-9).all()
    best = table.groupby(["kind", "budget"])["accuracy"].max().unstack("kind")
    gain = pd.read_csv(tmp_path / "figure_1b_gain.csv").iloc[0]
    assert gain["paper_gain"] == pytest.approx((best["sparse"] - best["dense"]).max())
    assert gain["gain_low"] <= gain["gain"] <= gain["gain_high"]
    assert gain["gain"] == pytest.approx(gain["gain_sparse"] - gain["gain_dense"])
    assert gain["gain"] <= gain["paper_gain"]
    assert gain["gain_dense"] > 0
    assert set(table["weights"]) == {"weights free"}
    assert gain["saving"] > 1  # budgets of 256 and 1024 tokens against thousands


@pytest.mark.slow
@pytest.mark.parametrize(("script", "columns"), [(figure_6, ["tokens", "N", "kv_budget"]), (figure_7, ["tokens"])])
def test_figures_6_and_7_fit_what_grows(samples, tmp_path, script, columns):
    script.main([str(samples), "--out", str(tmp_path), "--in-sample"])
    name = script.__name__
    assert is_figure(tmp_path / f"{name}.png")
    laws = pd.read_csv(tmp_path / f"{name}_laws.csv").set_index("quantity")
    table = pd.read_csv(tmp_path / f"{name}_frontier.csv")
    assert set(table["model"]) == {"Qwen/Qwen3-14B"}
    assert table["kv_budget"].dropna().between(256, 1024).all()
    used = table[table["fitted"]]
    for column in columns:
        law = laws.loc[column]
        assert law["low"] <= law["exponent"] <= law["high"]
        x, y = np.log(used["eflops"]), np.log(used[column])
        np.testing.assert_allclose(law["exponent"], np.polyfit(x, y, 1)[0], rtol=1e-6)


def test_a_power_law_is_found_again():
    cost = np.geomspace(1, 100, 9)[:, None] * np.linspace(0.5, 1.5, 6)
    nothing = np.full_like(cost, np.nan)
    curve = frontiers.Curve(cost, cost, cost, 3 * np.broadcast_to(cost.mean(1, keepdims=True) ** 0.7, cost.shape),
                            {"N": nothing, "kv_budget": nothing})  # fmt: skip
    laws = tradeoff.power_laws(curve, np.ones(9, bool)).set_index("quantity")
    assert laws.loc["tokens", "exponent"] == pytest.approx(0.7)
    assert laws.loc["tokens", "scale"] == pytest.approx(3)


def one_model(prices, lengths, *, dense_right, sparse_right):
    """Grids of Best-of-N, N = 1, of problems of these lengths; a dense and a sparse configuration at these prices a
    token.
    """
    configurations = pd.DataFrame(
        {"model": "m", "parameters": 1.0, "attention": ["dense", "block_topk:budget=64"], "N": 1, "cap": 100}
    )
    cost = np.outer(prices, lengths)
    accuracy = np.array([dense_right, sparse_right], float)
    cells = grid.Grid(configurations, ("a", "b"), accuracy, cost, 0 * cost, np.array([lengths, lengths], float))
    return [frontiers.Split(cells, cells, fixed=False)]


def test_a_gain_is_stated_where_both_sides_afford_a_whole_sample():
    """Dense attention solves 1/2, at 10 a token; sparse attention all, at 1: the gain is 1/2, not 1 where dense cannot
    be run, nor what the shorter problem alone can afford.
    """
    splits = one_model((10, 1), (1, 4), dense_right=[1, 0], sparse_right=[1, 1])
    budgets = np.array([2.0, 5.0, 15.0, 50.0])
    members = {"sparse": np.array([False, True]), "dense": np.array([True, False])}
    assert [sparse_gain.whole_sample(splits, "eFLOPs", members[kind]) for kind in ("sparse", "dense")] == [4, 40]
    sides = {}
    for kind, mine in members.items():
        curve = frontiers.curve(splits, "eFLOPs", budgets, mine, ["N"])
        enough = budgets >= sparse_gain.whole_sample(splits, "eFLOPs", mine)
        sides[kind] = sparse_gain.Side(curve.accuracy, sparse_gain._affordable([curve], enough[None]))
    gains = sparse_gain.gain(budgets, sides)
    assert (gains["gain"], gains["gain_budget"], gains["gain_dense"]) == (0.5, 50, 0.5)
    assert "paper_gain" not in gains
    both = sparse_gain.gain(budgets, sides, unaffordable_as_zero=True)
    assert (both["gain"], both["paper_gain"], both["paper_gain_budget"]) == (0.5, 1, 5)
    never = {**sides, "dense": sparse_gain.Side(sides["dense"].solved, np.full((4, 2), np.nan))}
    assert "gain" not in sparse_gain.gain(budgets, never)


def test_a_model_of_few_samples_limits_no_other(tmp_path):
    """32B has 8 samples in the published files, the others 32: each goes up to its own."""
    rows = [
        [model, "dense", f"p{problem}", sample, 100, 500 + sample, int(sample == count - 1)]
        for model, count in (("Qwen/Qwen3-0.6B", 16), ("Qwen/Qwen3-32B", 4))
        for problem in range(3)
        for sample in range(count)
    ]
    names = ["model", "attention", "problem", "sample", "prompt_tokens", "tokens", "correct"]
    pd.DataFrame(rows, columns=names).to_csv(tmp_path / "t.csv", index=False)
    pools = pooled(read_all([tmp_path / "t.csv"]))

    def most(splits):
        return splits[0].select.configurations.groupby("model")["N"].max().to_dict()

    whole = frontiers.best_of_n(pools, frontiers.Choice(in_sample=True), {})
    halves = frontiers.best_of_n(pools, frontiers.Choice(), {})
    assert most(whole) == {"Qwen/Qwen3-0.6B": 16, "Qwen/Qwen3-32B": 4}
    assert most(halves) == {"Qwen/Qwen3-0.6B": 8, "Qwen/Qwen3-32B": 2}
    small = whole[0].select.configurations["model"] == "Qwen/Qwen3-0.6B"
    assert whole[0].select.accuracy[small][-1].tolist() == [1, 1, 1]  # pass@16, one of 16 being right


def test_flags_that_say_nothing_here_are_refused(samples, tmp_path, capsys):
    for flags, says in (
        (["--bare-questions"], "goes with --convention upstream"),
        (["--batch", "8", "--convention", "upstream"], "only the traffic convention knows weights"),
        (["--batch", "some"], "is not fit, none, or a number"),
    ):
        with pytest.raises(SystemExit) as stopped:
            figure_5.main([str(samples), "--out", str(tmp_path), *flags])
        assert stopped.value.code == 2
        assert says in capsys.readouterr().err


def test_figure_8_orders_kinds(samples, tmp_path):
    figure_8.main([str(samples), "--out", str(tmp_path), "--in-sample", "--model", "Qwen/Qwen3-14B"])
    assert is_figure(tmp_path / "figure_8.png")
    table = pd.read_csv(tmp_path / "figure_8.csv")
    assert set(table["kind"]) == {"dense", "block_topk"}
    cheap = table[table["accuracy"] > 0].groupby("kind")["budget"].min()
    assert cheap["block_topk"] < cheap["dense"]


@pytest.mark.slow
def test_figure_14_the_larger_of_both_is_never_dearer(samples, tmp_path):
    figure_14.main([str(samples), "--out", str(tmp_path), "--in-sample"])
    assert is_figure(tmp_path / "figure_14.png")
    table = pd.read_csv(tmp_path / "figure_14_frontier.csv")
    assert set(table["strategy"]) == {"Best-of-N", "Long-CoT"}
    best = table[table["chosen"]]
    for (strategy, kind), rows in best.groupby(["strategy", "kind"]):
        both = {law: mine.sort_values(by="budget") for law, mine in rows.groupby("law")}
        for budget, accuracy in zip(both["eFLOPs"]["budget"], both["eFLOPs"]["accuracy"], strict=True):
            cheaper = both["max"][both["max"]["budget"] <= budget * 1.2]  # its budgets lie elsewhere on the axis
            assert cheaper["accuracy"].max() >= accuracy - 1e-9, (strategy, kind, budget)


def test_a_mistake_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        figure_1b.main([])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "error: no runs named and none in demo/: make them (kinetics demo --out demo), or name runs\n"
    )


def test_json(samples, tmp_path, capsys):
    figure_5.main([str(samples), "--out", str(tmp_path), "--in-sample", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == len(pd.read_csv(tmp_path / "figure_5.csv"))
    assert {*FRONTIER, "model", "chosen"} <= rows[0].keys()


@pytest.mark.slow
def test_the_published_convention_prices_published_models(samples, tmp_path):
    how = ["--in-sample", "--convention", "upstream", "--hardware", "b200-fp8", "--attention", "sparse"]
    figure_5.main([str(samples), "--out", str(tmp_path), *how])
    table = pd.read_csv(tmp_path / "figure_5.csv")
    assert table["kv_budget"].dropna().between(256, 1024).all()
    assert (table["eflops"] >= table["flops"]).all()
