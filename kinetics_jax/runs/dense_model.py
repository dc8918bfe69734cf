"""What records hold of the dense model beside a sparse policy: agreement with it, and its samples by speculation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kinetics_jax.attention.policies.base import AttentionPolicy, PolicyError
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.batching import room
from kinetics_jax.costs.cost import generation_cost
from kinetics_jax.costs.hardware import hardware
from kinetics_jax.costs.speculation import CHIP, speculation_cost
from kinetics_jax.engine.agreement import Agreement
from kinetics_jax.engine.replay import Drawn
from kinetics_jax.engine.speculative_decoding import Speculated, drafts_of
from kinetics_jax.language_model import LanguageModel
from kinetics_jax.runs.folder import Run, read_run, regrade
from kinetics_jax.settings import EngineSettings

TOKENWISE = ("overlap", "logprobs", "dense_logprobs")  # of an agreement's record, beside its summary
DIGITS = 4  # decimals of a token's agreement
WRITTEN_TOGETHER = 512  # samples: so much is computed again, at most, after an interruption


def speculate_header(settings: EngineSettings, policy: AttentionPolicy) -> dict[str, Any]:
    """Fields of run.json for a run that speculates: its samples are the dense model's. Empty for one that does not.

    Raises PolicyError for drafts by a policy that has no formula, by which records price them.
    """
    if not settings.speculate:
        return {}
    if policy.price == "measured":
        raise PolicyError(
            f"speculate: records price drafts by the formula of their policy, and {policy.kind} has none (it is priced "
            "as measured); give it one (step_counts), or speculate without a run folder (lm.generate)"
        )
    return {"policy": "dense", "speculate": {"tokens": settings.speculate, "draft": str(policy)}}


def speculation_record(
    config: ModelConfig, sample: Speculated, *, draft: AttentionPolicy, ahead: int, max_tokens: int, itemsize: int
) -> dict[str, Any]:
    """What a record says of a sample's speculation: `rounds`, the tokens that each gave; `drafted` and `accepted`, of
    all drafts those that the sample holds; `accepted_length`, tokens of a round in the mean; and the price of its
    decoding in Tera-eFLOPs at the `intensity` of an H100: `draft` and `verify` steps, their sum `cost`, and what dense
    decoding would have cost (`dense_cost`). `prefill` stands apart. Weights are read once for the `batch` of such
    samples that fits beside them on one, as prices are by default; null, and no reads, where none does.
    """
    widths: Any = {"kv_bytes": itemsize, "weight_bytes": itemsize}
    drafts, tokens = drafts_of(sample.rounds, ahead, max_tokens), 1 + sum(sample.rounds)
    fits = room(config, CHIP, prompt_tokens=sample.prompt_tokens, output_tokens=tokens, attention=draft, **widths)
    together: Any = {"hardware": CHIP, "batch": fits.batch or None, **widths}
    spent = speculation_cost(
        config,
        prompt_tokens=sample.prompt_tokens,
        rounds=np.array(sample.rounds),
        drafts=drafts,
        draft=draft,
        **together,
    )
    dense = generation_cost(
        config,
        prompt_tokens=sample.prompt_tokens,
        output_tokens=tokens,
        **together,
    )
    costs = {
        kind: sum(float(part) for name, part in spent.parts.items() if name.startswith(f"{kind}_"))
        for kind in ("draft", "verify")
    }
    prefill = sum(float(part) for name, part in dense.parts.items() if name.startswith("prefill_"))
    return {
        "rounds": list(sample.rounds),
        "drafted": sample.drafted,
        "accepted": sum(sample.rounds) - len(sample.rounds),
        "accepted_length": round(sample.accepted_length, DIGITS),
        "intensity": hardware(CHIP).intensity,
        "batch": fits.batch or None,
        **costs,
        "cost": sum(costs.values()),
        "prefill": prefill,
        "dense_cost": float(dense.total) - prefill,
    }


def agreement_record(agreement: Agreement) -> dict[str, Any]:
    """What a record says of a sample's agreement: its summary, and token by token `overlap`, `logprobs` under the
    policy and `dense_logprobs`; null for what is not finite.
    """

    def rounded(values: Iterable[float]) -> list[float | None]:
        return [round(value, DIGITS) if math.isfinite(value) else None for value in values]

    summary = dict(zip(agreement.summary(), rounded(agreement.summary().values()), strict=True))
    return {**summary, **{name: rounded(getattr(agreement, name).tolist()) for name in TOKENWISE}}


def add_agreement(
    lm: LanguageModel,
    path: str | Path,
    *,
    policy: AttentionPolicy,
    prompts: Mapping[str, Sequence[int]],
    seed: int,
    on_sample: Callable[[int, int], None] = lambda done, total: None,
) -> Run:
    """Adds the agreement of `policy` with dense attention to every record of a run folder that has none.

    `prompts` are the problems' token ids. `on_sample` is called with how many of how many records have theirs; what
    was written stays if it raises. Raises TraceError while another process writes the run.
    """
    run = read_run(path)
    lacking = [record for record in run.samples if not record.get("agreement")]
    lacking.sort(key=lambda record: len(record["output_tokens"]))  # samples side by side are of like length
    before = len(run.samples) - len(lacking)
    for first in range(0, len(lacking), WRITTEN_TOGETHER):
        group = lacking[first : first + WRITTEN_TOGETHER]
        drawn = [
            Drawn(prompts[record["problem"]], record["output_tokens"], record["problem"], record["sample"])
            for record in group
        ]
        found: dict[tuple[str, int], dict[str, Any]] = {}
        for record, agreement in zip(group, lm.each_agreement(drawn, attention=policy, seed=seed), strict=True):
            found[record["problem"], record["sample"]] = agreement_record(agreement)
            on_sample(before + first + len(found), len(run.samples))

        def fields(record: dict[str, Any], _: str, found: dict = found) -> dict[str, Any]:
            mine = found.get((record["problem"], record["sample"]))
            return {} if mine is None else {"agreement": mine}

        _, run = regrade(path, fields)
    return run
