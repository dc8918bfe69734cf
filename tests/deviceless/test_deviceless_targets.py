"""Every GPU that is described compiles a sparse decode, and the descriptions say what the kernels ask for."""

import functools

import jax
import jax.numpy as jnp
import kinetics_kernels as kernels
import pytest
from kinetics_kernels import reference, targets

pytestmark = pytest.mark.slow

BATCH, KV_HEADS, GROUP, HEAD_DIM, PAGE, CONTEXT = 64, 8, 4, 128, 64, 32_768


def test_a_sparse_decode_compiles(gpu_target):
    pages = CONTEXT // PAGE
    pool = jax.ShapeDtypeStruct((KV_HEADS, BATCH * pages, PAGE, HEAD_DIM), jnp.bfloat16)
    summaries = jax.ShapeDtypeStruct((KV_HEADS, BATCH * pages, HEAD_DIM), jnp.bfloat16)
    q = jax.ShapeDtypeStruct((BATCH, KV_HEADS * GROUP, HEAD_DIM), jnp.bfloat16)
    table, lengths = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((BATCH, pages), (BATCH,)))
    decode = jax.jit(functools.partial(kernels.block_topk_decode, pages=1024 // PAGE, backend="triton"))
    compiled = gpu_target.compile(decode, q, pool, pool, summaries, table, lengths)
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * q.size * 2  # nothing of the size of a pool


def test_targets_are_what_their_names_say(gpu_target):
    cores = {"a100": 108, "h100": 132, "h200": 132}
    assert gpu_target.abstract.num_cores == cores[gpu_target.name]
    assert gpu_target.name.upper() in gpu_target.abstract.device_kind


def test_a_target_without_description_is_refused(h100_target):
    del h100_target
    with pytest.raises(FileNotFoundError, match="b200"):
        targets.gpu("b200")


def test_the_reference_moves_what_the_choice_of_a_backend_says_of_it(target):
    """`backends.REASONS`: a copy of gathered K and V on a GPU, of gathered summaries on a TPU, and a sort of scores."""
    pages = CONTEXT // PAGE
    pool = jax.ShapeDtypeStruct((KV_HEADS, BATCH * pages, PAGE, HEAD_DIM), jnp.bfloat16)
    summaries = jax.ShapeDtypeStruct((KV_HEADS, BATCH * pages, HEAD_DIM), jnp.bfloat16)
    q = jax.ShapeDtypeStruct((BATCH, KV_HEADS * GROUP, HEAD_DIM), jnp.bfloat16)
    table, lengths = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((BATCH, pages), (BATCH,)))
    decode = jax.jit(functools.partial(kernels.paged_decode, backend="xla"))
    select = jax.jit(functools.partial(kernels.select_pages, page_size=PAGE, pages=1024 // PAGE, backend="xla"))
    if target.platform == "cuda":
        one_pass = BATCH * KV_HEADS * reference.PASS_TOKENS * HEAD_DIM * 2
        compiled = target.compile(decode, q, pool, pool, table, lengths)
        assert compiled.memory_analysis().temp_size_in_bytes > 2 * one_pass
    chosen = target.compile(select, q, summaries, table, lengths)
    scores, copied = 4 * BATCH * KV_HEADS * pages, summaries.size * 2
    assert chosen.memory_analysis().temp_size_in_bytes > (scores if target.platform == "cuda" else copied)
