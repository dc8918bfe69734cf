"""`kinetics frontier` in this process, over plain tables; tests/cli/test_cli.py meets it with run folders."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kinetics_jax.analysis.allocation import best_for_all, best_per_problem
from kinetics_jax.analysis.frontier import cost_frontier
from kinetics_jax.analysis.grid import grid
from kinetics_jax.analysis.readers import read_all
from kinetics_jax.analysis.rule_names import WORDS
from kinetics_jax.analysis.samples import SamplesError, pooled
from kinetics_jax.cli.frontier import frontier
from kinetics_jax.cli.sources import Unsaid
from kinetics_jax.costs.hardware import Hardware, save_hardware
from kinetics_jax.errors import UserError

SCRIPT = "from kinetics_jax.cli.main import main\ntry: main()\nfinally: import sys; assert 'jax' not in sys.modules"
BASE = {"hardware": "h200", "as_json": True}


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Two published models, dense and sparse: a table each."""
    folder, rng = tmp_path_factory.mktemp("tables"), np.random.default_rng(0)
    for size, chance in (("0.6B", 0.3), ("4B", 0.6)):
        for attention in ("dense", "block_topk:budget=256,page_size=16"):
            problem = np.repeat(np.arange(8), 6)
            columns = {
                "model": f"Qwen/Qwen3-{size}",
                "attention": attention,
                "problem": problem,
                "sample": np.tile(np.arange(6), 8),
                "prompt_tokens": 100 + problem,
                "tokens": rng.integers(100, 4000, 48),
                "correct": rng.random(48) < chance,
            }
            pd.DataFrame(columns).to_csv(folder / f"{size}-{attention[:5]}.csv", index=False)
    return folder


def printed(capsys, *runs, **arguments):
    frontier(runs, **{**BASE, **arguments})
    return pd.DataFrame(json.loads(capsys.readouterr().out))


def test_bare_questions_go_with_the_published_convention(tables):
    with pytest.raises(UserError, match=r"--bare-questions .* goes with --convention upstream"):
        frontier((tables,), bare_questions=True)


def test_every_configuration(tables, capsys, tmp_path):
    table = printed(capsys, tables, trials=(1, 4), caps=(1000, 4000), csv=tmp_path / "f.csv", figure=tmp_path / "f.png")
    expected = cost_frontier(read_all([tables]), trials=[1, 4], caps=[1000, 4000], hardware="h200")
    pd.testing.assert_frame_equal(table, expected, check_dtype=False)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "f.csv"), expected, check_dtype=False)
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("law", ["eFLOPs", "FLOPs"])
@pytest.mark.parametrize(
    ("how", "axes"), [("best-of-n", {"trials": [1, 2, 4]}), ("long-cot", {"trials": [1], "caps": [900, 2000, 9000]})]
)
def test_allocations(tables, capsys, tmp_path, how, axes, law):
    asked = {"caps": (900, 2000, 9000)} if how == "long-cot" else {}
    limits = (1e-9, 100.0, 200.0, 1e9)
    table = printed(capsys, tables, allocate=how, limits=limits, law=law, figure=tmp_path / "a.png", **asked)
    cells = grid(pooled(read_all([tables])), hardware="h200", **axes)
    assert list(table["choice"]) == ["per_problem"] * 4 + ["for_all"] * 4
    assert list(table["limit"]) == [*limits, *limits]
    for choice, rule in (("per_problem", best_per_problem), ("for_all", best_for_all)):
        rows, best = table[table["choice"] == choice], rule(cells, limits, law=law)
        np.testing.assert_allclose(rows["accuracy"][1:], best.accuracy.mean(axis=1)[1:])
        np.testing.assert_allclose(rows["cost"][1:], best.cost.mean(axis=1)[1:])
    nothing = [True, False, False, False] * 2
    assert table["model"].isna().tolist() == nothing
    assert (table["note"] == "cannot be afforded").tolist() == nothing
    assert table[["accuracy", "low", "high", "cost"]].isna().all(axis=1).tolist() == nothing
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_limits_are_found(tables, capsys):
    table = printed(capsys, tables, allocate="long-cot")
    assert len(table) == 48
    first = table["accuracy"].isna() & (table["note"] == "cannot be afforded")
    assert (table["accuracy"].isna() == first).all()
    accuracy = table["accuracy"].fillna(0).to_numpy().reshape(2, 24)
    assert (np.diff(accuracy, axis=1) >= -1e-12).all()
    assert accuracy[0, -1] >= accuracy[1, -1]


