"""Every kind of summary by name: those of this package, those that installed packages offer, those of a script."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable
from typing import Any

from kinetics_kernels.summaries.kind import SummaryKind
from kinetics_kernels.summaries.mean import MEAN
from kinetics_kernels.summaries.mean_std import MEAN_STD
from kinetics_kernels.summaries.min_max import MIN_MAX
from kinetics_kernels.summaries.two_means import TWO_MEANS

GROUP = "kinetics_kernels.summaries"  # entry points NAME = "module:KIND" of installed packages
CODE = {"append_kv": "make", "select_pages": "score"}  # what each op runs of a kind

_kinds: dict[str, SummaryKind] = {kind.name: kind for kind in (MEAN, MIN_MAX, MEAN_STD, TWO_MEANS)}


def register_summary(kind: SummaryKind) -> SummaryKind:
    """Makes a kind known to every op, policy and command of this process, and returns it.

    A kind whose code is defined anew (a notebook's cell, run again) takes the place of the one before, and the programs
    that jax has compiled, which know a kind by its name, are dropped. Raises TypeError for what is no SummaryKind,
    ValueError for a name that another kind has.
    """
    if not isinstance(kind, SummaryKind):
        raise TypeError(f"register_summary takes a SummaryKind, not {kind!r:.60}")
    before = _kinds.get(kind.name)
    if before is None and (entries := _entries(kind.name)):
        before = _loaded(kind.name, entries)
    if before is not None and before is not kind:
        if _home(before) != _home(kind):
            raise ValueError(
                f"summary {kind.name!r} is known already ({_home(before)}); give that of {_home(kind)} another name"
            )
        if "jax" in sys.modules:
            sys.modules["jax"].clear_caches()
    _kinds[kind.name] = kind
    return kind


def summary_kind(name: str) -> SummaryKind:
    """The kind of a name. Raises ValueError for an unknown one, naming those that are known."""
    if name not in _kinds:
        if not (entries := _entries(name)):
            raise ValueError(f"summary {name!r:.60} is not known (known: {', '.join(summary_names())})")
        _kinds[name] = _loaded(name, entries)
    return _kinds[name]


def summary_names() -> list[str]:
    """The names of all kinds, those of this package first; what installed packages offer is not imported for it."""
    offered = {entry.name for entry in importlib.metadata.entry_points(group=GROUP)}
    return [*_kinds, *sorted(offered - _kinds.keys())]


def kernel_code(op: str, backend: str, name: str) -> Callable[..., Any]:
    """What a backend's kernel of an op runs for a kind.

    Raises ValueError for an unknown kind, NotImplementedError for one without code for this backend and op.
    """
    if (code := _code_of(op, backend, name)) is not None:
        return _counted(summary_kind(name), backend, code) if CODE[op] == "make" else code
    has = [other for other in _kinds if _code_of(op, backend, other)]
    raise NotImplementedError(
        f"{op}: the {backend} backend has no code for summaries of kind {name} (it has: {', '.join(has) or 'none'}); "
        "backend='xla' takes any"
    )


def has_kernel_code(op: str, backend: str, name: str) -> bool:
    """Whether a backend's kernel of an op takes a kind; ops that read no summary take any."""
    return op not in CODE or _code_of(op, backend, name) is not None


def _code_of(op: str, backend: str, name: str) -> Callable[..., Any] | None:
    code = summary_kind(name).kernels.get(backend)
    return None if code is None else getattr(code, CODE[op])


def _counted(kind: SummaryKind, backend: str, make: Callable[..., Any]) -> Callable[..., Any]:
    """`make`, held to the number of vectors that its kind has: one more would be another page's."""

    def counted(*args: Any) -> Any:
        made = make(*args)
        if len(made) != kind.vectors:
            raise ValueError(
                f"summary {kind.name!r}: make of {backend} returned {len(made)} arrays, not {kind.vectors}"
            )
        return made

    return counted


def _home(kind: SummaryKind) -> str:
    """Where a kind's code is defined."""
    return f"{kind.make.__module__}.{getattr(kind.make, '__qualname__', type(kind.make).__qualname__)}"


def _entries(name: str) -> list[importlib.metadata.EntryPoint]:
    """The entry points of a name, each value once."""
    return [*{entry.value: entry for entry in importlib.metadata.entry_points(group=GROUP, name=name)}.values()]


def _loaded(name: str, entries: list[importlib.metadata.EntryPoint]) -> SummaryKind:
    where = f"summary {name!r}: the entry point {entries[0].value!r} of group {GROUP}"
    if len(entries) > 1:
        values = " and ".join(repr(entry.value) for entry in entries)
        raise ValueError(f"summary {name!r}: several packages offer it, {values}; uninstall all but one")
    try:
        kind = entries[0].load()
    except Exception as error:  # whatever a module of another package does while it is imported
        raise ValueError(f"{where} cannot be loaded ({type(error).__name__}: {error!s:.200})") from error
    if not isinstance(kind, SummaryKind) or kind.name != name:
        raise ValueError(f"{where} is {kind!r:.60}, not a SummaryKind of this name")
    return kind
