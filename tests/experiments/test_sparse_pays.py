"""From which context on sparse attention pays: the committed rows, and the page that prints them."""

import json

import pytest
import sparse_pays
from paths import ROOT

from kinetics_jax.attention.policies.registry import parse_policy
from kinetics_jax.costs.architectures.published import architecture_named
from kinetics_jax.costs.hardware import hardware

RECORD = json.loads((ROOT / "experiments/results/sparse_pays.json").read_text())
ROWS = sparse_pays.from_json(RECORD["rows"])


@pytest.mark.parametrize("name", ["openai/gpt-oss-20b", "deepseek-ai/DeepSeek-V3.2", "Qwen/Qwen3.8-Flash-Next"])
def test_the_committed_rows_are_what_the_code_says(name):
    again = sparse_pays.compare(
        architecture_named(name), hardware(RECORD["hardware"]), parse_policy(RECORD["attention"]), RECORD["sequences"]
    )
    committed = next(row for row in ROWS if row["architecture"] == name)
    assert again["ratios"] == pytest.approx(committed["ratios"], rel=1e-9)
    assert (again["pays_from"], again["batch"]) == (committed["pays_from"], committed["batch"])


def test_the_page_has_the_committed_table():
    page = (ROOT / "docs/architectures.md").read_text()
    assert sparse_pays.markdown(ROWS) in page
    by_name = {row["architecture"].rpartition("/")[2]: row for row in ROWS}
    fixed = max(row["made_of"][131_072]["fixed"] for row in ROWS)
    assert f"{fixed:.0%} at most here".replace("%", " %") in page
    gpt = by_name["gpt-oss-20b"]
    assert f"from {gpt['ratio'][131_072]:.2f} to {gpt['ratio_small_batch'][131_072]:.2f}" in page


def test_where_a_ratio_begins_to_hold():
    ratios = {1: 1.0, 2: 1.3, 4: 1.05, 8: 1.2, 16: 2.0}
    assert sparse_pays.first(ratios, 1.1) == 8
    assert sparse_pays.first(ratios, 2.5) is None
    assert sparse_pays.first(ratios, 0.5) == 1


def test_the_page_says_from_where_half_a_step_is_saved():
    page = " ".join((ROOT / "docs/architectures.md").read_text().split())
    from_k = {row["architecture"].rpartition("/")[2]: (row["pays_from"][2.0] or 0) / 1024 for row in ROWS}
    assert (
        f"half of a step is saved from {from_k['Qwen3-8B']:.0f}K on, for Qwen3-Next from "
        f"{from_k['Qwen3-Next-80B-A3B-Thinking']:.0f}K on, for DeepSeek V3 from {from_k['DeepSeek-V3']:.0f}K on"
    ) in page
