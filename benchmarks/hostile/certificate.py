"""A certificate for the doors with TLS; nobody checks it."""

from __future__ import annotations

import ssl

import trustme

__all__ = ["client_context", "server_context"]


def server_context() -> ssl.SSLContext:
    """The server's, with a certificate of its own making."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    return context


def client_context() -> ssl.SSLContext:
    """A client's that takes any certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
