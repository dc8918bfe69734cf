"""The rule of every policy that chooses whole pages, one page at a time."""

from collections.abc import Callable

import numpy as np


def attended_blocks(policy, keys: np.ndarray, score: Callable[[int, np.ndarray], float]) -> set[int]:
    """Positions attended: the forced pages, and the rest by `score(page, its keys)`, ties to the lower page."""
    size, length = policy.page_size, len(keys)
    count = -(-length // size)
    chosen = set(range(count))
    if count > policy.pages:
        forced = {*range(policy.sink_pages), *range(count - policy.recent_pages, count)}
        scores = {page: score(page, keys[page * size : (page + 1) * size]) for page in chosen}
        rest = sorted(chosen - forced, key=lambda page: (-scores[page], page))
        chosen = forced | set(rest[: policy.pages - len(forced)])
    return {position for position in range(length) if position // size in chosen}