def test_honest(tables, capsys, tmp_path):
    arguments = {"allocate": "best-of-n", "honest": True, "splits": 2, "limits": (50.0, 1e9)}
    table = printed(capsys, tables, figure=tmp_path / "h.png", **arguments)
    assert set(table["choice"]) == {"per_problem", "for_all"}
    assert (table["optimism"] > -0.2).all()
    assert table["optimism"][1] > 0
    assert (tmp_path / "h.png").stat().st_size > 5000


def test_adaptive(tables, capsys):
    table = printed(capsys, tables, allocate="adaptive", trials=(4,), wave=2, probe=2)
    assert list(table["N"]) == [4] * 4
    assert (table["samples"] <= 4).all()
    assert (table["saved"] > 0).all()


def test_files_that_do_not_say_their_model(tables, capsys, tmp_path):
    whole = pd.read_csv(next(tables.glob("4B-dense.csv"))).drop(columns=["model", "attention"])
    whole.to_csv(tmp_path / "t.csv", index=False)
    named = printed(capsys, tmp_path / "t.csv", unsaid=Unsaid(model="Qwen/Qwen3-4B", attention="token_topk:budget=256"))
    assert set(named["attention"]) == {"token_topk:budget=256"}
    shape = {
        "model_type": "qwen3", "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
        "max_position_embeddings": 4096, "tie_word_embeddings": True,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(shape))
    own = printed(capsys, tmp_path / "t.csv", unsaid=Unsaid(model="mine", config=(str(tmp_path),)))
    assert set(own["model"]) == {"mine"}
    assert own["cost"][0] < named["cost"][0] / 100
    with pytest.raises(SamplesError, match="architecture is not known"):
        printed(capsys, tmp_path / "t.csv", unsaid=Unsaid(model="mine"))
    (tmp_path / "two.csv").write_text(
        "problem,sample,tokens,correct,model\na,0,100,1,one\na,1,200,0,one\na,0,50,1,two\na,1,50,1,two\n"
    )
    with pytest.raises(SamplesError, match=r"prompt token counts are missing .*--prompt-tokens N"):
        printed(capsys, tmp_path / "two.csv", unsaid=Unsaid(config=(f"one={tmp_path}", f"two={tmp_path}")))
    both = Unsaid(config=(f"one={tmp_path}", f"two={tmp_path}"), prompt_tokens=9)
    assert list(printed(capsys, tmp_path / "two.csv", unsaid=both)["accuracy"]) == [0.5, 1, 1, 1]
    with pytest.raises(SamplesError, match=r"architecture is not known, .*--against tokens"):
        printed(capsys, tmp_path / "two.csv")
    tokens = printed(capsys, tmp_path / "two.csv", against="tokens")
    assert list(tokens["tokens"]) == [150, 300, 50, 100]
    assert list(tokens["on_frontier"]) == [False, False, True, False]
    with pytest.raises(UserError, match="names each"):
        printed(capsys, tmp_path / "two.csv", unsaid=Unsaid(config=(f"one={tmp_path}", str(tmp_path))))


@pytest.fixture(scope="module")
def voted(tmp_path_factory):
    """One model, its answers and a verifier's scores; and a method with costs and seconds of its own."""
    folder, rng = tmp_path_factory.mktemp("voted"), np.random.default_rng(1)
    problem, sample = np.repeat(np.arange(8), 4), np.tile(np.arange(4), 8)
    answer = rng.choice(["4", "4", "7", "5"], 32)
    columns = {"problem": problem, "sample": sample, "answer": answer, "correct": answer == "4"}
    model = {"model": "Qwen/Qwen3-4B", "prompt_tokens": 100, "tokens": 900, "score": rng.random(32)}
    pd.DataFrame(columns | model).to_csv(folder / "model.csv", index=False)
    own = {"method": "tree search", "cost": 20.0, "seconds": 1.5}
    pd.DataFrame(columns | own).to_csv(folder / "own.csv", index=False)
    return folder


def test_rules_reach_tables_files_and_figures(voted, capsys, tmp_path):
    tables = {}
    for rule in ("pass", "majority", "weighted", "best-of-verifier", "average"):
        arguments = {"rule": rule, "csv": tmp_path / f"{rule}.csv", "figure": tmp_path / f"{rule}.png"}
        frontier((voted / "model.csv",), **BASE, **arguments)
        said = capsys.readouterr()
        assert f"kinetics: Accuracy is {WORDS[rule]}" in said.err
        tables[rule] = pd.DataFrame(json.loads(said.out))
        assert {"N", "accuracy", "low", "high", "cost", "rule"} <= set(tables[rule])
        assert set(pd.read_csv(tmp_path / f"{rule}.csv")["rule"]) == {rule}
        assert (tmp_path / f"{rule}.png").stat().st_size > 5000
    np.testing.assert_allclose(tables["majority"]["accuracy"], tables["pass"]["majority"])
    np.testing.assert_allclose(tables["weighted"]["accuracy"], tables["pass"]["weighted_vote"])
    np.testing.assert_allclose(tables["best-of-verifier"]["accuracy"], tables["pass"]["best_score"])
    assert tables["average"]["accuracy"].nunique() == 1
    with pytest.raises(SamplesError, match=r"tree search dense \(.*own\.csv\): no best score, since no verifier"):
        frontier((voted,), **BASE, rule="best-of-verifier")


