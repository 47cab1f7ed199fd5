"""What README and documentation say, block by block."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]

#: In the order in which commands build on each other.
_FIRST = ("README", "docs/install", "docs/zoo", "docs/results", "docs/runs")


def pages() -> dict[str, str]:
    """The text of README and of each page, by its path without ending."""
    docs = ROOT / "docs"
    found = [ROOT / "README.md", *sorted(docs.glob("*.md")), *sorted((docs / "parts").glob("*.md"))]
    texts = {path.relative_to(ROOT).with_suffix("").as_posix(): path.read_text() for path in found}
    return {name: texts[name] for name in (*_FIRST, *texts)}


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language; "" for those that name none."""
    found = re.findall(r"^```([\w{}-]*)\n(.*?)^```", text, re.M | re.S)
    return [code for name, code in found if name == language]
