"""The laws of the structure, read from the source: see docs/architecture.md."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "goim_core"
SOURCES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))
}
MODULES = {name: ast.parse(path.read_text()) for name, path in SOURCES.items()}

LAYERS = [
    {"__main__", "testing"},
    {"serving", "push_command"},
    {"settings"},
    {"choices"},
    {"server", "client", "adapters"},
    {"http_routes"},
    {"operator_api"},
    {"scrape"},
    {"http_api", "http_pages", "overview", "pipeline"},
    {"http_answers", "stopping"},
    {"http_door", "doors", "conversation", "census"},
    {"reading"},
    {"connection", "http_conversation"},
    {"edge"},
    {"inbox", "operations", "job", "listener", "inflow"},
    {"logic"},
    {"publisher", "stats", "memory_storage", "auth", "weigher"},
    {"parts", "pressure", "unfinished"},
    {"task_reactor", "exchanges"},
    {"comet", "flow", "tls", "trace", "reactor", "storage", "token_auth"},
    {"admission", "budget", "http_heads"},
    {"bucket", "presence", "senders"},
    {"channel", "websocket", "poller", "nodes", "guard"},
    {"queue", "registry", "wire", "handshake", "room", "hooks", "discovery", "outgoing", "http_message"},
    {"session", "options", "clock", "process", "outbox"},
    {"prometheus"},
    {"protocol", "taskgroup", "metrics", "logs", "stage", "http_plain"},
    {"shards", "steps", "collector"},
    {"errors", "masked"},
]
LEVEL = {module: -level for level, modules in enumerate(LAYERS) for module in modules}

SYNC = {
    "admission", "bucket", "budget", "channel", "comet", "connection", "conversation", "doors", "edge", "errors",
    "guard", "handshake", "http_heads", "http_message", "http_plain", "inbox", "listener", "logic", "logs", "metrics", "nodes", "operations",
    "options", "outbox", "outgoing", "overview", "poller", "presence", "pressure", "process", "prometheus",
    "protocol", "reading", "room", "scrape", "senders", "session", "shards", "stage", "stats", "tls", "trace", "unfinished", "websocket",
    "weigher", "wire",
}  # fmt: skip
DEPENDENCIES = {"anyio", "attrs", "h11", "sortedcontainers", "wsproto"}


def layer(module: str) -> str:
    """What a module counts as: a package (adapters, client, testing) is one."""
    return module.split(".", maxsplit=1)[0]


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
    """The modules of this package that ``module`` imports."""
    found = set()
    for name in imports(MODULES[module]):
        package, _, rest = name.partition(".")
        if package == "goim_core" and rest:
            found.add(rest)
    return found


def test_every_module_has_a_layer() -> None:
    assert {layer(module) for module in MODULES} - {"__init__"} == set(LEVEL)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down_only(module: str) -> None:
    if module == "__init__":
        return  # the package's face shows what is below it
    own = layer(module)
    upward = {other for other in inner(module) if layer(other) != own and LEVEL[layer(other)] >= LEVEL[own]}
    assert not upward


def test_nothing_imports_an_adapter() -> None:
    users = {
        module
        for module in MODULES
        if layer(module) != "adapters" and any(layer(other) == "adapters" for other in inner(module))
    }
    assert not users


SHARED_BY_ADAPTERS = {"loop", "pushmsg", "sql", "trouble"}


def test_an_adapter_imports_no_other_system_s() -> None:
    others = {
        (module, other)
        for module in MODULES
        for other in inner(module)
        if layer(module) == layer(other) == "adapters"
        and other.split(".")[1] not in {module.split(".")[1], *SHARED_BY_ADAPTERS}
    }
    assert not others


@pytest.mark.parametrize(
    ("adapter", "own"),
    [
        ("nats", {"nats"}),
        ("kafka", {"aiokafka"}),
        ("redis", {"redis"}),
        ("discovery", {"httpx"}),
        ("sqlite", {"sqlite3"}),
        ("postgres", {"psycopg"}),
        ("jwt", {"jwt"}),
    ],
)
def test_an_adapter_needs_its_own_extra_only(adapter: str, own: set[str]) -> None:
    check = f"import sys, goim_core.adapters.{adapter}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    extras = {"nats", "aiokafka", "redis", "httpx", "psycopg", "jwt", "sqlite3"}
    assert extras & set(loaded.stdout.split()) == own


@pytest.mark.parametrize("module", sorted(SYNC))
def test_sync_modules_have_no_coroutine(module: str) -> None:
    assert not [node.lineno for node in ast.walk(MODULES[module]) if isinstance(node, ast.AsyncFunctionDef)]


def outer(module: str) -> set[str]:
    roots = {name.split(".")[0] for name in imports(MODULES[module])}
    return roots - set(sys.stdlib_module_names) - {"goim_core", "__future__"}


def test_the_core_keeps_to_its_five_dependencies() -> None:
    core = [module for module in MODULES if layer(module) not in ("adapters", "testing")]
    assert set().union(*map(outer, core)) == DEPENDENCIES


def test_what_is_imported_first_needs_no_extra() -> None:
    check = "import sys, goim_core, goim_core.__main__; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert not {"trio", "uvloop", "psycopg", "jwt", "httpx", "redis", "pytest", "sqlite3"} & set(
        loaded.stdout.split()
    )


def test_each_protocol_library_has_its_place() -> None:
    users = {
        library: {module for module in MODULES if library in outer(module)} for library in ("wsproto", "h11")
    }
    assert users == {
        "wsproto": {"websocket", "handshake", "client.wire"},
        "h11": {"http_conversation", "http_heads", "client.nodes"},
    }


def broad(handler: ast.ExceptHandler) -> bool:
    """Whether it catches everything, and does not raise it again."""
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    everything = any(
        kind is None or (isinstance(kind, ast.Name) and kind.id in ("Exception", "BaseException"))
        for kind in kinds
    )
    last = handler.body[-1]
    return everything and not (isinstance(last, ast.Raise) and last.exc is None)


def test_everything_is_caught_only_at_the_borders_to_the_application_and_to_other_connections() -> None:
    found = {
        module
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and broad(node)
    }
    assert found == {"flow", "http_door", "reactor"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_modules_are_small_and_say_what_they_are(module: str) -> None:
    assert ast.get_docstring(MODULES[module])
    length = len(SOURCES[module].read_text().splitlines())
    # A contract's suite is one class, which grows with the contract.
    assert length <= (450 if module.endswith("_contract") else 360)
