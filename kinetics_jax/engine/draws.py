"""What a request of an open decoder asks for, judged before anything is computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypedDict

import jax
import numpy as np

from kinetics_jax.engine.repetition import BlockWatch, RepetitionWatch
from kinetics_jax.engine.requests import Draw, Watch
from kinetics_jax.engine.stops import StopWatch
from kinetics_jax.errors import spelled
from kinetics_jax.settings import MAX_TOKENS, DrawRules, RequestError, Sampling, whole_number

MAX_HOOKS = 16  # of one decoder: each is a part of its program


class RuleArguments(TypedDict, total=False):
    """The fields of `DrawRules`, as keywords."""

    min_tokens: int
    repetition_penalty: float
    presence_penalty: float
    repetition_block: int
    stop: str | Sequence[str]
    stop_ids: Sequence[int]
    allowed: Sequence[int] | None
    hook: Callable[..., Any] | None
    log_probs: bool


def asked_sampling(sampling: Any, max_tokens: Any, default: Sampling) -> Sampling:
    """A request's sampling: its own or the decoder's, with `max_tokens` in place of its own if that is given."""
    sampling = default if sampling is None else sampling
    if not isinstance(sampling, Sampling):
        raise RequestError(f"sampling must be a Sampling, got {spelled(sampling, 40)}")
    if max_tokens is None:
        return sampling
    max_tokens = whole_number(max_tokens, "max_tokens", RequestError)
    if not 1 <= max_tokens <= MAX_TOKENS:
        raise RequestError(f"max_tokens must be in 1 … {MAX_TOKENS}, got {max_tokens}")
    return dataclasses.replace(sampling, max_tokens=max_tokens)


def asked_rules(given: Any, before: DrawRules | None = None) -> DrawRules:
    """A request's rules, by keyword (`RuleArguments`); those that are not given are as `before`."""
    return DrawRules(**given) if before is None else dataclasses.replace(before, **given)


def check_draw(
    draw: Draw, *, vocab: int, positions: int, eos: Sequence[int], hooks: Collection[Any], known: Callable[[], Any]
) -> None:
    """Raises RequestError for what cannot be drawn so; `hooks` are those that the decoder has already."""
    sampling, rules = draw.sampling, draw.rules
    for name, ids in (("stop_ids", rules.stop_ids), ("allowed", rules.allowed or ())):
        if odd := [token for token in ids if not 0 <= token < vocab]:
            raise RequestError(f"{name}: token {odd[0]} is not in the vocabulary, 0 … {vocab - 1}")
    if rules.min_tokens > sampling.max_tokens:
        raise RequestError(
            f"min_tokens {rules.min_tokens} exceeds max_tokens {sampling.max_tokens}; lower one or raise the other"
        )
    if rules.allowed is not None:
        allowed = set(rules.allowed)
        if sampling.known_ids_only:
            allowed &= set(np.flatnonzero(known()).tolist())
        if not allowed:
            raise RequestError("allowed names only ids that the tokenizer does not have; known_ids_only forbids them")
        if rules.min_tokens and not allowed - set(eos) - set(rules.stop_ids):
            raise RequestError(f"allowed names end tokens only, which min_tokens {rules.min_tokens} forbids at first")
    if rules.repetition_block and not rules.repetition_block < sampling.repetition_window:
        raise RequestError(
            f"repetition_block {rules.repetition_block} needs a sampling whose repetition_window is longer (the "
            f"paper's code has 1024 with blocks of 64), got {sampling.repetition_window}"
        )
    if rules.hook is not None:
        _check_hook(rules.hook, vocab, positions, hooks)


def _check_hook(hook: Any, vocab: int, positions: int, hooks: Collection[Any]) -> None:
    """Traces a hook, so that it is refused before it is part of a program."""
    name = f"hook {getattr(hook, '__name__', type(hook).__name__)!r:.60}"
    try:
        hash(hook)
    except TypeError as error:
        raise RequestError(f"{name} cannot be told from others (it has no hash); give a function") from error
    if hook not in hooks and len(hooks) >= MAX_HOOKS:
        raise RequestError(
            f"{name} is one more than the {MAX_HOOKS} that a decoder takes; define hooks once, not for each request"
        )
    logits = jax.ShapeDtypeStruct((vocab,), np.float32)
    arguments = logits, jax.ShapeDtypeStruct((positions,), np.int32), jax.ShapeDtypeStruct((), np.int32)
    try:
        out = jax.eval_shape(hook, *arguments)
    except Exception as error:  # whatever the user's own function raises
        says = spelled(str(error).split("\n")[0], 100)
        raise RequestError(f"{name} cannot be traced by jax with (logits, output, count): {says}") from error
    if (getattr(out, "shape", None), getattr(out, "dtype", None)) != (logits.shape, logits.dtype):
        found = f"{out.dtype} {list(out.shape)}" if hasattr(out, "shape") else spelled(out, 40)
        raise RequestError(f"{name} returns {found}, where logits belong: float32 [{vocab}]")


def watches(
    draw: Draw, *, prompt_tokens: int, decode: Callable[[Sequence[int]], str], before: Sequence[int] = ()
) -> dict[str, Watch]:
    """What ends a sample on the host, by reason; it has the tokens `before`."""
    sampling, rules, found = draw.sampling, draw.rules, {}
    if sampling.repetition_window:
        found["repetition"] = (
            BlockWatch(sampling.repetition_window, rules.repetition_block, prompt_tokens)
            if rules.repetition_block
            else RepetitionWatch(sampling.repetition_window)
        )
    if rules.stop:
        found["stop"] = StopWatch(rules.stop, decode, least=rules.min_tokens)
    for watch in found.values():
        watch.recall(list(before))
    return found
