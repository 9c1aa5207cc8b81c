"""What the documentation says is true: its programs run through the checkers, its tables name what there is."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest

from goim_core import CloseCode, ErrorCode, Op, Options

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_programs_of_the_readme_are_programs() -> None:
    programs = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert programs
    for program in programs:
        names: dict[str, object] = {"__name__": "program"}
        exec(compile(program, "README.md", "exec"), names)
        assert callable(names["main"])


def test_every_option_is_documented_with_its_default() -> None:
    rows = dict(
        re.findall(
            r"^\| `(\w+)` \| `?([^|`]+)`? \|", (ROOT / "docs" / "embedding.md").read_text(), re.MULTILINE
        )
    )
    defaults = {field.name: str(getattr(Options(), field.name)) for field in attrs.fields(Options)}
    assert {name: value.strip() for name, value in rows.items() if name in defaults} == defaults


@pytest.mark.parametrize("codes", [Op, CloseCode, ErrorCode], ids=lambda codes: codes.__name__)
def test_every_code_is_in_the_protocol(codes: type[Op | CloseCode | ErrorCode]) -> None:
    text = (ROOT / "docs" / "protocol.md").read_text()
    for code in codes:
        assert re.search(rf"\b{code.value}\b", text), code
        assert re.search(rf"\b{code.name}\b", text), code
