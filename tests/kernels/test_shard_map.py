"""The ops under `shard_map`, over KV heads and over sequences: what one device gives, to the bit."""

import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import kinetics_kernels as kernels
import pytest
from jax.sharding import PartitionSpec as P

SHARDED = """
import functools, sys
import jax, numpy as np, oracle
import kinetics_kernels as kernels
from jax.sharding import NamedSharding, PartitionSpec as P
from kinetics_kernels.ops.append_kv import triton as append_triton
from kinetics_kernels.ops.paged_decode import triton as decode_triton
from kinetics_kernels.ops.select_pages import triton as select_triton

# A sequence on each row of devices, with pages of its own, and a KV head on each column.
rng = np.random.default_rng(0)
states = [oracle.random_state(rng, lengths, kv_heads=2, group=2, page_size=8, max_pages=10, spare_pages=1)
          for lengths in ([72], [40], [0], [33])]
ROOM = max(state.k_pages.shape[1] for state in states)  # pages of a row of devices

def room(pool):
    return np.pad(pool, [(0, 0), (0, ROOM - pool.shape[1]), *[(0, 0)] * (pool.ndim - 2)], constant_values=np.nan)

q, lengths = (np.concatenate([getattr(state, name) for state in states]) for name in ("q", "lengths"))
pools = [np.concatenate([room(getattr(state, name)) for state in states], axis=1)
         for name in ("k_pages", "v_pages", "summaries")]
table = np.concatenate([state.page_table for state in states])  # ids within the row's pages
first = np.arange(4) * ROOM
new = rng.standard_normal((2, 4, 2, 16)).astype(np.float32)

def everywhere(ids):
    return np.where(ids >= 0, ids + first.reshape(-1, *[1] * (ids.ndim - 1)), -1).astype(np.int32)

mesh = jax.make_mesh((4, 2), ("data", "tensor"))
HEADS, POOL, ROWS = P("data", "tensor"), P("tensor", "data"), P("data")

def check(name, op, arrays, tables, inputs, outputs, ids=()):
    whole = jax.jit(op)(*arrays, everywhere(tables[0]), tables[1])
    sharded = jax.shard_map(op, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=backend == "xla")
    placed = [jax.device_put(array, NamedSharding(mesh, spec)) for array, spec in zip((*arrays, *tables), inputs)]
    parts = jax.jit(sharded)(*placed)
    for index, (expected, actual) in enumerate(zip(whole, parts, strict=True)):
        assert len(actual.sharding.device_set) == 8, (name, actual.sharding)
        actual = everywhere(np.asarray(actual)) if index in ids else np.asarray(actual)
        np.testing.assert_array_equal(actual, np.asarray(expected), err_msg=f"{name}, result {index}")
    return [np.asarray(part) for part in parts]

backend = sys.argv[1]
if backend == "xla":
    append, select, decode = (functools.partial(op, backend="xla") for op in
                              (kernels.append_kv, kernels.select_pages, kernels.paged_decode))
else:
    append, select, decode = (functools.partial(op, interpret=True) for op in
                              (append_triton.append_kv, select_triton.select_pages, decode_triton.paged_decode))
select = functools.partial(select, page_size=8, pages=4)

def block_topk(q, k_pages, v_pages, summaries, page_table, lengths):
    if backend == "xla":
        return kernels.block_topk_decode(q, k_pages, v_pages, summaries, page_table, lengths, pages=4, backend=backend)
    return decode(q, k_pages, v_pages, *select(q, summaries, page_table, lengths))

k_pages, v_pages, summaries = pools
check("append_kv", lambda k_new, v_new, *rest: append(*rest[:3], k_new, v_new, *rest[3:]), (*new, *pools),
      (table, lengths), (HEADS, HEADS, POOL, POOL, POOL, ROWS, ROWS), (POOL, POOL, POOL))
selected, covered = check("select_pages", select, (q, summaries), (table, lengths),
                          (HEADS, POOL, ROWS, ROWS), (HEADS, HEADS), ids=(0,))
assert (selected >= 0).sum(axis=-1)[:, 0].tolist() == [4, 4, 0, 4]
pair = (HEADS, HEADS)
check("paged_decode", decode, (q, k_pages, v_pages), (table, lengths), (HEADS, POOL, POOL, ROWS, ROWS), pair)
check("over a selection", decode, (q, k_pages, v_pages), (selected, covered),
      (HEADS, POOL, POOL, HEADS, HEADS), pair)
check("block_topk_decode", block_topk, (q, *pools), (table, lengths), (HEADS, *[POOL] * 3, ROWS, ROWS), pair)
print("equal")
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["xla", "triton"])
def test_eight_devices_give_the_bits_of_one(backend):
    """Four rows of devices by sequence, two columns by KV head, simulated in a process of its own."""
    here = str(pathlib.Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", SHARDED, backend],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]),
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8",
            "JAX_PLATFORMS": "cpu",
        },
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["equal"]


def abstract(*shape: int, dtype=jnp.bfloat16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize("backend", ["xla", "triton", "mosaic_tpu"])
def test_the_default_check_of_shard_map_passes(backend):
    """Traced alone: jax's interpreter of kernels does not know which axes its arrays vary over."""
    axes = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.sharding.AbstractMesh((2, 2), ("data", "tensor"), axis_types=axes)
    heads, pools, rows = P("data", "tensor"), P("tensor", "data"), P("data")
    q, new, pool = abstract(4, 8, 128), abstract(4, 2, 128), abstract(2, 64, 16, 128)
    tables, summaries = (abstract(4, 16, dtype=jnp.int32), abstract(4, dtype=jnp.int32)), abstract(2, 64, 128)

    def trace(op, arrays, inputs, outputs, **options) -> None:
        function = functools.partial(op, backend=backend, **options)
        sharded = jax.shard_map(function, mesh=mesh, in_specs=(*inputs, rows, rows), out_specs=outputs)
        jax.jit(sharded).trace(*arrays, *tables)

    trace(kernels.paged_decode, (q, pool, pool), (heads, pools, pools), (heads, heads))
    trace(kernels.select_pages, (q, summaries), (heads, pools), (heads, heads), page_size=16, pages=4)
    arrays, inputs = (q, pool, pool, summaries), (heads, pools, pools, pools)
    trace(kernels.block_topk_decode, arrays, inputs, (heads, heads), pages=4)
    arrays, inputs = (pool, pool, summaries, new, new), (pools, pools, pools, heads, heads)
    trace(kernels.append_kv, arrays, inputs, (pools, pools, pools))
