"""Graded samples, whatever their source: one RunData per run, pooled by configuration."""

from __future__ import annotations

import collections
import dataclasses
import math
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from jaxtyping import Float

from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.registry import parse_policy
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.architectures.architecture import PricedModel
from kinetics_jax.errors import UserError
from kinetics_jax.runs.cut_grades import grades_within
from kinetics_jax.runs.folder import Run
from kinetics_jax.runs.records import NONFINITE

Undecided = Literal["unsolved", "drop"]


class SamplesError(UserError):
    """Raised for runs that cannot be compared as they are; the message names the run and the cure."""


@dataclasses.dataclass(frozen=True, eq=False)
class RunData:
    """The graded samples of one run. The fields from `problem` to `correct` are parallel, one entry per sample.

    `config`: the architecture, None where it is not known: then there is accuracy against tokens, but no cost.
    `problem`: ids. `sample`: what tells a problem's samples apart, its index or (seed, index). `prompt_tokens`,
    `output_tokens`: counts, None or NaN where they were not recorded. `correct`: True, False, or None where the sample
    is undecided: its grader gave up, or its logits were not finite. `answers`, parallel too: what each sample said,
    None for nothing, for votes; empty where that is not known. `scores`, parallel too: what a verifier gave each
    sample, None for nothing; empty where there was none. `ended`, parallel too: how each sample ended (its
    `finish_reason`); empty where that is not known. `settings`: what runs must agree in to be pooled. `task`: its name,
    for messages. `asked`: by problem id what was asked, (question, answer), so that problems of one id are known to be
    one; `prompts`: by problem id the text that put it to the model. `caps`, ascending, and `correct_within
    [samples][caps]`: the grades, had generation been cut after that many tokens and the cut text been graded. Raises
    SamplesError if the parallel fields' lengths differ, or caps are not whole numbers from 1 up in ascending order.
    """

    model: str
    attention: AttentionPolicy
    config: PricedModel | None
    problem: Sequence[str]
    sample: Sequence[Hashable]
    prompt_tokens: npt.ArrayLike | Sequence[int | None]
    output_tokens: npt.ArrayLike | Sequence[int | None]
    correct: Sequence[bool | None]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    task: str = ""
    asked: Mapping[str, Hashable] = dataclasses.field(default_factory=dict)
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    caps: Sequence[int] = ()
    correct_within: Sequence[Sequence[bool | None]] = ()
    answers: Sequence[str | None] = ()
    ended: Sequence[str | None] = ()
    scores: Sequence[float | None] = ()

    def __post_init__(self) -> None:
        counts = {
            field: len(np.atleast_1d(np.asarray(getattr(self, field), object)))
            for field in ("problem", "sample", "prompt_tokens", "output_tokens", "correct")
        }
        if self.caps:
            counts["correct_within"] = len(self.correct_within)
        counts |= {
            field: len(getattr(self, field)) for field in ("answers", "ended", "scores") if len(getattr(self, field))
        }
        if len(set(counts.values())) > 1:
            raise SamplesError(f"run of {self.model} {self.attention}: fields of different lengths, {counts}")
        caps = list(self.caps)
        if any(cap < 1 or cap != int(cap) for cap in caps) or caps != sorted(set(caps)):
            raise SamplesError(
                f"run of {self.model} {self.attention}: caps must be whole numbers of tokens from 1 up, ascending, "
                f"got {caps}"
            )
        if any(len(grades) != len(caps) for grades in self.correct_within):
            raise SamplesError(
                f"run of {self.model} {self.attention}: correct_within needs a grade for each of {len(caps)} caps"
            )


def reconcile(source: object, what: str, stated: Any, given: Any) -> Any:
    """What a source states or, where it states nothing, what was given. Raises SamplesError if the two differ."""
    if stated is not None and given is not None and stated != given:
        raise SamplesError(f"{source}: its {what} is {stated}, not {given} as given; leave {what} out")
    return given if stated is None else stated


