"""experiments/selection_quality.py: the masked forward is decoding; mass and perplexity mean what they say."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import selection_quality
from paths import ROOT
from selection import drawing, measure, summary, texts
from selection.forward import decode, go_on, log_likelihoods, merged, random_draws, read_prefix
from selection.mass import attention_mass
from selection.records import Records
from tiny import tiny_config, write_checkpoint

import kinetics_jax as kj
from kinetics_jax.attention.causal import causal_attention
from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.random_blocks import random_scores
from kinetics_jax.engine.sampling import seed_key
from kinetics_jax.errors import UserError

pytestmark = pytest.mark.slow

PREFIX, TIME, SIZE = 45, 20, 4
TEXT = np.random.default_rng(3).integers(4, 131, PREFIX + TIME + 1).tolist()
INPUTS, TARGETS = np.array([TEXT[PREFIX:-1]]), np.array(TEXT[PREFIX + 1 :])
BUDGETS = (12, 20)
EVERYTHING = 68


def policies(budget: int) -> list[AttentionPolicy]:
    blocks = {"budget": budget, "page_size": SIZE, "dense_layers": (0,)}
    return [
        *(kj.BlockTopK(**blocks, summary=summary) for summary in ("mean", "min_max", "mean_std")),
        kj.RandomBlocks(**blocks),
        kj.SlidingWindow(budget=budget),
        kj.TokenTopK(budget=budget),
    ]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    config = tiny_config(num_hidden_layers=2)
    return kj.load(write_checkpoint(tmp_path_factory.mktemp("tiny"), config, seed=8), dtype="float32")


@pytest.fixture(scope="module")
def model(lm):
    return merged(lm)


@pytest.fixture(scope="module")
def prefix(model):
    return read_prefix(model, TEXT[:PREFIX])


@pytest.fixture(scope="module")
def draws(lm):
    return list(random_draws(lm.config, seed_key(5), PREFIX, 1, TIME, SIZE))


@pytest.fixture(scope="module")
def dense_nll(model, prefix):
    return -log_likelihoods(model.logits(go_on(model, prefix, INPUTS, kj.Dense())[0]), TARGETS)[0]


@pytest.mark.parametrize("policy", [kj.Dense(), *policies(20)], ids=str)
def test_the_masked_forward_is_decoding(lm, model, prefix, draws, dense_nll, policy):
    """Logits and perplexity equal those of the engine's prefill and decode step, to rounding."""
    hidden = go_on(model, prefix, INPUTS, policy, draws)[0]
    decoded = decode(lm, TEXT[:PREFIX], TEXT[PREFIX:-1], policy, seed_key(5))
    np.testing.assert_allclose(np.asarray(model.logits(hidden)), decoded, rtol=2e-4, atol=2e-4)
    nll = -log_likelihoods(model.logits(hidden), TARGETS)[0]
    expected = -np.asarray(jax.nn.log_softmax(decoded))[np.arange(TIME), TARGETS]
    assert np.exp(nll.mean()) == pytest.approx(np.exp(expected.mean()), rel=1e-4)
    if policy != kj.Dense():
        assert np.abs(nll - dense_nll).max() > 0.05  # the policy matters here


def test_greedy_samples_of_the_engine_are_the_masked_forwards_likeliest_tokens(lm, model, prefix):
    """What a needle counts as found: greedy decoding writes just the tokens that are likeliest behind each other."""
    policy = policies(20)[0]
    sampling = kj.Sampling(temperature=0, max_tokens=TIME)
    sample = lm.generate([TEXT[:PREFIX]], sampling=sampling, attention=policy)[0].output_tokens
    hidden = go_on(model, prefix, np.array([sample[:-1]]), policy)[0]
    _, likeliest = log_likelihoods(model.logits(hidden), np.array(sample[1:]))
    assert likeliest.tolist() == sample[1:]
    assert len(sample) > 5


def test_rows_of_a_batch_do_not_see_each_other_or_what_follows(model, prefix):
    policy = policies(12)[1]
    rows = np.random.default_rng(0).integers(4, 131, (3, TIME))
    together = np.asarray(go_on(model, prefix, rows, policy))
    for row in range(3):
        alone = np.concatenate([rows[row, :-6], rows[row, -6:] ^ 1])[None]
        expected = np.asarray(go_on(model, prefix, alone, policy))[0]
        np.testing.assert_allclose(together[row, :-6], expected[:-6], rtol=1e-4, atol=1e-5)
        assert np.abs(together[row, -6:] - expected[-6:]).max() > 0.1


