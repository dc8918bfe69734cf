"""Decodes problems with a checkpoint: logits after the prompt in three ways, token ids, and each token's lead.

The only module of this package that needs kinetics_jax.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from kinetics_kernels.backends import Backend

from kinetics_jax.attention.cache import PagedCache, empty_cache
from kinetics_jax.attention.decode import decode_attend
from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.attention.policies.registry import parse_policy
from kinetics_jax.checkpoints.resolve import resolve
from kinetics_jax.engine.engine import Request
from kinetics_jax.engine.programs import prefill
from kinetics_jax.engine.sampling import filter_logits, problem_hash, sample_keys, seed_key
from kinetics_jax.errors import UserError
from kinetics_jax.language_model import LanguageModel, load
from kinetics_jax.settings import Sampling
from kinetics_jax.tasks.problems import BUILTIN, TASKS, TaskError, load_problems
from kinetics_jax.tasks.prompts import render_prompts

from .accuracy import record_accuracy
from .recording import ComparisonError, arrays_sha256, failure_line


def record_model(
    name: str,
    *,
    problems: int,
    samples: int,
    attention: str,
    dtype: str,
    max_tokens: int,
    seed: int,
    backend: str | None,
    accuracy: int,
    task: str,
    task_problems: int,
    report: Callable[[str], None],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What goes into a recording's index under `model`, and its arrays.

    The built-in problems, one greedy sample and `samples` drawn at temperature 1 of each, densely and under
    `attention`. `logits/full`, `logits/<policy> [problems, vocab]` after the prompt; per policy `tokens/<policy>
    [problems, 1 + samples, max_tokens]` int32, the greedy one first, -1 after the end, and `leads/<policy>`, by how
    much each token leads the next best (in logits, plus their Gumbel noise if sampled), float32. With `accuracy`
    samples of each of `task_problems` of `task`, the index has their grades under `accuracy`. If the backend refuses,
    status is `refused` with the reason and there are no arrays; on any other failure it is `failed`. Raises
    ComparisonError for a user's mistake.
    """
    lm = load(name, dtype=dtype, backend=backend)
    chosen = load_problems(BUILTIN, limit=problems)
    texts = render_prompts(chosen, lm.directory, task=BUILTIN)
    prompts = [lm.encode(texts[problem.id]) for problem in chosen]
    policies = list(dict.fromkeys([Dense(), parse_policy(attention)]))
    index: dict[str, Any] = {
        "name": lm.config.name,
        "fingerprint": lm.fingerprint,
        "dtype": dtype,
        "attention": [str(policy) for policy in policies],
        "samples": samples,
        "max_tokens": max_tokens,
        "seed": seed,
        "prompts_sha256": arrays_sha256({str(i): np.array(prompt, np.int32) for i, prompt in enumerate(prompts)}),
        "backend": backend or "default",
        "status": "ok",
        "reason": "",
    }
    drawn = Sampling(temperature=1.0, max_tokens=max_tokens, seed=seed)
    try:
        arrays = {"model/logits/full": _full_logits(lm, prompts)}
        for policy in policies:
            tokens = _generate(lm, prompts, samples, policy, drawn)
            logits, leads = replay(lm, prompts, tokens, policy, drawn)
            arrays |= {
                f"model/logits/{policy}": logits,
                f"model/tokens/{policy}": tokens,
                f"model/leads/{policy}": leads,
            }
            report(f"{name} {policy}: {len(prompts)} problems, {int((tokens >= 0).sum())} tokens")
        if accuracy:
            index["accuracy"] = record_accuracy(lm, task, task_problems, accuracy, policies, drawn, report)
    except Exception as error:  # the recorded ops are kept
        refused = isinstance(error, NotImplementedError) or isinstance(error.__cause__, NotImplementedError)
        if isinstance(error, UserError) and not refused:
            raise ComparisonError(str(error)) from error
        reason = str(error) if refused else failure_line(error)
        report(f"{name} {'refused' if refused else 'failed'}: {reason}")
        return index | {"status": "refused" if refused else "failed", "reason": reason}, {}
    return index, arrays


def check_model(name: str, attention: str, task: str) -> None:
    """Raises ComparisonError if the model does not exist, or the attention policy or task is not one."""
    try:
        resolve(name)
        parse_policy(attention)
        if task not in TASKS:
            raise TaskError(f"task {task!r} is not known (known: {', '.join(TASKS)})")
    except UserError as error:
        raise ComparisonError(str(error)) from error


def _generate(
    lm: LanguageModel, prompts: list[list[int]], samples: int, policy: AttentionPolicy, drawn: Sampling
) -> np.ndarray:
    """`[problems, 1 + samples, max_tokens]` int32: the engine's greedy sample and those drawn, -1 after the end."""
    greedy = dataclasses.replace(drawn, temperature=0.0)
    tokens = np.full((len(prompts), 1 + samples, drawn.max_tokens), -1, np.int32)
    for sampling, first, count in ((greedy, 0, 1), (drawn, 1, samples)):
        if count:  # with ids by place, from which `replay` has the samples' keys
            requests = [Request(str(place), prompt, range(count)) for place, prompt in enumerate(prompts)]
            for done in lm.engine(sampling=sampling, attention=policy).run(requests):
                tokens[int(done.problem), first + done.sample, : len(done.output_tokens)] = done.output_tokens
    return tokens


