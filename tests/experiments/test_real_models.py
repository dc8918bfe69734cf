"""experiments/real_family.py: reading, choosing by both laws, pricing; docs/real_models.md against its JSON."""

import json
import re

import numpy as np
import pytest
import real_family
from paths import ROOT, SHARED
from real_models import laws
from real_models.compare import comparison, rows_of
from real_models.data import FAMILY, DataError, read_family
from real_models.drawing import FIGURES
from real_models.family import QWEN3
from real_models.loops import Texts, loops_summary, read_loops
from real_models.page import fragments
from real_models.pair import pair_summary, read_pair
from real_models.prices import CHIPS, WEIGHTS, batch_of, cells_of
from real_models.pruned import FROM, REQUEST, attended, discarded, priced, pruned_summary, read_pruned

from kinetics_jax.config import PUBLISHED, ModelConfig
from kinetics_jax.costs.batching import room
from kinetics_jax.costs.cost import generation_cost

PUBLIC = SHARED / "public"
needs_data = pytest.mark.skipif(not PUBLIC.exists(), reason="../shared/data/public does not exist")
HEADER = "model,strategy,language,problem,sample,prompt_tokens,tokens,thinking_tokens,correct"


@pytest.fixture(scope="module")
def recorded():
    return json.loads(real_family.RESULTS.read_text(encoding="utf-8"))


def family_rows(strategy="prefix", languages=("en", "fr"), questions=6, models=FAMILY):
    """Texts of which a larger model solves more and a smaller one writes more; French ones are longer."""
    rows = []
    for size, model in enumerate(models):
        for language in languages:
            for question in range(questions):
                tokens = 400 + 100 * question - 50 * size + (30 if language == "fr" else 0)
                right = int(question <= size + 1)
                rows.append(f"{model},{strategy},{language},{question},0,50,{tokens},{tokens - 20},{right}")
    return rows


def write(path, rows, header=HEADER):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


# Reading


def test_a_stratum_is_what_all_models_answered(tmp_path):
    rows = (
        family_rows()
        + family_rows("wait", ("en",))
        + family_rows("system", ("en",), 5)
        + family_rows("system", ("zh",))
    )
    rows = [row for row in rows if not row.startswith("s1.1-3B,system,zh")]
    strata, left_out = read_family(write(tmp_path / "samples.csv", rows))
    assert [(s.name, s.languages, s.questions, s.texts) for s in strata] == [
        ("prefix", ("en", "fr"), 6, 12),
        ("wait", ("en",), 6, 6),
    ]
    assert left_out == [
        "system en: s1.1-3B has 5 of 6, s1.1-7B has 5 of 6, s1.1-14B has 5 of 6, s1.1-32B has 5 of 6",
        "system zh: s1.1-3B has 0 of 6",
    ]
    assert [pool.priced().kv_elements_per_token for pool in strata[0].pools] == [18_432, 28_672, 98_304, 131_072]


