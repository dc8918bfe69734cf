"""Block top-k by a learned linear gate."""

import dataclasses
from pathlib import Path

import numpy as np
import one_step
import pytest
from block_rule import attended_blocks
from safetensors.numpy import load_file, save_file
from test_block_topk import score_of

import kinetics_jax as kj
from kinetics_jax.attention.policies.base import PolicyError

GATE = np.random.default_rng(7).standard_normal((8, 8)).astype(np.float32)


def write_gate(path: Path, layers: int = 3, heads: int = 2, gate: np.ndarray = GATE) -> str:
    """The same map for every layer and KV head."""
    save_file({f"layers.{layer}.gate": np.stack([gate] * heads) for layer in range(layers)}, path)
    return str(path)


FILE = str(
    Path(__file__).with_name("gate.safetensors")
)  # as `write_gate` makes it; every worker names tests by its path
SPELLINGS = [
    f"gated_block_topk:budget=20,page_size=4,gate={FILE},dense_layers=1",
    f"gated_block_topk:budget=20,page_size=4,gate={FILE},dense_layers=1,summary=min_max",
]


def attended(policy, query, keys, draw):
    mapped = GATE.astype(np.float64) @ query.mean(axis=0)
    return attended_blocks(policy, keys, lambda page, held: score_of(policy.summary, mapped, held))


def test_the_kept_file_holds_the_gate():
    for gates in load_file(FILE).values():
        np.testing.assert_array_equal(gates, np.stack([GATE, GATE]))


def test_a_spelling_with_a_digest_needs_no_file(tmp_path):
    policy = kj.GatedBlockTopK(budget=64, gate=FILE)
    assert len(policy.digest) == 16
    gone = dataclasses.replace(policy, gate=str(tmp_path / "gone.safetensors"))
    assert kj.parse_policy(str(gone)) == gone
    with pytest.raises(PolicyError, match=r"gone.safetensors: cannot be read"):
        gone.maps(0, 8)


def test_each_fault_of_a_file_is_one_line(tmp_path):
    other = write_gate(tmp_path / "other.safetensors", gate=2 * GATE)
    with pytest.raises(PolicyError, match="another file"):
        kj.GatedBlockTopK(budget=64, gate=other, digest=kj.GatedBlockTopK(budget=64, gate=FILE).digest).maps(0, 8)
    policy = kj.GatedBlockTopK(budget=64, gate=other)
    np.testing.assert_array_equal(policy.maps(2, 8), np.stack([2 * GATE] * 2))
    with pytest.raises(PolicyError, match=r"holds no layers.3.gate"):
        policy.maps(3, 8)
    with pytest.raises(PolicyError, match=r"has the shape \[2, 8, 8\]; the model needs \[kv_heads, 16, 16\]"):
        policy.maps(0, 16)
    (tmp_path / "text").write_text("no weights")
    with pytest.raises(PolicyError, match="is no safetensors file"):
        kj.GatedBlockTopK(budget=64, gate=str(tmp_path / "text")).maps(0, 8)
    for gate in ("", None, str(tmp_path)):
        with pytest.raises(PolicyError, match=r"give gate=|cannot be read"):
            kj.GatedBlockTopK(budget=64, gate=gate)


def test_every_layer_and_kv_head_has_a_map_of_its_own(tmp_path):
    rng = np.random.default_rng(3)
    maps = {f"layers.{layer}.gate": rng.standard_normal((2, 8, 8)).astype(np.float16) for layer in range(2)}
    save_file(maps, tmp_path / "gate.safetensors")
    policy = kj.GatedBlockTopK(budget=24, page_size=one_step.SIZE, gate=str(tmp_path / "gate.safetensors"))
    for layer in range(2):
        tables, _ = policy.choose(one_step.step_of(policy, layer=layer))
        for head in range(one_step.KV_HEADS):
            group = slice(head * one_step.GROUP, (head + 1) * one_step.GROUP)
            query = maps[f"layers.{layer}.gate"][head].astype(np.float64) @ one_step.QUERIES[group].mean(axis=0)
            keys = one_step.KEYS[head, : one_step.LENGTH]
            kept = attended_blocks(policy, keys, lambda page, held, query=query: float((held @ query).mean()))
            assert np.asarray(tables[0, head]).tolist() == sorted({position // one_step.SIZE for position in kept})


def test_maps_of_other_heads_are_refused(tmp_path):
    gate = write_gate(tmp_path / "gate.safetensors", heads=4)
    policy = kj.GatedBlockTopK(budget=24, page_size=one_step.SIZE, gate=gate)
    with pytest.raises(PolicyError, match="is of 4 KV heads, not of the model's"):
        policy.choose(one_step.step_of(policy))
