"""Two layers of Qwen3-30B-A3B, compiled for an H100 and a TPU v5e: chosen experts are computed, and none is copied."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from kinetics_kernels import grouped_matmul

import kinetics_jax as kj
from kinetics_jax.attention.cache import empty_cache
from kinetics_jax.engine.programs import decode_chunk, prefill
from kinetics_jax.engine.sampling import seed_key
from kinetics_jax.engine.slots import Slots
from kinetics_jax.models.qwen3 import Qwen3

pytestmark = pytest.mark.slow

BATCH, CONTEXT, PAGE = 8, 8192, 64
SPARSE = kj.BlockTopK(budget=1024, page_size=PAGE)  # its first layer is dense
LAYERS = 2


def abstract():
    """The model in bfloat16 and a full cache, as shapes; and the bytes of the experts' matrices."""
    config = dataclasses.replace(kj.ModelConfig.named("30B-A3B"), num_layers=LAYERS, name="")
    graph, weights = nnx.split(nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)))
    cache = jax.eval_shape(lambda: empty_cache(SPARSE, config, num_pages=BATCH * CONTEXT // PAGE, dtype=jnp.bfloat16))
    experts = 3 * 2 * config.num_experts * config.hidden_size * config.moe_intermediate_size
    return graph, weights, cache, experts


def test_decode_step(target):
    graph, weights, cache, experts = abstract()
    compiled = target.compile(
        decode_chunk,
        graph,
        weights,
        cache,
        jax.eval_shape(lambda: Slots.idle(BATCH, seed_key(0))),
        jax.ShapeDtypeStruct((BATCH, CONTEXT // PAGE), jnp.int32),
        jax.ShapeDtypeStruct((), jnp.int32),
        policy=SPARSE,
        sampling=kj.Sampling(temperature=0.6, top_k=16, max_tokens=1),
        eos=(151_645,),
        chunk=32,
    )
    memory = compiled.memory_analysis()
    print(f"{target.name}: temp {memory.temp_size_in_bytes / 1e6:.1f} MB, a layer's experts {experts / 1e6:.0f} MB")
    assert memory.alias_size_in_bytes >= sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
    assert memory.temp_size_in_bytes < 0.1 * experts
    assert len(products(compiled)) == 3 * LAYERS


def test_prefill(target):
    """8192 tokens: rows and activations of their 8 experts, and no copy of them for each expert there is."""
    graph, weights, cache, _ = abstract()
    compiled = target.compile(
        prefill,
        graph,
        weights,
        cache,
        jax.ShapeDtypeStruct((1, CONTEXT), jnp.int32),
        jax.ShapeDtypeStruct((), jnp.int32),
        jax.ShapeDtypeStruct((CONTEXT // PAGE,), jnp.int32),
    )
    memory = compiled.memory_analysis()
    rows = 8 * CONTEXT * 2048 * 2
    print(f"{target.name}: prefill temp {memory.temp_size_in_bytes / 1e6:.0f} MB, rows {rows / 1e6:.0f} MB")
    assert memory.temp_size_in_bytes < 8 * rows
    assert len(products(compiled)) == 3 * LAYERS


@pytest.mark.parametrize(("rows", "dtype"), [(8, jnp.bfloat16), (65_536, jnp.bfloat16), (8, jnp.float32)])
def test_the_triton_kernel_spills_no_register(h100_target, rows, dtype):
    spills = {"xla_gpu_fail_ptx_compilation_on_register_spilling": True}
    compiled = h100_target.compile(
        jax.jit(grouped_matmul, compiler_options=spills),
        jax.ShapeDtypeStruct((rows, 2048), dtype),
        jax.ShapeDtypeStruct((128, 2048, 768), dtype),
        jax.ShapeDtypeStruct((128,), jnp.int32),
    )
    assert compiled.memory_analysis().temp_size_in_bytes < 2**20


def products(compiled) -> list[str]:
    """The calls of a kernel for grouped products."""
    text = compiled.as_text()
    return re.findall(
        r"= bf16\[[^=]* custom-call\([^\n]*(?:xla\.gpu\.triton|tpu_custom_call)[^\n]*(?:grouped_matmul|ragged)", text
    )
