"""The paper's published AIME24 curves of Long-CoT, and the same curves from traces: numbers and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kinetics_jax.analysis.allocation import best_per_problem, envelope
from kinetics_jax.analysis.grid import grid
from kinetics_jax.analysis.samples import Pool
from kinetics_jax.config import ModelConfig
from kinetics_jax.errors import UserError
from kinetics_jax.files import open_regular
from paper_figures.common import Table

TERA_PER_SECOND = 4500.0  # Tera-eFLOPs of a "B200-second"
CAPS = tuple(range(2048, 32_769, 2048))  # tokens, the published grid of lengths
KINDS = {"dense": "dense", "oracle_topk": "token_topk"}  # what the published curves call attention, and its policy here
COLUMNS = ["model", "attention", "tera_eflops", "accuracy"]
MAX_CURVES = 1 << 24  # bytes of the file


def read_curves(path: Path) -> pd.DataFrame:
    """A table of curves: `model` (0.6B … 32B), `attention` (dense, oracle_topk), `tera_eflops`, `accuracy` (0 … 1).

    Raises UserError for a file that holds something else.
    """
    try:
        with open_regular(path, at_most=MAX_CURVES, error=UserError) as file:
            table: Table = pd.read_csv(file)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; name the table of published curves ({', '.join(COLUMNS)})") from error
    except (ValueError, pd.errors.ParserError) as error:
        raise UserError(f"{path}: not a CSV file ({str(error).splitlines()[0]:.100})") from error
    if missing := [name for name in COLUMNS if name not in table]:
        raise UserError(f"{path}: no column {', '.join(missing)}; published curves have {', '.join(COLUMNS)}")
    if strange := sorted(set(table["attention"]) - set(KINDS)):
        raise UserError(f"{path}: attention {strange[0]!r:.40} is none of {', '.join(KINDS)}")
    if absent := sorted(set(KINDS) - set(table["attention"])):
        raise UserError(f"{path}: holds no curve of {absent[0]}; both {' and '.join(KINDS)} are needed")
    try:
        costs, accuracy = (table[name].to_numpy(np.float64) for name in COLUMNS[2:])
    except ValueError as error:
        raise UserError(f"{path}: {' and '.join(COLUMNS[2:])} must be numbers ({error!s:.80})") from error
    bad = ~(np.isfinite(costs) & (costs > 0) & (accuracy >= 0) & (accuracy <= 1))
    if bad.any():
        line = int(np.flatnonzero(bad)[0]) + 2
        raise UserError(f"{path}, line {line}: a cost above 0 and an accuracy from 0 to 1 are needed")
    for model in table["model"].unique():
        ModelConfig.named(str(model))
    known: Table = table[COLUMNS]
    return known


def envelopes(curves: Table) -> Table:
    """The best of all models at every cost: `COLUMNS`, a row for every cost at which it grows, of the model there."""
    parts = []
    for kind in KINDS:
        rows = curves[curves["attention"] == kind].rename(columns={"tera_eflops": "cost"})
        best = envelope(rows[rows["accuracy"] > 0])
        parts.append(best.rename(columns={"cost": "tera_eflops"})[COLUMNS])
    return pd.concat(parts, ignore_index=True)


def accuracy_at(best: Table, costs: np.ndarray) -> np.ndarray:
    """Accuracy of one kind's envelope at costs [costs]; 0 below its first."""
    known = np.concatenate([[0.0], best["accuracy"].to_numpy()])
    return known[np.searchsorted(best["tera_eflops"].to_numpy(), costs * (1 + 1e-9), side="right")]


def headline(curves: Table) -> dict[str, float]:
    """The largest gap between both envelopes at equal cost, and how much cheaper dense attention's best accuracy is.

    The gap is the paper's own: what cannot be afforded counts 0 in the curves. Costs are in B200-seconds.
    """
    best = envelopes(curves)
    dense, sparse = (best[best["attention"] == kind] for kind in KINDS)
    costs = np.unique(curves["tera_eflops"])
    gap = accuracy_at(sparse, costs) - accuracy_at(dense, costs)
    at = int(np.argmax(gap))
    top = float(dense["accuracy"].max())
    numbers = {
        "paper_gain": float(gap[at]),
        "paper_gain_b200_seconds": float(costs[at] / TERA_PER_SECOND),
        "paper_gain_dense": float(accuracy_at(dense, costs[at : at + 1])[0]),
        "paper_gain_sparse": float(accuracy_at(sparse, costs[at : at + 1])[0]),
        "dense_best": top,
        "sparse_best": float(sparse["accuracy"].max()),
    }
    reached = [_cheapest(rows, top) for rows in (dense, sparse)]
    if np.isfinite(reached[1]):
        numbers |= {"saving_at_dense_best": reached[0] / reached[1]}
        numbers |= {
            f"dense_best_{kind}_b200_seconds": c / TERA_PER_SECOND for kind, c in zip(KINDS, reached, strict=True)
        }
    return numbers


