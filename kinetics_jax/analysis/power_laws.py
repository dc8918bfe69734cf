"""Power laws along an envelope, and what equal costs buy."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Float

from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.cost import generation_cost
from kinetics_jax.errors import UserError
from kinetics_jax.stats.estimators import Amount, expanded_tail
from kinetics_jax.stats.special import student_t_quantile

if TYPE_CHECKING:
    from kinetics_jax.analysis.allocation import Allocation
    from kinetics_jax.analysis.grid import Grid

MAX_EXPONENT = 4.0  # exponents are searched for in -MAX_EXPONENT … MAX_EXPONENT
FEW_POINTS = 8  # fewer show too little when they are redrawn
MAX_TOKENS = 1 << 24  # beyond any context


class FitError(UserError):
    """Raised for points that a law cannot be fitted to; the message says why."""


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """y = scale * x ** exponent + offset, with an interval `(low, high)` of each (NaN where there is none)."""

    scale: float
    exponent: float
    offset: float = 0.0
    scale_interval: tuple[float, float] = (np.nan, np.nan)
    exponent_interval: tuple[float, float] = (np.nan, np.nan)
    offset_interval: tuple[float, float] = (np.nan, np.nan)

    def __call__(self, x: npt.ArrayLike) -> Amount:
        """y at x, a number or an array."""
        return self.scale * np.asarray(x, np.float64) ** self.exponent + self.offset

    def __str__(self) -> str:
        return f"{self.scale:.4g} x^{self.exponent:.3g}" + (f" {self.offset:+.4g}" if self.offset else "")


def power_law(
    x: Float[npt.ArrayLike, " points"],
    y: Float[npt.ArrayLike, " points"],
    *,
    offset: bool = False,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> PowerLaw:
    """The power law through points (x, y), x > 0.

    Without `offset` by least squares in the logarithms of x and y > 0: relative errors count alike. Its intervals are
    the exact ones of a straight line, with Student's t of two degrees less than there are points, so that they hold for
    three points and more. With `offset` by least squares in y: for every exponent scale and offset are a linear fit,
    and the exponent is searched for in -4 … 4; its intervals redraw whole points (`resamples`, `seed`), and for fewer
    than eight, of which redrawing shows too little, reach as far as Fisher's F allows the fit to be worse. Both take
    points for independent, and know nothing of the uncertainty that points of one envelope share: for those take
    `law_along`, or redraw the problems, fit each time and give the laws to `with_intervals`. NaN for fewer than one
    point more than there are parameters. Raises FitError for fewer points than that without one, other shapes, numbers
    that have no logarithm, or a confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise FitError(f"confidence must be between 0 and 1, got {confidence}")
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    law = _fitted(x, y, offset)
    parameters = 3 if offset else 2
    if len(x) <= parameters:
        return law
    if not offset:
        return _with_exact_intervals(law, np.log(x), np.log(y), confidence)
    rng = np.random.default_rng(seed)
    laws = []
    while len(laws) < resamples:
        drawn = rng.integers(len(x), size=len(x))
        if len(np.unique(x[drawn])) >= parameters:
            laws.append(_fitted(x[drawn], y[drawn], offset))
    law = with_intervals(law, laws, confidence=confidence)
    return law if len(x) >= FEW_POINTS else _widened(law, _profiled(x, y, confidence))


