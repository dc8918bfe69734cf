"""The three measurements, each split into units that share one prefilled text."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.attention.policies.random_blocks import RandomBlocks
from kinetics_jax.engine.sampling import seed_key
from kinetics_jax.language_model import LanguageModel
from selection import compared, texts
from selection.forward import decode, go_on, log_likelihoods, random_draws, read_prefix
from selection.mass import attention_mass
from selection.records import Records

QUESTION = 56  # tokens left for a question and its answer


def policies(budgets: Sequence[int]) -> list[AttentionPolicy]:
    """The policies that a masked forward follows, at every budget."""
    return [policy for budget in budgets for policy in compared.masked(budget)]


def others(budgets: Sequence[int], length: int, more: Sequence[AttentionPolicy] = ()) -> list[AttentionPolicy]:
    """Those that are decoded token by token, at every budget below the length, and `more` that are."""
    return [*(policy for budget in budgets if budget < length for policy in compared.decoded(budget, length)), *more]


def needle_policies(budgets: Sequence[int], length: int) -> list[AttentionPolicy]:
    """Dense, and the policies at every budget below the prompt's length."""
    return [Dense(), *policies([budget for budget in budgets if budget < length])]


def agreement(
    lm: LanguageModel, model, tokens: dict[str, list[int]], records: Records, *, budget: int, prefix: int, scored: int
) -> Iterator[None]:
    """Decoding token by token beside the masked forward, one window, every policy."""
    window = texts.window(tokens, 0, prefix, scored)
    every = [Dense(), *policies([budget])]
    if all(records.has("agreement", window.source, str(policy)) for policy in every):
        return
    inputs, targets = np.array([window.scored[:-1]], np.int32), np.array(window.scored[1:])
    before, key = read_prefix(model, window.prefix), seed_key(0)
    for policy in every:
        if records.has("agreement", window.source, str(policy)):
            continue
        draws = list(random_draws(lm.config, key, prefix, 1, scored, policy.page_size))
        masked = model.logits(go_on(model, before, inputs, policy, draws)[0])
        decoded = decode(lm, window.prefix, window.scored[:-1], policy, key)
        likelihoods = [
            float(np.mean(np.asarray(jax.nn.log_softmax(logits))[np.arange(scored), targets]))
            for logits in (masked, decoded)
        ]
        records.add(
            "agreement",
            window.source,
            str(policy),
            tokens=scored,
            prefix=prefix,
            largest_difference=float(np.abs(np.asarray(masked) - decoded).max()),
            largest_logit=float(np.abs(decoded).max()),
            nll_masked=-likelihoods[0],
            nll_decoded=-likelihoods[1],
        )
        yield


def text_unit(
    lm: LanguageModel,
    model,
    tokens: dict[str, list[int]],
    records: Records,
    index: int,
    *,
    budgets: Sequence[int],
    prefix: int,
    scored: int,
    every: int,
    more: Sequence[AttentionPolicy] = (),
) -> Iterator[None]:
    """One window of text: attention mass of every policy and bound, and the likelihood of the text under each."""
    unit, masked, decoded = f"window{index}", policies(budgets), others(budgets, prefix, more)
    names = ["dense", *map(str, [*masked, *decoded])]
    if records.has("mass", unit, "all") and all(records.has("text", unit, name) for name in names):
        return
    window = texts.window(tokens, index, prefix, scored)
    before = read_prefix(model, window.prefix)
    inputs, targets = np.array([window.scored[:-1]], np.int32), np.array(window.scored[1:])
    key = jax.random.fold_in(seed_key(1), index)
    page_size = Dense().page_size
    draws = list(random_draws(lm.config, key, prefix, 1, scored, page_size))

    def add(name: str, logits: jax.Array, began: float) -> None:
        likelihoods, _ = log_likelihoods(logits, targets)
        nll, seconds = float(-likelihoods.mean()), time.process_time() - began
        records.add(
            "text",
            unit,
            name,
            source=window.source,
            start=window.start,
            repeated=round(window.repeated, 4),
            nll=nll,
            cpu_seconds=round(seconds, 2),
        )

    if not (records.has("mass", unit, "all") and records.has("text", unit, "dense")):
        began = time.process_time()
        held, hidden = attention_mass(model, before, inputs, masked, tuple(budgets), every=every, draws=draws)
        layers = {name: [round(mass, 5) for mass in masses] for name, masses in held.items()}
        records.add("mass", unit, "all", source=window.source, start=window.start, held=layers)
        add("dense", model.logits(hidden[0]), began)
        yield
    for policy in [*masked, *decoded]:
        if not records.has("text", unit, str(policy)):
            began = time.process_time()
            if policy in masked:
                logits = model.logits(go_on(model, before, inputs, policy, draws)[0])
            else:
                logits = jnp.asarray(decode(lm, window.prefix, window.scored[:-1], policy, key))
            add(str(policy), logits, began)
            yield


def needle_unit(
    lm: LanguageModel,
    model,
    tokens: dict[str, list[int]],
    records: Records,
    index: int,
    length: int,
    *,
    budgets: Sequence[int],
    needles: int,
) -> Iterator[None]:
    """One haystack: whether greedy decoding gives each number, with question and answer under the policy.

    Greedy decoding writes a number if and only if, after the question and the number's earlier tokens, its next token
    is the likeliest at every position.
    """
    unit, every = f"haystack{index}:{length}", needle_policies(budgets, length)
    if all(records.has("needle", unit, str(policy)) for policy in every):
        return
    hay = texts.haystack(lm, tokens, index, length - QUESTION, needles)
    asked = texts.questions(lm, hay)
    time_steps = max(len(question) + len(number) for question, number in asked) - 1
    assert time_steps < QUESTION
    inputs = np.zeros(
        (needles, time_steps), np.int32
    )  # what follows an answer is padding, which no earlier position reads
    for row, (question, number) in enumerate(asked):
        inputs[row, : len(question) + len(number) - 1] = (question + number)[:-1]
    before = read_prefix(model, hay.prompt)
    key = jax.random.fold_in(jax.random.fold_in(seed_key(2), index), length)
    draws = list(random_draws(lm.config, key, len(hay.prompt), needles, time_steps, Dense().page_size))
    for policy in every:
        if records.has("needle", unit, str(policy)):
            continue
        began = time.process_time()
        hidden = go_on(model, before, inputs, policy, draws if isinstance(policy, RandomBlocks) else None)
        right, likelihood = [], []
        for row, (question, number) in enumerate(asked):
            answered = slice(len(question) - 1, len(question) + len(number) - 1)
            likelihoods, best = log_likelihoods(model.logits(hidden[row, answered]), np.array(number))
            right.append(bool((best == np.array(number)).all()))
            likelihood.append(round(float(likelihoods.sum()), 4))
        records.add(
            "needle",
            unit,
            str(policy),
            length=length,
            source=hay.source,
            depths=hay.depths,
            right=right,
            log_likelihood=likelihood,
            cpu_seconds=round(time.process_time() - began, 2),
        )
        yield
