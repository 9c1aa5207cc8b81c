"""The laws of the structure, read from the source: see docs/architecture.md."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "goim_core"
MODULES = {path.stem: ast.parse(path.read_text()) for path in sorted(PACKAGE.glob("*.py"))}

LAYERS = [
    {"__main__"},
    {"server", "client", "__init__"},
    {"http_api", "http_pages", "conversation"},
    {"http_door", "listener", "connection"},
    {"logic", "job"},
    {"comet", "flow", "tls", "reactor"},
    {"bucket"},
    {"channel", "websocket", "poller"},
    {"queue", "registry", "wire", "handshake", "room"},
    {"hooks", "options", "clock"},
    {"protocol"},
    {"errors"},
]
LEVEL = {module: -level for level, modules in enumerate(LAYERS) for module in modules}

SYNC = {
    "bucket", "channel", "comet", "connection", "conversation", "errors", "handshake", "listener", "options",
    "poller", "protocol", "room", "tls", "websocket", "wire",
}  # fmt: skip
DEPENDENCIES = {"anyio", "attrs", "h11", "sortedcontainers", "wsproto"}


def imports(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, "relative imports hide where they lead"
            found.add(node.module)
    return found


def inner(module: str) -> set[str]:
    return {name.split(".")[1] for name in imports(MODULES[module]) if name.startswith("goim_core.")}


def test_every_module_has_a_layer() -> None:
    assert set(MODULES) == set(LEVEL)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down_only(module: str) -> None:
    if module == "__init__":
        return  # the package's face shows what is below it
    upward = {other for other in inner(module) if LEVEL[other] >= LEVEL[module]}
    assert not upward


@pytest.mark.parametrize("module", sorted(SYNC))
def test_sync_modules_have_no_coroutine(module: str) -> None:
    assert not [node.lineno for node in ast.walk(MODULES[module]) if isinstance(node, ast.AsyncFunctionDef)]


def outer(module: str) -> set[str]:
    import sys

    roots = {name.split(".")[0] for name in imports(MODULES[module])}
    return roots - set(sys.stdlib_module_names) - {"goim_core", "__future__"}


def test_the_core_keeps_to_its_five_dependencies() -> None:
    assert set().union(*map(outer, MODULES)) == DEPENDENCIES


def test_each_protocol_library_has_its_place() -> None:
    users = {
        library: {module for module in MODULES if library in outer(module)} for library in ("wsproto", "h11")
    }
    assert users == {"wsproto": {"websocket", "handshake"}, "h11": {"http_door"}}


def test_everything_is_caught_only_at_the_borders_to_the_application() -> None:
    broad = {
        module
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id == "Exception"))
    }
    assert broad == {"flow", "http_door"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_modules_are_small_and_say_what_they_are(module: str) -> None:
    assert ast.get_docstring(MODULES[module])
    length = len((PACKAGE / f"{module}.py").read_text().splitlines())
    assert length <= 380
