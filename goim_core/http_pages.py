"""Static pages as routes of the HTTP door."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from mimetypes import MimeTypes
from pathlib import Path

from goim_core.errors import ConfigurationError
from goim_core.http_message import Handler, Request, Response, Routes

__all__ = ["operator_page", "pages"]

_OPERATOR = "/goim/operator"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_ALONE = (
    ("Content-Security-Policy", _POLICY),
    ("X-Frame-Options", "DENY"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
)
"""A page with a form that pushes runs no script but its own, and stands in no frame of another page."""


def pages(folder: Path, prefix: str = "/", headers: tuple[tuple[str, str], ...] = ()) -> Routes:
    """GET routes for the files of ``folder``, read now and kept; ``index.html`` also at its folder's path.

    ``headers`` are added to each answer.

    Only files that were listed are routes, so that no path leads anywhere else. Names that begin with a
    dot are left out. A browser asks each time whether its copy is still good (ETag, RFC 9110 section
    8.8.3).

    Raises :class:`~goim_core.errors.ConfigurationError` when ``folder`` is no folder.
    """
    if not folder.is_dir():
        raise ConfigurationError(f"folder: expected a folder, got {str(folder)!r}")
    routes: dict[str, Mapping[str, Handler]] = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if not file.is_file() or any(part.startswith(".") for part in name.parts):
            continue
        path = prefix.rstrip("/") + "/" + name.as_posix()
        routes[path] = {"GET": _page(file, headers)}
        if name.name == "index.html":
            routes[path.removesuffix("index.html")] = routes[path]
    return routes


@cache
def operator_page() -> Routes:
    """The live page for operators, at ``/goim/operator/``.

    It holds no figures: it asks for them, with an API key where there are keys.
    """
    # Relative, so that it also leads there where a proxy puts something before the path.
    moved = Response(308, headers=(("Location", "operator/"), *_ALONE))
    return {
        **pages(Path(__file__).parent / "operator", _OPERATOR, _ALONE),
        _OPERATOR: {"GET": lambda _: moved},
    }


def _page(file: Path, headers: tuple[tuple[str, str], ...]) -> Handler:
    body = file.read_bytes()
    tag = f'"{sha256(body).hexdigest()[:32]}"'
    kept = (("ETag", tag), ("Cache-Control", "no-cache"), *headers)
    # Not mimetypes.guess_type(): its table is whatever the machine's says.
    kind = MimeTypes().guess_type(file.name)[0] or "application/octet-stream"
    if kind.startswith("text/"):
        kind += "; charset=utf-8"
    found = Response(200, body, kind, kept)
    unchanged = Response(304, headers=kept)

    def page(request: Request) -> Response:
        known = request.headers.get("if-none-match", "")
        return unchanged if tag in known or known == "*" else found

    return page
