"""How long the first problem of a workload waits for its answer."""

from __future__ import annotations

from typing import Any

import numpy as np

from kinetics_jax.analysis.workload import Workload, workload_seconds
from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.costs.architectures.architecture import PricedModel
from kinetics_jax.costs.hardware import Hardware


def first_answer_seconds(
    config: PricedModel, policy: AttentionPolicy, hardware: Hardware, work: Workload, *, slots: int, **priced: Any
) -> float:
    """Seconds from the start of a workload until the first answer can be taken: all N samples of a problem have ended.

    The problem is a typical one, whose longest sample is the median of all problems' longest; its samples come first.
    An engine fills its slots before it decodes, so that the prompts of all problems that fill `slots` slots beside it
    are prefilled before, and every step is one of the whole batch. Slots of samples that end earlier stay empty here.
    `priced` and the others are those of `workload_seconds`; compilation and loading are left out.
    """
    trials = work.lengths.shape[1]
    longest = work.lengths.max(axis=1)
    first = np.argsort(longest, kind="stable")[(len(longest) - 1) // 2]
    others = np.delete(np.arange(len(longest)), first)[: max(slots // trials, 1) - 1]
    together = np.array([first, *others])
    until = Workload(work.prompts[together], np.minimum(work.lengths[together], longest[first]))
    return workload_seconds(config, policy, hardware, until, slots=slots, **priced).total