def run_data(run: Run) -> RunData:
    """The samples of a run folder, with the grades of its cut texts if it has any.

    Raises SamplesError naming the folder and what is missing in run.json, TraceError if the grades of cut texts cannot
    be read.
    """
    missing = [field for field in ("model", "config", "policy") if not run.header.get(field)]
    if missing:
        raise SamplesError(f"{run.path / 'run.json'}: missing {', '.join(missing)}")
    try:
        config = dict(run.header["config"])
        shape = ModelConfig(**{**config, "eos_token_ids": tuple(config.get("eos_token_ids", ()))})
        attention = parse_policy(run.header["policy"])
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise SamplesError(f"{run.path / 'run.json'}: config or policy cannot be read ({error})") from error
    settings = {
        **run.header.get("sampling", {}),
        "dtype": run.header.get("dtype"),
        **{name: run.header[name] for name in ("kv_dtype", "weight_dtype") if run.header.get(name)},
        "weights": run.header.get("weights"),
    }
    wanted = run.header.get("n", 0) * len(run.problems)
    if len(run.samples) < wanted:
        warnings.warn(
            f"{run.path}: unfinished, {len(run.samples)} of {wanted} samples; short samples end first, so accuracy and "
            f"cost are off; the command that began the run finishes it",
            stacklevel=2,
        )
    caps, correct_within = grades_within(run)
    return RunData(
        model=run.header["model"],
        attention=attention,
        config=shape,
        problem=[record["problem"] for record in run.samples],
        sample=[(record["seed"], record["sample"]) for record in run.samples],
        prompt_tokens=[record["prompt_tokens"] for record in run.samples],
        output_tokens=[len(record["output_tokens"]) for record in run.samples],
        correct=[record["correct"] for record in run.samples],
        settings={name: value for name, value in settings.items() if name != "seed"},
        task=run.header.get("task") or "",
        asked={name: (problem.get("question"), problem.get("answer")) for name, problem in run.problems.items()},
        prompts={name: problem.get("prompt", "") for name, problem in run.problems.items()},
        caps=caps,
        correct_within=correct_within,
        answers=[record.get("answer") for record in run.samples],
        ended=[record.get("finish_reason") for record in run.samples],
        scores=[record.get("score") for record in run.samples] if any("score" in each for each in run.samples) else [],
    )


@dataclasses.dataclass
class ProblemSamples:
    """The samples of one problem.

    `prompt_tokens`: length of the prompt, NaN where it was not recorded. Parallel, one entry per sample: `lengths`,
    output tokens, NaN where they were not recorded; `grades`, None where the sample counts in no accuracy; where cut
    texts were graded, `correct_within [samples][caps]` for `caps` in ascending order; where all samples' answers are
    known, `answers`, None for a sample that gives none; where there are any, `scores`, NaN for a sample without one;
    `undecided`, which ones the grader did not decide.
    """

    prompt_tokens: float
    lengths: list[float]
    grades: list[bool | None]
    caps: tuple[int, ...] = ()
    correct_within: list[tuple[bool | None, ...]] = dataclasses.field(default_factory=list)
    answers: list[str | None] = dataclasses.field(default_factory=list)
    undecided: list[bool] = dataclasses.field(default_factory=list)
    scores: list[float] = dataclasses.field(default_factory=list)

    @property
    def graded(self) -> int:
        """How many samples count in an accuracy."""
        return sum(grade is not None for grade in self.grades)

    @property
    def right(self) -> int:
        """How many samples are right."""
        return sum(grade is True for grade in self.grades)

    @property
    def longest(self) -> float:
        """Tokens of the longest sample, at least 1; NaN where a length is missing."""
        return math.nan if any(map(math.isnan, self.lengths)) else float(max([1, *self.lengths]))

    def knows(self, cap: int) -> bool:
        """Whether the grades under a cap are those of the cut texts: they were recorded, or nothing is cut."""
        return cap in self.caps or self.longest <= cap

    def grades_under(self, caps: npt.ArrayLike) -> Float[np.ndarray, "samples caps"]:
        """Grades of the samples, had each been cut at each cap: 1 or 0, NaN for no grade.

        A cap that is among `caps` takes the recorded grades. Under another a sample counts by its own grade when it
        ends within the cap, and as wrong when it does not (unless it has no grade at all): right answers that stand in
        the text before the cap are not looked for, so that cutting and grading again can only give more. Raises
        SamplesError if that needs a length that was not recorded.
        """
        caps = np.atleast_1d(np.asarray(caps))
        lengths = np.array(self.lengths, np.float64)[:, None]
        grades = _as_numbers(self.grades)[:, None]
        within = np.where(np.isnan(grades) | (lengths <= caps), grades, 0.0)
        missing = np.isnan(lengths) & ~np.isnan(grades)
        for i, cap in enumerate(caps):
            if cap in self.caps:
                column = self.caps.index(int(cap))
                within[:, i] = _as_numbers(row[column] for row in self.correct_within)
            elif np.any(missing):
                raise SamplesError(
                    f"{int(np.sum(missing))} of {len(lengths)} samples of a problem have no token count, so it is not "
                    f"known which end within {cap} tokens"
                )
        return within

    def tokens_under(self, caps: npt.ArrayLike) -> Float[np.ndarray, "samples caps"]:
        """Tokens of the samples, had each been cut: min(length, cap); NaN where the length was not recorded."""
        return np.minimum(np.array(self.lengths, np.float64)[:, None], np.atleast_1d(np.asarray(caps, np.float64)))


