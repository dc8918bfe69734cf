"""Shared prefixes against attention over each sequence by itself: ragged groups, groups of one, idle rows, NaN."""

import jax
import jax.numpy as jnp
import kinetics_kernels as kernels
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_jax.shared_prefix import SharedPrefix, share_prefixes, shared_prefix_decode

SLOTS, WIDTH, PAGE, KV_HEADS, GROUP, HEAD = 9, 3, 4, 2, 2, 8
PREFIX_PAGES, MAX_PAGES, POOL = 5, 9, 64

together = jax.jit(lambda q, k, v, lengths, shared: shared_prefix_decode(q, k, v, lengths, shared))
apart = jax.jit(lambda q, k, v, table, lengths: kernels.paged_decode(q, k, v, table, lengths)[0])


def case(rng, prompts):
    """Slots in random order for prompts of so many whole pages and samples; some slots idle. Free pages hold NaN."""
    free = list(rng.permutation(POOL))
    order = list(rng.permutation(SLOTS))
    running, table, lengths = [], np.full((SLOTS, MAX_PAGES), -1, np.int32), np.zeros(SLOTS, np.int32)
    for whole, samples in prompts:
        prefix = [int(free.pop()) for _ in range(whole)]
        for _ in range(min(samples, len(order))):
            slot = int(order.pop())
            own = int(rng.integers(1, 1 + 3 * PAGE))
            pages = prefix + [int(free.pop()) for _ in range(-(-own // PAGE))]
            running.append((slot, pages, whole))
            table[slot, : len(pages)] = pages
            lengths[slot] = whole * PAGE + own
    pool = rng.standard_normal((2, KV_HEADS, POOL, PAGE, HEAD)).astype(np.float32)
    pool[:, :, free] = np.nan
    for slot, pages, _ in running:  # and what lies behind a sequence's last token
        if lengths[slot] % PAGE:
            pool[:, :, pages[-1], lengths[slot] % PAGE :] = np.nan
    q = rng.standard_normal((SLOTS, KV_HEADS * GROUP, HEAD)).astype(np.float32)
    sizes = {"slots": SLOTS, "width": WIDTH, "prefix_pages": PREFIX_PAGES, "max_pages": MAX_PAGES, "page_size": PAGE}
    return q, *map(jnp.asarray, pool), table, lengths, share_prefixes(running, **sizes), running


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, PREFIX_PAGES), st.integers(1, SLOTS)), max_size=5), st.integers(0, 2**32 - 1)
)
def test_two_passes_are_attention(prompts, seed):
    q, k, v, table, lengths, shared, running = case(np.random.default_rng(seed), prompts)
    expected = np.asarray(apart(q, k, v, table, lengths))
    np.testing.assert_allclose(together(q, k, v, lengths, shared), expected, atol=2e-6, rtol=2e-5)
    used = np.count_nonzero(shared.lengths)
    assert used == np.count_nonzero(shared.lengths[:used])  # used rows come first
    assert used == sum(-(-sum(pages[:whole] == other[:n] for _, other, n in running if n) // WIDTH)
                       for pages, whole in {tuple(p[:w]): (p, w) for _, p, w in running if w}.values())  # fmt: skip
    stopped = lengths.copy()  # a sample that ends within the chunk stays a member
    stopped[::2] = 0
    out = np.asarray(together(q, k, v, stopped, shared))
    assert not out[::2].any()
    np.testing.assert_array_equal(out[1::2], np.asarray(together(q, k, v, lengths, shared))[1::2])


def test_company_and_place_change_no_bit():
    """A sample alone with its prompt, first or last of a full row, with its prompt's pages elsewhere: the same bits."""
    rng = np.random.default_rng(0)
    q, k, v, _, lengths, shared, running = case(rng, [(5, 9)])
    reference = np.asarray(together(q, k, v, lengths, shared))
    sizes = {"slots": SLOTS, "width": WIDTH, "prefix_pages": PREFIX_PAGES, "max_pages": MAX_PAGES, "page_size": PAGE}
    for slot, pages, whole in running:
        alone = share_prefixes([(slot, pages, whole)], **sizes)
        only = np.where(np.arange(SLOTS) == slot, lengths, 0)
        np.testing.assert_array_equal(np.asarray(together(q, k, v, only, alone))[slot], reference[slot])
    turned = share_prefixes(running[::-1], **sizes)
    assert not np.array_equal(turned.place, shared.place)
    np.testing.assert_array_equal(together(q, k, v, lengths, turned), reference)
