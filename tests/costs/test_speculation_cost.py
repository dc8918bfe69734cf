"""The price of self-speculation, against sums over its steps."""

import numpy as np
import pytest

import kinetics_jax as kj
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.conventions import CostError
from kinetics_jax.costs.speculation import expected_rounds, speculation_cost

CONFIG = ModelConfig.named("Qwen/Qwen3-0.6B")
DRAFT = kj.BlockTopK(pages=8, page_size=16)


def test_rounds_without_drafts_are_dense_decoding():
    dense = kj.generation_cost(CONFIG, prompt_tokens=100, output_tokens=41, trials=3, intensity=500.0, batch=4)
    ours = speculation_cost(
        CONFIG, prompt_tokens=100, rounds=[1] * 40, drafts=0, draft=DRAFT, trials=3, intensity=500.0, batch=4
    )
    assert ours.total == pytest.approx(dense.total)
    assert ours.compute == pytest.approx(dense.compute)
    assert ours.shared["prefill_linear"] == pytest.approx(dense.shared["prefill_linear"])


def test_a_round_is_its_drafts_and_one_dense_read():
    """Step by step: arithmetic of every token, K, V and weights read once for a pass."""
    rounds, drafts, prompt, batch, intensity = [4, 1, 2], [3, 3, 1], 300, 8, 200.0
    cost = speculation_cost(
        CONFIG, prompt_tokens=prompt, rounds=rounds, drafts=drafts, draft=DRAFT, intensity=intensity, batch=batch
    )
    kv, group, parameters = CONFIG.kv_elements_per_token, CONFIG.group, CONFIG.matmul_parameters
    lengths, reads, drafted, stored = [], [], [], prompt
    for given, ahead in zip(rounds, drafts, strict=True):
        drafted += [stored + place + 1 for place in range(ahead)]
        lengths += [stored + place + 1 for place in range(ahead + 1)]
        reads.append(stored + ahead + 1)
        stored += given
    assert cost.parts["verify_dense_attention"] * 1e12 == pytest.approx(2 * group * kv * sum(lengths))
    assert cost.parts["verify_dense_kv_reads"] * 1e12 == pytest.approx(2 * kv * sum(reads) * intensity)
    assert cost.parts["verify_linear"] * 1e12 == pytest.approx(2 * parameters * 10)
    assert cost.parts["verify_weight_reads"] * 1e12 == pytest.approx(3 * 2 * parameters / batch * intensity)
    assert cost.parts["draft_linear"] * 1e12 == pytest.approx(2 * parameters * 7)
    assert cost.parts["draft_weight_reads"] * 1e12 == pytest.approx(7 * 2 * parameters / batch * intensity)
    steps = DRAFT.step_counts(np.array(drafted, float))
    sparse = kv / CONFIG.num_layers * (CONFIG.num_layers - 1)
    attended = np.sum(np.add(steps.forced, steps.chosen))
    found = cost.parts["draft_forced_kv_reads"] + cost.parts["draft_chosen_kv_reads"]
    assert found * 1e12 == pytest.approx(2 * sparse * attended * intensity)
    assert cost.total == pytest.approx(sum(cost.parts.values()))


def test_expected_rounds():
    """The geometric sum, its ends, and what they cost: more drafts kept cost less."""
    assert len(expected_rounds(101, 4, 0.0)) == 100
    assert len(expected_rounds(101, 4, 1.0)) == 20
    assert len(expected_rounds(1001, 3, 0.8)) == round(1000 / (1 + 0.8 + 0.64 + 0.512))
    assert expected_rounds(1001, 3, 0.8).sum() == pytest.approx(1000)
    assert len(expected_rounds(1, 3, 0.8)) == 0
    totals = [
        speculation_cost(
            CONFIG, prompt_tokens=256, rounds=expected_rounds(8192, 4, accept), drafts=4, draft=DRAFT, hardware="h100"
        ).total
        for accept in (0.5, 0.7, 0.9)
    ]
    assert totals == sorted(totals, reverse=True)
    with pytest.raises(CostError, match=r"accept must be in 0 … 1"):
        expected_rounds(10, 4, 1.5)
    with pytest.raises(CostError, match="one more than its drafts"):
        speculation_cost(CONFIG, prompt_tokens=5, rounds=[5], drafts=3, draft=DRAFT)