@dataclasses.dataclass(frozen=True)
class Pool:
    """All samples of one model under one attention, by problem id in ascending order.

    `config` is None where the architecture is not known. All problems have the same `caps`. `rule` says what became of
    undecided samples: they are "unsolved", or "drop": they count in lengths and costs, not in accuracies.
    """

    model: str
    attention: AttentionPolicy
    config: PricedModel | None
    settings: Mapping[str, Any]
    problems: dict[str, ProblemSamples]
    rule: Undecided = "unsolved"

    def __str__(self) -> str:
        return f"{self.model} {self.attention}"

    @property
    def caps(self) -> tuple[int, ...]:
        """The caps at which cut texts were graded; none for a pool that holds only finished samples."""
        return next(iter(self.problems.values())).caps

    @property
    def longest(self) -> float:
        """Tokens of the longest sample, at least 1; NaN where a count is missing."""
        return float(np.max([problem.longest for problem in self.problems.values()]))

    @property
    def parameters(self) -> float:
        """Parameters used per token; NaN where the architecture is not known."""
        return np.nan if self.config is None else self.config.active_parameters

    def priced(self) -> PricedModel:
        """The architecture, for a cost. Raises SamplesError if it, or a token count, is not known."""
        if self.config is None:
            raise SamplesError(
                f"{self}: the architecture is not known, so there is no cost; name the model by a published name, give "
                "its config (--config MODEL=config.json), or set accuracy against tokens (kinetics frontier --against "
                "tokens)"
            )
        for what, missing, cure in (
            (
                "prompt",
                [name for name, problem in self.problems.items() if np.isnan(problem.prompt_tokens)],
                "add a column prompt_tokens, say how long all prompts are (--prompt-tokens N), or set accuracy against "
                "generated tokens (kinetics frontier --against tokens)",
            ),
            (
                "output",
                [name for name, problem in self.problems.items() if np.isnan(problem.longest)],
                "give the tokenizer that counts them (--tokenizer), or fill them in",
            ),
        ):
            if missing:
                raise SamplesError(
                    f"{self}: {what} token counts are missing for {len(missing)} of {len(self.problems)} problems "
                    f"(such as {missing[0]!r:.60}), so there is no cost, since a missing count is no zero; {cure}"
                )
        return self.config

    def settings_apart(self, other: Pool) -> str:
        """Names of the settings in which two pools differ; empty for none."""
        names = dict.fromkeys((*self.settings, *other.settings))
        return ", ".join(name for name in names if self.settings.get(name) != other.settings.get(name))

    @property
    def counts(self) -> dict[str, int]:
        """What a table says of the pool: `problems`, `samples`, `undecided`, and `dropped` where those are left out."""
        problems = self.problems.values()
        counts = {
            "problems": len(problems),
            "samples": sum(len(problem.lengths) for problem in problems),
            "undecided": sum(sum(problem.undecided) for problem in problems),
        }
        return counts | ({"dropped": counts["undecided"]} if self.rule == "drop" else {})


def pooled(runs: Iterable[RunData] | Iterable[Pool], *, undecided: Undecided = "unsolved") -> list[Pool]:
    """Runs of one model and attention made one, in the order of the runs; every pool holds the same problems.

    Pools, given instead of runs, are returned as they are: every table takes either. Undecided samples (no grader's
    verdict, or logits that were not finite) count as unsolved: leaving them out would flatter the models that make
    them. With `undecided="drop"` they are left out of accuracies, not of lengths and costs. Warnings say how many there
    are, and in which settings and prompts the pools differ. Grades of cut texts are kept at the caps that all runs of a
    pool have, with a warning if one of them has more. Raises SamplesError without a run, if the runs' tasks or problems
    differ, if runs of one pool differ in their settings or architecture, for a sample that occurs twice, and where all
    samples of a problem are dropped.
    """
    given = list(runs)
    pools = [run for run in given if isinstance(run, Pool)]
    if pools and len(pools) == len(given):
        return pools
    members: dict[tuple[str, str], list[RunData]] = collections.defaultdict(list)
    for run in given:
        if isinstance(run, Pool):
            raise SamplesError(f"{run}: runs and pools cannot be mixed")
        members[run.model, str(run.attention)].append(run)
    if not members:
        raise SamplesError("no runs to compare")
    _one_task([run for group in members.values() for run in group])
    pools = [_pool(group, undecided) for group in members.values()]
    _same_problems(pools)
    caveats = [_undecided_words(pool) for pool in pools if pool.counts["undecided"]]
    caveats += _other_settings(pools) + _other_prompts([run for group in members.values() for run in group])
    for caveat in caveats:
        warnings.warn(caveat, stacklevel=2)
    return pools


