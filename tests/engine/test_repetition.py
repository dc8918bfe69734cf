"""The repetition watches against a direct reading of their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_jax.engine.repetition import BlockWatch, RepetitionWatch
from kinetics_jax.engine.requests import Request, Running


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


def first_repeated_block(tokens, window, block, prompt):
    """Tokens up to where the last block is found often enough in the window before it, less that block; None if never.

    As the paper's code counts: any place within the `window` tokens before the block.
    """
    for end in range(1, len(tokens) + 1):
        last, before = tokens[end - block : end], tokens[max(end - window - block, 0) : max(end - block, 0)]
        if prompt + end <= window or end < block:
            continue
        found = sum(before[at : at + block] == last for at in range(len(before) - block + 1))
        if found >= max(window // block - 1, 2):
            return end - block
    return None


@given(st.data())
def test_blocks_equal_the_definition(data):
    block = data.draw(st.integers(1, 6))
    window = data.draw(st.integers(block + 1, 40))
    prompt = data.draw(st.integers(0, 50))
    loop = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=9))
    tokens = data.draw(st.lists(st.integers(0, 2), max_size=30)) + loop * data.draw(st.integers(0, 12))
    before = data.draw(st.integers(0, len(tokens)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=4)))
    watch, seen, found = BlockWatch(window, block, prompt), 0, None
    for end in [*cuts, len(tokens)]:
        kept = watch.feed(tokens[seen:end])
        if kept is not None:
            found = seen + kept
            break
        seen = end
    assert found == first_repeated_block(tokens, window, block, prompt)
    again = BlockWatch(window, block, prompt)
    again.recall(tokens[:before])
    kept = again.feed(tokens[before:])
    if found is None:
        assert kept is None


@pytest.mark.parametrize(("period", "ends"), [(1, True), (64, True), (63, True), (70, False), (100, False)])
def test_the_published_blocks(period, ends):
    """1024 and 64: fifteen earlier places of a block, which loops of more than 64 tokens do not have."""
    tokens = list(range(1000, 1200)) + list(range(period)) * (3000 // period)
    kept = BlockWatch(1024, 64, 20).feed(tokens)
    assert kept == (first_repeated_block(tokens, 1024, 64, 20) if ends else None)
    assert (kept is not None) == ends


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


@pytest.mark.parametrize("watch", [RepetitionWatch(16), BlockWatch(16, 4, 1)], ids=["period", "blocks"])
def test_given_tokens_end_no_sample_but_count_for_those_behind_them(watch):
    running = Running(Request("p", [1], [0]), 0, 100, forced=[5] * 40, watches={"repetition": watch})
    for _ in range(5):
        running.add([5] * 8)
    assert (running.tokens, running.ended) == ([5] * 40, "")
    running.add([5] * 8)
    assert running.ended == "repetition"
    assert len(running.tokens) == (41 if isinstance(watch, RepetitionWatch) else 37)  # a block is lost
