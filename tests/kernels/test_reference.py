"""The reference ops against a float64 oracle, with NaN wherever nothing may be read."""

import functools

import jax
import jax.numpy as jnp
import kinetics_kernels as kernels
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kinetics_kernels.reference import page_summary
from kinetics_kernels.summaries.registry import summary_names

from . import oracle
from .programs import lengths_of, over_programs

TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}
SHAPES = {
    "batch": [1, 2, 3, 4],
    "kv_heads": [1, 2, 3],
    "group": [1, 2, 5],
    "head_dim": [4, 16],
    "page_size": [1, 2, 4, 16],
}
CHOICES = {"sink_pages": [0, 1, 2], "recent_pages": [1, 2], "more": range(1, 7), "summary": summary_names()}
LONGEST = 70


@functools.cache
def program(op, **options):
    return jax.jit(functools.partial(op, **options))


def run(op, *arrays, **options):
    """An op under jit."""
    return program(op, **options)(*arrays)


def drawn_state(data: st.DataObject, seed: int, *, batch: int, **shape) -> oracle.Paged:
    lengths = lengths_of(data, batch, LONGEST)
    return oracle.padded_state(np.random.default_rng(seed), lengths, longest=LONGEST, **shape)


def assert_close(actual, expected) -> None:
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, **TOLERANCE)


@pytest.mark.slow
@over_programs(SHAPES, 8)
@settings(max_examples=40, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**16))
def test_dense_decode_matches_float64(programs, data, seed):
    state = drawn_state(data, seed, **data.draw(programs))
    out, lse = run(kernels.paged_decode, state.q, state.k_pages, state.v_pages, state.page_table, state.lengths)
    expected_out, expected_lse = oracle.block_topk(state, pages=1000, sink=0, recent=1)
    assert_close(out, expected_out)
    assert_close(lse, expected_lse)


@pytest.mark.slow
@over_programs(SHAPES | CHOICES, 10)
@settings(max_examples=50, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**16))
def test_block_topk_matches_float64(programs, data, seed):
    shape = dict(data.draw(programs))
    sink, recent, more = (shape.pop(name) for name in ("sink_pages", "recent_pages", "more"))
    state = drawn_state(data, seed, **shape)
    pages = sink + recent + more
    out, lse = run(
        kernels.block_topk_decode,
        *(state.q, state.k_pages, state.v_pages, state.summaries, state.page_table, state.lengths),
        pages=pages,
        sink_pages=sink,
        recent_pages=recent,
        summary=state.summary,
    )
    expected_out, expected_lse = oracle.block_topk(state, pages=pages, sink=sink, recent=recent)
    assert_close(out, expected_out)
    assert_close(lse, expected_lse)


@pytest.mark.slow
@over_programs(SHAPES | {"more": CHOICES["more"]}, 8)
@settings(max_examples=40, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**16))
def test_selection_order_cover_and_budget(programs, data, seed):
    shape = dict(data.draw(programs))
    pages = 2 + shape.pop("more")
    state = drawn_state(data, seed, **shape)
    size = state.page_size
    selected, covered = run(
        kernels.select_pages, state.q, state.summaries, state.page_table, state.lengths, page_size=size, pages=pages
    )
    selected, covered = np.asarray(selected), np.asarray(covered)
    assert selected.shape == (len(state.lengths), shape["kv_heads"], pages)
    for row, length in enumerate(state.lengths):
        for head in range(shape["kv_heads"]):
            chosen = oracle.choose_pages(state, row, head, pages=pages, sink=1, recent=1)
            physical = [int(state.page_table[row, page]) for page in chosen]
            assert selected[row, head].tolist() == physical + [-1] * (pages - len(physical))
            attended = sum(min((page + 1) * size, int(length)) - page * size for page in chosen)
            assert covered[row, head] == attended <= pages * size


def test_unchosen_pages_may_hold_nan():
    """NaN in the K and V of every page that selection did not choose changes no bit."""
    state = oracle.random_state(np.random.default_rng(0), [70, 41, 9], poison=0.0)
    options = {"pages": 5, "sink_pages": 1, "recent_pages": 1}
    pools = (state.summaries, state.page_table, state.lengths)
    before = run(kernels.block_topk_decode, state.q, state.k_pages, state.v_pages, *pools, **options)
    selected, _ = run(kernels.select_pages, state.q, *pools, page_size=4, **options)
    for head in range(selected.shape[1]):
        unchosen = np.setdiff1d(np.arange(state.k_pages.shape[1]), np.asarray(selected)[:, head])
        state.k_pages[head, unchosen] = np.nan
        state.v_pages[head, unchosen] = np.nan
    after = run(kernels.block_topk_decode, state.q, state.k_pages, state.v_pages, *pools, **options)
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1], after[1])


