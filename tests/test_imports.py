"""How the modules of the tree import one another, by their source; what loads without jax; how long files are."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from layers import DOORS, EXCEPTIONS, LAYERS, STANDALONE, WITHOUT_JAX
from paths import ROOT

MAX_LINES = 500
PAGE = ROOT / "docs" / "architecture.md"
PACKAGES = {"kinetics_jax": ROOT / "kinetics_jax", "kinetics_kernels": ROOT / "kernels" / "kinetics_kernels"}


def _modules() -> dict[str, Path]:
    """Every module of the packages, by its dotted name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def imported_names(tree: ast.AST) -> Iterator[tuple[str, str | None]]:
    """(module, name or None) of every import that can run, in functions too; not those under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in node.orelse:
                yield from imported_names(ast.Module([other], []))
        elif isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            yield from ((str(node.module), alias.name) for alias in node.names)
        else:
            yield from imported_names(node)


def _imports(path: Path) -> set[str]:
    """The modules of the packages that a file imports: `from folder import module` is the module."""
    found = set()
    for module, name in imported_names(ast.parse(path.read_text(encoding="utf-8"))):
        found.add(f"{module}.{name}" if f"{module}.{name}" in MODULES else module)
    return {module for module in found if module in MODULES}


IMPORTS = {module: _imports(path) for module, path in MODULES.items()}


def room_of(module: str) -> str:
    """`engine` of kinetics_jax.engine.pages, `attention.policies` of a policy, `config` of kinetics_jax.config."""
    rest = module.removeprefix("kinetics_jax.")
    nested = [room for line in LAYERS for room in line if "." in room and f"{rest}.".startswith(f"{room}.")]
    return nested[0] if nested else rest.partition(".")[0]


ROOMS = {module: room_of(module) for module in MODULES if module.startswith("kinetics_jax.")}
RANKS = {room: len(LAYERS) - line for line, rooms in enumerate(LAYERS) for room in rooms}


def test_imports_are_read_as_python_runs_them():
    source = (
        "import a\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import b\nelse:\n    import c\n"
        "try:\n    import d\nexcept ImportError:\n    from e import f as g\n"
        "def function():\n    from h import i\n    class Inner:\n        import j.k\n"
    )
    names = set(imported_names(ast.parse(source)))
    assert names == {
        ("a", None), ("typing", "TYPE_CHECKING"), ("c", None), ("d", None), ("e", "f"), ("h", "i"), ("j.k", None)
    }  # fmt: skip
    assert "kinetics_jax.costs.cost" in IMPORTS["kinetics_jax.analysis.grid"]
    assert room_of("kinetics_jax.attention.policies.dense") == "attention.policies"
    assert room_of("kinetics_jax.attention.policies") == "attention.policies"
    assert room_of("kinetics_jax.attention.decode") == "attention"


def test_no_import_circle():
    graph = {
        module: {target for target in targets if (module, target) not in EXCEPTIONS}
        for module, targets in IMPORTS.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("a circle of imports: " + " <- ".join(error.args[1]))


def test_every_room_has_one_layer():
    named = [room for line in LAYERS for room in line]
    assert len(named) == len(set(named))
    rooms = set(ROOMS.values()) - {"__main__"}
    assert not rooms - set(named), "rooms without a layer"
    assert not set(STANDALONE) - set(named)


def test_the_page_draws_these_layers():
    """The fenced block `layers` of docs/architecture.md: a line per layer, rooms between commas, every line read."""
    blocks = PAGE.read_text(encoding="utf-8").split("```layers\n")
    assert len(blocks) == 2
    drawn = blocks[1].partition("\n```")[0].splitlines()
    assert [tuple(room.strip() for room in line.split(",")) for line in drawn] == list(LAYERS)


def test_no_import_arrow_up():
    wrong = []
    for module, room in ROOMS.items():
        for target in sorted(IMPORTS[module] & ROOMS.keys()):
            to = ROOMS[target]
            if room in (to, "__main__") or (module, target) in EXCEPTIONS:
                continue
            allowed = RANKS[to] < RANKS[room] and to in STANDALONE.get(room, {to})
            if not allowed or target not in DOORS.get((room, to), {target}):
                wrong.append(f"{module} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_exceptions_are_still_needed():
    assert not [arrow for arrow in EXCEPTIONS if arrow[1] not in IMPORTS.get(arrow[0], set())]


def test_kernels_know_nothing_of_the_package():
    for module in MODULES.keys() - ROOMS.keys() - {"kinetics_jax"}:
        assert not IMPORTS[module] & {"kinetics_jax", *ROOMS}, module


def test_packages_import_nothing():
    """A package's own file loads no room; the root's names are imported when they are used."""
    for module, path in MODULES.items():
        if path.name != "__init__.py" or module not in ROOMS:
            continue
        names = {name for name, _ in imported_names(ast.parse(path.read_text(encoding="utf-8")))}
        if module == "kinetics_jax.assets":
            names = {name for name in names if name.partition(".")[0] not in sys.stdlib_module_names}
        assert not names - {"__future__"}, module
    assert not IMPORTS["kinetics_jax"]


def test_rooms_load_without_jax():
    wanted = [f"kinetics_jax.{room}" for room in WITHOUT_JAX]
    names = [module for module in ROOMS if any(f"{module}.".startswith(f"{room}.") for room in wanted)]
    assert len(names) > 50
    script = (
        "import importlib, sys\n"
        f"for name in {names}:\n"
        "    importlib.import_module(name)\n"
        "    assert not {'jax', 'jaxlib'} & sys.modules.keys(), f'{name} loads jax'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_root_needs_no_jax_until_a_name_does():
    script = (
        "import sys, kinetics_jax as kj\n"
        "assert {'load', 'BlockTopK'} <= set(dir(kj))\n"
        "kj.BlockTopK, kj.ModelConfig, kj.Sampling, kj.generation_cost, kj.parse_policy, kj.read_run\n"
        "assert 'jax' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_file_is_too_long():
    paths = [
        path for name in ("kinetics_jax", "kernels", "experiments", "tests") for path in (ROOT / name).rglob("*.py")
    ]
    long = {
        str(path.relative_to(ROOT)): lines
        for path in paths
        if (lines := path.read_text(encoding="utf-8").count("\n")) > MAX_LINES
    }
    assert len(paths) > 200
    assert not long
