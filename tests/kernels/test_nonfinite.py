"""NaN and infinities pass through every op as through a float64 softmax, and are never taken for "no tokens"."""

import functools
import importlib

import jax
import jax.numpy as jnp
import kinetics_kernels as kernels
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.experimental.pallas import tpu as pltpu
from kinetics_kernels.numerics import BEST, ranked

from . import oracle
from .interpreted import interpreted

pytestmark = pytest.mark.slow

needs_jax_11 = pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="the Mosaic GPU interpreter needs jax 0.11")
GPU = {"interpret": plgpu.InterpretGPUParams()} if hasattr(plgpu, "InterpretGPUParams") else {}
# backend and options of an interpreted call, the page size and head_dim it takes, and its dtype
DECODERS = {
    "xla": ("xla", {}, 4, 16, np.float32),
    "triton": ("triton", {"splits": 1, "interpret": True}, 4, 16, np.float32),
    "triton split": ("triton", {"splits": 2, "interpret": True}, 4, 16, np.float32),
    "mosaic_tpu": ("mosaic_tpu", {"block_tokens": 64, "interpret": True}, 8, 128, np.float32),
    "mosaic_gpu": ("mosaic_gpu", {"splits": 1, **GPU}, 8, 64, np.float16),
    "mosaic_gpu split": ("mosaic_gpu", {"splits": 2, **GPU}, 8, 64, np.float16),
}
NAMES = [pytest.param(name, marks=needs_jax_11) if name.startswith("mosaic_gpu") else name for name in DECODERS]
TOKENS = 70  # the second part of a Triton row holds the last six, the second block of a TPU row too


@functools.cache
def decode(name: str):
    """One program for all tests of a decoder."""
    backend, options, *_ = DECODERS[name]
    if backend == "xla":
        return interpreted(kernels.paged_decode, backend="xla")
    op = importlib.import_module(f"kinetics_kernels.ops.paged_decode.{backend}").paged_decode
    return interpreted(op, **options)


def state_for(name: str) -> oracle.Paged:
    _, _, page_size, head_dim, dtype = DECODERS[name]
    rng = np.random.default_rng(1)
    state = oracle.random_state(rng, [TOKENS, TOKENS, 0], kv_heads=2, page_size=page_size, head_dim=head_dim)
    for array in ("q", "k_pages", "v_pages"):
        setattr(state, array, getattr(state, array).astype(dtype))
    return state


