"""Test-time scaling under a memory-aware cost model: Qwen3 in JAX, block-top-k decoding, Best-of-N, frontiers.

Names are imported when they are first used, so that what needs no jax does not wait for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kinetics_jax.attention.policies.base import AttentionPolicy as AttentionPolicy
    from kinetics_jax.attention.policies.block_topk import BlockTopK as BlockTopK
    from kinetics_jax.attention.policies.counts import StepCounts as StepCounts
    from kinetics_jax.attention.policies.dense import Dense as Dense
    from kinetics_jax.attention.policies.litesys_block_topk import LiteSysBlockTopK as LiteSysBlockTopK
    from kinetics_jax.attention.policies.random_blocks import RandomBlocks as RandomBlocks
    from kinetics_jax.attention.policies.registry import parse_policy as parse_policy
    from kinetics_jax.attention.policies.registry import register_policy as register_policy
    from kinetics_jax.attention.policies.sliding_window import SlidingWindow as SlidingWindow
    from kinetics_jax.attention.policies.token_topk import TokenTopK as TokenTopK
    from kinetics_jax.config import ModelConfig as ModelConfig
    from kinetics_jax.costs.cost import generation_cost as generation_cost
    from kinetics_jax.engine.agreement import Agreement as Agreement
    from kinetics_jax.engine.asynchronous import AsyncDecoder as AsyncDecoder
    from kinetics_jax.engine.chosen_pages import ChosenPages as ChosenPages
    from kinetics_jax.engine.open import Decoder as Decoder
    from kinetics_jax.engine.open import OpenSample as OpenSample
    from kinetics_jax.engine.replay import Drawn as Drawn
    from kinetics_jax.language_model import LanguageModel as LanguageModel
    from kinetics_jax.language_model import Sample as Sample
    from kinetics_jax.language_model import load as load
    from kinetics_jax.runs.best_of_n import best_of_n as best_of_n
    from kinetics_jax.runs.folder import read_run as read_run
    from kinetics_jax.settings import DrawRules as DrawRules
    from kinetics_jax.settings import EngineSettings as EngineSettings
    from kinetics_jax.settings import Sampling as Sampling
    from kinetics_jax.tasks.problems import Problem as Problem
    from kinetics_jax.tasks.problems import load_problems as load_problems

_HOMES = {
    "Agreement": "engine.agreement",
    "AsyncDecoder": "engine.asynchronous",
    "AttentionPolicy": "attention.policies.base",
    "BlockTopK": "attention.policies.block_topk",
    "ChosenPages": "engine.chosen_pages",
    "Dense": "attention.policies.dense",
    "Drawn": "engine.replay",
    "Decoder": "engine.open",
    "DrawRules": "settings",
    "EngineSettings": "settings",
    "LanguageModel": "language_model",
    "LiteSysBlockTopK": "attention.policies.litesys_block_topk",
    "ModelConfig": "config",
    "OpenSample": "engine.open",
    "Problem": "tasks.problems",
    "RandomBlocks": "attention.policies.random_blocks",
    "Sample": "language_model",
    "Sampling": "settings",
    "SlidingWindow": "attention.policies.sliding_window",
    "StepCounts": "attention.policies.counts",
    "TokenTopK": "attention.policies.token_topk",
    "best_of_n": "runs.best_of_n",
    "generation_cost": "costs.cost",
    "load": "language_model",
    "load_problems": "tasks.problems",
    "parse_policy": "attention.policies.registry",
    "read_run": "runs.folder",
    "register_policy": "attention.policies.registry",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    if not name.startswith("_"):
        registry = importlib.import_module(f"{__name__}.attention.policies.registry")
        for policy in registry.POLICIES.values():
            if policy.__name__ == name:
                return policy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