def test_own_costs_and_seconds(voted, capsys):
    frontier((voted,), **BASE, trials=(2,), rule="majority")
    said = capsys.readouterr()
    assert "kinetics: tree search dense: costs are the column cost of the samples" in said.err
    assert [row["cost"] for row in json.loads(said.out)][1] == 40
    assert [row["compute"] is None for row in json.loads(said.out)] == [False, True]
    assert "NaN" not in said.out
    frontier((voted,), hardware="h200", trials=(2,))
    assert "nan" not in capsys.readouterr().out.lower()
    assert list(printed(capsys, voted / "own.csv", against="seconds", trials=(2,))["seconds"]) == [3.0]


def test_own_costs_are_of_all_samples_or_none(voted, capsys, tmp_path):
    table = pd.read_csv(voted / "own.csv").assign(model="Qwen/Qwen3-4B", prompt_tokens=100, tokens=900)
    table.loc[3, "cost"] = None
    table.to_csv(tmp_path / "part.csv", index=False)
    with pytest.raises(SamplesError, match="1 of 32 samples state no cost of their own, and the others do; fill in"):
        frontier((tmp_path / "part.csv",), **BASE)


@pytest.mark.parametrize("honest", [False, True])
def test_an_allocation_of_own_costs_counts_no_weights(voted, capsys, honest):
    frontier((voted / "own.csv",), **BASE, allocate="best-of-n", limits=(1e6,), honest=honest)
    said = capsys.readouterr()
    assert {row["batch_rule"] for row in json.loads(said.out)} == {"own"}
    assert "none is computed" in said.err
    assert "weights" not in said.err


def test_samples_that_cost_nothing(voted, capsys, tmp_path):
    pd.read_csv(voted / "own.csv").assign(cost=0.0).to_csv(tmp_path / "free.csv", index=False)
    table = printed(capsys, tmp_path / "free.csv", allocate="adaptive")
    assert set(table["saved"]) == {0}
    with pytest.raises(SamplesError, match="all configurations cost 0"):
        frontier((tmp_path / "free.csv",), **BASE, allocate="best-of-n")
    costs = pd.read_csv(voted / "own.csv")
    costs.assign(cost=np.where(costs["problem"] == 0, 0.0, costs["cost"])).to_csv(tmp_path / "some.csv", index=False)
    assert printed(capsys, tmp_path / "some.csv", allocate="best-of-n")["limit"].min() == 20


def test_what_cannot_be_afforded_has_no_number(voted, capsys):
    frontier((voted / "model.csv",), hardware="h200", allocate="best-of-n", limits=(1e-6, 1e6))
    text = capsys.readouterr().out
    lines = [line for line in text.splitlines() if "cannot be afforded" in line]
    assert [line.split() for line in lines] == [
        ["1e-06", "cannot", "be", "afforded", choice, "pass", "0", "fit", "0"] for choice in ("per_problem", "for_all")
    ]
    assert "nan" not in text.lower()


def test_communication_has_a_column_on_several_chips(voted, capsys, tmp_path):
    assert "communication" not in printed(capsys, voted / "model.csv", trials=(1,))
    (row,) = printed(capsys, voted / "model.csv", trials=(1,), chips=2).to_dict("records")
    assert row["communication"] > 0
    assert row["cost"] == pytest.approx(row["compute"] + row["memory"] + row["communication"])
    save_hardware(tmp_path / "alone.json", Hardware("alone", 1e14, 1e12, 5e10))
    alone = tmp_path / "alone.json"
    (row,) = printed(capsys, voted / "model.csv", trials=(1,), chips=2, hardware=str(alone)).to_dict("records")
    assert row["communication"] is None  # not known, and not zero
    save_hardware(tmp_path / "small.json", Hardware("small", 1e14, 1e12, 5e9))
    (row,) = printed(capsys, voted / "model.csv", trials=(1,), hardware=str(tmp_path / "small.json")).to_dict("records")
    assert row["cost"] is row["cost_without_weights"] is None
    assert row["no_cost"] == "not one sequence fits beside the weights"


