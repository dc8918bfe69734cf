"""Qwen3-1.7B on LiveCodeBench: what texts that loop, or run into the limit, cost. What they solve is not recorded."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.cost import generation_cost
from kinetics_jax.stats.intervals import accuracy_interval
from real_models.compare import columns_of
from real_models.data import count, one_of, read_columns, verdict
from real_models.prices import CHIPS, batch_of

MODEL = "Qwen3-1.7B"
CHIP = "h100"
CAPS = (4096, 8192, 12_288, 16_384, 20_480, 24_576, 32_768)
CURVE = tuple(range(1024, 40_961, 1024))
SHARES = ("tokens", "FLOPs", "eFLOPs, no weights", "eFLOPs, batch that fits")
REDRAWS = 2000


@dataclasses.dataclass(frozen=True, eq=False)
class Texts:
    """One text per problem: its tokens, whether it was stopped by the limit, and whether its authors found a loop."""

    prompt: np.ndarray
    tokens: np.ndarray
    stopped: np.ndarray
    looped: np.ndarray

    @property
    def ended(self) -> np.ndarray:
        """Texts that ended by themselves."""
        return ~self.stopped


def read_loops(path: Path) -> Texts:
    """The texts of the file, one per problem."""
    columns = {
        "token_count": count,
        "prompt_token_count": count,
        "finish_reason": one_of("stop", "length"),
        "loop_flag": verdict,
    }
    rows = read_columns(path, columns)

    def column(name: str, dtype: Any = np.float64) -> np.ndarray:
        return np.array([row[name] for row in rows], dtype)

    stopped = np.array([row["finish_reason"] == "length" for row in rows])
    return Texts(column("prompt_token_count"), column("token_count"), stopped, column("loop_flag", bool))


def amounts(texts: Texts, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """What every text spends when it has so many tokens, by the names of SHARES; the batch is that of these texts."""
    config = ModelConfig.named(MODEL)
    spent: dict[str, np.ndarray] = {"tokens": tokens}
    for name, weights in (("eFLOPs, no weights", "none"), ("eFLOPs, batch that fits", "fit")):
        batch = batch_of(weights, config, CHIPS[CHIP], texts.prompt, tokens)
        cost = generation_cost(
            config, prompt_tokens=texts.prompt, output_tokens=tokens, hardware=CHIPS[CHIP], batch=batch
        )
        spent |= {"FLOPs": cost.compute, name: cost.total}
    return {name: spent[name] for name in SHARES}


def loops_summary(texts: Texts) -> dict[str, Any]:
    """Everything that the page says of these texts, as JSON."""
    spent = amounts(texts, texts.tokens)
    groups = {
        "ended": texts.ended & ~texts.looped,
        "ended, looped": texts.ended & texts.looped,
        "stopped at the limit": texts.stopped,
    }
    return {
        "model": MODEL,
        "chip": CHIP,
        "problems": len(texts.tokens),
        "stopped_and_looped": int(np.sum(texts.stopped & texts.looped)),
        "mean_tokens": float(texts.tokens.mean()),
        "median_tokens": float(np.median(texts.tokens)),
        "longest_that_ended": float(texts.tokens[texts.ended].max()),
        "groups": [
            {
                "group": name,
                "texts": int(members.sum()),
                "mean_tokens": float(texts.tokens[members].mean()),
                "shares": {what: _share(amount, members) for what, amount in spent.items()},
            }
            for name, members in groups.items()
        ],
        "caps": _caps(texts, spent),
        "curve": columns_of([_point(texts, spent, cap) for cap in CURVE]),
    }


def _share(amount: np.ndarray, members: np.ndarray) -> dict[str, float]:
    """The part of the whole that the members spend, and its 95 % interval from redrawing problems."""
    draws = _redraws(len(amount), REDRAWS)
    found = (draws @ (amount * members)) / (draws @ amount)
    return _with_ends(found)


def _point(texts: Texts, spent: dict[str, np.ndarray], cap: int) -> dict[str, float]:
    """What a cap keeps of the texts that end by themselves, and what it spends of what was spent without."""
    cut = amounts(texts, np.minimum(texts.tokens, cap))
    kept = np.mean(texts.tokens[texts.ended] <= cap)
    return {"cap": cap, "kept": float(kept)} | {name: float(cut[name].sum() / spent[name].sum()) for name in SHARES}


def _caps(texts: Texts, spent: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """The same with intervals, of each of CAPS."""
    weights = _redraws(len(texts.tokens), REDRAWS)
    kept = (texts.tokens[texts.ended][:, None] <= np.array(CAPS)).astype(np.float64)
    low, high = accuracy_interval(kept)
    rows = []
    for i, cap in enumerate(CAPS):
        cut = amounts(texts, np.minimum(texts.tokens, cap))
        shares = {name: _with_ends((weights @ cut[name]) / (weights @ spent[name])) for name in SHARES}
        share = {"share": float(kept[:, i].mean()), "low": float(low[i]), "high": float(high[i])}
        rows.append({"cap": cap, "kept": share, "spent": shares})
    return rows


@functools.lru_cache(maxsize=1)  # the same for every share
def _redraws(problems: int, count: int) -> np.ndarray:
    """All problems alike, then `count` redraws of them: weights `[1 + count, problems]`."""
    even = np.full(problems, 1 / problems)
    return np.concatenate([even[None], np.random.default_rng(0).multinomial(problems, even, size=count) / problems])


def _with_ends(draws: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(draws[1:], [0.025, 0.975])
    return {"share": float(draws[0]), "low": float(low), "high": float(high)}
