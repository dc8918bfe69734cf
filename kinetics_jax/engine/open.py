"""An engine that stays open: requests come while it runs, each with settings of its own, and ended samples keep their
pages, to go on with forced tokens (`Decoder.extend`) or as several (`Decoder.fork`).

A sample that goes on is the one that it would have been without the break: its forced tokens are decode steps like any
other, and the key of a token counts output positions from the sample's beginning.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Unpack

import numpy as np

from kinetics_jax.attention.policies.base import PolicyError
from kinetics_jax.engine.agreement import Agreement, agreements
from kinetics_jax.engine.decoding import Decoding
from kinetics_jax.engine.draws import RuleArguments, asked_rules, asked_sampling, check_draw, watches
from kinetics_jax.engine.engine import Engine
from kinetics_jax.engine.prompts import Count, prompt_ids
from kinetics_jax.engine.replay import Drawn
from kinetics_jax.engine.requests import Draw, Request, Running
from kinetics_jax.engine.rows import RowTable
from kinetics_jax.engine.sampling import fork_key, prompt_digest, prompt_name
from kinetics_jax.engine.stops import StopWatch, cut_text
from kinetics_jax.errors import spelled
from kinetics_jax.settings import (
    MAX_SAMPLES,
    DrawRules,
    RequestError,
    Sampling,
    sample_indices,
    switch,
    whole_number,
)


@dataclasses.dataclass(eq=False)
class Branch(Running):
    """A sample of an open decoder, its `owner`: `path` names the fork that it is, of which fork of its sample; `forks`
    were made of it; `turn` counts how often it went on.
    """

    path: tuple[int, ...] = ()
    forks: int = 0
    turn: int = 0
    released: bool = False
    owner: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class OpenSample:
    """A sample that has ended, as an open decoder returns it.

    `id` names its request, `sample` is its index there, `path` says which fork it is (empty: none). `output_tokens` are
    ids, those that were forced and the end token included; a stop text ends `text` before it, and stays in
    `output_tokens`. `finish_reason` is `stop` (an end token, a stop id or a stop text, which `stopped_by` names),
    `length`, `repetition`, `nonfinite` (the model's logits, or a hook's, were not finite) or `blocked` (its rules left
    no token to draw). `log_probs`, if asked for, are those of the output tokens in the model's own distribution, as the
    attention policy computes it; `draw_log_probs` those in what they were drawn from, after temperature, filters and
    rules (NaN where a token was forced). Both are NaN for a forced token that no step was computed for. `seconds` is
    the time from its beginning; `attended_tokens` and `summary_vectors` are what its decode steps read.
    """

    id: str
    sample: int
    path: tuple[int, ...]
    prompt_tokens: int
    output_tokens: list[int]
    text: str | None
    finish_reason: str
    stopped_by: str | int | None
    seconds: float
    attended_tokens: int
    summary_vectors: int
    log_probs: list[float] | None = dataclasses.field(repr=False)
    draw_log_probs: list[float] | None = dataclasses.field(repr=False)
    branch: Branch = dataclasses.field(repr=False)
    turn: int = dataclasses.field(repr=False)


class Decoder:
    """Decodes what is added, sample by sample as they end: `for sample in decoder`. Made by `LanguageModel.open`.

    The loop ends when nothing is left to decode, and can be begun again. A decoder has a cache of its own, which goes
    when it is closed (`close`, or the end of a `with`); any number can be open at once. It is no thread's but one's.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        sampling: Sampling,
        max_length: Count | None,
        keep: bool,
        encode: Callable[..., list[int]],
        decode: Callable[[Sequence[int]], str] | None,
        known: Callable[[], np.ndarray],
    ):
        """`sampling` is that of requests that bring none, `max_length` bounds the tokens of a prompt and its output
        together; `encode`, `decode` and `known` are the tokenizer's, `decode` None where there is none.
        """
        self.engine, self.sampling, self.keep = engine, sampling, keep
        self.encode, self.decode, self.known = encode, decode, known
        setup = engine.setup
        job, self.max_length = engine.open_job(max_length)
        self.decoding: Decoding | None = Decoding(setup, job)
        self.rows = self.decoding.rows = RowTable(
            slots=setup.settings.slots,
            vocab=setup.config.vocab_size,
            positions=self.max_length,
            known=known,
            to_device=self.decoding.place,
        )
        self._prompts: dict[str, str] = {}  # digests, by id
        self.newest: list[Branch] = []  # the samples that the newest `add` asked for
        self._samples: collections.Counter[str] = collections.Counter()  # indices given away, by id
        self._bare: collections.Counter[str] = collections.Counter()  # prompts without an id, by digest
        self._ready: collections.deque[OpenSample] = collections.deque()
        self._fault: PolicyError | None = None

    def add(
        self,
        prompt: str | Sequence[int],
        *,
        n: int = 1,
        id: str | None = None,
        samples: Iterable[int] | None = None,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        forced: str | Sequence[int] = (),
        keep: bool | None = None,
        add_special_tokens: bool | None = None,
        **rules: Unpack[RuleArguments],
    ) -> str:
        """Adds `n` samples of a prompt, a text or token ids. Returns the request's id.

        With the seed, the id and a sample's index fix its draws. An id that is given again counts its samples on; a
        prompt without one gets a digest of its tokens and how often it was added before. `samples` names indices
        instead of `n`. `sampling` is the decoder's unless given, `max_tokens` takes the place of its own. `forced` are
        the first tokens of every output, given instead of drawn. `keep`: whether the pages stay when a sample ends, for
        `extend` and `fork`; as the decoder was opened unless given. `rules` are the fields of `DrawRules`. Raises
        RequestError for what cannot be run.
        """
        decoding = self._open()
        sampling = asked_sampling(sampling, max_tokens, self.sampling)
        ids = self._tokens(prompt, "prompt", special=add_special_tokens)
        start = self._forced(forced, "forced")
        draw = Draw(sampling, asked_rules(rules))
        self._check(draw, len(ids), len(start))
        digest, bare = prompt_digest(ids), id is None
        id = prompt_name(digest, self._bare[digest]) if id is None else id
        if not isinstance(id, str):
            raise RequestError(f"id must be a text, got {spelled(id, 40)}")
        if self._prompts.get(id, digest) != digest:
            raise RequestError(f"id {id!r:.60} stands for another prompt; ids fix the random draws and must differ")
        indices = self._indices(id, n, samples)
        self._bare[digest] += bare
        self._prompts[id] = digest
        request = Request(id, ids, indices, _absolute(draw, len(start)))
        self.rows.note(draw)
        keep = self.keep if keep is None else switch(keep, "keep", RequestError)
        limit = len(start) + sampling.max_tokens
        branches = [Branch(request, index, limit, kept=keep, owner=self) for index in indices]
        for branch in branches:
            branch.forced = list(start)
            branch.watches = self._watches(branch)
        decoding.schedules[0].enqueue(branches)
        self.newest = branches
        return id

    def extend(
        self,
        sample: OpenSample,
        tokens: str | Sequence[int] = (),
        *,
        keep_end: bool = False,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        **rules: Unpack[RuleArguments],
    ) -> None:
        """Lets a sample go on: behind its output come `tokens` (a text, or ids), then at most `max_tokens` more.

        The token that ended it (an end token or a stop id) is taken back first, unless `keep_end`. Settings that are
        not given stay; `max_tokens` and `min_tokens` count the tokens behind the forced ones, and `min_tokens` is 0
        unless given. The sample comes back from the loop once it has ended again, with its whole output; `sample` as it
        was is done with. Raises RequestError for what cannot be run, and for a sample that is not kept.
        """
        branch, decoding = self._held(sample, "extend"), self._open()
        old = branch.request.draw
        assert old is not None
        sampling = asked_sampling(sampling, max_tokens, old.sampling)
        draw = Draw(sampling, asked_rules({"min_tokens": 0, **rules}, old.rules))
        forced = self._forced(tokens, "tokens")
        kept = branch.tokens
        if not keep_end and not branch.failed and kept and kept[-1] in self._end_tokens(old.rules):
            kept = kept[:-1]
        self._check(draw, len(branch.request.prompt), len(kept) + len(forced))
        self.rows.note(draw)
        if draw.sampling.seed != old.sampling.seed:
            branch.key = None
        branch.turn += 1
        branch.limit = len(kept) + len(forced) + sampling.max_tokens
        branch.request = dataclasses.replace(
            branch.request, samples=[branch.sample], draw=_absolute(draw, len(kept) + len(forced))
        )
        if branch.path and branch.key is None:
            branch.key = decoding.key(branch)
            for fork in branch.path:
                branch.key = fork_key(branch.key, fork)
        branch.tokens, branch.ended, branch.failed = list(kept), "", 0
        branch.forced = forced
        branch.watches = self._watches(branch)
        del branch.log_probs[len(kept) :]
        if draw.rules.log_probs:  # they may not have been asked for so far
            branch.log_probs += [(np.nan, np.nan)] * (len(kept) - len(branch.log_probs))
        self._go_on(branch, draw.rules)

    def _go_on(self, branch: Branch, rules: DrawRules) -> None:
        """Lets a branch go on behind its tokens, of which more may be in the cache than belong to it now."""
        decoding = self._open()
        schedule, carries = decoding.schedules[branch.shard], bool(decoding.cache.carried)
        length = len(branch.request.prompt) + len(branch.tokens)
        cached = branch.reached >= length  # the last token too: it is not to be appended again
        exact = not carries or branch.reached == (length if cached else length - 1)  # what the policy carries
        if cached and branch.forced and exact and (carries or not rules.log_probs or not branch.tokens):
            # The next step is the forced token's: what was drawn in its place is not computed again.
            branch.tokens.append(branch.forced.pop(0))
            branch.log_probs += [(np.nan, np.nan)] if rules.log_probs else []
            for watch in branch.watches.values():
                watch.recall(branch.tokens[-1:])
        elif not branch.tokens or not exact or (cached and carries):
            self._start_over(branch)
            return
        branch.reads = branch.reads[: max(len(branch.tokens) - 1, 0)]  # of steps that are not taken again
        schedule.kept.remove(branch)
        schedule.cut(branch, branch.stored)
        branch.reached = branch.stored
        schedule.go_on(branch)

    def fork(self, sample: OpenSample, n: int = 1) -> list[OpenSample]:
        """`n` more samples of which each is `sample` so far, and goes on by itself (`extend`) with draws of its own.

        They share its pages; only the last, partial one is copied, when one of them goes on. Raises RequestError for a
        sample that is not kept.
        """
        branch, decoding = self._held(sample, "fork"), self._open()
        if (n := whole_number(n, "fork: n", RequestError)) < 1:
            raise RequestError(f"fork: n must be at least 1, got {n}")
        schedule, key, forks = decoding.schedules[branch.shard], decoding.key(branch), []
        for _ in range(n):
            schedule.allocator.share(branch.pages)
            fork = dataclasses.replace(
                branch,
                pages=list(branch.pages),
                tokens=list(branch.tokens),
                log_probs=list(branch.log_probs),
                key=fork_key(key, branch.forks),
                path=(*branch.path, branch.forks),
                forks=0,
                turn=0,
            )
            branch.forks += 1
            schedule.kept.append(fork)
            forks.append(dataclasses.replace(sample, path=fork.path, branch=fork, turn=0))
        return forks

    def release(self, *samples: OpenSample) -> None:
        """Gives back the memory of samples that need not go on. Raises RequestError for one that is not kept."""
        for sample in samples:
            branch = self._held(sample, "release")
            self._open().schedules[branch.shard].forget(branch)
            branch.released = True

    def agreement(self, sample: OpenSample) -> Agreement:
        """How far the decoder's policy and dense attention agree on a sample's tokens, forced ones included: see
        `Agreement`. A policy that draws pages at random draws all of a fork's as the fork does, those of the tokens
        before it too. Raises RequestError on a mesh.
        """
        setup, decoding = self.engine.setup, self._open()
        if setup.mesh is not None:
            raise RequestError("agreement: is for one device, not for a mesh; load the model without mesh")
        drawn = Drawn(sample.branch.request.prompt, sample.output_tokens, key=decoding.key(sample.branch))
        model = setup.graph, setup.weights, setup.config
        return next(
            agreements(
                *model, [drawn], policy=setup.policy, cache_dtype=setup.cache_dtype, backend=setup.backend, rows=1
            )
        )

    def close(self) -> None:
        """Gives back everything; what has not ended is lost."""
        self.decoding = None
        self._ready.clear()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[OpenSample]:
        """Samples as they end, until nothing is left to decode."""
        while (sample := self.next_sample()) is not None:
            yield sample

    def next_sample(self) -> OpenSample | None:
        """The next sample that ends; None once nothing is left to decode.

        Raises PolicyError for a policy that chooses what it may not, after the samples that ended beside it; the
        sample that it did so for is dropped.
        """
        while not self._ready:
            if (fault := self._fault) is not None:
                self._fault = None
                raise fault
            if not self._open().unfinished:
                return None
            self.step()
        return self._ready.popleft()

    def ready(self) -> Iterator[OpenSample]:
        """The samples that have ended and were not returned yet; nothing is decoded for it. Raises as `next_sample`."""
        while self._ready or self._fault:
            if (sample := self.next_sample()) is not None:
                yield sample

    def step(self) -> int:
        """Decodes one chunk, and returns how many tokens it drew; `ready` has what ended in it."""
        chunk = self._open().step()
        self._fault = chunk.fault
        self._ready += [self._sample(branch) for branch in chunk.ended if isinstance(branch, Branch)]
        return chunk.tokens

    @property
    def unfinished(self) -> bool:
        """Whether a sample is still to come."""
        return bool(self._ready or self._fault or (self.decoding is not None and self.decoding.unfinished))

    def _open(self) -> Decoding:
        if self.decoding is None:
            raise RequestError("the decoder is closed, and what it held is gone; open another")
        return self.decoding

    def _tokens(self, tokens: Any, where: str, *, special: bool | None) -> list[int]:
        if isinstance(tokens, str):
            return self.encode(tokens, add_special_tokens=special)
        return prompt_ids(where, tokens, self.engine.setup.config.vocab_size)

    def _forced(self, tokens: Any, where: str) -> list[int]:
        empty = hasattr(tokens, "__len__") and not len(tokens)
        return [] if empty else self._tokens(tokens, where, special=False)

    def _end_tokens(self, rules: DrawRules) -> set[int]:
        return {*self.engine.setup.config.eos_token_ids, *rules.stop_ids}

    def _check(self, draw: Draw, prompt: int, output: int) -> None:
        """Raises RequestError for what cannot be drawn behind a prompt and an output of so many tokens."""
        config = self.engine.setup.config
        check_draw(
            draw,
            vocab=config.vocab_size,
            positions=self.max_length,
            eos=config.eos_token_ids,
            hooks=self.rows.hooks,
            known=self.known,
        )
        if draw.rules.stop and self.decode is None:
            raise RequestError("stop texts need a tokenizer, and the checkpoint has none; give stop_ids")
        if (left := self.max_length - prompt - output) < draw.sampling.max_tokens:
            cure = f"lower max_tokens to {left} at most" if left > 0 else "shorten them"
            more = ", or open it with a larger one" if self.max_length < config.max_position_embeddings else ""
            raise RequestError(
                f"{prompt} prompt tokens{f', {output} of output' if output else ''} and max_tokens "
                f"{draw.sampling.max_tokens} exceed the decoder's max_length {self.max_length}; {cure}{more}"
            )

    def _indices(self, id: str, n: Any, samples: Iterable[int] | None) -> list[int]:
        """The samples' indices: the next `n`, or those that are asked for."""
        if samples is not None:
            indices = sample_indices(samples, RequestError)
            if not indices or len(set(indices)) < len(indices):
                raise RequestError(f"samples must name indices, each once, got {spelled(indices, 40)}")
        else:
            if (n := whole_number(n, "n", RequestError)) < 1:
                raise RequestError(f"n must be at least 1, got {n}")
            if self._samples[id] + n > MAX_SAMPLES:
                raise RequestError(f"n: the samples of {id!r:.60} would be more than {MAX_SAMPLES}; lower it to fit")
            indices = list(range(self._samples[id], self._samples[id] + n))
        self._samples[id] = max(self._samples[id], *(index + 1 for index in indices))
        return indices

    def _watches(self, branch: Branch) -> dict[str, Any]:
        assert branch.request.draw is not None
        return watches(
            branch.request.draw,
            prompt_tokens=len(branch.request.prompt),
            decode=self.decode or (lambda tokens: ""),
            before=branch.tokens,
        )

    def _start_over(self, branch: Branch) -> None:
        """Lets a sample go on by computing it anew, where what is kept of it cannot be cut back to what it has."""
        decoding, draw = self._open(), branch.request.draw
        assert draw is not None
        decoding.schedules[branch.shard].forget(branch)
        branch.forced = [*branch.tokens, *branch.forced]
        branch.tokens, branch.log_probs, branch.carried = [], [], None
        branch.reads = branch.reads[:0]
        if branch.key is not None:
            branch.request = dataclasses.replace(branch.request, draw=dataclasses.replace(draw, key=branch.key))
        branch.watches = self._watches(branch)
        decoding.schedules[0].enqueue([branch])

    def _held(self, sample: Any, what: str) -> Branch:
        """The branch of a sample that is kept. Raises RequestError for another."""
        decoding = self._open()
        if not isinstance(sample, OpenSample):
            raise RequestError(f"{what}: give a sample that the decoder returned, got {spelled(sample, 40)}")
        branch, where = sample.branch, f"{what}: sample {sample.sample} of {sample.id!r:.60}"
        if branch.owner is not self:
            raise RequestError(f"{where} belongs to another decoder; give it to that one")
        if any(kept is branch for kept in decoding.schedules[branch.shard].kept):
            if branch.turn == sample.turn:
                return branch
            raise RequestError(f"{where} has gone on since; give it as the decoder returned it last")
        if branch.released:
            raise RequestError(f"{where} was released, and its pages are gone; add its prompt again")
        if branch.turn != sample.turn:
            raise RequestError(f"{where} goes on already; wait until the decoder returns it")
        raise RequestError(f"{where} was not kept; add it with keep=True")

    def _sample(self, branch: Branch) -> OpenSample:
        """An ended branch as it is returned."""
        decoding, tokens = self._open(), list(branch.tokens)
        assert branch.request.draw is not None
        rules, reason = branch.request.draw.rules, decoding.finish_reason(branch)
        text = None if self.decode is None else self.decode(tokens)
        stopped: str | int | None = tokens[-1] if reason == "stop" else None
        watch = branch.watches.get("stop")
        if branch.ended == "stop" and isinstance(watch, StopWatch) and watch.found and self.decode is not None:
            stopped, text = watch.found, cut_text(self.decode, tokens, watch.found)
        pairs = branch.log_probs if rules.log_probs else None
        return OpenSample(
            id=branch.request.problem,
            sample=branch.sample,
            path=branch.path,
            prompt_tokens=len(branch.request.prompt),
            output_tokens=tokens,
            text=text,
            finish_reason=reason,
            stopped_by=stopped,
            seconds=time.perf_counter() - branch.began,
            attended_tokens=int(branch.read[0]),
            summary_vectors=int(branch.read[1]),
            log_probs=None if pairs is None else [own for own, _ in pairs],
            draw_log_probs=None if pairs is None else [drawn for _, drawn in pairs],
            branch=branch,
            turn=branch.turn,
        )


def _absolute(draw: Draw, before: int) -> Draw:
    """A draw whose `min_tokens` counts a sample's `before` tokens too."""
    least = draw.rules.min_tokens and draw.rules.min_tokens + before
    return dataclasses.replace(draw, rules=dataclasses.replace(draw.rules, min_tokens=least))