@pytest.mark.parametrize("page_size", [2, 16, 64])
def test_selecting_everything_equals_dense_to_the_bit(page_size):
    state = oracle.random_state(np.random.default_rng(1), [300, 128, 77, 1, 0], page_size=page_size, max_pages=200)
    pools = (state.k_pages, state.v_pages)
    dense = run(kernels.paged_decode, state.q, *pools, state.page_table, state.lengths)
    for pages in (-(-300 // page_size) + 1, 500):
        sparse = run(
            kernels.block_topk_decode, state.q, *pools, state.summaries, state.page_table, state.lengths, pages=pages
        )
        np.testing.assert_array_equal(dense[0], sparse[0])
        np.testing.assert_array_equal(dense[1], sparse[1])


def test_scores_of_minus_infinity_are_scores():
    """A page in use counts as one, whatever its score: the pages named hold the tokens said to be covered."""
    scores = np.full((1, 1, 9), -np.inf, np.float32)
    scores[0, 0, 4] = 1.0
    table, lengths = np.arange(20, 29, dtype=np.int32)[None], np.array([27], np.int32)
    selected, covered = run(kernels.choose_pages, scores, table, lengths, page_size=4, pages=5)
    assert selected[0, 0].tolist() == [20, 21, 22, 24, 26]
    assert covered[0, 0] == 4 * 4 + 3
    selected, covered = run(kernels.choose_pages, scores, table, lengths, page_size=4, pages=8)
    assert selected[0, 0].tolist() == [*range(20, 27), -1]
    assert covered[0, 0] == 27


def test_ties_go_to_the_lower_page():
    state = oracle.random_state(np.random.default_rng(2), [40], kv_heads=1, poison=0.0)
    state.summaries[:] = 1.0
    selected, _ = run(
        kernels.select_pages, state.q, state.summaries, state.page_table, state.lengths, page_size=4, pages=5
    )
    assert np.asarray(selected)[0, 0].tolist() == state.page_table[0, [0, 1, 2, 3, 9]].tolist()


@pytest.mark.parametrize("summary", summary_names())
def test_append_writes_one_token_and_closes_full_pages(summary):
    state = oracle.random_state(np.random.default_rng(3), [4, 7, 8, 1], max_pages=4, summary=summary)
    lengths = np.array([4, 7, 8, 0], np.int32)  # the last row is idle
    new = np.random.default_rng(4).standard_normal((2, 4, 2, 16)).astype(np.float32)
    pools = (state.k_pages, state.v_pages, state.summaries)
    k, v, summaries = run(kernels.append_kv, *pools, *new, state.page_table, lengths, summary=summary)
    expected_k, expected_v, expected_s = state.k_pages.copy(), state.v_pages.copy(), state.summaries.copy()
    for row, position in ((0, 3), (1, 6), (2, 7)):
        page = state.page_table[row, position // 4]
        expected_k[:, page, position % 4], expected_v[:, page, position % 4] = new[0, row], new[1, row]
        if position % 4 == 3:
            expected_s[:, page] = oracle.summary_of(expected_k[:, page], summary)
    np.testing.assert_array_equal(k, expected_k)
    np.testing.assert_array_equal(v, expected_v)
    np.testing.assert_allclose(summaries, expected_s, rtol=1e-6, atol=1e-7)


def test_summaries_of_another_kind_are_refused():
    state = oracle.random_state(np.random.default_rng(3), [4])
    new = np.ones((1, 2, 16), np.float32)
    rest = (new, new, state.page_table, state.lengths)
    with pytest.raises(ValueError, match="not of kind min_max"):
        run(kernels.append_kv, state.k_pages, state.v_pages, state.summaries, *rest, summary="min_max")
    with pytest.raises(ValueError, match="known: mean, min_max, mean_std"):
        run(kernels.append_kv, state.k_pages, state.v_pages, state.summaries, *rest, summary="median")


def test_min_max_bounds_every_logit_of_the_page():
    """Quest's score is never below the dot product with any key of the page, and is reached by one-dimensional keys."""
    rng = np.random.default_rng(11)
    keys, query = rng.standard_normal((200, 8, 16)), rng.standard_normal((200, 16))
    stored = np.asarray(page_summary(jnp.asarray(keys, jnp.float32), "min_max"))
    for page, q, summary in zip(keys, query, stored, strict=True):
        score = oracle.score_of(q, summary.astype(np.float64), "min_max")
        assert score >= (page.astype(np.float32) @ q).max() - 1e-5
        alone = oracle.score_of(q[:1], summary[:, :1].astype(np.float64), "min_max")
        np.testing.assert_allclose(alone, (page[:, 0] * q[0]).max(), rtol=1e-6)


def test_mean_std_is_the_log_of_the_mean_weight_of_gaussian_keys():
    """Over many Gaussian keys of known spread; and a page of equal keys scores its own logit."""
    rng = np.random.default_rng(12)
    centre, spread, query = rng.standard_normal(16), rng.uniform(0.2, 1.5, 16), rng.standard_normal(16)
    keys = centre + spread * rng.standard_normal((400_000, 16))
    stored = np.asarray(page_summary(jnp.asarray(keys, jnp.float32), "mean_std"), np.float64)
    weights = np.exp(keys @ query * 16**-0.5)
    score, error = oracle.score_of(query, stored, "mean_std"), weights.std() / weights.mean() / 400_000**0.5
    assert abs(score - np.log(weights.mean())) < 5 * error
    equal = np.asarray(page_summary(jnp.ones((8, 16)) * 0.3, "mean_std"), np.float64)
    np.testing.assert_allclose(equal, [[0.3] * 16, [0.0] * 16], atol=1e-7)
    np.testing.assert_allclose(oracle.score_of(query, equal, "mean_std"), 0.3 * query.sum() / 4, rtol=1e-5)


def test_kinds_of_summaries_choose_different_pages():
    """The page with one outstanding key wins by its bounds, the page of even keys by its mean."""
    state = oracle.random_state(np.random.default_rng(13), [24], kv_heads=1, group=1, head_dim=4, poison=0.0)
    state.q[:] = [1, 0, 0, 0]
    state.k_pages[:] = 0.0
    even, outstanding = state.page_table[0, 2], state.page_table[0, 3]
    state.k_pages[0, even, :, 0] = 1.5
    state.k_pages[0, outstanding, :, 0] = [9, -3, -3, 2]
    rest = (state.page_table, state.lengths)
    for summary, best in (("mean", even), ("min_max", outstanding), ("mean_std", outstanding)):
        pool = page_summary(jnp.asarray(state.k_pages), summary)
        selected, _ = run(kernels.select_pages, state.q, pool, *rest, page_size=4, pages=3, summary=summary)
        assert selected[0, 0, 1] == best


def test_append_without_summaries_and_into_missing_pages():
    state = oracle.random_state(np.random.default_rng(5), [3], max_pages=2, poison=0.0)
    new = np.ones((1, 2, 16), np.float32)
    k, _, summaries = run(
        kernels.append_kv, state.k_pages, state.v_pages, None, new, new, state.page_table, np.array([5], np.int32)
    )
    assert summaries is None
    np.testing.assert_array_equal(k, state.k_pages)  # position 4 has no page: nothing is written anywhere


def test_merging_two_halves_equals_the_whole():
    state = oracle.random_state(np.random.default_rng(6), [37, 8, 0])
    whole = run(kernels.paged_decode, state.q, state.k_pages, state.v_pages, state.page_table, state.lengths)
    first = np.minimum(state.lengths, 8)
    parts = [
        run(kernels.paged_decode, state.q, state.k_pages, state.v_pages, table, lengths)
        for table, lengths in ((state.page_table, first), (state.page_table[:, 2:], state.lengths - first))
    ]
    out, lse = run(kernels.merge_partials, jnp.stack([p[0] for p in parts]), jnp.stack([p[1] for p in parts]))
    assert_close(out, whole[0])
    assert_close(lse, whole[1])


def test_bfloat16_pools_stay_near_float64():
    state = oracle.random_state(np.random.default_rng(7), [60, 33])
    rounded = {
        name: jnp.asarray(getattr(state, name), jnp.bfloat16) for name in ("q", "k_pages", "v_pages", "summaries")
    }
    for name, value in rounded.items():
        setattr(state, name, np.asarray(value, np.float32))
    out, lse = run(kernels.block_topk_decode, *rounded.values(), state.page_table, state.lengths, pages=6)
    expected_out, expected_lse = oracle.block_topk(state, pages=6, sink=1, recent=1)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float64), expected_out, rtol=2**-8, atol=2**-8)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{"pages": 2}, {"pages": 4, "recent_pages": 0}, {"pages": 4, "summary": "median"}])
def test_impossible_selection_is_refused(options):
    state = oracle.random_state(np.random.default_rng(8), [9])
    with pytest.raises(ValueError, match="select_pages"):
        run(kernels.select_pages, state.q, state.summaries, state.page_table, state.lengths, page_size=4, **options)


def test_decode_holds_one_pass_of_tokens_not_the_context():
    """The compiled op's temporaries do not grow with the context."""

    def temp_bytes(tokens: int) -> int:
        pages = tokens // 16
        pool = jax.ShapeDtypeStruct((4, pages, 16, 64), jnp.float32)
        shapes = (
            jax.ShapeDtypeStruct((2, 16, 64), jnp.float32),
            pool,
            pool,
            jax.ShapeDtypeStruct((2, pages), jnp.int32),
            jax.ShapeDtypeStruct((2,), jnp.int32),
        )
        return jax.jit(kernels.paged_decode).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    assert temp_bytes(16_384) < temp_bytes(2048) + 16_384 * 4
    assert temp_bytes(16_384) < 0.05 * 2 * 4 * 16_384 * 64 * 4