def test_what_the_summary_tells(capsys, tmp_path):
    """Samples that were cut, and undecided ones that are left out."""
    path = tmp_path / "t.csv"
    rows = ["problem,sample,tokens,correct,model,prompt_tokens,finish_reason,max_tokens"]
    rows += [f"{p},{s},24,1,4B,9,{'nonfinite' if (p, s) == ('a', 0) else 'length'},24" for p in "ab" for s in range(2)]
    path.write_text("\n".join(rows) + "\n")
    frontier((path,), as_json=True)
    out, err = capsys.readouterr()
    assert "kinetics: Qwen/Qwen3-4B dense: 3 of 4 cut at max_tokens (24), 1 of 4 with logits that are not finite" in err
    assert [row["undecided"] for row in json.loads(out)] == [1, 1]
    assert json.loads(out)[0]["accuracy"] == 0.75
    frontier((path,), unsaid=Unsaid(undecided="drop"), as_json=True)
    assert [(row["accuracy"], row["dropped"]) for row in json.loads(capsys.readouterr().out)] == [(1, 1)]


@pytest.mark.slow
def test_the_batch_is_asked_for_and_said(tables, capsys, tmp_path):
    fit = printed(capsys, tables, trials=(1,), figure=tmp_path / "f.svg")
    assert "weights shared by the batch that fits" in (tmp_path / "f.svg").read_text()
    assert set(fit["batch_rule"]) == {"fit"}
    assert (fit["cost"] > fit["cost_without_weights"]).all()
    assert (fit["cost_full"] > fit["cost"]).all()
    for batch, chips, says in (
        (None, 1, "costs: weights shared by the batch that fits 1 x h200 on average"),
        ("fit", 4, "costs: weights shared by the batch that fits 4 x h200 on average"),
        ("8", 1, "costs: weights shared by a batch of 8"),
        ("none", 1, "costs: weights left out, as if endlessly many sequences shared their reads"),
    ):
        frontier((tables,), **BASE, trials=(1,), batch=batch, chips=chips)
        out, err = capsys.readouterr()
        assert f"kinetics: {says}\n" in err
        rows = pd.DataFrame(json.loads(out))
        pools = pooled(read_all([tables]))
        given = {"batch": {"none": None, "8": 8}.get(batch, "fit")}
        expected = grid(pools, trials=[1], hardware="h200", chips=chips, **given)
        np.testing.assert_allclose(rows["cost"], expected.cost.mean(axis=1))
    wide = printed(capsys, tables, trials=(1,), batch="8", kv_dtype="float32", weight_dtype="float32")
    narrow = printed(capsys, tables, trials=(1,), batch="8")
    np.testing.assert_allclose(wide["memory"], 2 * narrow["memory"])


def test_the_types_of_cache_and_weights_may_stand_in_a_table(tables, capsys, tmp_path):
    source = pd.read_csv(next(tables.glob("4B-dense*.csv")))
    costs = []
    for types in ({}, {"dtype": "float32"}, {"dtype": "float32", "kv_dtype": "float8", "weight_dtype": "int8"}):
        source.assign(**types).to_csv(tmp_path / "t.csv", index=False)
        costs.append(printed(capsys, tmp_path / "t.csv", trials=(1,), batch="8")["memory"].iloc[0])
    np.testing.assert_allclose(np.array(costs) / costs[0], [1, 2, 0.5])
    source.assign(dtype="float7").to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(UserError, match=r"the run's dtype 'float7' is not one of .*; give --kv-dtype"):
        printed(capsys, tmp_path / "t.csv")
    asked = printed(capsys, tmp_path / "t.csv", trials=(1,), batch="8", kv_dtype="bfloat16", weight_dtype="bfloat16")
    assert asked["memory"].iloc[0] == pytest.approx(costs[0])


