"""Links and pictures of the README and of the pages, which the site's builder does not check outside docs/."""

import re

import pytest
from paths import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "kernels/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
TARGET = re.compile(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"|^--8<-- \"([^\"]+)\"", re.MULTILINE)
CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]*`", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_links_to_is_there(page):
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    for link, image, snippet in TARGET.findall(text):
        target = (link or image or snippet).partition("#")[0]
        if not target or re.match(r"[a-z]+:", target):
            continue
        folder = ROOT if snippet else page.parent
        assert (folder / target).is_file(), f"{page.relative_to(ROOT)}: {link or image or snippet}"


def test_the_readme_is_short_and_says_what_has_run():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 115
    assert "run on CPUs only" in lines[4]
    assert "pip install -e . && kinetics demo" in lines
    assert "pip install -e '.[test]' && pytest" in lines


def test_every_page_is_in_the_sites_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = re.findall(r"- (?:[^:\n]+: )?(\S+\.md)$", navigation, re.MULTILINE)
    assert sorted(listed) == sorted(str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md"))