@pytest.mark.parametrize(
    ("rows", "header", "said"),
    [
        (family_rows() + family_rows()[:1], HEADER, "s1.1-3B answers question 0 of prefix en twice"),
        (["s1.1-3B,prefix,en,0,0,50,-4,1,1"], HEADER, "line 2: tokens cannot be '-4'"),
        (["s1.1-3B,prefix,en,0,0,50,4,1,maybe"], HEADER, "correct cannot be 'maybe'"),
        (["s1.1-9B,prefix,en,0,0,50,4,1,1"], HEADER, "model cannot be 's1.1-9B'"),
        (family_rows(models=("s1.1-3B",)), HEADER, "no strategy and language that all of"),
        (["s1.1-3B,prefix"], "model,strategy", "has no column language, problem, prompt_tokens"),
        ([], HEADER, "holds no rows"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path, rows, header, said):
    path = write(tmp_path / "samples.csv", rows, header)
    with pytest.raises(DataError, match=re.escape(said)) as caught:
        read_family(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_files_of_a_run_must_agree(tmp_path):
    header = "problem,sample,prompt_tokens,tokens,correct,model,attention"
    cells = [f"p{p},{s},100,{500 + s},1,DeepSeek-R1-Distill-Llama-8B,dense" for p in range(2) for s in range(2)]
    for name in ("kinetics_dense.csv", "kinetics_snapkv.csv"):
        write(tmp_path / name, cells, header)
    rows = [
        f"{run},p{p},{s},{500 + s},2,1,3.5"
        for run in ("dense_kvenv", "snapkv_b256_r05")
        for p in range(2)
        for s in range(2)
    ]
    header = "run,problem,sample,tokens,chunks,correct,seconds"
    write(tmp_path / "samples.csv", rows, header)
    runs = read_pruned(tmp_path)
    np.testing.assert_array_equal(runs["snapkv"].tokens, [[500, 501], [500, 501]])
    assert runs["dense"].seconds.mean() == 3.5
    for broken, said in (
        (rows[:-1], "as many samples"),
        ([*rows[:-1], rows[-1].replace("501", "502")], "differs in samples"),
    ):
        write(tmp_path / "samples.csv", broken, header)
        with pytest.raises(DataError, match=said):
            read_pruned(tmp_path)


def test_a_folder_without_the_files_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        real_family.main([str(tmp_path), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "s1_mgsm/samples.csv: no such file" in said
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="2"):
        real_family.main([str(tmp_path), "--out", str(tmp_path / "file")])
    assert "is a file; --out takes a folder" in capsys.readouterr().err


# Choosing


def naive_cheapest(accuracy, spent, level):
    reached = [i for i in range(len(accuracy)) if accuracy[i] >= level]
    return min(reached, key=lambda i: (spent[i], -accuracy[i]), default=-1)


def naive_within(accuracy, spent, limit, allowed):
    affordable = [i for i in range(len(accuracy)) if spent[i] <= limit and allowed[i]]
    return max(affordable, key=lambda i: (accuracy[i], -spent[i]), default=-1)


def test_the_staircase_is_what_a_search_finds():
    rng = np.random.default_rng(3)
    accuracy, spent = rng.integers(0, 8, (20, 9)) / 8, rng.integers(1, 9, (20, 9)).astype(float)  # with many ties
    levels, limits = np.array([0.1, 0.5, 0.8, 1.1]), np.array([0.5, 2, 5, 9])
    allowed = laws.staircase(accuracy, spent).members()
    found = laws.staircase(accuracy, spent), laws.staircase(accuracy, spent, allowed)
    for draw in range(20):
        a, s = accuracy[draw], spent[draw]
        for level, row in zip(levels, found[0].cheapest(levels)[draw], strict=True):
            best = naive_cheapest(a, s, level)
            assert (row == best == -1) or (s[row] == s[best] and a[row] >= level)
        for limit, row in zip(limits, found[0].within(limits)[draw], strict=True):
            best = naive_within(a, s, limit, np.ones(9, bool))
            assert (row == best == -1) or (a[row], s[row]) == (a[best], s[best])
        for limit, row in zip(limits, found[1].within(limits)[draw], strict=True):
            best = naive_within(a, s, limit, allowed[draw])
            assert (row == best == -1) or (a[row], s[row]) == (a[best], s[best])
        for i in range(9):  # a member is beaten by nothing as cheap
            better = [j for j in range(9) if s[j] <= s[i] and a[j] > a[i]] + [
                j for j in range(9) if s[j] < s[i] and a[j] >= a[i]
            ]
            assert not (allowed[draw, i] and better)


def small_cells(noise=0.0, questions=40):
    """Two models: the smaller is cheap in FLOPs and dear in eFLOPs where it solves as much as the larger."""
    rng = np.random.default_rng(0)
    accuracy = np.array([[0.4], [0.7], [0.7], [0.9]]) + noise * rng.normal(size=(4, questions))
    flops, eflops = np.array([1.0, 2, 3, 4]), np.array([10.0, 60, 20, 40])
    return laws.Cells(
        model=np.array([0, 0, 1, 1]),
        cap=np.array([100, 900, 100, 900]),
        accuracy=accuracy,
        flops=np.repeat(flops[:, None], questions, axis=1),
        eflops=np.repeat(eflops[:, None], questions, axis=1),
    )


def test_both_laws_by_hand():
    levels = np.array([0.4, 0.6, 0.9, 0.95])
    found = laws.compare_levels(small_cells(), levels, count=5)
    assert found.by_flops.tolist() == [0, 1, 3, -1]
    assert found.by_eflops.tolist() == [0, 2, 3, -1]
    np.testing.assert_allclose(found.ratios, np.tile([1, 3, 1, np.nan], (6, 1)))
    assert found.models[:, 0].tolist() == [[0, 0, 1, -1], [0, 1, 1, -1]]
    # Who walks the frontier of FLOPs has rows 0, 1 and 3, not 2: at 30 they still have row 0.
    limits = laws.compare_limits(small_cells(), np.array([5.0, 15, 30, 60]), count=5)
    assert limits.by_flops.tolist() == [-1, 0, 0, 3]
    assert limits.by_eflops.tolist() == [-1, 0, 2, 3]
    np.testing.assert_allclose(limits.gains[0], [np.nan, 0, 0.3, 0], atol=1e-12)


def test_on_unseen_questions_the_same_where_all_questions_are_alike():
    levels = np.array([0.4, 0.6, 0.95])
    unseen = laws.honest_levels(small_cells(), levels, count=4)
    ratios = unseen.paid_by_flops.mean(axis=1) / unseen.paid_by_eflops.mean(axis=1)
    np.testing.assert_allclose(ratios, [1, 3, np.nan])
    assert unseen.reached.tolist() == [1, 1, 0]
    assert unseen.differ[:2].tolist() == [0, 1]
    by_flops, by_eflops = laws.honest_limits(small_cells(), np.array([5.0, 30]), count=4)
    np.testing.assert_allclose((by_eflops - by_flops).mean(axis=1), [np.nan, 0.3])


def test_what_a_choice_promises_is_more_than_it_keeps():
    """Forty configurations of one accuracy: the best of them owes its lead to the questions that chose it."""
    rng = np.random.default_rng(1)
    accuracy = (rng.random((40, 60)) < 0.5).astype(float)
    spent = np.repeat(rng.random(40)[:, None], 60, axis=1)
    cells = laws.Cells(np.arange(40), np.arange(40), accuracy, spent, spent)
    seen = laws.compare_limits(cells, np.array([1.0]), count=2)
    _, kept = laws.honest_limits(cells, np.array([1.0]), count=60)
    assert accuracy[seen.by_eflops[0]].mean() > 0.6
    assert abs(kept.mean() - 0.5) < 0.03
    for choose, score in laws.halvings(60, 5, seed=0):
        assert choose.sum() == score.sum() == 30
        assert not np.any(choose & score)


def test_a_question_is_redrawn_with_its_translations(tmp_path):
    """Accuracy and cost of a question are the means over its languages; FLOPs are those of any chip and batch."""
    strata, _ = read_family(write(tmp_path / "samples.csv", family_rows()))
    cells = cells_of(strata[0], CHIPS["h100"], "none", caps=(500, 2000))
    assert cells.accuracy.shape == (8, 6)
    assert cells.cap.tolist()[:2] == [500, 930]  # no cap is above the longest text
    np.testing.assert_array_equal(cells.accuracy[0], [1, 0.5, 0, 0, 0, 0])  # 3B under 500: question 1 in English alone
    config = strata[0].pools[0].priced()
    by_hand = [
        generation_cost(config, prompt_tokens=50, output_tokens=min(tokens, 500), hardware="h100").total
        for tokens in (500, 530)
    ]
    assert cells.eflops[0, 1] == pytest.approx(np.mean(by_hand))
    for chip, weights in (("h20", "none"), ("h100", "fit"), ("b200", "alone")):
        other = cells_of(strata[0], CHIPS[chip], weights, caps=(500, 2000))
        np.testing.assert_allclose(other.flops, cells.flops)
        np.testing.assert_array_equal(other.accuracy, cells.accuracy)
        assert (other.eflops > cells.eflops).all() == (weights != "none")


def test_the_batch_is_the_packages():
    config, chip = ModelConfig.named("Qwen2.5-7B-Instruct"), CHIPS["h100"]
    outputs = np.array([300, 900, 8000])
    assert (
        batch_of("fit", config, chip, 100, outputs)
        == room(config, chip, prompt_tokens=100, output_tokens=outputs).batch
    )
    assert batch_of("fit", config, chip, 100, outputs, outputs * 300.0) > batch_of("fit", config, chip, 100, outputs)
    assert (batch_of("none", config, chip, 100, outputs), batch_of("alone", config, chip, 100, outputs)) == (None, 1)


# Pruning


@pytest.mark.parametrize("pruning", ["once", "every"])
def test_what_pruning_takes_off_is_a_count_over_steps(pruning):
    prompts, outputs = np.array([90, 300, 600, 90]), np.array([1, 700, 1300, 400])
    counted = []
    for prompt, output in zip(prompts, outputs, strict=True):
        lost, gone = 0, 0
        for token in range(output):  # the text before it: prompt + token
            start = token - token % REQUEST
            if token % REQUEST == 0 and prompt + start >= FROM and (pruning == "every" or not gone):
                gone = prompt + start - max(256, (prompt + start) // 2)
            lost += gone if token else 0  # the first token comes from the prefill
        counted.append(lost)
    np.testing.assert_allclose(discarded(prompts, outputs, pruning), counted)
    assert counted[0] == counted[3] == 0 < counted[1]


def test_a_pruned_text_costs_what_is_left_of_a_whole_one():
    config, chip = ModelConfig.named("DeepSeek-R1-Distill-Llama-8B"), CHIPS["h100"]
    prompt, tokens = np.array([[100.0], [200.0]]), np.array([[900.0, 3000], [1, 5000]])
    dense = generation_cost(config, prompt_tokens=prompt, output_tokens=tokens, hardware=chip)
    seen = dense.kv_reads / (chip.intensity * 2 * config.kv_elements_per_token / 1e12)
    np.testing.assert_allclose(attended(prompt, tokens), seen)
    flops, eflops = priced(config, chip, "none", prompt, tokens, np.zeros(tokens.shape))
    np.testing.assert_allclose(flops, dense.compute)
    np.testing.assert_allclose(eflops, dense.total)
    half = priced(config, chip, "none", prompt, tokens, attended(prompt, tokens) / 2)[1]
    np.testing.assert_allclose(dense.total - half, (dense.attention + dense.kv_reads) / 2)


# Loops


def test_loops_by_hand():
    texts = Texts(
        np.full(4, 100.0), np.array([10.0, 30, 50, 110]), np.array([0, 0, 0, 1], bool), np.array([0, 1, 0, 1], bool)
    )
    found = loops_summary(texts)
    shares = {group["group"]: group["shares"]["tokens"]["share"] for group in found["groups"]}
    assert shares == pytest.approx({"ended": 0.3, "ended, looped": 0.15, "stopped at the limit": 0.55})
    assert found["caps"][0]["kept"]["share"] == 1
    assert 0 < found["caps"][0]["kept"]["low"] < 1  # three texts that fit do not show that all do
    assert found["caps"][0]["spent"]["eFLOPs, no weights"]["share"] == 1


# The page


def test_the_page_tells_what_was_recorded(recorded):
    """Every table and sentence with numbers is the JSON's, and what numbers are left are facts of the sources."""
    page = " ".join((ROOT / "docs" / "real_models.md").read_text(encoding="utf-8").split())
    told = fragments(recorded)
    assert len(told) >= 20
    for name, text in told.items():
        text = " ".join(text.split())
        assert text in page, name
        page = page.replace(text, "")
    page = re.sub(r"\]\([^)]*\)|`[^`]*`|arXiv [\d.]+|at [0-9a-f]{7}\b", "", page)
    page = re.sub(r"MATH-500|GSM8K|\b[\w.-]*\d(\.\d+)?B\b|\b[A-Za-z]+\d[\d.]*\b", "", page)  # names
    facts = "250 8,896 5,000 100 16 0.8 3,200 11,200 6,314 6,344 1,055 8,000 40 300 27,400 50 90 23 500 512 256 2.3 "
    facts += "1,100 1,500 32,768 1 95 125 16-bit 509 60 150 2 148 4"
    assert set(re.findall(r"\d[\d.,]*\d(?:-bit)?|\d", page)) <= set(re.findall(r"\S+", facts))


def test_facts_of_the_page(recorded):
    ratio = [config.kv_elements_per_token / config.matmul_parameters for config in map(PUBLISHED.get, ("0.6B", "32B"))]
    assert int(ratio[0] / ratio[1]) == 23
    small, large = recorded["pair"]["models"]
    assert round(large["kv_elements"] / small["kv_elements"], 1) == 2.3
    assert max(row["kv_per_million_parameters"] for row in recorded["family"]["shapes"]) < 2 * min(
        row["kv_per_million_parameters"] for row in recorded["family"]["shapes"]
    )
    assert sum(2 * row["problems"] for row in recorded["pair"]["tasks"]) == 6314
    strata = recorded["family"]["strata"]
    assert {name: (stratum["texts"], stratum["questions"]) for name, stratum in strata.items()} == {
        "prefix": (3000, 250),
        "wait": (2000, 250),
    }
    medians = [row["median_tokens"] for stratum in strata.values() for row in stratum["models"]]
    assert 1080 < min(medians) < max(medians) < 1530
    order = list(FAMILY)
    for stratum in strata.values():
        assert set(stratum["laws"]) == {"h100", "h200", "b200", "h20"}
        for prices in stratum["laws"].values():
            for found in prices.values():
                assert "s1.1-32B" not in {*found["levels"]["by_flops"], *found["levels"]["by_eflops"]}
                assert all(ratio >= 1 - 1e-6 for ratio in found["levels"]["ratio"])
            for row in rows_of(prices["fit"]["levels"]):  # where they differ, the larger one
                assert order.index(row["by_eflops"]) >= order.index(row["by_flops"])
    assert {chip for chip in CHIPS if _steps_to_14b(strata["prefix"]["laws"][chip]["fit"])} == {"h200", "b200"}


def _steps_to_14b(found):
    return [r for r in rows_of(found["levels"]) if (r["by_flops"], r["by_eflops"]) == ("s1.1-7B", "s1.1-14B")]


@pytest.mark.slow
def test_every_figure_is_drawn_from_the_recorded_numbers(recorded):
    for name, draw in FIGURES.items():
        figure = draw(recorded)
        assert all(axes.has_data() for axes in figure.axes), name
        assert (ROOT / "docs" / "results" / f"{name}.png").stat().st_size > 20_000


@pytest.mark.slow
@needs_data
def test_the_public_samples_give_what_is_recorded(recorded):
    """The small parts whole; of the family its models, and both laws on one chip at one price."""

    def same(found, kept, where=""):
        if isinstance(kept, dict):
            assert found.keys() == kept.keys(), where
            for name in kept:
                same(found[name], kept[name], f"{where}/{name}")
        elif isinstance(kept, list):
            assert len(found) == len(kept), where
            for i, (one, other) in enumerate(zip(found, kept, strict=True)):
                same(one, other, f"{where}/{i}")
        elif isinstance(kept, float):
            assert found == pytest.approx(kept, rel=1e-3, abs=1e-6), where
        else:
            assert found == kept, where

    same(pruned_summary(read_pruned(PUBLIC / "r1distill_llama8b_math500x16")), recorded["pruned"])
    same(pair_summary(read_pair(PUBLIC / "r1distill_trace_topology" / "samples.csv")), recorded["pair"])
    same(loops_summary(read_loops(PUBLIC / "qwen3_1p7b_lcb" / "lcb_v6_single_sample_tokens.csv")), recorded["loops"])
    strata, left_out = read_family(PUBLIC / "s1_mgsm" / "samples.csv")
    assert left_out == recorded["family"]["left_out"]
    same(comparison(strata[1], "h100", "fit"), recorded["family"]["strata"]["wait"]["laws"]["h100"]["fit"])
    assert set(WEIGHTS) == set(recorded["family"]["strata"]["wait"]["laws"]["h100"])
    assert set(QWEN3) == set(FAMILY)
