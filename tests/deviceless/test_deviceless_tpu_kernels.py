"""The TPU kernels compiled for v5e, v5p and v6e: VMEM and SMEM suffice, pools are written in place and never copied."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from kinetics_kernels import append_kv, block_topk_decode
from kinetics_kernels.ops.append_kv import mosaic_tpu as append
from kinetics_kernels.ops.paged_decode.mosaic_tpu import paged_decode
from kinetics_kernels.ops.select_pages.mosaic_tpu import page_scores

pytestmark = pytest.mark.slow

HEADS = {"0.6B": (8, 2), "8B": (8, 4), "14B": (8, 5), "32B": (8, 8), "30B-A3B": (4, 8)}  # KV heads, query heads of each
BATCH, CONTEXT, BUDGET = 64, 32768, 1024
RESULT = re.compile(r" = (\(.*?\)|\S+) ([a-z][\w-]*)\(")  # of an HLO line: the type that it makes, and how


def struct(dtype, *shape) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


def layer_pools(kv_heads, num_pages, page_size, head_dim=128, dtype="bfloat16", summary="mean"):
    """K, V and summaries of one layer; None for no `summary`."""
    pool = struct(dtype, kv_heads, num_pages, page_size, head_dim)
    vectors = [] if summary == "mean" else [2]
    return pool, pool, struct(dtype, kv_heads, num_pages, *vectors, head_dim) if summary else None


def size(*arrays) -> int:
    return sum(array.size * array.dtype.itemsize for array in arrays)


def assert_pools_stay(compiled, pools, kernels: int, temp: int) -> None:
    """Pools are parameters and what append_kv gives back in the same memory: no other op makes one, in any layout."""
    memory, text = compiled.memory_analysis(), compiled.as_text()
    shapes = {f"[{','.join(map(str, pool.shape))}]" for pool in pools}
    elements = {pool.size for pool in pools}
    made = []
    for line in text.splitlines():
        match = RESULT.search(line)
        dims = re.findall(r"\[([\d,]+)\]", match[1]) if match else []
        if any(f"[{d}]" in shapes or np.prod([int(n) for n in d.split(",")]) in elements for d in dims):
            assert match[2] in ("parameter", "custom-call", "get-tuple-element", "tuple"), line
            made += [line] if match[2] == "custom-call" else []
    assert len(made) <= 1
    assert all("append_kv" in line for line in made), made
    assert text.count('custom_call_target="tpu_custom_call"') == kernels
    assert memory.alias_size_in_bytes >= (size(*pools) if made else 0)
    assert memory.temp_size_in_bytes < temp


def layer_arguments(kv_heads, group, page_size, summary="mean"):
    """Pools, new K and V, queries, page table and lengths of one layer's step over a context of 32K."""
    pages = CONTEXT // page_size
    pools = layer_pools(kv_heads, BATCH * pages, page_size, summary=summary)
    new, q = struct("bfloat16", BATCH, kv_heads, 128), struct("bfloat16", BATCH, kv_heads * group, 128)
    return pools, (new, new), q, struct("int32", BATCH, pages), struct("int32", BATCH)


def layer_step(pools, new, q, table, lengths, *, pages, summary):
    """What a layer that selects pages does with its cache in a decode step."""
    tpu = {"summary": summary, "backend": "mosaic_tpu"}
    pools = append_kv(*pools, *new, table, lengths, **tpu)
    return pools, block_topk_decode(q, *pools, table, lengths, pages=pages, **tpu)


