"""The Triton kernels, compiled for an H100 at Qwen3 shapes: nothing spills, nothing of a pool's size is copied."""

import functools

import jax
import jax.numpy as jnp
import kinetics_kernels as kernels
import pytest
from kinetics_kernels.ops.select_pages import triton as select_pages_triton

# Query heads and KV heads; head_dim is 128 in all of them.
MODELS = {"0.6B": (16, 8), "8B": (32, 8), "14B": (40, 8), "32B": (64, 8), "30B-A3B": (32, 4)}
CONTEXT, BUDGET = 32_768, 1024
PARTIALS = 2**22  # bytes that partial sums may take; the smallest pool here has 32 MB
NO_SPILLS = {"xla_gpu_fail_ptx_compilation_on_register_spilling": True}


def abstract(model: str, page_size: int, batch: int, dtype=jnp.bfloat16, head_dim: int = 128, summary: str = "mean"):
    """q, the pools, the summaries, table and lengths of one layer, full to CONTEXT."""
    q_heads, kv_heads = MODELS[model]
    pages = CONTEXT // page_size
    vectors = () if summary == "mean" else (2,)
    pool = jax.ShapeDtypeStruct((kv_heads, batch * pages, page_size, head_dim), dtype)
    return (
        jax.ShapeDtypeStruct((batch, q_heads, head_dim), dtype),
        pool,
        pool,
        jax.ShapeDtypeStruct((kv_heads, batch * pages, *vectors, head_dim), dtype),
        jax.ShapeDtypeStruct((batch, pages), jnp.int32),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
    )


def compiled(target, op, *args, donate=(), **options):
    """Compiled with the triton backend forced; a register that spills is an error."""
    function = jax.jit(
        functools.partial(op, backend="triton", **options), donate_argnums=donate, compiler_options=NO_SPILLS
    )
    first = jax.ShapeDtypeStruct(args[0].shape, args[0].dtype, sharding=target.sharding)
    return target.compile(function, first, *args[1:])


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("page_size", [16, 64])
@pytest.mark.parametrize("model", MODELS)
def test_block_topk_decode(h100_target, model, page_size, batch):
    q, k, v, *rest = abstract(model, page_size, batch)
    pages = BUDGET // page_size
    program = compiled(h100_target, kernels.block_topk_decode, q, k, v, *rest, pages=pages)
    text = program.as_text()
    for name in ("select_pages", "paged_decode") + (("merge_partials",) if batch == 1 else ()):
        assert name in text
    # A program of kernels: XLA gathers, sorts, transposes and reduces nothing.
    assert not any(f" {work}(" in text for work in ("gather", "sort", "transpose", "reduce", "copy", "scatter"))
    assert program.memory_analysis().temp_size_in_bytes < PARTIALS


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("page_size", [16, 64])
@pytest.mark.parametrize("model", MODELS)
def test_dense_decode(h100_target, model, page_size, batch):
    q, k, v, _, *tables = abstract(model, page_size, batch)
    program = compiled(h100_target, kernels.paged_decode, q, k, v, *tables)
    assert program.memory_analysis().temp_size_in_bytes < PARTIALS


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_every_dtype_and_head_dim(h100_target, head_dim, dtype):
    for page_size in (8, 128):
        for summary in ("mean", "min_max", "mean_std"):
            shapes = abstract("0.6B", page_size, 1, dtype, head_dim, summary)
            if page_size == 8:  # tables of 4096 pages
                q, _, _, *rest = shapes
                compiled(h100_target, kernels.select_pages, q, *rest, page_size=8, pages=128, summary=summary)
            else:
                compiled(h100_target, kernels.block_topk_decode, *shapes, pages=8, summary=summary)


@pytest.mark.parametrize("summary", [None, "mean", "min_max", "mean_std"])
@pytest.mark.parametrize("page_size", [16, 64])
def test_append_writes_in_place(h100_target, page_size, summary):
    q, k, v, summaries, *tables = abstract("8B", page_size, 64, summary=summary or "mean")
    pools = (k, v, summaries if summary else None)
    new = jax.ShapeDtypeStruct((64, 8, 128), q.dtype)
    program = compiled(
        h100_target, kernels.append_kv, *pools, new, new, *tables, donate=(0, 1, 2), summary=summary or "mean"
    )
    memory = program.memory_analysis()
    assert memory.alias_size_in_bytes == sum(pool.size * pool.dtype.itemsize for pool in pools if pool is not None)
    assert memory.temp_size_in_bytes < 4096


def test_spills_and_gathers_would_be_seen(h100_target, monkeypatch):
    """The two checks above can fail: a tile too large for the registers, and the jnp reference."""
    q, k, v, summaries, *tables = abstract("8B", 16, 1)
    placed = jax.ShapeDtypeStruct(q.shape, q.dtype, sharding=h100_target.sharding)
    reference = jax.jit(functools.partial(kernels.block_topk_decode, backend="xla", pages=16))
    assert " gather(" in h100_target.compile(reference, placed, k, v, summaries, *tables).as_text()
    monkeypatch.setattr(select_pages_triton, "TILE_BYTES", 2**18)
    with pytest.raises(Exception, match="spill"):
        compiled(h100_target, kernels.select_pages, q, summaries, *tables, page_size=16, pages=64)