def undecided_counts(pools: Iterable[Pool]) -> dict[str, int]:
    """`undecided` samples of all pools, and of these `dropped` where they are left out of accuracies."""
    totals: collections.Counter[str] = collections.Counter()
    for pool in pools:
        totals.update({name: count for name, count in pool.counts.items() if name in ("undecided", "dropped")})
    return dict(totals)


def _undecided_words(pool: Pool) -> str:
    counts = pool.counts
    what = (
        "are left out of its accuracy (undecided samples are dropped, as asked), which can only flatter it"
        if pool.rule == "drop"
        else "count as unsolved (--undecided drop leaves them out)"
    )
    return (
        f"{pool}: {counts['undecided']} of {counts['samples']} samples are undecided (the grader gave up on them, or "
        f"their logits were not finite); they {what}"
    )


def _one_task(runs: list[RunData]) -> None:
    """Accuracies over different tasks do not compare; nor do problems that share nothing but their id."""
    tasks: dict[str, set[str]] = collections.defaultdict(set)
    for run in runs:
        tasks[run.task].update(run.problem)
    if len({frozenset(problems) for task, problems in tasks.items() if task}) > 1:
        raise SamplesError(
            f"runs of several tasks ({', '.join(sorted(filter(None, tasks)))}): accuracies over different problems do "
            "not compare; give the runs of one task at a time"
        )
    asked: dict[str, tuple[Hashable, RunData]] = {}
    for run in runs:
        for problem, what in run.asked.items():
            before, other = asked.setdefault(problem, (what, run))
            if before != what:
                raise SamplesError(
                    f"problem {problem!r} is not the same in {other.model} {other.attention} (task {other.task}) and "
                    f"{run.model} {run.attention} (task {run.task}); compare runs of one problem set"
                )
    prompts: dict[tuple[str, str], tuple[str, RunData]] = {}
    for run in runs:
        for problem, text in run.prompts.items():
            before, other = prompts.setdefault((run.model, problem), (text, run))
            if before != text:
                raise SamplesError(
                    f"{run.model}: problem {problem!r} was put to it in different words under {other.attention} and "
                    f"{run.attention} (another template, or thinking on and off); compare runs of one kind of prompt"
                )


def _other_settings(pools: list[Pool]) -> list[str]:
    """A line that names the settings in which pools differ, with their values; those that a pool does not say are left
    out, and so are the weights of unlike models.
    """
    names = dict.fromkeys(name for pool in pools for name in pool.settings if name != "weights")
    apart = []
    for name in names:
        stated = [(pool, pool.settings[name]) for pool in pools if pool.settings.get(name) is not None]
        values = {repr(value): (pool, value) for pool, value in reversed(stated)}
        if len(values) > 1:
            shown = [f"{value!s:.20} for {pool}" for pool, value in reversed(values.values())]
            more = f", and {len(shown) - 2} more" if len(shown) > 2 else ""
            apart.append(f"{name} ({', '.join(shown[:2])}{more})")
    weights: dict[str, set[str]] = collections.defaultdict(set)
    for pool in pools:
        if pool.settings.get("weights") is not None:
            weights[pool.model].add(repr(pool.settings["weights"]))
    apart += [f"the weights of {model}" for model, found in weights.items() if len(found) > 1]
    if not apart:
        return []
    return [f"the runs differ in {'; '.join(apart)}: what is compared is that too, not the model and attention alone"]


def _other_prompts(runs: list[RunData]) -> list[str]:
    """A line where models read a problem in different words. (Of one model, `_one_task` refuses that.)"""
    first: dict[str, tuple[str, RunData]] = {}
    for run in runs:
        for problem, text in run.prompts.items():
            before, other = first.setdefault(problem, (text, run))
            if before != text:
                return [
                    f"problem {problem!r:.60} was put to {other.model} and {run.model} in different words (their chat "
                    "templates, or thinking on and off): what is compared is that too"
                ]
    return []


