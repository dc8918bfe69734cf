"""The tables of experiments/ and experiments/benchmarks/ name every script and every result, and only what exists."""

import re
import subprocess
from pathlib import Path

import pytest
from paths import BENCHMARKS, ROOT

EXPERIMENTS = ROOT / "experiments"
FOLDERS = {"experiments": EXPERIMENTS, "benchmarks": BENCHMARKS}
PAGES = sorted(
    path
    for path in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("kernels/**/*.md"),
        *EXPERIMENTS.glob("**/*.md"),
    ]
    if path.name.lower() != "changelog.md"  # its entries name files as they were then
)
PATH = re.compile(r"(?<![\w./-])(?:experiments|kernels|kinetics_jax|tests|docs)/[\w./-]*[\w/]")
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


def committed_results(folder: Path) -> list[str]:
    """Paths of the results under version control; of all results where there is none, as in a source archive."""
    command = ["git", "ls-files", "results"]
    if (ROOT / ".git").exists():
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.splitlines()
    return [path.relative_to(folder).as_posix() for path in folder.glob("results/**/*") if path.is_file()]


@pytest.mark.parametrize("name", FOLDERS)
def test_the_table_names_every_script_and_result(name):
    folder = FOLDERS[name]
    named = re.findall(r"`([\w./-]+)`", (folder / "README.md").read_text(encoding="utf-8"))
    scripts = [*folder.glob("*.py"), *folder.glob("figures/figure_*.py")]
    paths = {path.relative_to(folder).as_posix() for path in scripts} | {*committed_results(folder)}
    assert len(paths) > 10
    assert paths - {*named} == set()


@pytest.mark.parametrize("name", FOLDERS)
def test_the_table_names_only_what_exists(name):
    folder = FOLDERS[name]
    table = re.findall(r"^\|.*\|$", (folder / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    paths = [path for row in table for path in re.findall(r"`([\w./-]+\.(?:py|jsonl?))`", row)]
    assert [path for path in paths if not (folder / path).exists() and not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", FOLDERS)
def test_the_page_of_a_script_names_it(name):
    folder = FOLDERS[name]
    text = (folder / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| [^|]* \| `([\w/]+\.py)`[^|]*\|[^|]*\| \[[^|]*\]\(([^)]+)\) \|$", text, re.MULTILINE)
    assert len(rows) > 10
    assert [
        (script, page) for script, page in rows if Path(script).name not in (folder / page).read_text("utf-8")
    ] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_paths_and_links_of_a_page_exist(page):
    text = page.read_text(encoding="utf-8")
    links = LINK.findall(text) if page.is_relative_to(EXPERIMENTS) else []  # tests/test_docs.py has those of the others
    absent = [link for link in links if not (page.parent / link).exists()]
    # Not those that continue with a placeholder: <device>, {a,b}, * or … .
    named = {m.group() for m in PATH.finditer(text) if text[m.end() : m.end() + 1] not in ("<", "{", "*", "…")}
    absent += [path for path in named if not (ROOT / path).exists()]
    assert absent == []
