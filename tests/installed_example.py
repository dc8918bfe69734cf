"""An example as pip leaves it: a module and the metadata of a distribution that declares an entry point."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kinetics_jax.attention.policies.registry import POLICIES


def installed_example(example: Path, site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Puts the example's policy on the path, by the entry point that its docstring writes; forgets it afterwards."""
    text, name = example.read_text(), example.stem
    kind, target = re.search(rf'(\w+) = "({name}:\w+)"', text).groups()
    info = site / f"{name}-0.1.dist-info"
    info.mkdir(parents=True)
    (site / example.name).write_text(text)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[kinetics_jax.policies]\n{kind} = {target}\n")
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    yield
    POLICIES.pop(kind, None)
    sys.modules.pop(name, None)
