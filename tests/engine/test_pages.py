"""Page bookkeeping: no page is lost, given twice, or freed while somebody holds it."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from kinetics_kernels.ops.select_pages import mosaic_tpu

from kinetics_jax.engine.pages import OutOfPages, PageAllocator
from kinetics_jax.padding import RUN

POOL = 2 * RUN + 5


class Bookkeeping(RuleBasedStateMachine):
    """Random sequences of takes, shares and releases against a plain count of holders."""

    def __init__(self):
        super().__init__()
        self.allocator = PageAllocator(POOL)
        self.held: list[list[int]] = []

    @rule(count=st.integers(0, POOL), data=st.data())
    def take(self, count, data):
        sequence = data.draw(st.sampled_from([[], *self.held]))
        if count > POOL - len(self.holders()):
            with pytest.raises(OutOfPages):
                self.allocator.take(count, sequence=sequence)
            return
        pages = self.allocator.take(count, sequence=sequence)
        assert len(set(pages)) == count
        assert not set(pages) & set(self.holders())
        self.held.append(pages)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def share(self, data):
        pages = data.draw(st.sampled_from(self.held))
        self.allocator.share(pages)
        self.held.append(list(pages))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data):
        pages = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.allocator.release(pages)

    def holders(self) -> Counter:
        return Counter(page for pages in self.held for page in pages)

    @invariant()
    def counts_agree(self):
        holders = self.holders()
        assert self.allocator.free == POOL - len(holders)
        assert [self.allocator.holders(page) for page in range(POOL)] == [holders[page] for page in range(POOL)]


TestBookkeeping = Bookkeeping.TestCase


def test_double_release_and_sharing_a_free_page_are_refused():
    allocator = PageAllocator(2)
    pages = allocator.take(1)
    allocator.release(pages)
    with pytest.raises(ValueError, match="already free"):
        allocator.release(pages)
    with pytest.raises(ValueError, match="cannot be shared"):
        allocator.share(pages)


@settings(deadline=None)
@given(st.data())
def test_sequences_that_grow_side_by_side_lie_in_aligned_runs(data):
    """Each from its own place on, as samples behind the pages of a shared prompt, over and over in one pool."""
    slots, longest = 4, 5 * RUN
    allocator = PageAllocator(slots * (longest + RUN))
    for _ in range(3):
        shared = [data.draw(st.integers(0, RUN)) for _ in range(slots)]
        sequences = [[-1] * count for count in shared]  # pages of others, somewhere
        for slot, count in data.draw(st.lists(st.tuples(st.integers(0, slots - 1), st.integers(1, 9)), max_size=60)):
            grown = min(count, longest - len(sequences[slot]))
            sequences[slot] += allocator.take(grown, sequence=sequences[slot])
        for pages, count in zip(sequences, shared, strict=True):
            for place in range(-(-count // RUN) * RUN, len(pages)):
                assert pages[place] % RUN == place % RUN
                assert place % RUN == 0 or pages[place] == pages[place - 1] + 1
            allocator.release(pages[count:])
    assert allocator.free == allocator.num_pages


def test_a_run_is_what_the_kernel_copies_at_once():
    """The engine does not import kernels of a device that is not there: two constants, held together here."""
    assert mosaic_tpu.RUN == RUN


def test_bookkeeping_does_not_grow():
    """However often pages come and go, no more is remembered than there are pages and runs."""
    allocator = PageAllocator(4 * RUN)
    for _ in range(50):
        allocator.release(allocator.take(3 * RUN + 2))
    assert len(allocator._lone._heap) <= 4 * RUN
    assert len(allocator._runs._heap) <= 4