def _full_logits(lm: LanguageModel, prompts: list[list[int]]) -> np.ndarray:
    """Logits after each prompt, `[problems, vocab]` float32, by the forward without a cache: all of one length."""
    longest = max(map(len, prompts))
    padded = [prompt + [0] * (longest - len(prompt)) for prompt in prompts]
    return np.stack([lm.logits([row])[0, len(prompt) - 1] for row, prompt in zip(padded, prompts, strict=True)])


def replay(
    lm: LanguageModel, prompts: list[list[int]], tokens: np.ndarray, policy: AttentionPolicy, drawn: Sampling
) -> tuple[np.ndarray, np.ndarray]:
    """Feeds samples through the cache token by token, all in one batch.

    `tokens [problems, columns, max_tokens]` as recorded. Returns the logits after each prompt, of which
    all but the last token is prefilled and the last is a decode step; and each token's lead, shaped like `tokens`, NaN
    where there is none: for these the whole prompt is prefilled, as in the engine.
    """
    problems, columns, steps = tokens.shape
    rows, flat = problems * columns, tokens.reshape(problems * columns, steps)
    of_row = [prompt for prompt in prompts for _ in range(columns)]
    length = np.array([len(prompt) for prompt in of_row], np.int32)
    width = -(-(int(length.max()) + steps) // policy.page_size)
    table = np.arange(rows * width, dtype=np.int32).reshape(rows, width)
    samples = jnp.arange(columns) - 1
    hashes = [jnp.uint32(problem_hash(str(problem))) for problem in range(problems)]
    keys = jnp.concatenate([sample_keys(seed_key(drawn.seed), problem, samples) for problem in hashes])

    def step(cache: PagedCache, token: np.ndarray, stored: np.ndarray, live: np.ndarray, position: int):
        return _step(
            lm.graph,
            lm.weights,
            cache,
            jnp.asarray(token),
            jnp.asarray(stored),
            jnp.asarray(live),
            jax.vmap(jax.random.fold_in, (0, None))(keys, position),
            jnp.asarray(table),
            policy=policy,
            backend=lm.backend,
        )

    cache, _ = _prefilled(lm, [prompt[:-1] for prompt in of_row], policy, table)
    last = np.array([prompt[-1] for prompt in of_row], np.int32)
    cache, first = step(cache, last, length - 1, np.ones(rows, bool), 0)
    del cache
    cache, logits = _prefilled(lm, of_row, policy, table)
    greedy = jnp.arange(rows) % columns == 0
    leads = np.full(flat.shape, np.nan, np.float32)
    for position in range(int((flat >= 0).sum(axis=1).max())):
        live = flat[:, position] >= 0
        if position:
            before = np.maximum(flat[:, position - 1], 0)
            cache, logits = step(cache, before, length + position - 1, live, position)
        leads_now = _leads(logits, keys, jnp.int32(position), jnp.asarray(flat[:, position]), greedy, sampling=drawn)
        leads[live, position] = np.asarray(leads_now)[live]
    return np.asarray(first)[::columns], leads.reshape(tokens.shape)


def _prefilled(
    lm: LanguageModel, prompts: list[list[int]], policy: AttentionPolicy, table: np.ndarray
) -> tuple[PagedCache, jax.Array]:
    """A cache that holds `prompts`, each in its row of `table [rows, width]`, and the logits after them."""
    size = policy.page_size
    pages = -(-max(map(len, prompts)) // size)
    cache = empty_cache(policy, lm.config, num_pages=table.size, dtype=lm.dtype)
    logits = []
    for row, prompt in zip(table, prompts, strict=True):
        padded = np.zeros((1, pages * size), np.int32)
        padded[0, : len(prompt)] = prompt
        own = np.where(np.arange(pages) * size < len(prompt), row[:pages], -1).astype(np.int32)
        cache, after = prefill(
            lm.graph, lm.weights, cache, jnp.asarray(padded), jnp.int32(len(prompt)), jnp.asarray(own)
        )
        logits.append(after)
    return cache, jnp.concatenate(logits)


@functools.partial(jax.jit, static_argnames=("graph", "policy", "backend"), donate_argnames=("cache",))
def _step(
    graph: nnx.GraphDef,
    weights: nnx.State,
    cache: PagedCache,
    token: jax.Array,
    stored: jax.Array,
    live: jax.Array,
    keys: jax.Array,
    table: jax.Array,
    *,
    policy: AttentionPolicy,
    backend: Backend | None,
) -> tuple[PagedCache, jax.Array]:
    """One decode step of `rows` sequences, idle where not `live`: the cache and logits `[rows, vocab]`."""
    model = nnx.merge(graph, weights)
    attend = decode_attend(policy, table, jnp.where(live, stored + 1, 0), keys, backend=backend)
    hidden, cache = model(token[:, None], stored[:, None], attend, cache)
    return cache, model.logits(hidden[:, 0])


@functools.partial(jax.jit, static_argnames=("sampling",))
def _leads(
    logits: jax.Array, keys: jax.Array, position: jax.Array, chosen: jax.Array, greedy: jax.Array, *, sampling: Sampling
) -> jax.Array:
    """By how much the tokens `chosen [rows]` lead the next best of `logits [rows, vocab]`; negative where they do not.

    `keys [rows]` are the samples', `position` the output position; rows that are `greedy` are judged without noise.
    """
    token_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, position)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:], logits.dtype))(token_keys)
    scores = jnp.where(greedy[:, None], logits, filter_logits(logits, sampling) + noise)
    own = jnp.arange(logits.shape[1]) == chosen[:, None]
    return jnp.max(jnp.where(own, scores, -jnp.inf), axis=1) - jnp.max(jnp.where(own, -jnp.inf, scores), axis=1)