def spoil(state: oracle.Paged, what: str) -> None:
    """Puts a bad number into the first sequence, in its last token unless `what` says otherwise; the second is well."""
    last = (0, state.page_table[0, (TOKENS - 1) // state.page_size], (TOKENS - 1) % state.page_size)
    if what == "q":
        state.q[0, 0, 3] = np.nan
    elif what == "all keys -inf":  # every score of both its query heads is -inf
        state.q[0, :2] = np.abs(state.q[0, :2])
        state.k_pages[0, state.page_table[0, : -(-TOKENS // state.page_size)]] = -np.inf
    elif what == "last key -inf":
        state.q[0, :2] = np.abs(state.q[0, :2])
        state.k_pages[last] = -np.inf
    else:
        pool = state.v_pages if what.startswith("value") else state.k_pages
        pool[(*last, 3)] = np.inf if what.endswith("inf") else np.nan


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", ["key", "key inf", "value", "value inf", "q", "all keys -inf", "last key -inf"])
def test_bad_numbers_pass_through_as_in_float64(name, what):
    state = state_for(name)
    spoil(state, what)
    out, lse = map(np.asarray, decode(name)(state.q, state.k_pages, state.v_pages, state.page_table, state.lengths))
    with np.errstate(invalid="ignore"):
        expected_out, expected_lse = oracle.block_topk(state, pages=1000, sink=0, recent=1)
    spoiled = ~np.isfinite(expected_out[0]).all(axis=-1)
    assert spoiled.any() == (what != "last key -inf"), "the case is not the one meant"
    tolerance = 2e-5 if out.dtype == np.float32 else 2**-9
    np.testing.assert_allclose(out, expected_out, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(lse, expected_lse, rtol=2e-5, atol=2e-5)
    assert not out[2].any()
    assert np.all(lse[2] == -np.inf)


def test_merging_keeps_a_part_that_failed_and_drops_an_empty_one():
    rng = np.random.default_rng(0)
    outs, lses = rng.standard_normal((2, 4, 1, 8)).astype(np.float32), np.zeros((2, 4, 1), np.float32)
    outs[1, 0], lses[1, 0] = np.nan, np.nan  # it failed
    outs[1, 1], lses[1, 1] = np.nan, -np.inf  # it saw no token, and holds what memory held
    outs[:, 2], lses[:, 2] = np.nan, -np.inf  # none did
    lses[1, 3] = np.inf
    out, lse = map(np.asarray, kernels.merge_partials(outs, lses))
    assert np.isnan(out[0]).all()
    assert np.isnan(lse[0])
    np.testing.assert_array_equal(out[1], outs[0, 1])
    assert lse[1] == 0
    assert not out[2].any()
    assert lse[2] == -np.inf
    assert np.isnan(out[3]).all()
    assert not np.isfinite(lse[3])


def test_masked_decode_counts_tokens():
    state = oracle.random_state(np.random.default_rng(3), [11, 6], kv_heads=1, group=2)
    rest = (state.page_table, state.lengths)
    state.k_pages[0, state.page_table[0, 1], 2, 0] = np.nan
    logits = kernels.token_logits(state.q, state.k_pages, *rest)
    mask = np.zeros(logits.shape, bool)
    mask[:, 0, :11] = True
    out, lse = map(np.asarray, kernels.masked_decode(logits, mask, state.v_pages, *rest))
    assert np.isnan(out[0, 0]).all()
    assert np.isnan(lse[0, 0])
    assert np.isfinite(out[1, 0]).all()
    assert not out[:, 1].any()
    assert np.all(lse[:, 1] == -np.inf)


def test_the_current_token_of_the_oracle_survives_nan():
    logits = np.zeros((1, 1, 9), np.float32)
    logits[0, 0, 1:4] = np.nan
    mask = kernels.token_topk_mask(logits, np.array([9]), num_kv_heads=1, tokens=3)
    assert np.flatnonzero(np.asarray(mask)[0, 0]).tolist() == [1, 2, 8]


def test_how_scores_rank():
    negative_nan = np.float32(np.nan) * np.float32(-1)
    scores = np.array([np.nan, negative_nan, np.inf, 3, -0.0, 0.0, -np.inf], np.float32)
    kept = np.array([BEST, BEST, BEST, 3, 0, 0, -np.inf], np.float32)
    np.testing.assert_array_equal(ranked(jnp.asarray(scores)), kept)
    assert not np.signbit(np.asarray(ranked(jnp.asarray(scores)))[4])


def selectors() -> dict:
    triton = importlib.import_module("kinetics_kernels.ops.select_pages.triton").select_pages
    tpu = importlib.import_module("kinetics_kernels.ops.select_pages.mosaic_tpu").select_pages
    gpu = importlib.import_module("kinetics_kernels.ops.select_pages.mosaic_gpu").select_pages
    return {
        "xla": lambda *arrays, **options: kernels.select_pages(*arrays, backend="xla", **options),
        "triton fused": lambda *arrays, **options: triton(*arrays, fused=True, interpret=True, **options),
        "triton": lambda *arrays, **options: triton(*arrays, fused=False, interpret=True, **options),
        "mosaic_tpu": lambda *arrays, **options: tpu(*arrays, interpret=pltpu.InterpretParams(), **options),
        "mosaic_gpu": lambda *arrays, **options: gpu(*arrays, **GPU, **options),
    }


@functools.cache
def selector(name: str, **options):
    return interpreted(selectors()[name], **options)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", ["xla", "triton fused", "triton", "mosaic_tpu", *NAMES[-2:-1]])
def test_forced_pages_survive_summaries_of_nan(name, sign):
    """Sink and current page stay, then NaN of either sign and +inf alike, the lower page first, then numbers."""
    q, table = np.ones((1, 1, 128), np.float32), np.arange(8, dtype=np.int32)[None]
    summaries = np.zeros((1, 8, 128), np.float32)
    summaries[0, 5] = 2.0
    summaries[0, 6] = np.float32(np.nan) * np.float32(sign)
    summaries[0, 3, 0] = np.inf
    options = {"page_size": 4, "sink_pages": 1, "recent_pages": 1}
    for pages, expected in ((3, [0, 3, 7]), (4, [0, 3, 6, 7]), (5, [0, 3, 5, 6, 7])):
        selected, covered = selector(name, pages=pages, **options)(q, summaries, table, np.array([30], np.int32))
        assert np.asarray(selected)[0, 0].tolist() == expected
        assert int(covered[0, 0]) == (pages - 1) * 4 + 2


@pytest.mark.parametrize("summary", ["mean", "min_max", "mean_std"])
@pytest.mark.parametrize("backend", ["xla", "triton"])
def test_a_bad_key_makes_a_bad_summary(backend, summary):
    """In its own dimension alone, whatever the maximum of a device makes of NaN."""
    state = oracle.random_state(np.random.default_rng(3), [8], kv_heads=1, summary=summary)
    state.k_pages[0, state.page_table[0, 1], 1, 5] = np.nan
    new = np.ones((1, 1, 16), np.float32)
    arrays = (state.k_pages, state.v_pages, state.summaries, new, new, state.page_table, state.lengths)
    op = importlib.import_module("kinetics_kernels.ops.append_kv.triton").append_kv
    options = {"interpret": True} if backend == "triton" else {"backend": "xla"}
    op = op if backend == "triton" else kernels.append_kv
    stored = np.asarray(op(*map(jnp.asarray, arrays), summary=summary, **options)[2])[0, state.page_table[0, 1]]
    bad = np.isnan(stored.reshape(-1, 16))
    assert bad[:, 5].all()
    assert not np.delete(bad, 5, axis=1).any()
