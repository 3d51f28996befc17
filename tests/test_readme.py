"""What the pages say is true: their Python runs, their links lead somewhere, their figures are those of the CSV."""

import doctest
import re
from pathlib import Path

import pytest

from benchmarks import readme_table

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(p.relative_to(ROOT).as_posix() for g in ("*.md", "docs/*.md", "tools/*/*.md") for p in ROOT.glob(g))
# those that a reader pastes, with the number of their Python blocks at least
TUTORIALS = {"README.md": 3, "docs/usage.md": 6, "docs/logistic_regression.md": 4}


def code_blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", TUTORIALS)
def test_python_blocks_run(page):
    """In order and in one namespace, as a reader would paste them; those with >>> print what they say."""
    blocks = code_blocks((ROOT / page).read_text(encoding="utf-8"), "python")
    assert len(blocks) >= TUTORIALS[page]
    namespace = {"__name__": "readme"}
    for i, block in enumerate(blocks):
        name = f"{page}, Python block {i}"
        if block.startswith(">>>"):
            test = doctest.DocTestParser().get_doctest(block, namespace, name, page, 0)
            result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, clear_globs=False)
            assert result.failed == 0
            namespace.update(test.globs)
        else:
            exec(compile(block, name, "exec"), namespace)


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        named = re.findall(r"`make ([a-z-]+)", text)
        for block in code_blocks(text, "sh"):
            named += re.findall(r"^make ([a-z-]+)", block, re.MULTILINE)
        for target in named:
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page}: make {target}"


def anchors(text):
    """GitHub's names for the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        linked = (ROOT / page).parent / path if path else ROOT / page
        assert linked.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(linked.read_text(encoding="utf-8")), f"{page}: {target}"


def test_the_readme_stays_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1300


@pytest.mark.parametrize("page", [p.relative_to(ROOT).as_posix() for p in readme_table.PAGES])
def test_figures_are_those_of_the_csv(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert readme_table.BLOCK.search(text)
    assert readme_table.insert(text, readme_table.blocks()) == text, "run: python -m benchmarks.readme_table --write"
