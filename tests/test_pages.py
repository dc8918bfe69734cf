"""Page bookkeeping: no page is lost, given twice, or freed while somebody holds it."""

from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kinetics_jax.pages import OutOfPages, PageAllocator

POOL = 12


class Bookkeeping(RuleBasedStateMachine):
    """Random sequences of takes, shares, promises and releases against a plain count of holders."""

    def __init__(self):
        super().__init__()
        self.allocator = PageAllocator(POOL)
        self.held: list[list[int]] = []
        self.promised = 0

    @rule(count=st.integers(0, POOL), promised=st.booleans())
    def take(self, count, promised):
        room = self.promised if promised else POOL - len(self.holders()) - self.promised
        if count > room:
            with pytest.raises(OutOfPages):
                self.allocator.take(count, promised=promised)
            return
        pages = self.allocator.take(count, promised=promised)
        assert len(set(pages)) == count
        assert not set(pages) & set(self.holders())
        self.promised -= count if promised else 0
        self.held.append(pages)

    @rule(count=st.integers(0, POOL))
    def promise(self, count):
        fits = count <= POOL - len(self.holders()) - self.promised
        assert self.allocator.promise(count) is fits
        self.promised += count if fits else 0

    @precondition(lambda self: self.promised)
    @rule()
    def unpromise(self):
        self.allocator.unpromise(1)
        self.promised -= 1

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
        assert self.allocator.available == POOL - len(holders) - self.promised >= 0
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
