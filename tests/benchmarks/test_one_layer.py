"""experiments/benchmarks/one_layer.py, tiny: its layer, what it chooses, its record, and what it refuses."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import one_layer
import pytest
from flax import nnx
from tiny import tiny_config

from kinetics_jax.config import ModelConfig
from kinetics_jax.errors import UserError
from kinetics_jax.models.qwen3 import apply_rope, rope_table


@pytest.fixture(scope="module")
def case():
    config = ModelConfig.from_hf(tiny_config())
    return one_layer.Case(config, 40, 4, 3, 2, jnp.float32, None)


@pytest.fixture(scope="module")
def layer(case):
    return case.layer()


@pytest.fixture(scope="module")
def hidden(case):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.standard_normal((case.batch, 1, case.config.hidden_size)), jnp.float32)


@pytest.fixture(scope="module")
def sparse(case):
    return case.step(sparse=True)


def fresh(pools):
    """A copy: the step is given its pools to keep."""
    return tuple(jnp.array(pool) for pool in pools)


@pytest.mark.slow
def test_block_topk_of_all_pages_is_dense(case, layer, hidden, sparse):
    _, weights = nnx.split(layer)
    whole = dataclasses.replace(case, topk_page=case.pages - 1)
    pools = case.pools()
    dense, after = case.step(sparse=False)(weights, hidden, fresh(pools))
    np.testing.assert_allclose(whole.step(sparse=True)(weights, hidden, fresh(pools))[0], dense, rtol=2e-5, atol=2e-5)
    assert np.abs(sparse(weights, hidden, fresh(pools))[0] - dense).max() > 1e-3
    assert [pool.shape for pool in after] == [pool.shape for pool in pools]


@pytest.mark.slow
def test_the_chosen_pages_are_those_that_score_best(case, layer, hidden, sparse):
    """By scores computed here: values of other pages change nothing, those of a chosen page do."""
    _, weights = nnx.split(layer)
    config, attention = case.config, layer.self_attn
    k, v, means = case.pools()
    q = attention.q_norm(attention.q_proj(layer.input_layernorm(hidden)).reshape(case.batch, 1, -1, config.head_dim))
    cos, sin = rope_table(jnp.full((case.batch, 1), case.context), config.head_dim, config.rope_theta)
    q = (
        np.asarray(apply_rope(q, cos, sin))[:, 0]
        .reshape(case.batch, config.num_kv_heads, config.group, -1)
        .mean(axis=2)
    )
    table = np.arange(case.batch * case.pages).reshape(case.pages, case.batch).T[:, :-1]  # whole pages
    scores = np.einsum("bhd,hbpd->bhp", q, np.asarray(means)[:, table])
    loud = np.ones(v.shape[:2], bool)
    for row in range(case.batch):
        loud[:, table[row, 0] + (case.pages - 1) * case.batch] = False  # the step's own page
        for head in range(config.num_kv_heads):
            loud[head, table[row, np.argsort(-scores[row, head])[: case.topk_page]]] = False
    plain = np.asarray(sparse(weights, hidden, fresh((k, v, means)))[0])
    noisy = jnp.where(jnp.asarray(loud)[..., None, None], 100.0, v)
    np.testing.assert_array_equal(sparse(weights, hidden, fresh((k, noisy, means)))[0], plain)
    best = table[0, np.argmax(scores[0, 0])]
    assert np.abs(sparse(weights, hidden, fresh((k, v.at[0, best].add(100.0), means)))[0] - plain).max() > 0.1


def test_bytes_are_those_that_a_step_reads(case, layer):
    config = case.config
    dense, sparse = (case.bytes_read(sparse=flag) for flag in (False, True))
    head = config.num_kv_heads * config.head_dim * case.batch * 4
    assert dense - sparse == head * (2 * (41 - 13) - 10)  # 3 pages of 4 and the step's token, beside 10 means
    (matrices,) = {dense - head * 2 * 41}
    shapes = [value[...].size for _, value in nnx.to_flat_state(nnx.state(layer)) if value[...].ndim == 2]
    assert matrices == 4 * sum(shapes)


def test_a_share_of_a_model():
    config = ModelConfig.named("8B")
    share = one_layer.share_of(config, 8)
    assert (share.num_heads, share.num_kv_heads, share.intermediate_size) == (4, 1, 1536)
    assert share.hidden_size == config.hidden_size
    for model, size in (("8B", 3), ("8B", 0), ("30B-A3B", 1)):
        with pytest.raises(UserError, match=r"does not divide|at least 1|not of experts"):
            one_layer.share_of(ModelConfig.named(model), size)


@pytest.mark.slow
def test_the_record(tmp_path, capsys):
    small = ["--model", "0.6B", "--gen-len", "64", "--page-size", "4", "--topk-page", "2", "--batch-size", "2"]
    out = tmp_path / "record.json"
    one_layer.main(
        [
            *small,
            "--repeats",
            "1",
            "--world-size",
            "8",
            "--dtype",
            "float32",
            "--json",
            str(out),
            "--backend",
            "paged_decode=xla",
        ]
    )
    record = json.loads(out.read_text())
    assert (record["context"], record["layers"], record["model"]) == (32, 28, "Qwen/Qwen3-0.6B")
    for way in ("dense", "block_topk"):
        whole = 2 / (record[way]["layer_seconds"] * 28 * 8)
        assert record[way]["tokens_per_second"] == pytest.approx(whole)
    assert record["byte_ratio"] > 1
    assert f"block_topk: {record['block_topk']['tokens_per_second']:.4g} tokens/s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--model", "9B"], "no published model named '9B'"),
        (["--world-size", "5"], "--world-size 5 does not divide num_heads"),
        (["--backend", "append_kv=xla,paged_decode=cuda"], "paged_decode: backend 'cuda' is not known"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--gen-len", "16", "--page-size", "64"], "must fill a page of 64 tokens"),
    ],
)
def test_what_cannot_be_measured_is_one_line(capsys, flags, says):
    with pytest.raises(SystemExit) as stopped:
        one_layer.main(flags)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
