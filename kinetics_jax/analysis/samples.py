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

from kinetics_jax.analysis.comparable import one_task, other_prompts, other_settings, same_problems
from kinetics_jax.analysis.problem_samples import ProblemSamples, SamplesError
from kinetics_jax.attention.policies.base import AttentionPolicy, PolicyError
from kinetics_jax.attention.policies.registry import parse_policy
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.architectures.architecture import PricedModel
from kinetics_jax.runs.cut_grades import grades_within
from kinetics_jax.runs.folder import Run
from kinetics_jax.runs.records import NONFINITE

Undecided = Literal["unsolved", "drop"]
ONLY_SOME = ("speculate",)  # settings that a run without has none of
OWN = ("cost", "seconds")  # what a source may say that a sample took
READS = ("attended_tokens", "summary_vectors")  # and what it read, over layers and KV heads, as its run counted it


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
    [samples][caps]`: the grades, had generation been cut after that many tokens and the cut text been graded;
    `answers_within`, alike: what those texts answered, empty where that is not known, unread without caps. `own`: by
    kind of OWN, parallel too, what the source says that a sample took: `cost` in Tera-eFLOPs, `seconds`, or read
    (READS); None for nothing. `source`: where the samples stand, for messages. Raises SamplesError if the parallel
    fields' lengths differ, or caps are not whole numbers from 1 up in ascending order.
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
    answers_within: Sequence[Sequence[str | None]] = ()
    own: Mapping[str, Sequence[float | None]] = dataclasses.field(default_factory=dict)
    source: str = ""

    def __post_init__(self) -> None:
        counts = {
            field: len(np.atleast_1d(np.asarray(getattr(self, field), object)))
            for field in ("problem", "sample", "prompt_tokens", "output_tokens", "correct")
        }
        if self.caps:
            counts["correct_within"] = len(self.correct_within)
        counts |= {
            field: len(getattr(self, field))
            for field in ("answers", "ended", "scores", "answers_within")
            if len(getattr(self, field))
        }
        counts |= {kind: len(amounts) for kind, amounts in self.own.items()}
        if len(set(counts.values())) > 1:
            raise SamplesError(f"run of {self.model} {self.attention}: fields of different lengths, {counts}")
        caps = list(self.caps)
        if any(cap < 1 or cap != int(cap) for cap in caps) or caps != sorted(set(caps)):
            raise SamplesError(
                f"run of {self.model} {self.attention}: caps must be whole numbers of tokens from 1 up, ascending, "
                f"got {caps}"
            )
        for name, what in (("correct_within", "a grade"), ("answers_within", "an answer")):
            if (caps or name == "correct_within") and any(len(row) != len(caps) for row in getattr(self, name)):
                raise SamplesError(
                    f"run of {self.model} {self.attention}: {name} needs {what} for each of {len(caps)} caps"
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
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise SamplesError(f"{run.path / 'run.json'}: config cannot be read ({error})") from error
    try:
        attention = parse_policy(run.header["policy"])
    except PolicyError as error:
        raise SamplesError(f"{run.path / 'run.json'}: {error}") from error
    settings = {
        **run.header.get("sampling", {}),
        "dtype": run.header.get("dtype"),
        **{name: run.header[name] for name in ("kv_dtype", "weight_dtype") if run.header.get(name)},
        "weights": run.header.get("weights"),
        "grader": " ".join((run.header.get("grader") or {"function": "the task's"}).values()),
    }
    own: dict[str, list[float | None]] = {kind: [record.get(kind) for record in run.samples] for kind in READS}
    if speculate := run.header.get("speculate"):  # samples of the dense model, at another price
        settings["speculate"] = f"{speculate.get('tokens')} of {speculate.get('draft')}"
        spent = [record.get("speculation") or {} for record in run.samples]
        # What it read is of drafts and dense passes, which no policy's formula says.
        own = {"cost": [of["cost"] + of["prefill"] if "cost" in of and "prefill" in of else None for of in spent]}
    wanted = run.header.get("n", 0) * len(run.problems)
    if len(run.samples) < wanted:
        warnings.warn(
            f"{run.path}: unfinished, {len(run.samples)} of {wanted} samples; short samples end first, so accuracy and "
            f"cost are off; the command that began the run finishes it",
            stacklevel=2,
        )
    caps, correct_within, answers_within = grades_within(run)
    scores = [record.get("score") for record in run.samples]
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
        scores=scores if any(score is not None for score in scores) else (),
        answers_within=answers_within,
        own=own,
        source=str(run.path),
    )


@dataclasses.dataclass(frozen=True)
class Pool:
    """All samples of one model under one attention, by problem id in ascending order.

    `config` is None where the architecture is not known. All problems have the same `caps`. `rule` says what became of
    undecided samples: they are "unsolved", or "drop": they count in lengths and costs, not in accuracies. `sources`:
    where the samples stand. `costs_from`: what prices its attention, the policy's "formula" or the samples' "counts";
    None: the formula, where the policy has one (`by_counts`).
    """

    model: str
    attention: AttentionPolicy
    config: PricedModel | None
    settings: Mapping[str, Any]
    problems: dict[str, ProblemSamples]
    rule: Undecided = "unsolved"
    sources: tuple[str, ...] = ()
    costs_from: Literal["formula", "counts"] | None = None

    def __str__(self) -> str:
        return f"{self.model} {self.attention}"

    @property
    def where(self) -> str:
        """Its name and, where it is known, the first file or folder of its samples: for messages."""
        others = f" and {len(self.sources) - 1} more" if len(self.sources) > 1 else ""
        return f"{self} ({self.sources[0]}{others})" if self.sources else str(self)

    @property
    def by_counts(self) -> bool:
        """Whether its attention is priced by what its samples counted: where that was asked for, where its policy has
        no formula, and where the formula is an upper bound and all samples counted.
        """
        price = self.attention.price
        counted = price == "measured" or (price == "upper bound" and all(map(self.owns, READS)))
        return self.costs_from == "counts" or (self.costs_from is None and counted)

    def owns(self, kind: str) -> bool:
        """Whether the source says of every sample what it took or read, by a kind of OWN or READS. Raises SamplesError
        where some samples state a cost and others do not: a formula for all would drop what is stated.
        """
        each = [problem.own.get(kind, [math.nan] * len(problem.lengths)) for problem in self.problems.values()]
        stated = np.array([not math.isnan(amount) for amounts in each for amount in amounts])
        if kind == "cost" and np.any(stated) and not np.all(stated):
            raise SamplesError(
                f"{self.where}: {np.sum(~stated)} of {len(stated)} samples state no cost of their own, and the others "
                "do; fill in the column cost, or take it out"
            )
        return bool(np.all(stated))

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
                "its config (--config MODEL=config.json), or let kinetics frontier take a column cost of its samples, "
                "or set accuracy against their own seconds (--against seconds) or tokens (--against tokens)"
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
    one_task([run for group in members.values() for run in group])
    pools = [_pool(group, undecided) for group in members.values()]
    same_problems(pools)
    caveats = [_undecided_words(pool) for pool in pools if pool.counts["undecided"]]
    caveats += other_settings(pools) + other_prompts([run for group in members.values() for run in group])
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


def _pool(runs: list[RunData], undecided: Undecided) -> Pool:
    if undecided not in get_args(Undecided):
        raise SamplesError(f"undecided samples can be {' or '.join(get_args(Undecided))}, not {undecided!r:.40}")
    run = runs[0]
    sources = tuple(dict.fromkeys(each.source for each in runs if each.source))
    pool = Pool(run.model, run.attention, run.config, run.settings, {}, undecided, sources)
    without = False if undecided == "unsolved" else None  # what an undecided sample counts as
    caps, said = _common_caps(runs), all(len(run.answers) for run in runs)
    scored = any(len(run.scores) for run in runs)
    cut_said = all(len(run.answers_within) for run in runs)
    owned = list(dict.fromkeys(kind for run in runs for kind in run.own))
    problems, seen = pool.problems, set[tuple[str, Hashable]]()
    for run in runs:
        named = [*run.settings, *(name for name in ONLY_SOME if name in pool.settings and name not in run.settings)]
        if other := [name for name in named if run.settings.get(name) != pool.settings.get(name)]:
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
            for kind in owned:
                amount = run.own[kind][i] if kind in run.own else None
                entry.own.setdefault(kind, []).append(math.nan if amount is None else float(amount))
            if caps:
                entry.correct_within.append(tuple(_grade(run.correct_within[i][column], without) for column in columns))
                if cut_said:
                    entry.answers_within.append(tuple(run.answers_within[i][column] for column in columns))
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


def _grade(value: bool | None, without: bool | None) -> bool | None:
    return without if value is None else bool(value)
