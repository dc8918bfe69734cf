"""The repetition watch against a direct reading of its definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_jax.engine.repetition import RepetitionWatch


def first_repetition(tokens, window):
    """Tokens up to where the last `window` of them have a period of at most window // 3; None if never."""
    for end in range(window, len(tokens) + 1):
        tail = tokens[end - window : end]
        if any(tail[p:] == tail[:-p] for p in range(1, window // 3 + 1)):
            return end
    return None


def watched(tokens, window, cuts):
    """The same through a watch that is fed piece by piece."""
    watch, seen = RepetitionWatch(window), 0
    for begin, end in zip([0, *cuts], [*cuts, len(tokens)], strict=True):
        found = watch.feed(tokens[begin:end])
        if found is not None:
            return seen + found
        seen = end
    return None


@given(st.data())
def test_equals_the_definition(data):
    window = data.draw(st.integers(16, 40))
    period = data.draw(st.integers(1, 16))
    loop = data.draw(st.lists(st.integers(0, 2), min_size=period, max_size=period))
    before = data.draw(st.lists(st.integers(0, 2), max_size=30))
    after = data.draw(st.lists(st.integers(0, 2), max_size=10))
    tokens = before + loop * data.draw(st.integers(0, 8)) + after
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=4)))
    assert watched(tokens, window, cuts) == first_repetition(tokens, window)


@pytest.mark.parametrize("period", [1, 2, 63, 64, 65, 100, 341])
def test_long_periods_are_caught(period):
    rng = np.random.default_rng(period)
    tokens = rng.integers(1000, size=500).tolist() + np.tile(rng.permutation(10_000)[:period], 2000 // period).tolist()
    assert watched(tokens, 1024, range(32, len(tokens), 32)) == 500 + 1024


def test_two_copies_and_near_misses_are_not_repetition():
    rng = np.random.default_rng(0)
    passage = rng.permutation(1000)[:300].tolist()
    assert watched(passage * 3, 1024, [100]) is None  # 900 tokens
    broken = passage * 2 + [1001] + passage * 2
    assert watched(broken, 768, [100]) is None
    assert watched(rng.integers(1000, size=5000).tolist(), 64, [7]) is None