def test_mass(model, prefix, draws):
    """No policy holds more than the bounds of its budget; a budget that holds everything holds all of it."""
    compared = [*policies(BUDGETS[0]), *policies(EVERYTHING)]
    held, hidden = attention_mass(
        model, prefix, INPUTS, compared, (*BUDGETS, EVERYTHING), every=3, draws=draws, page_size=SIZE
    )
    np.testing.assert_array_equal(np.asarray(hidden), np.asarray(go_on(model, prefix, INPUTS, kj.Dense())))
    layers = {name: np.array(masses) for name, masses in held.items()}
    assert {masses.shape for masses in layers.values()} == {(2,)}
    for policy in compared:
        mass = layers[str(policy)]
        if policy.budget == EVERYTHING:
            np.testing.assert_allclose(mass, 1, atol=1e-5)
            continue
        assert (mass < 0.999).all()
        assert (mass <= layers[f"tokens_by_mass:budget={policy.budget}"] + 1e-5).all()
        if isinstance(policy, kj.BlockTopK | kj.RandomBlocks):
            assert (mass <= layers[f"pages_by_mass:budget={policy.budget}"] + 1e-5).all()
    always = layers[f"forced_pages:budget={2 * SIZE}"]
    for policy in compared:
        if isinstance(policy, kj.BlockTopK | kj.RandomBlocks):
            assert (always <= layers[str(policy)] + 1e-5).all()
    assert (always > 0).all()
    for bound in ("tokens", "pages"):
        growing = np.array([layers[f"{bound}_by_mass:budget={budget}"] for budget in BUDGETS])
        assert (np.diff(growing, axis=0) > 0).all()


