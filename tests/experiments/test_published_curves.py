"""experiments/figures/published_curves.py: its numbers on curves drawn by hand and on the published ones, and the chain
from traces to curves against the published formulas, written out here.
"""

import json

import numpy as np
import pandas as pd
import published_curves
import pytest
from paper_figures import published
from paths import ROOT, SHARED
from tokenizers import Tokenizer, models, pre_tokenizers

from kinetics_jax.analysis.paper_traces import parse_trace
from kinetics_jax.analysis.readers import read_all, read_trace_rows
from kinetics_jax.analysis.samples import pooled
from kinetics_jax.analysis.trace_grading import grade_cut_texts

CURVES = SHARED / "public" / "kinetics_published_curves" / "aime24_longcot_oracle_topk.csv"
RESULTS = ROOT / "experiments" / "results" / "published_curves.json"
PAGE = ROOT / "docs" / "results" / "figures.md"

COSTS = [10.0, 20.0, 40.0, 80.0]
BY_HAND = {  # accuracies at COSTS
    ("0.6B", "dense"): [0.0, 0.1, 0.2, 0.2],
    ("4B", "dense"): [0.0, 0.0, 0.1, 0.6],
    ("0.6B", "oracle_topk"): [0.2, 0.2, 0.2, 0.2],
    ("4B", "oracle_topk"): [0.1, 0.6, 0.7, 0.7],
}


def table_of(curves, costs=COSTS):
    return pd.DataFrame(
        [(model, kind, cost, y) for (model, kind), ys in curves.items() for cost, y in zip(costs, ys, strict=True)],
        columns=published.COLUMNS,
    )


def test_numbers_of_curves_drawn_by_hand():
    numbers = published.headline(table_of(BY_HAND))
    assert numbers["paper_gain"] == pytest.approx(0.5)  # at 20: 0.6 less 0.1, and at 40: 0.7 less 0.2
    assert numbers["paper_gain_b200_seconds"] * 4500 == pytest.approx(20)
    assert (numbers["dense_best"], numbers["sparse_best"]) == (0.6, 0.7)
    assert numbers["saving_at_dense_best"] == pytest.approx(4)  # 80 against 20
    rows = published.switches(table_of(BY_HAND))
    assert [tuple(row) for row in rows[["attention", "model"]].to_numpy()] == [
        ("dense", "0.6B"), ("dense", "4B"), ("oracle_topk", "0.6B"), ("oracle_topk", "4B")
    ]  # fmt: skip
    np.testing.assert_allclose(rows["b200_seconds"] * 4500, [20, 80, 10, 20])


def test_no_saving_where_sparse_attention_never_gets_there():
    worse = {key: [y / 10 for y in ys] if key[1] == "oracle_topk" else ys for key, ys in BY_HAND.items()}
    assert "saving_at_dense_best" not in published.headline(table_of(worse))


