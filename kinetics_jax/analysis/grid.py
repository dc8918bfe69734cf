"""What every configuration would achieve and cost on every problem, from stored samples: all at once, as arrays.

A configuration is a model, an attention policy, a number of trials N and a cap on the tokens of a sample. Tables,
allocation, fits and the planner are made of these.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Float

from kinetics_jax.analysis.defaults import default_trials, max_sample_tokens
from kinetics_jax.analysis.samples import Pool, ProblemSamples, SamplesError, undecided_counts
from kinetics_jax.costs.cost import generation_cost
from kinetics_jax.costs.hardware import Hardware
from kinetics_jax.stats.estimators import EstimateError, pass_at_k

if TYPE_CHECKING:
    import pandas as pd

LAWS = ("eFLOPs", "FLOPs", "max")


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """`configurations` has a row each: `model`, `parameters` (used per token), `attention` (its spelling), `N`, `cap`
    (most tokens of a sample). The arrays are float64: `accuracy`, pass@N under the cap;
    `compute` and `memory`, Tera-eFLOPs of one attempt of N trials, expected over the measured lengths (equation 10);
    `tokens`, mean tokens of one sample under the cap. `problems` are their ids; `undecided` is how many samples the
    grader did not decide, as `samples.undecided_counts` says it.
    """

    configurations: pd.DataFrame
    problems: tuple[str, ...]
    accuracy: Float[np.ndarray, "configurations problems"]
    compute: Float[np.ndarray, "configurations problems"]
    memory: Float[np.ndarray, "configurations problems"]
    tokens: Float[np.ndarray, "configurations problems"]
    undecided: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def cost(self) -> Float[np.ndarray, "configurations problems"]:
        """Equation (4): compute plus memory, in Tera-eFLOPs."""
        return self.compute + self.memory

    def spent(self, law: str) -> Float[np.ndarray, "configurations problems"]:
        """What a scaling law counts, in Tera-eFLOPs.

        `eFLOPs`: arithmetic and memory reads (the paper's, the `cost` here). `FLOPs`: arithmetic alone (the law before
        it). `max`: the larger of the two expectations (its roofline ablation). Raises SamplesError for another.
        """
        if law not in LAWS:
            raise SamplesError(f"law {law!r} is not known (known: {', '.join(LAWS)})")
        return {"eFLOPs": self.cost, "FLOPs": self.compute, "max": np.maximum(self.compute, self.memory)}[law]

    def __len__(self) -> int:
        return len(self.configurations)

    def rows(self, chosen: npt.ArrayLike) -> Grid:
        """The grid of some configurations: `chosen` holds their indices, or a bool for each."""
        chosen = np.asarray(chosen)
        if chosen.dtype == bool:
            chosen = np.flatnonzero(chosen)
        return Grid(
            self.configurations.iloc[chosen],
            self.problems,
            *(array[chosen] for array in (self.accuracy, self.compute, self.memory, self.tokens)),
            undecided=self.undecided,
        )


def grid(
    pools: Sequence[Pool],
    *,
    trials: Sequence[int] | Callable[[Pool], Sequence[int]] | None = None,
    caps: Sequence[int] | None = None,
    convention: str = "traffic",
    hardware: str | Hardware | None = None,
    intensity: float | None = None,
    kv_bytes: float = 2,
    weight_bytes: float = 2,
    batch: int | None = None,
    shared_prompt: bool = False,
) -> Grid:
    """All of (pool, N, cap), pools as made by `samples.pooled`; pools slowest, then caps, then N.

    `trials` are the numbers of samples N of every pool, or of each by a function; by default as many as a pool's own
    samples allow, `defaults.default_trials`: a pool of few samples limits no other.
    `caps` defaults to no cap but the pool's own limit,
    `defaults.max_sample_tokens`; caps above that are lowered to it. Under a cap a sample has the grade of its cut text
    where the pool has it; else it is right when it is right and ends within the cap. Dropped samples count for lengths
    and cost alone. Costs are those of `cost.best_of_n_cost`, whose arguments the others are. Warns where cut texts were
    graded for some pools and not for others, since the grades then follow two rules. Raises SamplesError if an
    architecture or a token count is missing, EstimateError for more trials than graded samples, CostError and
    HardwareError for impossible costs.
    """
    import pandas as pd

    if not pools:
        raise SamplesError("no runs to compare")
    if caps is not None and (not caps or any(cap < 1 or cap != int(cap) for cap in caps)):
        raise SamplesError(f"caps must be whole numbers of tokens, at least 1, got {list(caps)}")
    costs: dict[str, Any] = {
        "convention": convention,
        "hardware": hardware,
        "intensity": intensity,
        "kv_bytes": kv_bytes,
        "weight_bytes": weight_bytes,
        "batch": batch,
        "shared_prompt": shared_prompt,
    }
    names = tuple(pools[0].problems)
    _warn_of_two_rules(pools, caps)
    rows: list[dict[str, Any]] = []
    parts: list[tuple[np.ndarray, ...]] = []
    for pool in pools:
        if tuple(pool.problems) != names:
            raise SamplesError(f"{pools[0]} and {pool} hold different problems; accuracies would not compare")
        config = pool.priced()
        most = max_sample_tokens(pool)
        of_pool = np.array([most] if caps is None else sorted({min(int(cap), most) for cap in caps}))
        counts = np.array(default_trials(pool) if trials is None else trials(pool) if callable(trials) else trials)
        accuracy = _accuracy(pool, of_pool, counts)
        compute, memory, tokens = _costs(pool, of_pool, counts, costs)
        parts.append(tuple(array.reshape(len(names), -1).T for array in (accuracy, compute, memory, tokens)))
        rows += [
            {
                "model": pool.model,
                "parameters": config.active_parameters,
                "attention": str(pool.attention),
                "N": int(n),
                "cap": int(cap),
            }
            for cap in of_pool
            for n in counts
        ]
    arrays = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Grid(pd.DataFrame(rows), names, *arrays, undecided=undecided_counts(pools))


def split_in_halves(pools: Sequence[Pool], seed: int) -> tuple[list[Pool], list[Pool]]:
    """Every problem's graded samples split in two at random: choose on one half, score on the other.

    An odd one out goes to the first half. Dropped samples are left out. Both halves keep the whole pool's longest
    sample as their `max_tokens`, so that their grids have the same rows. Raises EstimateError for a problem with fewer
    than two graded samples.
    """
    rng = np.random.default_rng(seed)
    first, second = [], []
    for pool in pools:
        counted = not np.isnan(pool.longest)
        settings = {**pool.settings, "max_tokens": max_sample_tokens(pool)} if counted else pool.settings
        split: tuple[dict[str, ProblemSamples], dict[str, ProblemSamples]] = {}, {}
        for name, problem in pool.problems.items():
            graded = [i for i, grade in enumerate(problem.grades) if grade is not None]
            if len(graded) < 2:
                raise EstimateError(f"{pool}: problem {name!r} has {len(graded)} graded samples; two halves need two")
            order = rng.permutation(graded)
            middle = -(-len(order) // 2)
            split[0][name], split[1][name] = _subset(problem, order[:middle]), _subset(problem, order[middle:])
        first.append(dataclasses.replace(pool, problems=split[0], settings=settings))
        second.append(dataclasses.replace(pool, problems=split[1], settings=settings))
    return first, second


def _subset(problem: ProblemSamples, chosen: np.ndarray) -> ProblemSamples:
    """The samples whose indices are `chosen [n]`."""
    return dataclasses.replace(
        problem,
        lengths=[problem.lengths[i] for i in chosen],
        grades=[problem.grades[i] for i in chosen],
        correct_within=[problem.correct_within[i] for i in chosen] if problem.correct_within else [],
        answers=[problem.answers[i] for i in chosen] if problem.answers else [],
        undecided=[problem.undecided[i] for i in chosen] if problem.undecided else [],
    )


def _warn_of_two_rules(pools: Sequence[Pool], caps: Sequence[int] | None) -> None:
    """A cap at which one pool's cut texts were graded and another's were not."""
    for cap in caps or ():
        cuts = [pool for pool in pools if any(problem.longest > cap for problem in pool.problems.values())]
        ungraded = [pool for pool in cuts if cap not in pool.caps]
        if 0 < len(ungraded) < len(cuts):
            warnings.warn(
                f"{ungraded[0]}: cut texts were not graded at {cap} tokens, as those of others were, so that only its "
                "finished answers count there; grade all runs at the same caps (kinetics grade RUN --caps …)",
                stacklevel=3,
            )
            return


def _accuracy(pool: Pool, caps: np.ndarray, trials: np.ndarray) -> np.ndarray:
    """pass@N, `[problems, caps, trials]`."""
    problems = list(pool.problems.values())
    cut = [i for i, cap in enumerate(caps) if cap in pool.caps]
    grades = _padded([[np.nan if grade is None else grade for grade in problem.grades] for problem in problems], np.nan)
    within = _padded([problem.lengths for problem in problems], 0)[:, :, None] <= caps
    graded = np.repeat(np.sum(~np.isnan(grades), axis=1)[:, None], len(caps), axis=1)
    right = np.sum((grades[:, :, None] == 1) & within, axis=1)
    for row, problem in enumerate(problems if cut else ()):
        of_cuts = problem.grades_under(caps[cut])
        graded[row, cut], right[row, cut] = np.sum(~np.isnan(of_cuts), axis=0), np.nansum(of_cuts, axis=0)
    return pass_at_k(graded[..., None], right[..., None], trials)


def _padded(rows: Sequence[Sequence[float]], filler: float) -> np.ndarray:
    """Rows of unlike lengths as one array."""
    padded = np.full((len(rows), max(map(len, rows))), filler, np.float64)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded


def _costs(
    pool: Pool, caps: np.ndarray, trials: np.ndarray, costs: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute, memory and mean tokens, `[problems, caps, trials]`."""
    problems = list(pool.problems.values())
    sizes = np.array([len(problem.lengths) for problem in problems])
    # Padded with samples of no tokens, which are not counted below.
    lengths = _padded([sorted(problem.lengths) for problem in problems], 0)
    real = (np.arange(sizes.max()) < sizes[:, None])[:, :, None, None]
    cut = np.minimum(lengths[:, :, None], caps)[..., None]  # [problems, samples, caps, 1]
    # In `upstream` what trials share depends on how many there are; elsewhere one trial gives both shares.
    count = trials if costs["convention"] == "upstream" else np.array([1])
    spent = generation_cost(
        pool.priced(),
        prompt_tokens=np.array([problem.prompt_tokens for problem in problems])[:, None, None, None],
        output_tokens=cut,
        trials=count,
        attention=pool.attention,
        **costs,
    )
    weights = (
        _longest_weights(sizes, trials)[:, :, None, :] if costs["shared_prompt"] else real / sizes[:, None, None, None]
    )
    totals = []
    for amount, reads in ((spent.compute, False), (spent.memory, True)):
        once = sum((value for name, value in spent.shared.items() if name.endswith("_reads") == reads), np.zeros(()))
        own = (amount - once) / count
        mean = np.sum(np.where(real, own, 0), axis=1) / sizes[:, None, None]
        shared = np.sum(np.where(real, once, 0) * weights, axis=1)
        totals.append(trials * mean + shared)
    tokens = np.sum(np.where(real, cut, 0), axis=1) / sizes[:, None, None]
    return totals[0], totals[1], np.broadcast_to(tokens, totals[0].shape)


def _longest_weights(sizes: np.ndarray, trials: np.ndarray) -> np.ndarray:
    """How likely each of a problem's samples, in ascending order of length, is the longest of N drawn from them without
    replacement: `[problems, samples, trials]`, zero in the padding. Raises EstimateError for more trials than samples.
    """
    if np.any(sizes[:, None] < trials):
        raise EstimateError(f"the longest of {max(trials)} trials cannot be estimated from {min(sizes)} samples")
    weights = np.zeros((len(sizes), sizes.max(), len(trials)))
    for size in np.unique(sizes):
        drawn = np.arange(trials.max())
        # P(the first N draws are among the i shortest), a product of N factors; i = 0 … size
        factors = np.clip(np.arange(size + 1)[:, None] - drawn, 0, None) / np.maximum(size - drawn, 1)
        within = np.cumprod(factors, axis=1)[:, trials - 1]
        weights[sizes == size, :size] = np.diff(within, axis=0)
    return weights
