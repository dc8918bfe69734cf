"""All attention policies by name, those of other packages too, and the one parser of their spellings.

Every module of this folder that defines a policy is found by itself: a new file needs no entry here. A policy from
elsewhere is known once `register_policy` was called with it, or by an entry point of its package (entry_points.py),
which is looked for only when a kind is not known.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
from typing import Any, TypeVar

from kinetics_jax.attention import policies
from kinetics_jax.attention.policies import entry_points
from kinetics_jax.attention.policies.base import AttentionPolicy, PolicyError
from kinetics_jax.attention.policies.options import TYPES, read, type_of
from kinetics_jax.errors import spelled

PolicyClass = TypeVar("PolicyClass", bound=type[AttentionPolicy])
BASE_TYPES = {"page_size": ("int",), "budget": ("int",), "dense_layers": ("tuple[int, ...]",)}  # of AttentionPolicy
RULES = ("choose", "choose_and_carry", "attend", "attend_and_carry")
SUMS = ("step_counts", "sparse_counts")
PRICES = ("formula", "upper bound", "measured")
KIND = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def _policies() -> dict[str, type[AttentionPolicy]]:
    by_kind: dict[str, type[AttentionPolicy]] = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(policies.__path__)):
        if name == "registry":
            continue
        module = importlib.import_module(f"{policies.__name__}.{name}")
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == module.__name__ and "kind" in vars(value):
                if value.kind in by_kind:
                    raise ValueError(f"two attention policies are called {value.kind}: {by_kind[value.kind]}, {value}")
                by_kind[value.kind] = value
    return {policy.kind: policy for policy in sorted(by_kind.values(), key=lambda policy: (policy.place, policy.kind))}


POLICIES: dict[str, type[AttentionPolicy]] = _policies()  # register_policy adds to them


def register_policy(policy: PolicyClass) -> PolicyClass:
    """Makes a policy known by its `kind` to everything that reads spellings, in this process; returns it.

    May stand as a decorator above `@dataclasses.dataclass(frozen=True)`. A class that is defined anew (a notebook's
    cell, run again) takes the place of the one before. Raises PolicyError for what is no frozen dataclass on
    AttentionPolicy, a kind that spellings cannot hold, an option of a type that they cannot hold, and a kind that
    another policy has.
    """
    name = getattr(policy, "__qualname__", None) or spelled(policy, 40)
    if not (isinstance(policy, type) and issubclass(policy, AttentionPolicy)):
        raise PolicyError(f"register_policy: {name} is no class on kinetics_jax.AttentionPolicy")
    kind = inspect.getattr_static(policy, "kind", None)
    if not isinstance(kind, str) or not KIND.fullmatch(kind):
        raise PolicyError(
            f"register_policy: {name} needs kind = 'a_name' of letters, digits and underscores, got {spelled(kind, 40)}"
        )
    parameters = vars(policy).get("__dataclass_params__")
    if parameters is None or not (parameters.frozen and parameters.eq):
        raise PolicyError(
            f"register_policy: {kind} ({name}) must be a frozen dataclass: write @dataclasses.dataclass(frozen=True)"
        )
    for field in dataclasses.fields(policy):  # pyright: ignore[reportArgumentType]
        allowed = BASE_TYPES.get(field.name, TYPES)
        if type_of(field) not in allowed:
            raise PolicyError(
                f"register_policy: {kind}: {field.name} is of type {type_of(field):.60}; it may be {', '.join(allowed)}"
            )
    if policy.price not in PRICES:
        price = spelled(policy.price, 40)
        raise PolicyError(f"register_policy: {kind}: price must be one of {', '.join(PRICES)}, got {price}")
    if _inherits(policy, RULES):
        raise PolicyError(f"register_policy: {kind} does not say how it chooses: write choose(step)")
    if policy.price != "measured" and _inherits(policy, SUMS):
        raise PolicyError(
            f'register_policy: {kind} does not say its cost: write step_counts(lengths), or price = "measured"'
        )
    before = POLICIES.get(kind)
    if before is not None and (before.__module__, before.__qualname__) != (policy.__module__, policy.__qualname__):
        raise PolicyError(
            f"register_policy: {kind} is a policy already ({before.__module__}.{before.__qualname__}); give "
            f"{policy.__module__}.{policy.__qualname__} another kind"
        )
    POLICIES[kind] = policy
    return policy


def _inherits(policy: type[AttentionPolicy], members: tuple[str, ...]) -> bool:
    """Whether all of these members are still those of the base."""
    return all(getattr(policy, name) is getattr(AttentionPolicy, name) for name in members)


def policy_class(kind: str, where: str) -> type[AttentionPolicy]:
    """The policy of a kind, looked for among entry points where it is not known yet.

    Raises PolicyError, beginning with `where`, for one that nobody has registered, and for an entry point that cannot
    be loaded.
    """
    if kind not in POLICIES and (found := entry_points.load(kind, where)) is not None:
        if inspect.getattr_static(found[0], "kind", None) != kind:
            own = spelled(inspect.getattr_static(found[0], "kind", None), 40)
            raise PolicyError(f"{where}: {found[1]} must name a policy whose kind is {kind!r}, and its is {own}")
        register_policy(found[0])
    if kind not in POLICIES:
        known = ", ".join(dict.fromkeys((*POLICIES, *entry_points.declared())))
        raise PolicyError(
            f"{where}: {spelled(kind, 40)} is not known (known: {known}); a policy of your own becomes known by "
            f"register_policy, or by an entry point {entry_points.GROUP!r} of an installed package"
        )
    return POLICIES[kind]


def parse_policy(text: str) -> AttentionPolicy:
    """Reads `dense`, `block_topk:budget=1024,page_size=16`, `block_topk:pages=64,dense_layers=none` …

    Entries of a tuple are joined by plus signs, `none` is an empty one: `dense_layers=0+1+2`. Raises PolicyError naming
    the part that it cannot read.
    """
    where = f"attention {spelled(text)}"
    kind, _, rest = (part.strip() for part in text.partition(":"))
    policy = policy_class(kind, where)
    known = {field.name: field for field in dataclasses.fields(policy)}  # pyright: ignore[reportArgumentType]
    values: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if name not in known:
            takes = f"takes {', '.join(known)}" if known else "takes no options"
            raise PolicyError(f"{where}: {spelled(name, 40)} is not an option; {kind} {takes}")
        if not equals or not value:
            raise PolicyError(f"{where}: {name} needs a value, as in {name}=…")
        if name in values:
            raise PolicyError(f"{where}: {name} is given twice")
        values[name] = read(value, type_of(known[name]), f"{where}: {name} = {spelled(value, 40)}")
    needed = [
        field.name
        for field in known.values()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing := [name for name in needed if name not in values]:
        raise PolicyError(f"{where}: give {', '.join(f'{name}=' for name in missing)}")
    return policy(**values)


def as_policy(attention: Any) -> AttentionPolicy:
    """A policy, or what a spelling names. Raises PolicyError for anything else."""
    if isinstance(attention, str):
        return parse_policy(attention)
    if not isinstance(attention, AttentionPolicy):
        raise PolicyError(f"attention must be a policy or its spelling, as in 'dense', got {spelled(attention, 60)}")
    parameters = getattr(type(attention), "__dataclass_params__", None)
    if parameters is None or not (parameters.frozen and parameters.eq):
        raise PolicyError(
            f"attention {type(attention).__qualname__} must be a frozen dataclass: write "
            "@dataclasses.dataclass(frozen=True)"
        )
    return attention


def stored_policy(attention: Any) -> AttentionPolicy:
    """`as_policy`, of one whose spelling a file may keep. Raises PolicyError where the spelling would be read as
    another policy, or not at all.
    """
    policy = as_policy(attention)
    if parse_policy(str(policy)) != policy:
        raise PolicyError(
            f"{policy}: the spelling is read as another policy than {type(policy).__qualname__}; give it a kind of its "
            "own, or call register_policy with the class again if it was defined anew"
        )
    return policy


def slug(policy: AttentionPolicy) -> str:
    """The spelling as a file name: `block_topk-budget32-page_size2`."""
    name = re.sub(r"[:,]", "-", str(policy)).replace("=", "").replace("+", "_")
    return re.sub(r"[^\w.-]", "-", name)
