"""Whether a sample repeats itself: a host-side check over its newest tokens."""

from __future__ import annotations

import numpy as np

PIECE = 64  # tokens compared at a time with all periods: bounds the memory


class RepetitionWatch:
    """Follows one sample's tokens and tells where they have become periodic.

    A sample repeats once its last `window` tokens have one period of at most a third of the window: three copies of
    the same passage, or more of a shorter one. The verdict depends on the tokens alone, never on how they arrive.
    """

    def __init__(self, window: int):
        self.window = window
        self.periods = np.arange(1, window // 3 + 1)
        self.tail = np.full(len(self.periods), -1, np.int64)  # newest last; -1 before the first
        self.matched = np.zeros(len(self.periods), np.int64)  # by period: newest tokens that equal the one a period ago

    def feed(self, tokens: list[int]) -> int | None:
        """Takes the next tokens. Returns how many of them belong to the sample, if it repeats by then, else None."""
        for start in range(0, len(tokens), PIECE):
            kept = self._feed(tokens[start : start + PIECE])
            if kept is not None:
                return start + kept
        return None

    def _feed(self, tokens: list[int]) -> int | None:
        longest, count = len(self.periods), len(tokens)
        line = np.concatenate([self.tail, tokens])
        ends = np.arange(longest, longest + count)
        same = line[ends[:, None] - self.periods] == line[ends][:, None]  # [tokens, periods]
        step = np.arange(1, count + 1)[:, None]
        broken = np.maximum.accumulate(np.where(same, 0, step), axis=0)  # the newest step at which a period broke
        runs = np.where(broken > 0, step - broken, self.matched + step)
        self.tail, self.matched = line[-longest:], runs[-1]
        repeats = np.flatnonzero(np.any(runs >= self.window - self.periods, axis=1))
        return int(repeats[0]) + 1 if len(repeats) else None