def _pool(runs: list[RunData], undecided: Undecided) -> Pool:
    if undecided not in get_args(Undecided):
        raise SamplesError(f"undecided samples can be {' or '.join(get_args(Undecided))}, not {undecided!r:.40}")
    run = runs[0]
    pool = Pool(run.model, run.attention, run.config, run.settings, {}, undecided)
    without = False if undecided == "unsolved" else None  # what an undecided sample counts as
    caps, said = _common_caps(runs), all(len(run.answers) for run in runs)
    scored = any(len(run.scores) for run in runs)
    problems, seen = pool.problems, set[tuple[str, Hashable]]()
    for run in runs:
        if other := [name for name in run.settings if run.settings[name] != pool.settings.get(name)]:
            raise SamplesError(
                f"{pool}: runs that differ in {', '.join(other)} cannot be pooled; compare them one at a time"
            )
        if run.config != pool.config:
            raise SamplesError(f"{pool}: runs of different architectures cannot be pooled; name the models apart")
        prompts, lengths = _counts(run.prompt_tokens), _counts(run.output_tokens)
        columns = [list(run.caps).index(cap) for cap in caps]
        for problem, sample, i in sorted(zip(run.problem, run.sample, range(len(run.problem)), strict=True)):
            if (problem, sample) in seen:
                raise SamplesError(f"{pool}: problem {problem!r} sample {sample} occurs twice; give each run once")
            seen.add((problem, sample))
            if (entry := problems.get(problem)) is None:
                entry = problems[problem] = ProblemSamples(prompts[i], [], [], caps)
            missing = math.isnan(entry.prompt_tokens) and math.isnan(prompts[i])
            if entry.prompt_tokens != prompts[i] and not missing:
                counts = ("no stated number of" if np.isnan(n) else f"{n:g}" for n in (entry.prompt_tokens, prompts[i]))
                raise SamplesError(
                    f"{pool}: problem {problem!r} has prompts of {' and '.join(counts)} tokens; pooled samples answer "
                    "one prompt"
                )
            entry.lengths.append(lengths[i])
            # Whatever grade a text has that came of logits without a value: it says nothing of the model.
            correct = None if run.ended and run.ended[i] == NONFINITE else run.correct[i]
            entry.grades.append(_grade(correct, without))
            entry.undecided.append(correct is None)
            if said:
                entry.answers.append(run.answers[i])
            if scored:
                score = run.scores[i] if len(run.scores) else None
                entry.scores.append(math.nan if score is None else float(score))
            if caps:
                entry.correct_within.append(tuple(_grade(run.correct_within[i][column], without) for column in columns))
    if not problems:
        raise SamplesError(f"{pool}: the run holds no samples yet")
    bare = [problem for problem, entry in problems.items() if not entry.graded]
    if bare:
        raise SamplesError(
            f"{pool}: all samples of problem {bare[0]!r} are undecided ({len(bare)} such problems), so that dropping "
            "them leaves none; leave out --undecided drop, or grade the run again (kinetics grade RUN)"
        )
    return dataclasses.replace(pool, problems=dict(sorted(problems.items())))


def _common_caps(runs: list[RunData]) -> tuple[int, ...]:
    common = set.intersection(*(set(run.caps) for run in runs))
    if any(set(run.caps) - common for run in runs):
        warnings.warn(
            f"{runs[0].model} {runs[0].attention}: its runs were cut and graded at different caps, only the common "
            f"ones are used ({', '.join(map(str, sorted(common))) or 'none'}); grade the others at the same caps",
            stacklevel=4,
        )
    return tuple(sorted(common))


def _counts(values: npt.ArrayLike | Sequence[int | None]) -> list[float]:
    """Whole numbers, NaN where one is missing."""
    return [value if math.isnan(value) else int(value) for value in np.asarray(values, np.float64).tolist()]


def _as_numbers(grades: Iterable[bool | None]) -> np.ndarray:
    return np.array([np.nan if grade is None else float(grade) for grade in grades])


def _grade(value: bool | None, without: bool | None) -> bool | None:
    return without if value is None else bool(value)


def _same_problems(pools: list[Pool]) -> None:
    """Accuracies over different problems do not compare: an unfinished run would win by its easy beginning."""
    first, *others = pools
    for pool in others:
        odd = sorted(first.problems.keys() ^ pool.problems.keys())
        if odd:
            raise SamplesError(
                f"{first} has {len(first.problems)} problems, {pool} has {len(pool.problems)}, and they differ "
                f"(in {odd[0]!r}, for one); finish the runs, or give runs over the same problems"
            )
