"""The engine's programs, compiled for an H100 and a TPU v5e: the cache is aliased and never copied."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import kinetics_jax as kj
from kinetics_jax.attention.cache import PagedCache, summary_layers
from kinetics_jax.engine.programs import decode_chunk, prefill
from kinetics_jax.engine.sampling import seed_key
from kinetics_jax.engine.slots import Slots
from kinetics_jax.models.qwen3 import Qwen3

pytestmark = pytest.mark.slow

BATCH, CONTEXT, PAGE = 8, 8192, 64
# With jax 0.11.2 a stable top-k of more than 16 needs a device to choose its algorithm; 16 compiles without.
SAMPLING = kj.Sampling(temperature=0.6, top_k=16, top_p=0.95, max_tokens=1)


def abstract(policy):
    """Qwen3-0.6B in bfloat16 and a full cache, as shapes."""
    config = dataclasses.replace(kj.ModelConfig.named("0.6B"), name="")
    graph, weights = nnx.split(nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)))
    cache = jax.eval_shape(
        lambda: PagedCache.create(
            config,
            num_pages=BATCH * CONTEXT // PAGE,
            page_size=PAGE,
            dtype=jnp.bfloat16,
            summary_layers=summary_layers(policy, config.num_layers),
            summary=policy.summary if isinstance(policy, kj.BlockTopK) else "mean",
        )
    )
    return graph, weights, cache


def cache_bytes(cache) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))


SPARSE = kj.BlockTopK(budget=1024, page_size=PAGE)  # its first layer is dense


# Of a kernel; XLA's own custom calls on TPUs bear the names of the jitted ops that they come from.
CALL = {"cuda": "custom_call_target=", "tpu": 'custom_call_target="tpu_custom_call"'}
KERNELS = {"cuda": ("append_kv", "paged_decode", "choose_pages"), "tpu": ("append_kv", "paged_decode", "page_scores")}


@pytest.mark.filterwarnings("error:.*falling back to the reference")
@pytest.mark.parametrize(
    ("policy", "backend"),
    [(kj.Dense(), "xla"), (SPARSE, "xla"), (dataclasses.replace(SPARSE, summary="min_max"), "xla"),
     (kj.Dense(), None), (SPARSE, None)],
    ids=["dense-xla", "block_topk-xla", "min_max-xla", "dense-default", "block_topk-default"],
)  # fmt: skip
def test_decode_step(target, policy, backend):
    """By default on the kernels made for the target, which no warning says are left out."""
    graph, weights, cache = abstract(policy)
    slots = jax.eval_shape(lambda: Slots.idle(BATCH, seed_key(0)))
    compiled = target.compile(
        decode_chunk,
        graph,
        weights,
        cache,
        slots,
        jax.ShapeDtypeStruct((BATCH, CONTEXT // PAGE), jnp.int32),
        jax.ShapeDtypeStruct((), jnp.int32),
        policy=policy,
        sampling=SAMPLING,
        eos=(151_645,),
        chunk=32,
        backend=backend,
    )
    memory = compiled.memory_analysis()
    print(f"{target.name}: temp {memory.temp_size_in_bytes / 1e6:.1f} MB, cache {cache_bytes(cache) / 1e6:.0f} MB")
    assert memory.alias_size_in_bytes >= cache_bytes(cache)
    assert memory.temp_size_in_bytes <= 0.05 * cache_bytes(cache)
    wanted = KERNELS[target.platform][: 2 if policy == kj.Dense() else 3]
    calls = "".join(line for line in compiled.as_text().splitlines() if CALL[target.platform] in line)
    assert [name for name in KERNELS[target.platform] if name in calls] == ([] if backend else [*wanted])


def test_prefill(target):
    graph, weights, cache = abstract(kj.Dense())
    time = CONTEXT
    compiled = target.compile(
        prefill,
        graph,
        weights,
        cache,
        jax.ShapeDtypeStruct((1, time), jnp.int32),
        jax.ShapeDtypeStruct((), jnp.int32),
        jax.ShapeDtypeStruct((time // PAGE,), jnp.int32),
    )
    memory = compiled.memory_analysis()
    print(f"{target.name} prefill of {time}: temp {memory.temp_size_in_bytes / 1e6:.1f} MB")
    assert memory.alias_size_in_bytes >= cache_bytes(cache)
    assert memory.temp_size_in_bytes < 16 * time * time * 4 / 2  # no [heads, time, time] scores
