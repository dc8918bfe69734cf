"""The TPU scoring kernel in the interpreter, with its race detector, and the selection made from it."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu
from kinetics_kernels.ops.select_pages import mosaic_tpu as select

from . import oracle
from .interpreted import interpreted, tpu_races_found

RUN = select.RUN


def interpret(dtype="float32", dma="on_wait", cores=1):
    """The TPU interpreter for float32. It has no `ref.bitcast`, which bfloat16 needs: the plain one checks those.

    The clock's size is how many copies can be told apart: by default all are one, and never race each other.
    """
    if dtype == "bfloat16":
        return True
    return pltpu.InterpretParams(
        detect_races=True, dma_execution_mode=dma, num_cores_or_threads=cores, vector_clock_size=64
    )


def random_state(lengths, dtype="float32", seed=0, runs=(), **shape) -> oracle.Paged:
    """Pages of two tokens: many pages from few tokens. The pool is even, its summaries rounded to `dtype`.

    `runs` names groups of RUN entries of a row, (row, group): they get consecutive ids, the others keep scattered ones.
    """
    state = oracle.random_state(np.random.default_rng(seed), lengths, head_dim=128, page_size=2, **shape)
    num_pages = state.k_pages.shape[1]
    first = [state.page_table[row, group * RUN : (group + 1) * RUN] for row, group in runs]
    order = [*np.concatenate([*first, []]).astype(int)]
    order = [page for page in order if page >= 0]
    order += [page for page in range(num_pages) if page not in order]  # new id → old id
    new_id = np.argsort(order)
    state.page_table = np.where(state.page_table >= 0, new_id[state.page_table], -1).astype(np.int32)
    state.k_pages, state.v_pages, state.summaries = (
        pool[:, order] for pool in (state.k_pages, state.v_pages, state.summaries)
    )
    odd = [(0, 0), (0, num_pages % 2)] + [(0, 0)] * (state.summaries.ndim - 2)
    state.summaries = np.pad(state.summaries, odd, constant_values=np.nan)
    state.summaries = np.array(jnp.asarray(state.summaries, dtype), np.float32)
    return state


def copies(state: oracle.Paged) -> np.ndarray:
    """How many copies each row takes."""
    used = -(-state.lengths // 2)
    table = np.pad(state.page_table, ((0, 0), (0, -state.page_table.shape[1] % 128)), constant_values=-1)
    table = np.asarray(select._with_runs(jnp.asarray(table), jnp.asarray(used), state.summaries.shape[1], True))
    groups = [range(0, count, RUN) for count in used]
    return np.array(
        [
            sum(1 if table[row, place] < 0 else min(RUN, used[row] - place) for place in places)
            for row, places in enumerate(groups)
        ]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("summary", "dtype", "scale", "cores"),
    [
        ("mean", "float32", None, 1),
        ("mean", "bfloat16", None, 1),
        ("min_max", "float32", None, 2),
        ("min_max", "bfloat16", None, 1),
        ("mean_std", "float32", 0.2, 1),
        ("mean_std", "bfloat16", None, 1),
    ],
)
def test_scores_and_selection_match_float64(summary, dtype, scale, cores):
    """Runs, whole and cut short by the end of a row, and pages alone, odd and even; rows without a page, and blocks
    that end with a row. Summaries of free pages are NaN."""
    lengths, shape = [300, 0, 70, 256], {"kv_heads": 2, "group": 3}
    runs = [*((0, group) for group in range(9) if group not in (0, 5)), (2, 1), *((3, g) for g in range(8)), (2, 2)]
    state = random_state(lengths, dtype, runs=runs, summary=summary, **shape)
    assert copies(state).tolist() == [7 + 2 * RUN + 6, 0, RUN + 2, 8]
    arguments = jnp.asarray(state.q), jnp.asarray(state.summaries, dtype), jnp.asarray(state.page_table)
    options = {"summary": summary, "scale": scale, "block_pages": 128, "interpret": interpret(dtype, cores=cores)}
    scores = interpreted(select.page_scores, **options)(*arguments, -(-state.lengths // 2))
    assert dtype == "bfloat16" or not tpu_races_found()
    assert scores.shape == (4, 2, state.page_table.shape[1])
    state.q = state.q * ((scale or 128**-0.5) * 128**0.5 if summary == "mean_std" else 1)  # the oracle's scale is fixed
    query = state.q.astype(np.float64).reshape(4, 2, 3, 128).mean(axis=2)
    for row, length in enumerate(lengths):
        for head in range(2):
            stored = state.summaries.astype(np.float64)[head, state.page_table[row, : length // 2]]
            expected = [oracle.score_of(query[row, head], vector, summary) for vector in stored]
            np.testing.assert_allclose(scores[row, head, : length // 2], expected, rtol=2e-5, atol=2e-5)
            chosen = oracle.choose_pages(state, row, head, pages=7, sink=1, recent=1)
            best = np.sort(np.argsort(-np.asarray(scores)[row, head, 1 : -(-length // 2) - 1], kind="stable")[:5]) + 1
            assert length == 0 or [0, *best, -(-length // 2) - 1] == chosen


@pytest.mark.slow
@pytest.mark.parametrize("summary", ["mean", "mean_std"])
def test_selection_from_scores(summary):
    """Lengths that end within a page, tables shorter than the choice, a scale; the choice is the reference's."""
    state = random_state([31, 0, 5], kv_heads=3, group=1, summary=summary)
    options = {"page_size": 2, "pages": 7, "sink_pages": 1, "recent_pages": 2, "summary": summary}
    arguments = [jnp.asarray(a) for a in (state.q, state.summaries, state.page_table, state.lengths)]
    selected, covered = interpreted(select.select_pages, interpret=interpret(), **options)(*arguments)
    assert not tpu_races_found()
    for row, length in enumerate([31, 0, 5]):
        for head in range(3):
            chosen = oracle.choose_pages(state, row, head, pages=7, sink=1, recent=2)
            physical = [int(state.page_table[row, page]) for page in chosen]
            assert selected[row, head].tolist() == physical + [-1] * (7 - len(physical))
            assert covered[row, head] == sum(min((page + 1) * 2, length) - page * 2 for page in chosen)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ties_go_to_the_lower_page(dtype):
    """Equal summaries score alike wherever they lie, in a run or alone, in either half of a pair."""
    state = random_state([280], kv_heads=1, poison=0.0, runs=[(0, 0), (0, 3), (0, 7)])
    state.summaries[:] = np.random.default_rng(1).standard_normal(128)
    scores = interpreted(select.page_scores, interpret=interpret(dtype))(
        jnp.asarray(state.q),
        jnp.asarray(state.summaries, dtype),
        jnp.asarray(state.page_table),
        -(-state.lengths // 2),
    )
    assert copies(state)[0] == 3 + 5 * RUN + 12
    assert (scores[..., :140] == scores[0, 0, 0]).all()


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    jumps=st.lists(st.tuples(st.integers(0, 47), st.integers(-3, 40)), max_size=3),
    start=st.integers(0, 20),
    used=st.integers(0, 48),
    pairs=st.booleans(),
)
def test_runs_are_found_where_ids_ascend(jumps, start, used, pairs):
    """Against a loop over the entries, over tables that ascend but for a few jumps, past the pool's end too."""
    steps = np.ones(48, int)
    for place, jump in jumps:
        steps[place] = jump
    table, num_pages = (start + np.cumsum(steps) - 1).astype(np.int32), 64
    table[table < 0] = -1
    marked = np.asarray(select._with_runs(jnp.asarray(table[None]), jnp.asarray([used]), num_pages, pairs))[0]
    for place in range(48):
        group = [int(page) for page in table[place : min(place + RUN, max(used, place + 1))]]
        run = place % RUN == 0 and group == list(range(group[0], group[0] + len(group)))
        run = run and 0 <= group[0] <= num_pages - RUN and not (pairs and group[0] % 2)
        assert marked[place] == (~group[0] if run else min(max(int(table[place]), 0), num_pages - 1))