def law_along(
    cells: Grid,
    allocation: Allocation,
    quantity: str | npt.ArrayLike,
    *,
    where: npt.ArrayLike | None = None,
    offset: bool = False,
    confidence: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
) -> PowerLaw:
    """How what is chosen grows with cost along an allocation: means over problems against the mean cost paid.

    `quantity`: `tokens` of a sample, a numeric column of the grid's configurations (`N`, `cap`, `parameters`), or a
    number for each configuration (KV budgets, say), NaN where a configuration has none. `where` bool [limits]: the
    limits that count; by default those at which every problem affords something that has the quantity. Intervals redraw
    problems, choices as they are, and fit each time; they are wider for few problems. Raises FitError as `power_law`
    does.
    """
    if isinstance(quantity, str) and quantity == "tokens":
        values = cells.tokens
    else:
        column = cells.configurations[quantity].to_numpy(np.float64) if isinstance(quantity, str) else quantity
        values = np.broadcast_to(np.asarray(column, np.float64)[:, None], cells.tokens.shape)
    chosen = np.where(allocation.choice >= 0, values[allocation.choice, np.arange(len(cells.problems))], np.nan)
    counts = ~np.isnan(chosen).any(axis=1)
    if where is not None:
        counts &= np.asarray(where, bool)
    cost, chosen = allocation.cost[counts], chosen[counts]
    law = _fitted(cost.mean(axis=1), chosen.mean(axis=1), offset)
    if len(cells.problems) == 1:
        return law
    draws = np.random.default_rng(seed).integers(len(cells.problems), size=(resamples, len(cells.problems)))
    laws = [_fitted(cost[:, drawn].mean(axis=1), chosen[:, drawn].mean(axis=1), offset) for drawn in draws]
    return with_intervals(law, laws, confidence=confidence, units=len(cells.problems))


def with_intervals(
    law: PowerLaw, redrawn: list[PowerLaw], *, confidence: float = 0.95, units: int | None = None
) -> PowerLaw:
    """The law with percentile intervals from fits to redrawn data. Raises FitError without any.

    `units`: how many problems were redrawn. Percentiles are then those of `estimators.expanded_tail`, since
    the nominal ones are too narrow for few of them; without it they are nominal.
    """
    if not redrawn:
        raise FitError("intervals of a law need fits to redrawn data")
    tail = (1 - confidence) / 2 if units is None else expanded_tail((1 - confidence) / 2, units)
    intervals = {}
    for name in ("scale", "exponent", "offset"):
        low, high = np.quantile([getattr(other, name) for other in redrawn], [tail, 1 - tail])
        intervals[f"{name}_interval"] = float(low), float(high)
    return dataclasses.replace(law, **intervals)


def _fitted(x: np.ndarray, y: np.ndarray, offset: bool) -> PowerLaw:
    parameters = 3 if offset else 2
    if x.ndim != 1 or x.shape != y.shape:
        raise FitError(f"a power law needs a y for every x, got shapes {x.shape} and {y.shape}")
    if len(np.unique(x)) < parameters:
        raise FitError(f"a power law of {parameters} parameters needs as many different x, got {len(np.unique(x))}")
    if not (np.all(np.isfinite(x) & (x > 0) & np.isfinite(y)) and (offset or np.all(y > 0))):
        raise FitError("a power law needs positive, finite numbers" + (" for x" if offset else ""))
    return _with_offset(x, y) if offset else _through_logarithms(x, y)


def _through_logarithms(x: np.ndarray, y: np.ndarray) -> PowerLaw:
    exponent, level = np.polyfit(np.log(x), np.log(y), 1)
    return PowerLaw(float(np.exp(level)), float(exponent))


def _with_exact_intervals(law: PowerLaw, x: np.ndarray, y: np.ndarray, confidence: float) -> PowerLaw:
    """The law with the intervals of the line's two coefficients, `x` and `y` being logarithms."""
    freedom = len(x) - 2
    level = np.log(law.scale)
    variance = np.sum((y - level - law.exponent * x) ** 2) / freedom
    spread = np.sum((x - x.mean()) ** 2)
    reach = student_t_quantile((1 + confidence) / 2, freedom)
    steep = reach * np.sqrt(variance / spread)
    high = reach * np.sqrt(variance * (1 / len(x) + x.mean() ** 2 / spread))
    return dataclasses.replace(
        law,
        scale_interval=(float(np.exp(level - high)), float(np.exp(level + high))),
        exponent_interval=(law.exponent - float(steep), law.exponent + float(steep)),
        offset_interval=(0.0, 0.0),
    )


