"""Texts without the passwords in them, for logs, error messages and statistics."""

from __future__ import annotations

import re

__all__ = ["masked"]

_USERINFO = re.compile(r"//[^\s'\"]*@")
# In a URL's query, a DSN or a file of settings; not with a colon, which sentences have.
_NAMED = re.compile(
    r"(\b\w*(?:passw(?:or)?d|passphrase|secret|token)\w*\s*=\s*)(?:'(?:[^'\\]|\\.)*'|[^\s&,;'\"]+)",
    re.IGNORECASE,
)


def masked(text: object) -> str:
    """``text`` with ``***`` between ``//`` and the last ``@`` of a word, and behind ``password=`` and such.

    That is where URLs (RFC 3986 section 3.2.1) and connection strings have credentials. Rather too much is
    left out than too little: a password need not be escaped as it should be.
    """
    return _NAMED.sub(r"\1***", _USERINFO.sub("//***@", str(text)))
