"""The estimated masses of pages, one page at a time in float64, from keys and not from stored summaries."""

import numpy as np


def log_mass(summary: str, query: np.ndarray, keys: np.ndarray) -> float:
    """log Σ exp(logit) of a full page as its summary has it: its tokens times the mean weight that it stands for."""
    scaled, tokens = query * len(query) ** -0.5, np.log(len(keys))
    if summary == "mean":
        return float((keys @ scaled).mean() + tokens)
    if summary == "min_max":
        return float(np.maximum(scaled * keys.min(axis=0), scaled * keys.max(axis=0)).sum() + tokens)
    return float((keys @ scaled).mean() + 0.5 * (scaled**2 * keys.var(axis=0)).sum() + tokens)


def log_masses(policy, query: np.ndarray, keys: np.ndarray) -> list[float]:
    """Of every page: the last one's is exact. `query [head_dim]`, `keys [length, head_dim]`."""
    pages = [keys[start : start + policy.page_size] for start in range(0, len(keys), policy.page_size)]
    exact = float(np.logaddexp.reduce(pages[-1] @ query * len(query) ** -0.5))
    return [*(log_mass(policy.summary, query, page) for page in pages[:-1]), exact]


def ranked(policy, scores) -> list[int]:
    """Pages by rank: forced ones first, the rest by score, ties to the lower page."""
    count = len(scores)
    forced = {*range(min(policy.sink_pages, count)), *range(max(count - policy.recent_pages, 0), count)}
    return [*sorted(forced), *sorted(set(range(count)) - forced, key=lambda page: (-scores[page], page))]


def positions(policy, pages, length: int) -> set[int]:
    """The tokens of pages."""
    return {position for position in range(length) if position // policy.page_size in set(pages)}
