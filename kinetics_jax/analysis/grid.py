"""What every configuration would achieve and cost on every problem, from stored samples: all at once, as arrays.

A configuration is a model, an attention policy, a number of trials N and a cap on the tokens of a sample. Tables,
allocation, fits and the planner are made of these.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from jaxtyping import Float

from kinetics_jax.analysis.counted import sample_policy, stacked
from kinetics_jax.analysis.defaults import check_trials, default_trials, max_sample_tokens
from kinetics_jax.analysis.pricing import Batches, Pricing, batches, weights_at
from kinetics_jax.analysis.problem_samples import ProblemSamples
from kinetics_jax.analysis.rules import check_rule, rule_accuracy
from kinetics_jax.analysis.samples import Pool, SamplesError, undecided_counts
from kinetics_jax.costs.batching import Batch, Rule
from kinetics_jax.costs.cost import COMMUNICATION
from kinetics_jax.costs.hardware import Hardware
from kinetics_jax.costs.hardware import hardware as hardware_named
from kinetics_jax.costs.speculation import CHIP
from kinetics_jax.stats.estimators import EstimateError, pass_at_k

if TYPE_CHECKING:
    import pandas as pd

LAWS = ("eFLOPs", "FLOPs", "max")
WEIGHT_READS = ("weight_reads", "prefill_weight_reads")


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """`configurations` has a row each: `model`, `parameters` (used per token), `attention` (its spelling), `N`, `cap`
    (most tokens of a sample), and, where `grid` made it, `batch` (sequences that share the reads of the weights; 0
    where not one fits, NaN where the weights are amortised away) and `batch_full` (how many fit when each may grow to
    its cap; NaN where that is not known). `batch_rule` says how the batch was found (`batching.Rule`; "own"
    where all pools state their costs).

    The arrays are float64: `accuracy`, of N samples under the cap by the decision `rule` (`rules.Rule`); `compute` and
    `memory`, Tera-eFLOPs of one attempt of N trials, expected over the measured lengths (equation 10), infinite where
    not one sequence fits; `tokens`, mean tokens of one sample under the cap; `weights`, what of `memory` is reads of
    the weights, and `weights_full`, what it would be at `batch_full`; `communication`, between several chips; `own`,
    what the samples' source says that they cost, for pools that are not priced otherwise (a single 0 where there is
    none of these four). `problems` are their ids; `undecided` is how many samples the grader did not decide, as
    `samples.undecided_counts` says it.
    """

    configurations: pd.DataFrame
    problems: tuple[str, ...]
    accuracy: Float[np.ndarray, "configurations problems"]
    compute: Float[np.ndarray, "configurations problems"]
    memory: Float[np.ndarray, "configurations problems"]
    tokens: Float[np.ndarray, "configurations problems"]
    undecided: Mapping[str, int] = dataclasses.field(default_factory=dict)
    weights: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(()))
    weights_full: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(()))
    communication: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(()))
    own: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(()))
    batch_rule: Rule | Literal["own"] = "none"
    rule: str = "pass"

    @property
    def cost(self) -> Float[np.ndarray, "configurations problems"]:
        """Equation (4): compute plus memory, and communication, in Tera-eFLOPs; or what the source says."""
        return self.compute + self.memory + self.communication + self.own

    @property
    def cost_without_weights(self) -> Float[np.ndarray, "configurations problems"]:
        """`cost`, had the weights been read for nothing."""
        return self.cost - self.weights

    @property
    def cost_full(self) -> Float[np.ndarray, "configurations problems"]:
        """`cost`, had only as many sequences shared the weights as fit when each may grow to its cap."""
        return self.cost_without_weights + self.weights_full

    def spent(self, law: str) -> Float[np.ndarray, "configurations problems"]:
        """What a scaling law counts, in Tera-eFLOPs.

        `eFLOPs`: arithmetic and memory reads (the paper's, the `cost` here). `FLOPs`: arithmetic alone (the law before
        it). `max`: the larger of the two expectations (its roofline ablation). Raises SamplesError for another.
        """
        if law not in LAWS:
            raise SamplesError(f"law {law!r} is not known (known: {', '.join(LAWS)})")
        if law != "eFLOPs" and np.any(self.own):
            named = self.configurations["model"].iloc[int(np.argmax(self.own.any(axis=1)))]
            raise SamplesError(
                f"law {law}: {named} states costs of its own, of which arithmetic and reads are not known; leave --law "
                "out"
            )
        roofline = np.maximum(self.compute, self.memory) + self.communication
        return {"eFLOPs": self.cost, "FLOPs": self.compute, "max": roofline}[law]

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
            batch_rule=self.batch_rule,
            rule=self.rule,
            **{
                name: array[chosen] if array.ndim else array
                for name, array in (
                    ("weights", self.weights),
                    ("weights_full", self.weights_full),
                    ("communication", self.communication),
                    ("own", self.own),
                )
            },
        )


def grid(
    pools: Sequence[Pool],
    *,
    trials: Sequence[int] | Callable[[Pool], Sequence[int]] | None = None,
    caps: Sequence[int] | None = None,
    convention: str = "traffic",
    hardware: str | Hardware | None = None,
    intensity: float | None = None,
    kv_bytes: float | None = None,
    weight_bytes: float | None = None,
    batch: Batch = "auto",
    chips: int = 1,
    shared_prompt: bool = False,
    rule: str = "pass",
) -> Grid:
    """All of (pool, N, cap), pools as made by `samples.pooled`; pools slowest, then caps, then N.

    `trials` are the numbers of samples N of every pool, or of each by a function; by default as many as a pool's own
    samples allow, `defaults.default_trials`: a pool of few samples limits no other.
    `caps` defaults to no cap but the pool's own limit,
    `defaults.max_sample_tokens`; caps above that are lowered to it. Under a cap a sample has the grade of its cut text
    where the pool has it; else it is right when it is right and ends within the cap. Dropped samples count for lengths
    and cost alone. Costs are those of `cost.best_of_n_cost`; the other arguments are those of `pricing.Pricing`, which
    by default counts the reads of the weights with the batch that fits. Where not one sequence fits, compute and
    memory are infinite, and a warning names the pool. A pool whose source states a `cost` of each sample costs that, N
    times the mean of a problem, whatever the other arguments. `rule` is the decision rule that accuracy is of
    (`rules.Rule`). Warns too where cut texts were graded for some pools and not for others, since the grades then
    follow two rules. Raises SamplesError if an architecture, a token count or what the rule needs is missing,
    EstimateError for more trials than graded samples, CostError and HardwareError for impossible costs.
    """
    import pandas as pd

    if not pools:
        raise SamplesError("no runs to compare")
    if caps is not None and (not caps or any(cap < 1 or cap != int(cap) for cap in caps)):
        raise SamplesError(f"caps must be whole numbers of tokens, at least 1, got {list(caps)}")
    pricing = Pricing(
        convention=convention,
        hardware=hardware,
        intensity=intensity,
        kv_bytes=kv_bytes,
        weight_bytes=weight_bytes,
        batch=batch,
        chips=chips,
        shared_prompt=shared_prompt,
    )
    check_rule(rule)
    names = tuple(pools[0].problems)
    _warn_of_two_rules(pools, caps)
    rows: list[dict[str, Any]] = []
    parts: list[tuple[np.ndarray, ...]] = []
    for pool in pools:
        if tuple(pool.problems) != names:
            raise SamplesError(f"{pools[0]} and {pool} hold different problems; accuracies would not compare")
        counts = np.array(default_trials(pool) if trials is None else trials(pool) if callable(trials) else trials)
        check_trials(pool, counts)
        of_pool = _caps(pool, caps)
        if rule == "pass" and not pool.owns("cost"):
            accuracy = _accuracy(pool, of_pool, counts)
        else:
            by_cap = [rule_accuracy(pool, rule, counts.tolist(), cap) for cap in ([None] if caps is None else of_pool)]
            accuracy = np.stack(by_cap, axis=1)
        if pool.owns("cost"):
            _check_speculated(pool, pricing)
            side_by_side, spent = Batches(None, None), _own_costs(pool, counts)
        else:
            side_by_side = batches(pool, pricing, of_pool)
            spent = *_costs(pool, of_pool, counts, pricing, side_by_side), np.zeros(accuracy.shape)
        parts.append(tuple(array.reshape(len(names), -1).T for array in (accuracy, *spent)))
        rows += [
            {
                "model": pool.model,
                "parameters": pool.parameters,
                "attention": str(pool.attention),
                "N": int(n),
                "cap": int(cap) if cap < np.inf else np.nan,
                "batch": np.nan if side_by_side.used is None else int(side_by_side.used[i]),
                "batch_full": np.nan if side_by_side.full is None else int(side_by_side.full[i]),
            }
            for i, cap in enumerate(of_pool)
            for n in counts
        ]
    accuracy, compute, memory, tokens, weights, weights_full, communication, own = (
        np.concatenate(each) for each in zip(*parts, strict=True)
    )
    return Grid(
        pd.DataFrame(rows),
        names,
        accuracy,
        compute,
        memory,
        tokens,
        undecided_counts(pools),
        weights,
        weights_full,
        communication,
        own,
        "own" if all(pool.owns("cost") for pool in pools) else pricing.rule,
        rule,
    )


def _check_speculated(pool: Pool, pricing: Pricing) -> None:
    """Raises SamplesError where the costs in the records of a speculated run are not those that are asked for."""
    if "speculate" not in pool.settings:
        return
    own = hardware_named(CHIP).intensity
    asked = pricing.intensity if pricing.chip is None else pricing.chip.intensity
    if pricing.convention != "traffic" or pricing.rule != "fit" or asked != own or pricing.chips != 1:
        raise SamplesError(
            f"{pool.where}: its samples were speculated, and their records state what they cost on one {CHIP}, in the "
            "traffic convention, with the weights shared by the batch that fits; leave out --hardware, --chips, "
            "--convention and --batch"
        )


def _caps(pool: Pool, caps: Sequence[int] | None) -> np.ndarray:
    """The caps of a pool's rows; infinite for one whose cost is its source's, which is of whole samples alone."""
    if pool.owns("cost"):
        if caps is not None:
            raise SamplesError(
                f"{pool.where}: its own costs are of whole samples, not of cut ones; leave --caps and "
                "--allocate long-cot out"
            )
        return np.array([np.inf])
    pool.priced()
    most = max_sample_tokens(pool)
    return np.array([most] if caps is None else sorted({min(int(cap), most) for cap in caps}))


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
            split[0][name], split[1][name] = problem.subset(order[:middle]), problem.subset(order[middle:])
        first.append(dataclasses.replace(pool, problems=split[0], settings=settings))
        second.append(dataclasses.replace(pool, problems=split[1], settings=settings))
    return first, second


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
    pool: Pool, caps: np.ndarray, trials: np.ndarray, pricing: Pricing, side_by_side: Batches
) -> tuple[np.ndarray, ...]:
    """The arrays of a Grid behind its accuracy, `[problems, caps, trials]`: compute, memory, mean tokens, reads of the
    weights, those at the full batch, communication.
    """
    problems = list(pool.problems.values())
    sizes = np.array([len(problem.lengths) for problem in problems])
    # Padded with samples of no tokens, which are not counted below.
    ordered = [np.argsort(problem.lengths, kind="stable") for problem in problems]
    lengths = _padded(
        [[problem.lengths[i] for i in order] for problem, order in zip(problems, ordered, strict=True)], 0
    )
    policies = [sample_policy(pool, problem, order) for problem, order in zip(problems, ordered, strict=True)]
    real = (np.arange(sizes.max()) < sizes[:, None])[:, :, None, None]
    cut = np.minimum(lengths[:, :, None], caps)[..., None]  # [problems, samples, caps, 1]
    # In `upstream` what trials share depends on how many there are; elsewhere one trial gives both shares.
    count = trials if pricing.convention == "upstream" else np.array([1])
    used = side_by_side.used
    spent = pricing.cost(
        pool,
        prompt_tokens=np.array([problem.prompt_tokens for problem in problems])[:, None, None, None],
        output_tokens=cut,
        trials=count,
        attention=stacked(policies, lengths.shape[1]),
        batch=None if used is None else np.maximum(used, 1)[:, None],  # where none fits it does not matter
    )
    weights = (
        _longest_weights(sizes, trials)[:, :, None, :] if pricing.shared_prompt else real / sizes[:, None, None, None]
    )

    def expected(chosen: Callable[[str], bool]) -> np.ndarray:
        """Of N trials, the parts whose names are `chosen`."""
        none = np.zeros(())
        amount = sum((value for name, value in spent.parts.items() if chosen(name)), none)
        once = sum((value for name, value in spent.shared.items() if chosen(name)), none)
        mean = np.sum(np.where(real, (amount - once) / count, 0), axis=1) / sizes[:, None, None]
        total = trials * mean + np.sum(np.where(real, once, 0) * weights, axis=1)
        return np.broadcast_to(total, (len(problems), len(caps), len(trials)))

    compute = expected(lambda name: not name.endswith(("_reads", COMMUNICATION)))
    memory = expected(lambda name: name.endswith("_reads"))
    of_decode, of_prefill = (expected(lambda name, part=part: name == part) for part in WEIGHT_READS)
    weights_full = np.zeros_like(memory)
    if used is not None:
        full = used if side_by_side.full is None else side_by_side.full
        price = weights_at(pool, np.maximum(full, 1)) / weights_at(pool, np.maximum(used, 1))
        weights_full = of_decode * price[:, None] + of_prefill
        compute, memory = (np.where(used[:, None] > 0, amount, np.inf) for amount in (compute, memory))
    tokens = np.broadcast_to(np.sum(np.where(real, cut, 0), axis=1) / sizes[:, None, None], memory.shape)
    return compute, memory, tokens, of_decode + of_prefill, weights_full, expected(_communicates)


def _own_costs(pool: Pool, trials: np.ndarray) -> tuple[np.ndarray, ...]:
    """As `_costs`, and what the source says of N samples, of which nothing else is known."""
    own = np.array([np.mean(problem.own["cost"]) for problem in pool.problems.values()])[:, None, None] * trials
    tokens = np.array([np.mean(problem.lengths) for problem in pool.problems.values()])[:, None, None]
    nothing = np.zeros(own.shape)
    return nothing, nothing, np.broadcast_to(tokens, own.shape), nothing, nothing, nothing, own


def _communicates(name: str) -> bool:
    return name.endswith(COMMUNICATION)


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