@pytest.mark.slow
def test_the_interpreter_sees_a_missing_wait(monkeypatch):
    state = random_state([36, 22], poison=0.0, runs=[(1, 0)])
    arguments = [jnp.asarray(a) for a in (state.q, state.summaries, state.page_table, -(-state.lengths // 2))]
    assert np.isfinite(interpreted(select.page_scores, interpret=interpret())(*arguments)[0, :, :18]).all()
    monkeypatch.setattr(select, "_await", lambda copy: None)
    try:
        scores = interpreted(select.page_scores, block_pages=256, interpret=interpret())(*arguments)
        assert np.isnan(scores[0, :, :18]).any()
        interpreted(select.page_scores, block_pages=256, interpret=interpret(dma="eager"))(*arguments)
        assert tpu_races_found()
    finally:
        pltpu.reset_tpu_interpret_mode_state()


@pytest.mark.slow
def test_the_interpreter_sees_a_page_out_of_bounds(monkeypatch):
    state = random_state([36, 22], poison=0.0)
    arguments = [jnp.asarray(a) for a in (state.q, state.summaries, state.page_table, -(-state.lengths // 2))]
    with_runs = select._with_runs

    def past_the_pool(table, used, num_pages, pairs):
        return with_runs(table, used, num_pages, pairs).at[1, 2].set(num_pages)

    monkeypatch.setattr(select, "_with_runs", past_the_pool)
    try:
        with pytest.raises(Exception, match="IndexError"):
            interpreted(select.page_scores, interpret=interpret())(*arguments)
    finally:
        pltpu.reset_tpu_interpret_mode_state()


@pytest.mark.parametrize(
    ("pool", "dtype", "options", "reason"),
    [
        ((2, 8, 64), "float32", {}, "a head_dim that is a multiple of 128, not 64"),
        ((2, 8, 256), "float32", {}, "one vector with a head_dim of 128, not 256"),
        ((2, 8, 128), "float16", {}, "summaries in bfloat16 or float32, not float16"),
        ((2, 9, 128), "bfloat16", {}, "an even number of bfloat16 summaries.*, not 9"),
        ((2, 8, 128), "float32", {"block_pages": 100}, "blocks of a multiple of 128 pages, not 100"),
        ((128, 8, 128), "float32", {}, "which 128 KV heads x 128 pages exceed"),
    ],
)
def test_what_the_kernel_cannot_do_is_named(pool, dtype, options, reason):
    q, table, lengths = jnp.ones((1, pool[0], pool[2])), jnp.zeros((1, 4), jnp.int32), jnp.ones(1, jnp.int32)
    with pytest.raises(NotImplementedError, match=reason):
        select.select_pages(q, jnp.ones(pool, dtype), table, lengths, page_size=8, pages=3, **options)


@pytest.mark.parametrize(("summary", "reason"), [("median", "is not known"), ("min_max", "not of kind min_max")])
def test_summaries_of_another_kind_are_refused(summary, reason):
    q, table, lengths = jnp.ones((1, 2, 128)), jnp.zeros((1, 4), jnp.int32), jnp.ones(1, jnp.int32)
    with pytest.raises(ValueError, match=reason):
        select.select_pages(q, jnp.ones((2, 8, 128)), table, lengths, page_size=8, pages=3, summary=summary)
