"""The TPU kernels compiled for v5e, v5p and v6e at the shapes of Qwen3: VMEM and SMEM suffice, no pool is copied."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from kinetics_kernels.ops.paged_decode.mosaic_tpu import paged_decode
from kinetics_kernels.ops.select_pages.mosaic_tpu import page_scores, select_pages

BATCH, CONTEXT, BUDGET = 64, 32_768, 1024
HEADS = {"0.6B": (8, 2), "8B": (8, 4), "14B": (8, 5), "32B": (8, 8), "30B-A3B": (4, 8)}  # KV heads, group


def shapes(batch, kv_heads, group, head_dim, page_size, pages, per_head, num_pages, dtype=jnp.bfloat16):
    """Arguments of `paged_decode`, abstract."""
    pool = jax.ShapeDtypeStruct((kv_heads, num_pages, page_size, head_dim), dtype)
    rows = (batch, kv_heads) if per_head else (batch,)
    table, lengths = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((*rows, pages), rows))
    return jax.ShapeDtypeStruct((batch, kv_heads * group, head_dim), dtype), pool, pool, table, lengths


def assert_no_pool_is_copied(compiled, q, pool, table, count=2) -> None:
    """Nothing but the kernel reads a pool; temporaries are tables, queries and log-sum-exps, padded to tiles."""
    text = compiled.as_text()
    dims = f"[{','.join(map(str, pool.shape))}]"
    # A pool's shape stands in its parameter line and as an operand of the kernel, never as the result of another op.
    made = [line for line in text.splitlines() if " = " in line and dims in line.split(" = ")[1].split("(")[0]]
    assert len(made) == count, made
    assert all("parameter(" in line for line in made), made
    assert text.count('custom_call_target="tpu_custom_call"') == 1
    assert " gather(" not in text
    assert compiled.memory_analysis().temp_size_in_bytes < 32 * q.size + 16 * table.size + 2**20


@pytest.mark.parametrize("page_size", [16, 64])
@pytest.mark.parametrize("per_head", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("model", HEADS)
def test_qwen3(tpu_target, model, per_head, page_size):
    """A context of 32K, dense and through tables of 1024 tokens a KV head."""
    pages = (BUDGET if per_head else CONTEXT) // page_size
    args = shapes(BATCH, *HEADS[model], 128, page_size, pages, per_head, BATCH * CONTEXT // page_size)
    compiled = tpu_target.compile(jax.jit(paged_decode), *args)
    temp = compiled.memory_analysis().temp_size_in_bytes
    print(f"{tpu_target.name} {model} page {page_size}: temp {temp / 1e6:.2f} MB")
    assert_no_pool_is_copied(compiled, args[0], args[1], args[3])


@pytest.mark.parametrize(
    "shape",
    [
        (4, 2, 1, 128, 16, 64, True),
        (4, 2, 16, 128, 16, 64, False),
        (4, 8, 4, 256, 8, 64, False),
        (4, 8, 4, 256, 128, 64, True),
        (1, 8, 4, 128, 16, 8192, False),
        (1024, 8, 4, 128, 64, 512, False),
        (1024, 8, 4, 128, 16, 64, True),
        (3, 3, 4, 128, 32, 48 << 10, False),
    ],
    ids=lambda shape: "-".join(map(str, shape)),
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_corners(tpu_target, shape, dtype):
    """Lone and wide groups, small and large pages, batch 1 and 1024, 128K tokens, the widest table."""
    _, kv_heads, _, head_dim, page_size, *_ = shape
    num_pages = (1 << 30) // (kv_heads * page_size * head_dim * 4)
    args = shapes(*shape, num_pages=num_pages, dtype=jnp.dtype(dtype))
    assert_no_pool_is_copied(tpu_target.compile(jax.jit(paged_decode), *args), args[0], args[1], args[3])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("page_size", [16, 64])
@pytest.mark.parametrize("model", HEADS)
def test_page_scores(tpu_target, model, page_size, dtype):
    """Scores of a context of 32K: summaries are neither gathered in HBM nor laid out anew."""
    (kv_heads, group), pages = HEADS[model], CONTEXT // page_size
    q = jax.ShapeDtypeStruct((BATCH, kv_heads * group, 128), jnp.bfloat16)
    pool = jax.ShapeDtypeStruct((kv_heads, BATCH * pages, 128), jnp.dtype(dtype))
    table, used = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((BATCH, pages), (BATCH,)))
    compiled = tpu_target.compile(jax.jit(page_scores), q, pool, table, used)
    assert_no_pool_is_copied(compiled, q, pool, table, count=1)


@pytest.mark.parametrize("page_size", [16, 64])
def test_selection(tpu_target, page_size):
    """With the top-k, temporaries are a few times the scores, far below the summaries of the context."""
    pages = CONTEXT // page_size
    select = jax.jit(functools.partial(select_pages, page_size=page_size, pages=BUDGET // page_size))
    pool = jax.ShapeDtypeStruct((8, BATCH * pages, 128), jnp.bfloat16)
    table, lengths = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((BATCH, pages), (BATCH,)))
    compiled = tpu_target.compile(select, jax.ShapeDtypeStruct((BATCH, 32, 128), jnp.bfloat16), pool, table, lengths)
    temp, scores = compiled.memory_analysis().temp_size_in_bytes, BATCH * 8 * pages * 4
    print(f"{tpu_target.name} page {page_size}: temp {temp / 1e6:.2f} MB, scores {scores / 1e6:.2f} MB")
    assert temp < 3 * scores < 0.2 * pool.size * 2


def test_under_shard_map_over_kv_heads(tpu_target):
    """Four chips, two KV heads each: every chip runs the kernel on its own pools, nothing is sent."""
    mesh = jax.sharding.Mesh(np.array(tpu_target.devices), ("heads",))
    pool, by_head, alike = PartitionSpec("heads"), PartitionSpec(None, "heads"), PartitionSpec()
    specs = (by_head, pool, pool, alike, alike)
    sharded = jax.shard_map(paged_decode, mesh=mesh, in_specs=specs, out_specs=(by_head, by_head), check_vma=False)
    args = [
        jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=jax.sharding.NamedSharding(mesh, spec))
        for a, spec in zip(shapes(16, 8, 4, 128, 64, 512, False, 8192), specs, strict=True)
    ]
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=tpu_target.abstract)):
        compiled = jax.jit(sharded).trace(*args).lower(lowering_platforms=("tpu",)).compile()
    text = compiled.as_text()
    assert "bf16[2,8192,64,128]" in text
    assert not [op for op in ("all-gather", "all-reduce", "all-to-all", "collective-permute") if f" {op}(" in text]
