"""The Triton kernels, compiled for an H100 at Qwen3 shapes: nothing spills, nothing of a pool's size is copied."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import kinetics_kernels as kernels
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from kinetics_kernels import targets
from kinetics_kernels.ops.select_pages import triton as select_pages_triton

pytestmark = pytest.mark.slow

# Query heads and KV heads; head_dim is 128 in all of them.
MODELS = {"0.6B": (16, 8), "8B": (32, 8), "14B": (40, 8), "32B": (64, 8), "30B-A3B": (32, 4)}
CONTEXT, BUDGET = 32_768, 1024
PARTIALS = 2**22  # bytes that partial sums may take; the smallest pool here has 32 MB
NO_SPILLS = {"xla_gpu_fail_ptx_compilation_on_register_spilling": True}
# What would be slow beside a kernel: XLA gathers, sorts, transposes and reduces nothing.
SLOW = ("gather", "sort", "transpose", "reduce", "copy", "scatter")


def abstract(
    model: str,
    page_size: int,
    batch: int,
    dtype=jnp.bfloat16,
    head_dim: int = 128,
    summary: str = "mean",
    context: int = CONTEXT,
):
    """q, the pools, the summaries, table and lengths of one layer, full to `context`."""
    q_heads, kv_heads = MODELS[model]
    pages = context // page_size
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


def compiled(target, op, *args, donate=(), dump=None, **options):
    """Compiled with the triton backend forced; a register that spills is an error. `dump`: a folder for the PTX."""
    dumped = {} if dump is None else {"xla_dump_to": str(dump), "xla_dump_emitter_re": "ptx"}
    function = jax.jit(
        functools.partial(op, backend="triton", **options), donate_argnums=donate, compiler_options=NO_SPILLS | dumped
    )
    first = jax.ShapeDtypeStruct(args[0].shape, args[0].dtype, sharding=target.sharding)
    return target.compile(function, first, *args[1:])


def ptx_of(folder) -> dict[str, str]:
    """The PTX of every kernel, by its name."""
    texts = [path.read_text() for path in folder.glob("*.ptx")]
    return {re.findall(r"\.entry (\w+)", text)[0]: text for text in texts}


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("page_size", [16, 64])
@pytest.mark.parametrize("model", MODELS)
def test_block_topk_decode(h100_target, model, page_size, batch):
    q, k, v, *rest = abstract(model, page_size, batch)
    pages = BUDGET // page_size
    program = compiled(h100_target, kernels.block_topk_decode, q, k, v, *rest, pages=pages)
    text = program.as_text()
    few = ("score_pages", "choose_pages", "paged_decode", "merge_partials")
    for name in few if batch == 1 else ("select_pages", "paged_decode"):
        assert name in text
    assert not any(f" {work}(" in text for work in SLOW)
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
    for page_size, batch in ((8, 64), (128, 1)):
        for summary in ("mean", "min_max", "mean_std"):
            shapes = abstract("0.6B", page_size, batch, dtype, head_dim, summary)
            if page_size == 8:  # tables of 4096 pages, scored and chosen in one kernel
                q, _, _, *rest = shapes
                compiled(h100_target, kernels.select_pages, q, *rest, page_size=8, pages=128, summary=summary)
            else:
                compiled(h100_target, kernels.block_topk_decode, *shapes, pages=8, summary=summary)
    new = jax.ShapeDtypeStruct((batch, 8, head_dim), dtype)
    pools, tables = shapes[1:4], shapes[4:]
    compiled(h100_target, kernels.append_kv, *pools, new, new, *tables, donate=(0, 1, 2), summary=summary)


@pytest.mark.parametrize("batch", [1, 1024])
@pytest.mark.parametrize("page_size", [8, 16, 128])
def test_the_longest_contexts_and_largest_batches(h100_target, page_size, batch):
    """128K tokens: up to 16384 pages a table, and pools so large that they are indexed by 64 bits."""
    q, k, v, *rest = abstract("14B", page_size, batch, context=131_072)
    program = compiled(h100_target, kernels.block_topk_decode, q, k, v, *rest, pages=BUDGET // page_size)
    assert ("choose_pages" in program.as_text()) == (batch == 1)
    assert program.memory_analysis().temp_size_in_bytes < batch * PARTIALS
    if page_size == 16:
        new = jax.ShapeDtypeStruct((batch, 8, 128), q.dtype)
        compiled(h100_target, kernels.paged_decode, q, k, v, *rest[1:])
        compiled(h100_target, kernels.append_kv, k, v, rest[0], new, new, *rest[1:], donate=(0, 1, 2))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("page_size", [16, 64])
def test_keys_and_values_come_by_16_bytes_into_tensor_cores(h100_target, tmp_path, page_size, dtype):
    q, k, v, *rest = abstract("8B", page_size, 1, dtype)
    compiled(h100_target, kernels.block_topk_decode, q, k, v, *rest, pages=BUDGET // page_size, dump=tmp_path)
    ptx = ptx_of(tmp_path)
    assert ptx.keys() == {"score_pages", "choose_pages", "paged_decode", "merge_partials"}
    attend, score = ptx["paged_decode"], ptx["score_pages"]
    # A tile of K or V is 16 KB, 8 copies for each of 128 threads; one of each is on its way before the loop. Page ids
    # take 4 bytes, nothing else is copied.
    sizes = collections.Counter(re.findall(r"cp\.async\.c[ag]\.shared\.global \[.*?\], \[.*?\], (\w+)", attend))
    assert sizes["0x10"] == 2 * (8 + 8)
    assert sizes.keys() == {"0x10", "0x4"}
    assert ("mma.sync" in attend) == (dtype != jnp.float32)  # which would be rounded to TF32
    # Of the summaries too: a tile of 16 KB; q and page ids are the narrower loads.
    assert len(re.findall(r"ld\.global\S*\.v4\.b32", score)) >= 8
    assert not re.findall(r"ld\.global\S*\.b16", score)


@pytest.mark.parametrize(("summary", "context"), [("mean", 131_072), ("min_max", 32_768), ("mean_std", 32_768)])
def test_scores_apart_take_the_same_sums_as_fused(h100_target, tmp_path, summary, context):
    """As many products and sums a thread, each rounded by itself: the same bits, which choose the same pages."""
    q, _, _, *rest = abstract("14B", 16, 1, summary=summary, context=context)
    counts = []
    for fused, kernel in ((True, "select_pages"), (False, "score_pages")):

        def select(*args, backend, fused=fused, **options):
            return select_pages_triton.select_pages(*args, fused=fused, **options)

        compiled(h100_target, select, q, *rest, page_size=16, pages=64, summary=summary, dump=tmp_path / kernel)
        arithmetic = re.findall(r"\b(?:add|sub|mul|fma|min|max)\.\S*f32\b", ptx_of(tmp_path / kernel)[kernel])
        counts.append(collections.Counter(arithmetic))
    assert counts[0] == counts[1]
    assert counts[0].keys() >= {"add.rn.f32", "mul.rn.f32"}
    assert "fma.rn.f32" not in counts[0]


def over_four(op, inputs, outputs, *args, mesh, donate=()):
    """An op under `shard_map`, compiled for four neighbours that each hold some KV heads."""
    target = targets.gpu("h100", count=4)
    mesh = jax.sharding.Mesh(np.array(target.devices).reshape(mesh), ("data", "tensor"))
    sharded = jax.shard_map(op, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)
    placed = [
        jax.ShapeDtypeStruct(arg.shape, arg.dtype, sharding=NamedSharding(mesh, spec))
        for arg, spec in zip(args, inputs, strict=True)
    ]
    return target.compile(jax.jit(sharded, donate_argnums=donate, compiler_options=NO_SPILLS), *placed)


@pytest.mark.parametrize("mesh", [(1, 4), (4, 1), (2, 2)])
@pytest.mark.usefixtures("h100_target")
def test_sharded_over_heads_and_sequences_nothing_is_exchanged(mesh):
    """Each row of devices holds the pages of its sequences, each column some KV heads."""
    q, k, v, *rest = abstract("8B", 16, 64)
    new = jax.ShapeDtypeStruct((64, 8, 128), q.dtype)
    heads, pool, rows = P("data", "tensor"), P("tensor", "data"), P("data")
    pools, tables = (pool, pool, pool), (rows, rows)
    block_topk = functools.partial(kernels.block_topk_decode, backend="triton", pages=64)
    append = functools.partial(kernels.append_kv, backend="triton")
    for program in (
        over_four(block_topk, (heads, *pools, *tables), (heads, heads), q, k, v, *rest, mesh=mesh),
        over_four(
            append, (*pools, heads, heads, *tables), pools, k, v, rest[0], new, new, *rest[1:],
            mesh=mesh, donate=(0, 1, 2),
        ),
    ):  # fmt: skip
        text = program.as_text()
        assert "paged_decode" in text or "append_kv" in text
        exchanges = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
        assert not any(work in text for work in (*exchanges, *(f" {work}(" for work in SLOW)))
        assert program.memory_analysis().temp_size_in_bytes < PARTIALS


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
