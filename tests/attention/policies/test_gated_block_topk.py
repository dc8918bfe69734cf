"""Block top-k by a learned linear gate."""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pytest
from block_rule import attended_blocks
from safetensors.numpy import save_file
from test_block_topk import score_of

import kinetics_jax as kj
from kinetics_jax.attention.policies.base import PolicyError

GATE = np.random.default_rng(7).standard_normal((8, 8)).astype(np.float32)


def write_gate(path: Path, layers: int = 3, heads: int = 2, gate: np.ndarray = GATE) -> str:
    """The same map for every layer and KV head."""
    save_file({f"layers.{layer}.gate": np.stack([gate] * heads) for layer in range(layers)}, path)
    return str(path)


FILE = write_gate(Path(tempfile.mkdtemp(prefix="gate")) / "gate.safetensors")
SPELLINGS = [
    f"gated_block_topk:budget=20,page_size=4,gate={FILE},dense_layers=1",
    f"gated_block_topk:budget=20,page_size=4,gate={FILE},dense_layers=1,summary=min_max",
]


def attended(policy, query, keys, draw):
    mapped = GATE.astype(np.float64) @ query.mean(axis=0)
    return attended_blocks(policy, keys, lambda page, held: score_of(policy.summary, mapped, held))


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