@pytest.mark.parametrize("page_size", [16, 64])
@pytest.mark.parametrize("model", HEADS)
def test_kernels_of_qwen3(tpu_target, model, page_size):
    """Every kernel of a step, dense and sparse, over a context of 32K and through tables of 1024 tokens a KV head, in
    one program: temporaries are tables, queries and log-sum-exps, padded to tiles."""
    (kv_heads, group), pages = HEADS[model], BUDGET // page_size
    selection = struct("int32", BATCH, kv_heads, pages), struct("int32", BATCH, kv_heads)

    def kernels(pools, new, q, table, lengths, selected, covered):
        pools = append.append_kv(*pools, *new, table, lengths)
        dense = paged_decode(q, *pools[:2], table, lengths)
        sparse = paged_decode(q, *pools[:2], selected, covered)
        return pools, dense, sparse, page_scores(q, pools[2], table, lengths // page_size)

    args = layer_arguments(kv_heads, group, page_size)
    compiled = tpu_target.compile(jax.jit(kernels, donate_argnums=0), *args, *selection)
    pools, _, q, table, _ = args
    print(f"{tpu_target.name} {model} page {page_size}: temp {compiled.memory_analysis().temp_size_in_bytes / 1e6} MB")
    bound = 64 * q.size + 16 * (table.size + selection[0].size) + 2**20
    assert_pools_stay(compiled, pools, kernels=4, temp=bound)


@pytest.mark.parametrize(("page_size", "summary"), [(16, "mean"), (64, "mean"), (16, "min_max"), (64, "mean_std")])
def test_layer_step(tpu_target, page_size, summary):
    """A step of Qwen3-8B with the choice of pages: temporaries are as above and a few times the scores."""
    args = layer_arguments(*HEADS["8B"], page_size, summary)
    step = functools.partial(layer_step, pages=BUDGET // page_size, summary=summary)
    compiled = tpu_target.compile(jax.jit(step, donate_argnums=0), *args)
    pools, _, q, table, _ = args
    temp, scores = compiled.memory_analysis().temp_size_in_bytes, 4 * 8 * table.size
    print(f"{tpu_target.name} page {page_size}: temp {temp / 1e6:.2f} MB, cache {size(*pools) / 1e6:.0f} MB")
    assert temp < 0.002 * size(*pools)
    assert_pools_stay(compiled, pools, kernels=3, temp=3 * scores + 32 * q.size)


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
def test_corners_of_paged_decode(tpu_target, shape, dtype):
    """Lone and wide groups, small and large pages, batch 1 and 1024, 128K tokens, the widest table."""
    batch, kv_heads, group, head_dim, page_size, pages, per_head = shape
    rows = (batch, kv_heads) if per_head else (batch,)
    num_pages = (1 << 30) // (kv_heads * page_size * head_dim * 4)
    pools = layer_pools(kv_heads, num_pages, page_size, head_dim, dtype, summary=None)[:2]
    q, table = struct(dtype, batch, kv_heads * group, head_dim), struct("int32", *rows, pages)
    compiled = tpu_target.compile(jax.jit(paged_decode), q, *pools, table, struct("int32", *rows))
    assert_pools_stay(compiled, pools, kernels=1, temp=32 * q.size + 16 * table.size + 2**20)


@pytest.mark.parametrize(
    ("shape", "dtype", "summary"),
    [
        ((16, 8, 5, 128, 2048), "float32", "mean"),
        ((16, 32, 1, 128, 512), "bfloat16", "mean"),
        ((1, 8, 4, 128, 48 << 10), "bfloat16", "mean"),
        ((1024, 4, 16, 128, 64), "bfloat16", "mean"),
        ((16, 8, 4, 128, 2048), "float32", "min_max"),
        ((16, 8, 4, 256, 512), "bfloat16", "min_max"),
        ((3, 2, 1, 256, 512), "float32", "mean_std"),
        ((16, 16, 2, 128, 512), "bfloat16", "mean_std"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else value,
)
def test_corners_of_page_scores(tpu_target, shape, dtype, summary):
    """Summaries are neither gathered in HBM nor laid out anew, whatever their kind."""
    batch, kv_heads, group, head_dim, pages = shape
    num_pages = (1 << 28) // (kv_heads * head_dim * 4)
    pool = layer_pools(kv_heads, num_pages, 16, head_dim, dtype, summary)[2]
    q, table = struct("bfloat16", batch, kv_heads * group, head_dim), struct("int32", batch, pages)
    scores = jax.jit(functools.partial(page_scores, summary=summary))
    compiled = tpu_target.compile(scores, q, pool, table, struct("int32", batch))
    assert_pools_stay(compiled, [pool], kernels=1, temp=16 * (q.size + table.size) + 2**20)


@pytest.mark.parametrize(
    ("shape", "dtype", "summary"),
    [
        ((1, 8, 128, 16), "float32", "mean"),
        ((1024, 8, 128, 64), "bfloat16", "mean"),
        ((1024, 2, 128, 16), "bfloat16", None),
        ((5, 8, 256, 8), "bfloat16", "min_max"),
        ((64, 8, 256, 128), "float32", "mean_std"),
        ((64, 32, 128, 32), "bfloat16", "mean"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else str(value),
)
def test_corners_of_append(tpu_target, shape, dtype, summary):
    """Batch 1 and 1024, many heads, wide heads, small and large pages: one kernel, pools in place."""
    batch, kv_heads, head_dim, page_size = shape
    pools = layer_pools(kv_heads, (1 << 28) // (kv_heads * page_size * head_dim), page_size, head_dim, dtype, summary)
    new = struct(dtype, batch, kv_heads, head_dim)
    step = functools.partial(append.append_kv, summary=summary or "mean")
    table, lengths = struct("int32", batch, 512), struct("int32", batch)
    compiled = tpu_target.compile(jax.jit(step, donate_argnums=(0, 1, 2)), *pools, new, new, table, lengths)
    assert_pools_stay(compiled, [pool for pool in pools if pool is not None], kernels=1, temp=2**20)


def test_under_shard_map_over_kv_heads(tpu_target):
    """Four chips, two KV heads each: every chip runs the step on its own pools, nothing is sent."""
    mesh = jax.sharding.Mesh(np.array(tpu_target.devices), ("heads",))
    pool, by_head, alike = PartitionSpec("heads"), PartitionSpec(None, "heads"), PartitionSpec()
    specs = (pool, by_head, by_head, alike, alike)
    step = functools.partial(layer_step, summary="mean", pages=16)
    sharded = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=(pool, by_head), check_vma=False)
    args = jax.tree.map(
        lambda spec, part: jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, spec)), part
        ),
        specs,
        layer_arguments(8, 4, 64),
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=tpu_target.abstract)):
        compiled = jax.jit(sharded, donate_argnums=0).trace(*args).lower(lowering_platforms=("tpu",)).compile()
    local = layer_pools(2, BATCH * CONTEXT // 64, 64)
    assert_pools_stay(compiled, local, kernels=3, temp=2**22)
    sent = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
    assert not [op for op in sent if f" {op}(" in compiled.as_text()]
