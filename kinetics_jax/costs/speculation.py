"""What samples cost that are drawn by self-speculation: drafts under a sparse policy, verified by dense passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.dense import DENSE
from kinetics_jax.costs.architectures.architecture import PricedModel
from kinetics_jax.costs.conventions import CostError
from kinetics_jax.costs.cost import UNIT, Cost
from kinetics_jax.costs.hardware import Hardware
from kinetics_jax.costs.hardware import hardware as hardware_named
from kinetics_jax.costs.traffic import traffic

CHIP = "h100"  # whose FLOP per byte prices speculation in the records of runs


def speculation_cost(
    config: PricedModel,
    *,
    prompt_tokens: int,
    rounds: Sequence[float] | npt.NDArray[Any],
    drafts: int | Sequence[int] | npt.NDArray[Any],
    draft: AttentionPolicy,
    trials: int = 1,
    intensity: float | None = None,
    hardware: str | Hardware | None = None,
    kv_bytes: float = 2,
    weight_bytes: float = 2,
    batch: int | None = None,
) -> Cost:
    """Cost of `trials` samples of one prompt in the `traffic` convention, decoded in rounds on one chip.

    `rounds` are the tokens that each round gave a sample, behind the first token, which prefill gives; `drafts` how
    many it drafted, one number for all or one for each. A round is so many decode steps under the policy `draft`, and
    one dense pass over their tokens and the one before: its arithmetic is that of a decode step for each of them, its
    reads those of one step, of K and V up to the last of them and of the weights. The names of its parts begin with
    `draft_` and `verify_`; prefill is there once. Other arguments as in `generation_cost`. Raises CostError for rounds
    and drafts that do not go together.
    """
    given = np.asarray(rounds, np.float64)
    ahead = np.broadcast_to(np.asarray(drafts, np.float64), given.shape)
    if given.ndim != 1 or np.any(given < 1) or np.any(given > ahead + 1 + 1e-9) or np.any(ahead < 0):
        raise CostError("rounds must be a list of numbers of tokens, each from 1 to one more than its drafts")
    chip = None
    if intensity is None:
        chip = hardware if isinstance(hardware, Hardware) else hardware_named(hardware or "h100")
    factor = chip.intensity if chip is not None else float(intensity or 0)
    stored = prompt_tokens + np.floor(np.cumsum(given) - given)  # tokens in the cache before each round
    side_by_side = None if batch is None else np.asarray(batch, np.float64)

    def counted(policy: AttentionPolicy, start: Any, steps: Any, together: Any) -> dict[str, Any]:
        steps = np.asarray(steps, np.float64)
        amounts = traffic(config, start, steps + 1, policy, kv_bytes, weight_bytes, together, shared_prompt=False)
        return {name: own for name, (own, _) in amounts.items() if not name.startswith("prefill_")}

    tokens = ahead + 1
    together = None if side_by_side is None else side_by_side * tokens
    arithmetic, one_read = counted(DENSE, stored, tokens, together), counted(DENSE, stored + ahead, 1, together)
    if "weight_reads" in one_read:
        one_read["weight_reads"] = one_read["weight_reads"] * tokens  # each of its tokens was charged its share alone
    verify = {name: (one_read if name.endswith("_reads") else arithmetic)[name] for name in arithmetic}
    prompt, one = np.asarray(prompt_tokens, np.float64), np.ones(())
    first = traffic(config, prompt, one, draft, kv_bytes, weight_bytes, side_by_side, shared_prompt=False)
    amounts = {name: float(once or 0) for name, (_, once) in first.items() if name.startswith("prefill_")}
    for kind, each in (("draft", counted(draft, stored, ahead, side_by_side)), ("verify", verify)):
        amounts |= {f"{kind}_{name}": trials * float(np.sum(own)) for name, own in each.items()}
    parts = {name: value * (factor if name.endswith("_reads") else 1) / UNIT for name, value in amounts.items()}
    memory = sum(value for name, value in parts.items() if name.endswith("_reads"))
    overhead = 0.0
    if chip is not None and batch is not None:
        step = chip.overhead_seconds(config.num_layers, config.vocab_size, batch) / batch
        overhead = trials * float(np.sum(ahead) + len(given)) * step
    shared = {name: value for name, value in parts.items() if name.startswith("prefill_")}
    return Cost(sum(parts.values()) - memory, memory, parts, shared, chip, overhead)


def expected_rounds(output_tokens: int, ahead: int, accept: float) -> np.ndarray:
    """Rounds of equal length that give `output_tokens`, the first aside, where each draft is kept with probability
    `accept` if those before it are: (1 - accept^(ahead + 1)) / (1 - accept) tokens a round (Leviathan et al., arXiv
    2211.17192, equation 1). Raises CostError for an `accept` outside 0 … 1.
    """
    if not 0 <= accept <= 1:
        raise CostError(f"accept must be in 0 … 1, the part of drafts that are kept, got {accept:g}")
    each = ahead + 1 if accept == 1 else (1 - accept ** (ahead + 1)) / (1 - accept)
    steps = max(output_tokens - 1, 0)
    count = max(round(steps / each), -(-steps // (ahead + 1)))
    return np.full(count, steps / count if count else 0.0)
