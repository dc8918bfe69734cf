"""Counters that cannot overflow, and what a check of pages finds."""

import jax.numpy as jnp
import numpy as np

from kinetics_jax.attention.reads import Reads, Tally, check_pages, join_halves, split_halves


def test_sums_beyond_32_bits_are_exact():
    """The most that a step may read, in 128 KV heads of which two copies are held, and 65536 steps: 2**54 tokens."""
    most = np.uint32(2**32 - 1)
    counts = jnp.full((256, 2, 3, 2), most, jnp.uint32).at[:, 0, 1, 1].set(np.uint32(7))
    found = join_halves(np.asarray(split_halves(counts, copies=2)))
    assert found.dtype == np.int64
    assert found[1, 0, 0] == 128 * int(most)
    assert found[0, 1, 1] == 128 * 7
    assert int(np.broadcast_to(found[1, 0, 0], 65536).sum()) == 65536 * 128 * int(most)


def test_a_step_over_many_layers_of_long_sequences_fits_its_counter():
    """2**24 tokens in 255 layers; the first fault stays, with its layer."""
    lengths = jnp.array([2**24, 0])
    reads = Reads.none(2, 2)
    for layer in range(255):
        tally = Tally("p: in layer", 2, 2, lengths)
        tally.add(tokens=lengths[:, None], vectors=lengths[:, None] // 16)
        if layer in (3, 9):
            tally.blame(layer, jnp.array([[True, False], [True, True]]))
        reads = reads.plus(tally, layer)
    assert reads.tokens.tolist() == [[255 * 2**24, 0]] * 2
    assert reads.vectors.tolist() == [[255 * 2**20, 0]] * 2
    assert reads.fault.tolist() == [[3 * 16 + 3, 0], [0, 0]]  # an idle row has none


def faults(tables, covered, page_table, lengths, page_size=4):
    arrays = [jnp.asarray(array, jnp.int32) for array in (tables, covered, page_table, lengths)]
    tally = Tally("p: in layer", *arrays[0].shape[:2], arrays[3])
    check_pages(tally, *arrays, page_size)
    return tally.fault().tolist()


def test_pages_are_looked_up_in_their_own_row():
    """Two rows of 10 and 5 tokens, in pages of 4; pages taken in advance are the row's own, and hold nothing."""
    own = [[7, 2, 9, 5], [3, 8, -1, -1]]
    for tables, covered, expected in (
        ([[[7, 2, 9, -1]], [[3, 8, -1, -1]]], [[10], [5]], [[0], [0]]),
        ([[[7, 9, -1, -1]], [[8, -1, -1, -1]]], [[6], [1]], [[0], [0]]),
        ([[[7, 2, 9, 5]], [[3, 8, -1, -1]]], [[10], [5]], [[0], [0]]),
        ([[[7, 3, -1, -1]], [[3, 7, -1, -1]]], [[8], [8]], [[2], [2]]),  # of the other row
        ([[[6, -1, -1, -1]], [[0, -1, -1, -1]]], [[4], [4]], [[2], [2]]),  # of nobody
        ([[[2, 7, -1, -1]], [[3, 3, -1, -1]]], [[8], [8]], [[3], [3]]),  # out of order, twice
        ([[[7, -1, 9, -1]], [[-1, 3, -1, -1]]], [[6], [4]], [[3], [3]]),  # a gap
        ([[[7, 9, -1, -1]], [[3, 8, -1, -1]]], [[7], [6]], [[4], [4]]),  # more than they hold
        ([[[5, -1, -1, -1]], [[3, -1, -1, -1]]], [[1], [4]], [[4], [0]]),  # nothing is there yet
    ):
        assert faults(tables, covered, own, [10, 5]) == expected, (tables, covered)
    assert faults([[[7, 3]], [[3, 7]]], [[8], [8]], own, [10, 0]) == [[2], [0]]