def _cheapest(best: Table, accuracy: float) -> float:
    reached = best[best["accuracy"] >= accuracy - 1e-9]["tera_eflops"]
    return float(reached.min()) if len(reached) else np.inf


def switches(curves: Table) -> pd.DataFrame:
    """Where the model of an envelope changes: `attention`, `model`, `b200_seconds`, `accuracy`, a row per change."""
    best = envelopes(curves)
    changed = (best["model"] != best["model"].shift()) | (best["attention"] != best["attention"].shift())
    rows: Table = best[changed]
    return rows.assign(b200_seconds=rows["tera_eflops"] / TERA_PER_SECOND)[
        ["attention", "model", "b200_seconds", "accuracy"]
    ].reset_index(drop=True)


def curves_of_traces(
    pools: Sequence[Pool], points: Mapping[tuple[str, str], np.ndarray], *, smooth: int = 3
) -> pd.DataFrame:
    """The same curves from traces, as the published code makes them: `COLUMNS`.

    For every problem the best cap on tokens (and budget) within a cost, chosen and scored on the same samples, 0 where
    none is affordable; the mean over problems, and the running mean over `smooth` costs (1: none). `points` are the
    costs, Tera-eFLOPs, by model and attention. Costs follow the upstream convention at 562.5 FLOP/byte, weights free.
    Raises UserError where no pool is of the models and kinds that `points` names.
    """
    parts = []
    for (model, attention), costs in points.items():
        name = ModelConfig.named(model).name
        mine = [pool for pool in pools if pool.model == name and pool.attention.kind == KINDS[attention]]
        if not mine:
            continue
        cells = grid(mine, trials=[1], caps=CAPS, convention="upstream", hardware="b200-fp8", batch=None)
        accuracy = best_per_problem(cells, costs).accuracy.mean(axis=1)
        padded = np.pad(accuracy, smooth // 2, mode="symmetric")
        accuracy = np.convolve(padded, np.full(smooth, 1 / smooth), mode="valid")
        parts.append(pd.DataFrame({"model": model, "attention": attention, "tera_eflops": costs, "accuracy": accuracy}))
    if not parts:
        models = ", ".join(sorted({model for model, _ in points}))
        raise UserError(f"no trace of {models} with dense attention or oracle top-k (token_topk) among those given")
    return pd.concat(parts, ignore_index=True)


def points_of(curves: Table) -> dict[tuple[str, str], np.ndarray]:
    """The costs of every curve, ascending."""
    return {
        (str(model), str(attention)): np.sort(rows["tera_eflops"].to_numpy())
        for (model, attention), rows in curves.groupby(["model", "attention"], sort=False)
    }


def deviations(ours: Table, published: Table) -> pd.DataFrame:
    """How far two sets of curves are apart, a row per curve, the farthest first.

    Columns: `model`, `attention`; `largest`, ours less the published accuracy where that is largest in size, and its
    `tera_eflops`; `mean`, of the sizes.
    """
    both = ours.merge(published, on=COLUMNS[:3], suffixes=("", "_published"))
    rows = []
    for (model, attention), curve in both.groupby(["model", "attention"], sort=False):
        apart = (curve["accuracy"] - curve["accuracy_published"]).to_numpy()
        at = int(np.argmax(np.abs(apart)))
        rows.append(
            {"model": model, "attention": attention, "largest": apart[at]}
            | {"tera_eflops": curve["tera_eflops"].to_numpy()[at], "mean": float(np.mean(np.abs(apart)))}
        )
    table: Table = pd.DataFrame(rows)
    return table.sort_values(by="largest", key=np.abs, ascending=False, ignore_index=True)