def _with_offset(x: np.ndarray, y: np.ndarray) -> PowerLaw:
    """Variable projection: a grid over the exponent, refined around its best point until nothing is left to gain."""
    base = np.exp(np.mean(np.log(x)))  # powers of numbers around one neither overflow nor vanish
    exponent, slope, level = 0.0, 0.0, y.mean()
    low, high = -MAX_EXPONENT, MAX_EXPONENT
    for _ in range(12):
        exponents = np.linspace(low, high, 65)
        powers = (x / base) ** exponents[:, None]
        centred = powers - powers.mean(axis=1, keepdims=True)
        size = np.sum(centred**2, axis=1)
        slopes = np.divide(centred @ (y - y.mean()), size, out=np.zeros_like(size), where=size > 1e-24)
        misses = np.sum((y - y.mean() - slopes[:, None] * centred) ** 2, axis=1)
        misses[size <= 1e-24] = np.inf  # exponent 0: that law is a constant
        best = int(np.argmin(misses))
        exponent, slope, level = exponents[best], slopes[best], y.mean() - slopes[best] * powers[best].mean()
        step = exponents[1] - exponents[0]
        low, high = exponent - step, exponent + step
    return PowerLaw(float(slope / base**exponent), float(exponent), float(level))


def _profiled(x: np.ndarray, y: np.ndarray, confidence: float) -> dict[str, tuple[float, float]]:
    """What each coefficient can be, the others as fits best, while squares are at most 1 + t² / (n - 3) of the least.

    For every exponent of a grid scale and offset are those of a line, and what is left of the squares says how far each
    can be off (Bates and Watts, Nonlinear Regression Analysis, 1988, section 6.1).
    """
    freedom = len(x) - 3
    base = np.exp(np.mean(np.log(x)))
    exponents = np.linspace(-MAX_EXPONENT, MAX_EXPONENT, 1602)  # 0, a constant, is not among them
    powers = (x / base) ** exponents[:, None]
    middle = powers.mean(axis=1)
    centred = powers - middle[:, None]
    size = np.sum(centred**2, axis=1)
    slopes = centred @ (y - y.mean()) / size
    misses = np.sum((y - y.mean() - slopes[:, None] * centred) ** 2, axis=1)
    most = misses.min() * (1 + student_t_quantile((1 + confidence) / 2, freedom) ** 2 / freedom)
    able = misses <= most
    room = np.sqrt(most - misses[able])
    scale, steep = base ** -exponents[able], room / np.sqrt(size[able])
    level = y.mean() - slopes[able] * middle[able]
    high = room * np.sqrt(1 / len(x) + middle[able] ** 2 / size[able])
    return {
        "scale": (float(np.min((slopes[able] - steep) * scale)), float(np.max((slopes[able] + steep) * scale))),
        "exponent": (float(exponents[able].min()), float(exponents[able].max())),
        "offset": (float(np.min(level - high)), float(np.max(level + high))),
    }


def _widened(law: PowerLaw, ends: dict[str, tuple[float, float]]) -> PowerLaw:
    """The law with intervals that hold these, too."""
    wider = {}
    for name, (low, high) in ends.items():
        own_low, own_high = getattr(law, f"{name}_interval")
        wider[f"{name}_interval"] = min(low, own_low), max(high, own_high)
    return dataclasses.replace(law, **wider)


def iso_cost(
    config: ModelConfig,
    total: npt.ArrayLike,
    *,
    prompt_tokens: npt.ArrayLike,
    trials: npt.ArrayLike = 1,
    **costs: Any,
) -> Amount:
    """Tokens of a sample that a cost buys: the largest whole number of them that costs at most `total` Tera-eFLOPs.

    `total`, `prompt_tokens` and `trials` are numbers or arrays that broadcast; over a range of trials this is a contour
    of equal cost. `costs` are attention, convention, hardware … of `cost.generation_cost`. Returns float64 of the
    broadcast shape; 0 where not even one token is affordable, infinite where 2 ** 24 are.
    """
    total, prompt, count = np.broadcast_arrays(*map(np.asarray, (total, prompt_tokens, trials)))

    def affordable(tokens: np.ndarray) -> np.ndarray:
        return generation_cost(config, prompt_tokens=prompt, output_tokens=tokens, trials=count, **costs).total <= total

    low, high = np.zeros(total.shape), np.full(total.shape, float(MAX_TOKENS))
    endless = affordable(high)
    while np.any(high - low > 1):
        middle = (low + high) // 2
        fits = affordable(middle)
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    return np.where(endless, np.inf, low)[()]