def test_mass_by_hand(lm, model, prefix, draws):
    """A window's mass, from weights summed one position and head at a time in float64."""
    policy = kj.SlidingWindow(budget=20)
    held, _ = attention_mass(model, prefix, INPUTS, [policy], (20,), every=7, draws=draws, page_size=SIZE)
    seen = {}

    def attend(layer, q, k, v, state):
        seen[layer] = np.asarray(q[0], np.float64), np.asarray(k[0], np.float64)
        return causal_attention(q, k, v), state

    model(jnp.asarray([TEXT[:-1]]), jnp.arange(PREFIX + TIME)[None], attend)
    q, k = seen[1]
    shares, best = [], []
    for position in range(PREFIX + 6, PREFIX + TIME, 7):
        weights = []
        for head in range(4):
            logits = k[: position + 1, head // 2] @ q[position, head] * 8**-0.5
            weights.append(np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum())
            shares.append(weights[-1][:4].sum() + weights[-1][-16:].sum())
        best += [np.sort(sum(weights[2 * group : 2 * group + 2]) / 2)[-20:].sum() for group in range(2)]
    assert held[str(policy)][1] == pytest.approx(np.mean(shares), rel=1e-4)
    assert held["tokens_by_mass:budget=20"][1] == pytest.approx(np.mean(best), rel=1e-4)


@pytest.mark.parametrize("policy", policies(EVERYTHING)[::3] + policies(EVERYTHING)[-1:], ids=str)
def test_a_budget_that_holds_everything_is_dense(model, prefix, draws, dense_nll, policy):
    nll = -log_likelihoods(model.logits(go_on(model, prefix, INPUTS, policy, draws)[0]), TARGETS)[0]
    assert np.exp(nll.mean()) == pytest.approx(np.exp(dense_nll.mean()), rel=1e-5)


def test_records_go_on_where_they_stopped(tmp_path):
    path = tmp_path / "records.jsonl"
    records = Records(path, {"model": "tiny", "budgets": (1, 2)})
    records.add("text", "window0", "dense", nll=1.5)
    with open(path, "a") as file:
        file.write('{"part": "text", "unit": "win')  # killed while it wrote
    again = Records(path, {"model": "tiny", "budgets": [1, 2]})
    assert again.has("text", "window0", "dense")
    assert [record["nll"] for record in again.of_part("text")] == [1.5]
    again.add("text", "window1", "dense", nll=2.0)
    assert [json.loads(line).get("nll") for line in path.read_text().splitlines()] == [None, 1.5, 2.0]
    with pytest.raises(UserError, match="another model"):
        Records(path, {"model": "other", "budgets": [1, 2]})


def test_tables():
    names = ["dense", "block_topk:budget=64,page_size=16", "sliding_window:budget=64"]
    nll = {names[0]: (2.0, 3.0, 2.5), names[1]: (2.1, 3.1, 2.6), names[2]: (2.5, 3.0, 2.5)}
    text = [
        {"part": "text", "unit": f"window{i}", "policy": name, "source": "ab"[i % 2], "nll": nll[name][i]}
        for name in names
        for i in range(3)
    ]
    unread = {"part": "text", "unit": "window3", "policy": "dense", "source": "b", "nll": 9.0}  # by one policy alone
    table = summary.perplexity_table([*text, unread])
    assert table.groupby("source")["windows"].first().to_dict() == {"all": 3, "a": 2, "b": 1}
    whole = table[table["source"] == "all"].set_index("rule")
    assert whole.loc["dense", ["ratio", "perplexity"]].tolist() == pytest.approx([1, np.exp(2.5)], rel=1e-5)
    block = whole.loc["block top-k, mean", ["ratio", "low", "high"]]
    assert block.tolist() == pytest.approx([np.exp(0.1)] * 3, rel=1e-5)
    low, ratio, high = whole.loc["sliding window", ["low", "ratio", "high"]]
    assert [low, ratio, high] == pytest.approx([1, np.exp(0.5 / 3), np.exp(0.5)], rel=1e-5)

    def needle(policy, length, right, unit=0):
        found = {"depths": [0.25, 0.75], "right": right, "log_likelihood": [-1.0, -2.0]}
        return {"part": "needle", "unit": f"haystack{unit}:{length}", "policy": policy, "length": length, **found}

    asked = [needle(names[1], 64, [True, True]), needle(names[1], 128, [True, False])]
    asked += [needle(names[2], 128, [True, True]), needle(names[2], 128, [False, False], unit=1)]  # 1 is not through
    needles = summary.needle_table(asked)
    needles = needles[needles["rule"] == "block top-k, mean"]
    whole = needles[needles["depth"] == -1].set_index("length")
    assert whole["share"].to_dict() == {64: 1, 128: 0.5, -1: 0.5}
    assert whole.loc[128, "low"] < 0.5 < whole.loc[128, "high"]
    deep = needles[(needles["length"] == 128) & (needles["depth"] == 0.75)]
    assert deep["found"].tolist() == [0]

    held = {names[1]: [0.5, 0.6, 0.8], "tokens_by_mass:budget=64": [0.9, 0.9, 0.9]}
    mass = summary.mass_table([{"part": "mass", "unit": "window0", "policy": "all", "held": held}])
    assert mass[(mass["rule"] == "block top-k, mean") & (mass["layer"] == -1)]["mass"].tolist() == pytest.approx([0.7])
    assert isinstance(mass, pd.DataFrame)
    assert set(mass["rule"]) == {"block top-k, mean", "best tokens (bound)"}


def test_windows_stay_where_they_are_when_more_are_asked_for():
    tokens = {"a": list(range(4000)), "b": list(range(5000, 9500))}
    found = [texts.window(tokens, index, 300, 20) for index in range(12)]
    assert [window.source for window in found[:4]] == ["a", "b", "a", "b"]
    for source in "ab":
        starts = sorted(window.start for window in found if window.source == source)
        assert min(np.diff(starts)) > 321  # none overlaps another
    assert all(window.scored[0] == window.prefix[-1] + 1 and len(window.scored) == 21 for window in found)
    with pytest.raises(UserError, match="takes 5021"):
        texts.window(tokens, 0, 5000, 20)


def test_near_verbatim_places_are_passed_over():
    rng = np.random.default_rng(0)
    fresh = rng.integers(0, 9000, 400).tolist()
    assert texts.repeated(fresh, 300) == 0
    assert texts.repeated([*fresh[:300], *fresh[:100]], 300) == 1
    half = texts.repeated([*fresh[:300], *fresh[:50], *fresh[350:400]], 300)
    assert half == pytest.approx(43 / 93)  # runs of 8 within the copied 50
    copied = {"a": [*fresh, *fresh, *rng.integers(0, 9000, 3000).tolist()]}
    assert all(texts.window(copied, index, 300, 20).repeated <= texts.MOST_REPEATED for index in range(6))
    with pytest.raises(UserError, match="0 windows that do not repeat themselves, 1 are asked for"):
        texts.window({"a": fresh[:40] * 100}, 0, 300, 20)


def test_the_random_draws_are_those_of_a_sample(lm):
    """As those of an engine whose sample has the key fold_in(key, row)."""
    key = seed_key(0)
    found = list(random_draws(lm.config, key, 10, 2, 3, SIZE))[1]
    keys = jax.random.fold_in(jax.random.fold_in(key, 1), 3)[None]
    np.testing.assert_array_equal(np.asarray(found[1, 2]), np.asarray(random_scores(keys, 1, 2, 4)[0]))


def test_a_checkpoint_that_is_not_there_is_one_line(tmp_path, monkeypatch, capsys):
    command = ["selection_quality.py", "--records", str(tmp_path / "r"), "--model", str(tmp_path / "none.gguf")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="2"):
        selection_quality.main()
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_the_page_tells_what_was_recorded():
    """The tables of docs/results/selection.md are those of the recorded measurements."""
    lines = (ROOT / "experiments" / "results" / "cpu" / "selection_quality.jsonl").read_text().splitlines()
    page = (ROOT / "docs" / "results" / "selection.md").read_text()
    found = summary.markdown(summary.tables([json.loads(line) for line in lines[1:]]))
    assert len(found) >= 7
    for title, table in found.items():
        assert title in page
        assert table in page, title


def test_policies_from_outside_are_decoded_drawn_and_refused_by_name(lm, model, tmp_path, monkeypatch, capsys):
    """Beside those that are compared anyway; a kind that nobody registered is one line before anything is loaded."""
    more = [kj.parse_policy("litesys_random_tokens:samples=8")]
    assert measure.others((64,), 256, more)[-1:] == more
    rows = [{"rule": rule, "budget": 8 * i} for i, rule in enumerate(["own one", "token top-k", "dense", "own two"])]
    rules = drawing.rules_of(pd.DataFrame(rows))
    assert rules == ["token top-k", "own one", "own two"]
    assert drawing.line("own one", rules)["color"] != drawing.line("own two", rules)["color"]
    command = ["selection_quality.py", "--records", str(tmp_path / "r"), "--attention", "own:budget=8"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="2"):
        selection_quality.main()
    assert "'own' is not known (known: dense, " in capsys.readouterr().err
