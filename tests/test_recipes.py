"""docs/recipes.md: its blocks run, each by itself, and print what the page says."""

import importlib.util
import re
from pathlib import Path

import pytest

from tests.test_readme import ROOT

PAGE = "docs/recipes.md"
TEXT = (ROOT / PAGE).read_text(encoding="utf-8")
# a Python block, and what it prints if that follows
BLOCKS = re.findall(r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", TEXT, re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")


def title(block):
    heading = re.findall(r"^## (.*)$", TEXT[: TEXT.index(block)], re.MULTILINE)
    return re.sub(r"\W+", "-", heading[-1])


@pytest.mark.parametrize("block,printed", [pytest.param(*b, id=f"{title(b[0])}-{i}") for i, b in enumerate(BLOCKS)])
def test_block(block, printed, capsys):
    if "sklearn" in block and importlib.util.find_spec("sklearn") is None:
        pytest.skip("this recipe compares with scikit-learn, which is not installed")
    exec(compile(block, PAGE, "exec"), {"__name__": "recipe"})
    got = capsys.readouterr().out
    assert NUMBER.sub("#", got) == NUMBER.sub("#", printed)
    # the last digits of what is trained are those of the machine's BLAS
    numbers, said = ([float(n.replace(",", "")) for n in NUMBER.findall(text)] for text in (got, printed))
    assert numbers == pytest.approx(said, rel=2e-2)


def test_every_block_is_found():
    assert len(BLOCKS) == TEXT.count("```python") >= 9
    assert sum(bool(printed) for _, printed in BLOCKS) == TEXT.count("```text")
    assert Path(PAGE).name in (ROOT / "README.md").read_text(encoding="utf-8")