@pytest.mark.parametrize("against", ["cost", "tokens"])
def test_a_number_that_is_named_twice_counts_once(tables, capsys, tmp_path, against):
    once, twice = (printed(capsys, tables, trials=trials, against=against) for trials in ((1, 2), (1, 2, 1, 1)))
    pd.testing.assert_frame_equal(once, twice)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"honest": True}, "go with --allocate"),
        ({"limits": (1.0,)}, "go with --allocate"),
        ({"law": "FLOPs"}, "go with --allocate"),
        ({"allocate": "adaptive", "honest": True}, "go with --allocate best-of-n"),
        ({"wave": 2}, "--allocate adaptive"),
        ({"allocate": "best-of-n", "probe": 2}, "--allocate adaptive"),
        ({"allocate": "adaptive", "probe": 2, "rule": "majority"}, "--probe gives up .* a vote does not know"),
        ({"allocate": "best-of-n", "caps": (9,)}, "is about N"),
        ({"allocate": "long-cot", "trials": (2,)}, "N = 1"),
        ({"allocate": "long-cot", "report": "r.html"}, "--report"),
        ({"allocate": "adaptive", "figure": "f.png"}, "draws no figure"),
        ({"caps": (9,), "report": "r.html"}, "leave out"),
        ({"report": "r.txt"}, "must end in .html"),
        ({"report": "r.html"}, "not a run folder"),
        ({"figure": "f.gif"}, "must end in .png"),
        ({"allocate": "best-of-n", "limits": (-1.0,)}, "cost limits must be"),
        ({"allocate": "best-of-n", "honest": True, "splits": 0}, "--splits must be at least 1"),
        ({"trials": (99,)}, "--trials 99: .* has 6 graded samples of a problem, so N is at most 6; give smaller"),
        ({"trials": (99,), "against": "tokens"}, "--trials 99: .* N is at most 6"),
        ({"trials": (99,), "allocate": "best-of-n"}, "--trials 99: .* N is at most 6"),
        ({"trials": (99,), "allocate": "adaptive"}, "--trials 99: .* N is at most 6"),
        ({"caps": (0,)}, "at least 1"),
        ({"batch": "all"}, "--batch must be fit, none, or a number in 1 … 65536, got all"),
        ({"batch": "fit", "convention": "paper"}, "no meaning in the paper convention"),
        ({"batch": "8", "convention": "upstream"}, "no meaning in the upstream convention"),
        ({"chips": 0}, "--chips must be at least 1"),
        ({"chips": 2, "convention": "paper"}, "several chips have a meaning in the traffic convention"),
        ({"chips": 2, "shared_prompt": True}, "shared_prompt is for one chip"),
        ({"against": "tokens", "batch": "8"}, "--against tokens has no caps, batch, chips"),
        ({"against": "tokens", "hardware": "nope"}, "no hardware named 'nope'"),
        ({"against": "tokens", "convention": "nope"}, "convention 'nope' is not known"),
        ({"unsaid": Unsaid(tokenizer=Path("nope"))}, "--tokenizer nope: no such file or directory"),
        ({"against": "seconds"}, "seconds are missing for 8 of 8 problems .* fill in a column seconds"),
        ({"rule": "majority"}, "no majority, since what the samples answered is not known; fill in a column answer"),
        ({"rule": "weighted", "allocate": "best-of-n"}, "no weighted vote, since no verifier scored the samples"),
        ({"rule": "average", "allocate": "adaptive"}, "stops by what is right .--rule pass. or by votes"),
    ],
)
def test_mistakes_are_one_line(tables, tmp_path, arguments, says):
    paths = {name: tmp_path / arguments[name] for name in ("report", "figure") if name in arguments}
    with pytest.raises(UserError, match=says) as caught:
        frontier((tables,), **{**BASE, **arguments, **paths})
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="at least one run folder"):
        frontier(())


def test_a_report_of_a_table_is_refused(tmp_path):
    (tmp_path / "own.csv").write_text("problem,sample,correct,tokens,prompt_tokens\na,0,1,5,3\n")
    with pytest.raises(UserError, match=r"own\.csv: --report is of run folders, and this is a file; take --csv"):
        frontier((tmp_path / "own.csv",), report=tmp_path / "r.html")


@pytest.mark.slow
def test_the_command_line_without_jax(tables, tmp_path):
    line = [sys.executable, "-c", SCRIPT, "frontier", tables, "--caps", "900", "9000", "--trials", "1", "4"]
    done = subprocess.run([*map(str, line), "--json"], capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout)
    longest = rows[2]["cap"]
    assert [(row["cap"], row["N"]) for row in rows[:4]] == [(900, 1), (900, 4), (longest, 1), (longest, 4)]
    save_hardware(tmp_path / "small.json", Hardware("small", 1e14, 1e12, 5e9))
    line = [*line[:5], "--hardware", tmp_path / "small.json", "--allocate", "best-of-n", "--honest", "--splits", "2"]
    done = subprocess.run([*map(str, line)], capture_output=True, text=True, check=True)
    assert done.stderr.count("Qwen/Qwen3-4B dense: not one sequence") == 1  # of every half and every grid
    refused = subprocess.run([*map(str, line[:4]), "--honest"], capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
