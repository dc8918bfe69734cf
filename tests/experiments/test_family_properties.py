"""The three properties on families made up so that what they should say is known."""

import numpy as np
import pandas as pd
import pytest
from family_properties import Family, dominance, envelope, family_of, larger_sparse, two_laws, whole

SPARSE = "block_topk:budget=32,page_size=8,recent_pages=2,dense_layers=none"


def family(rows, seeds=5, problems=60, seed=0) -> Family:
    """`rows`: (model, attention, N, accuracy, FLOPs, cost). Seeds differ by ± 0.05, samples of a problem are 8."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame([row[:3] for row in rows], columns=["model", "attention", "N"])
    table["parameters"] = pd.factorize(table["model"])[0] * 100 + 100
    shape = seeds, len(rows), problems
    rates = np.clip(np.array([row[3] for row in rows])[None] + rng.uniform(-0.05, 0.05, size=(seeds, 1)), 0, 1)
    accuracy = rng.binomial(8, np.broadcast_to(rates[..., None], shape)) / 8
    flops, cost = (np.broadcast_to(np.array([row[i] for row in rows], float)[None, :, None], shape) for i in (4, 5))
    return Family(table, accuracy, flops, cost - flops)


LAW = [
    ("small", "dense", 1, 0.20, 1, 100),
    ("small", "dense", 8, 0.80, 8, 800),
    ("small", SPARSE, 1, 0.18, 1, 20),
    ("large", "dense", 1, 0.85, 10, 200),
    ("large", SPARSE, 1, 0.84, 10, 40),
    ("large", SPARSE, 2, 0.95, 20, 80),
]


def test_a_family_that_shows_the_law():
    made = family(LAW)
    share, behind = dominance(made)
    assert tuple(share) == (1, 1, 1)
    assert -0.2 < behind.value < -0.05
    pair = larger_sparse(made)
    assert (pair.smaller, pair.larger) == (0, 5)
    assert 0.6 < pair.difference.low < pair.difference.value < pair.difference.high < 0.9
    assert pair.cost_ratio == pytest.approx(0.8)
    laws = two_laws(made)
    assert (laws.flops, laws.cost) == (1, 3)
    assert tuple(laws.ratio) == pytest.approx((4, 4, 4))
    assert laws.gain.low < 0.1


def test_a_family_that_does_not():
    rows = [("small", "dense", 1, 0.5, 1, 100), ("small", SPARSE, 1, 0.02, 1, 90)]
    rows += [("large", "dense", 1, 0.6, 10, 1000), ("large", SPARSE, 1, 0.1, 10, 900)]
    made = family(rows)
    share, behind = dominance(made)
    assert share.high == 0
    assert behind.low > 0.3
    assert larger_sparse(made) is None  # no larger sparse one is as cheap
    assert two_laws(made) is None  # both laws agree at every accuracy


def test_seeds_widen_an_interval():
    rng = np.random.default_rng(1)
    alike = family(LAW, seeds=5)
    spread = Family(alike.configurations, alike.accuracy.copy(), alike.compute, alike.memory)
    for row in range(len(LAW)):
        spread.accuracy[:, row] = np.clip(alike.accuracy[:, row] + rng.uniform(-0.3, 0.3, size=(5, 1)), 0, 1)
    widths = [larger_sparse(each).difference for each in (alike, spread)]
    assert widths[1].high - widths[1].low > 1.5 * (widths[0].high - widths[0].low)


def test_an_envelope_is_the_best_that_a_budget_affords():
    means = family(LAW, seeds=1, problems=4).means(whole(family(LAW, seeds=1, problems=4)))
    members = np.array([True, True, False, True, False, False])
    best = envelope(means, members, np.array([99, 100, 199, 200, 10_000]))
    first, second, third = means.accuracy[[0, 1, 3]]
    assert list(best) == [-np.inf, first, first, max(first, third), max(first, second, third)]


def test_an_interval_of_what_never_varies_has_a_width():
    made = family([("small", "dense", 1, 0.0, 1, 100), ("large", SPARSE, 1, 1.0, 10, 40)])
    perfect = Family(made.configurations, np.round(made.accuracy), made.compute, made.memory)
    difference = larger_sparse(perfect).difference
    unseen = 1 - 0.025 ** (1 / 30)
    assert tuple(difference) == pytest.approx((1, 1 - 2 * unseen, 1))


def test_seeds_of_other_configurations_are_refused():
    with pytest.raises(Exception, match="no runs to compare"):
        family_of({0: []}, str)
