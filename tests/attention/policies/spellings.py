"""Every registered policy as its own test spells it."""

import importlib

from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.registry import POLICIES, parse_policy


def spelled(kind: str) -> list[AttentionPolicy]:
    """The policies in SPELLINGS of policies/test_<kind>.py."""
    return [parse_policy(text) for text in importlib.import_module(f"test_{kind}").SPELLINGS]


def every_policy() -> list[AttentionPolicy]:
    """Those of all kinds."""
    return [policy for kind in POLICIES for policy in spelled(kind)]