@pytest.mark.skipif(not CURVES.exists(), reason="../shared/data/public/kinetics_published_curves is not there")
def test_the_published_curves(tmp_path, capsys):
    out = tmp_path / "numbers.json"
    published_curves.main([str(CURVES), "--out", str(tmp_path), "--results", str(out), "--json"])
    printed = json.loads(capsys.readouterr().out)
    (numbers,) = printed["numbers"]
    assert 100 * numbers["paper_gain"] == pytest.approx(54.7, abs=0.05)
    assert numbers["paper_gain_b200_seconds"] == pytest.approx(0.11, abs=0.0005)
    assert numbers["saving_at_dense_best"] == pytest.approx(10.7, abs=0.05)
    assert len(printed["curves"]) == 1200
    recorded, now = (json.loads(path.read_text()) for path in (RESULTS, out))
    assert recorded["numbers"] == pytest.approx(now["numbers"], rel=1e-9)
    assert [row["model"] for row in recorded["switches"]] == [row["model"] for row in now["switches"]]
    assert (tmp_path / "published_curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_has_the_recorded_numbers():
    numbers, page = json.loads(RESULTS.read_text())["numbers"], " ".join(PAGE.read_text(encoding="utf-8").split())
    assert f"{100 * numbers['paper_gain']:.1f} points at {numbers['paper_gain_b200_seconds']:.2f} B200-seconds" in page
    assert f"{numbers['saving_at_dense_best']:.1f} times cheaper" in page
    assert f"dense attention's best ({100 * numbers['dense_best']:.1f} %)" in page


QUESTIONS = {"how many": 2, "how many of those": 4}  # and their words
SIZES = {"0.6B": (0.752e9, 28, 16, 8), "4B": (4.02e9, 36, 32, 8)}  # P as published, layers, heads, KV heads
METHODS = {"dense": {"attn_local": None}, "topk": {"attn_local": 0, "attn_topk": 256}}


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    """Published files of two sizes and both kinds, their cut texts graded; and of every sample, by (size, method,
    question), its length and the places of its boxes, each right or wrong.
    """
    root, rng = tmp_path_factory.mktemp("traces"), np.random.default_rng(3)
    words = ["so", "\\boxed{3}", "\\boxed{4}", "?", *{word for question in QUESTIONS for word in question.split()}]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save(str(root / "tokenizer.json"))
    known = {}
    for size in SIZES:
        for method, line in METHODS.items():
            rows = []
            for question in QUESTIONS:
                samples = known[size, method, question] = []
                for _ in range(3):
                    length = int(rng.integers(1500, 9000))
                    places = sorted(int(at) for at in rng.integers(500, length, 2))
                    boxes = [(at, bool(rng.random() < 0.6)) for at in places]
                    text = ["so"] * length
                    for at, right in boxes:
                        text[at] = words[1] if right else words[2]
                    samples.append((length, dict(boxes)))
                    score = 100 * dict(boxes)[places[-1]]
                    rows.append({"query": question, "choices": ["3"], "prediction": [" ".join(text)], "score": score})
            folder = root / "AIME24" / method
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"aime24_qwen3-{size.lower().replace('.', '-')}_{method}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in [{**line, "task": "builtin"}, *rows]))
            trace = parse_trace(path, read_trace_rows(path))
            grade_cut_texts(trace, published.CAPS, tokenizer=root / "tokenizer.json", workers=1)
    return root, known


def published_cost(size, method, context, length):
    """Tera-eFLOPs of one sample by the published code's formulas at 562.5 FLOP/byte."""
    parameters, layers, heads, kv_heads = SIZES[size]
    kept = (2 * context + length) * length  # twice the tokens attended to
    if method == "topk":
        kept = 2 * (256 * length + 0.5 * max(0, 256 - context) ** 2)
    compute = 2 * parameters * length + 2 * kept * heads * 128 * layers
    return (compute + 562.5 * 2 * kept * kv_heads * 128 * layers) * 1e-12


def curve_by_hand(known, size, method, costs):
    """For every problem the best cap within a cost, 0 where there is none; the mean over problems."""
    by_problem = []
    for question, context in QUESTIONS.items():
        options = []
        for cap in published.CAPS:
            samples = known[size, method, question]
            right = [([ok for at, ok in sorted(boxes.items()) if at < cap] or [False])[-1] for _, boxes in samples]
            spent = [published_cost(size, method, context, min(length, cap)) for length, _ in samples]
            options.append((np.mean(spent), np.mean(right)))
        by_problem.append([max((y for cost, y in options if cost <= limit), default=0.0) for limit in costs])
    return np.mean(by_problem, axis=0)


def test_curves_of_traces_are_the_published_rule(traces):
    """Costs, cut grades, the choice for every problem, the running mean and the layout, all at once."""
    root, known = traces
    costs = np.geomspace(5, 4000, 40)
    points = {(size, kind): costs for size in SIZES for kind in published.KINDS}
    pools = pooled(read_all([root / "AIME24"], bare_questions=True))
    found = published.curves_of_traces(pools, points, smooth=1)
    smooth = published.curves_of_traces(pools, points)
    for size in SIZES:
        for kind, method in zip(published.KINDS, METHODS, strict=True):
            expected = curve_by_hand(known, size, method, costs)
            chosen = (found["model"] == size) & (found["attention"] == kind)
            np.testing.assert_allclose(found[chosen]["accuracy"], expected, atol=1e-12)
            assert len(set(expected)) >= 3
            ends = np.concatenate([expected[:1], expected, expected[-1:]])
            means = (ends[:-2] + ends[1:-1] + ends[2:]) / 3
            np.testing.assert_allclose(smooth[chosen]["accuracy"], means, atol=1e-12)


def test_traces_beside_the_published_curves(traces, tmp_path, capsys):
    """The published file made from the same rule: no deviation but the one put in."""
    root, known = traces
    costs = np.geomspace(5, 4000, 30)
    curves = {
        (s, k): curve_by_hand(known, s, m, costs) for s in SIZES for k, m in zip(published.KINDS, METHODS, strict=True)
    }
    curves["4B", "dense"][7] += 0.25
    table_of(curves, costs).to_csv(tmp_path / "curves.csv", index=False)
    asked = [str(tmp_path / "curves.csv"), str(root / "AIME24"), "--smooth", "1", "--out", str(tmp_path)]
    published_curves.main([*asked, "--json"])
    rows = json.loads(capsys.readouterr().out)["deviations"]
    assert (rows[0]["model"], rows[0]["attention"], rows[0]["largest"]) == ("4B", "dense", pytest.approx(-0.25))
    assert rows[0]["tera_eflops"] == pytest.approx(costs[7])
    assert all(abs(row["largest"]) < 1e-9 for row in rows[1:])


def test_prompts_are_bare_as_the_published_code_prices_them(traces):
    root, _ = traces
    bare, whole = (read_all([root / "AIME24" / "dense"], bare_questions=flag) for flag in (True, False))
    assert sorted(set(bare[0].prompt_tokens)) == [2, 4]
    assert sorted(set(whole[0].prompt_tokens)) == [82, 84]


def test_what_the_tokens_around_a_question_cost():
    """The bounds that docs/economics.md states, for samples of 2048 tokens."""
    from kinetics_jax.config import ModelConfig
    from kinetics_jax.costs.cost import generation_cost

    case = {"output_tokens": 2048, "convention": "upstream", "hardware": "b200-fp8"}
    question = np.arange(20, 300, 20)
    most = np.zeros(2)
    for size in ("0.6B", "1.7B", "4B", "8B", "14B", "32B"):
        bare, whole = (
            generation_cost(ModelConfig.named(size), prompt_tokens=n, **case) for n in (question, question + 80)
        )
        np.testing.assert_allclose(whole.memory / bare.memory, (2 * question + 160 + 2048) / (2 * question + 2048))
        apart = [np.max(getattr(whole, part) / getattr(bare, part)) - 1 for part in ("compute", "memory")]
        most = np.maximum(most, apart)
    assert most[0] <= 0.011
    assert most[1] <= 160 / 2048
    page = (ROOT / "docs" / "economics.md").read_text(encoding="utf-8")
    assert "compute up to 1.1 % and memory up\nto 7.8 % less" in page


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no such file"),
        ("model,attention,accuracy\n0.6B,dense,0\n", "no column tera_eflops"),
        ("model,attention,tera_eflops,accuracy\n0.6B,local,1,0\n", "attention 'local' is none of"),
        ("model,attention,tera_eflops,accuracy\n0.6B,dense,1,0\n", "holds no curve of oracle_topk"),
        ("model,attention,tera_eflops,accuracy\n0.6B,dense,1,0\n0.6B,oracle_topk,-1,0\n", "line 3: a cost above 0"),
        ("model,attention,tera_eflops,accuracy\n0.6B,dense,x,0\n0.6B,oracle_topk,1,0\n", "must be numbers"),
        ("model,attention,tera_eflops,accuracy\n7B,dense,1,0\n7B,oracle_topk,1,0\n", "no published model named '7B'"),
    ],
)  # fmt: skip
def test_what_is_no_table_of_curves_is_one_line(tmp_path, capsys, text, says):
    path = tmp_path / "curves.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as stopped:
        published_curves.main([str(path), "--out", str(tmp_path)])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
