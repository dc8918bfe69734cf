"""Whether a sample repeats itself: host-side checks over its newest tokens."""

from __future__ import annotations

import numpy as np

PIECE = 64  # tokens compared at a time with all distances: bounds the memory


class Matches:
    """For each distance, how many of a sample's newest tokens equal those so far before them."""

    def __init__(self, distances: np.ndarray):
        """`distances` ascend, from 1 up."""
        self.distances = distances
        self.tail = np.full(distances[-1], -1, np.int64)  # newest last; -1 before the first
        self.matched = np.zeros(len(distances), np.int64)

    def feed(self, tokens: list[int]) -> np.ndarray:
        """Takes the next tokens. Returns the numbers after each of them, `[tokens, distances]`."""
        longest, count = len(self.tail), len(tokens)
        line = np.concatenate([self.tail, tokens])
        ends = np.arange(longest, longest + count)
        same = line[ends[:, None] - self.distances] == line[ends][:, None]
        step = np.arange(1, count + 1)[:, None]
        broken = np.maximum.accumulate(np.where(same, 0, step), axis=0)  # the newest step at which a match broke
        runs = np.where(broken > 0, step - broken, self.matched + step)
        self.tail, self.matched = line[-longest:], runs[-1]
        return runs

    def recall(self, tokens: list[int]) -> None:
        """Takes tokens that nobody asks about."""
        for start in range(0, len(tokens), PIECE):
            self.feed(tokens[start : start + PIECE])


class RepetitionWatch:
    """Follows one sample's tokens and tells where they have become periodic.

    A sample repeats once its last `window` tokens have one period of at most a third of the window: three copies of
    the same passage, or more of a shorter one. The verdict depends on the tokens alone, never on how they arrive.
    """

    def __init__(self, window: int):
        self.matches = Matches(np.arange(1, window // 3 + 1))
        self.enough = window - self.matches.distances

    def recall(self, tokens: list[int]) -> None:
        """Takes tokens that the sample has already."""
        self.matches.recall(tokens)

    def feed(self, tokens: list[int]) -> int | None:
        """Takes the next tokens. Returns how many of them belong to the sample, if it repeats by then, else None."""
        for start in range(0, len(tokens), PIECE):
            runs = self.matches.feed(tokens[start : start + PIECE])
            repeats = np.flatnonzero(np.any(runs >= self.enough, axis=1))
            if len(repeats):
                return start + int(repeats[0]) + 1
        return None


class BlockWatch:
    """The stop of the paper's own code (LiteSys, `repeat_check`): a sample of more than `window` tokens, its prompt's
    among them, repeats once its last `block` tokens stand in the `window` output tokens before them, at any place,
    max(window // block - 1, 2) times. The sample loses that block. The newest token is looked at, too.
    """

    def __init__(self, window: int, block: int, prompt_tokens: int):
        self.matches = Matches(np.arange(block, window + 1))
        self.window, self.block, self.length = window, block, prompt_tokens
        self.wanted = max(window // block - 1, 2)

    def recall(self, tokens: list[int]) -> None:
        """Takes tokens that the sample has already."""
        self.matches.recall(tokens)
        self.length += len(tokens)

    def feed(self, tokens: list[int]) -> int | None:
        """Takes the next tokens. Returns how many of them belong to the sample, negative where it loses some of those
        before; None if it does not repeat.
        """
        for start in range(0, len(tokens), PIECE):
            runs = self.matches.feed(tokens[start : start + PIECE])
            lengths = self.length + np.arange(1, len(runs) + 1)
            self.length += len(runs)
            found = np.sum(runs >= self.block, axis=1)
            repeats = np.flatnonzero((found >= self.wanted) & (lengths > self.window))
            if len(repeats):
                return start + int(repeats[0]) + 1 - self.block
        return None
