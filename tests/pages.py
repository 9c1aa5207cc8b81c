"""The pages of the documentation, and the blocks in them."""

from __future__ import annotations

import re

import attrs
import pytest

from tests.e2e.processes import ROOT

__all__ = ["FENCE", "PAGES", "TEXTS", "Block", "blocks", "of"]

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.name: page.read_text("utf-8") for page in PAGES}
FENCE = re.compile(r"^```(\S+)[ \t]*(.*)\n((?:.*\n)*?)```$", re.MULTILINE)


@attrs.frozen
class Block:
    """A fenced block of a page, with the words after its language."""

    page: str
    line: int
    language: str
    words: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def module(self) -> str:
        """A name for it as a file."""
        return re.sub(r"\W", "_", str(self)).lower()


def blocks(language: str) -> list[Block]:
    """All of one language, as the fence says."""
    found = []
    for page, text in TEXTS.items():
        for match in FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(page, line, match[1], tuple(match[2].split()), match[3]))
    return [block for block in found if block.language == language]


def of(*found: Block) -> pytest.MarkDecorator:
    """A test for each of these."""
    return pytest.mark.parametrize("block", found, ids=str)
