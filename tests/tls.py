"""Certificates of a test's own authority, and the client's end of TLS in an async test."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import anyio
import trustme

__all__ = ["Authority", "secured"]


class Authority(trustme.CA):
    """An authority whose files are in ``folder``."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        super().__init__()
        self.folder = folder
        self.file = folder / f"{name}.pem"
        self.cert_pem.write_to_path(self.file)

    def issue(self, name: str = "localhost", file: str = "") -> Path:
        """A PEM file with a certificate for ``name`` and its key."""
        path = self.folder / f"{file or name}.pem"
        self.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(path)
        return path

    def client(self, certificate: Path | None = None) -> ssl.SSLContext:
        """A client's context, which trusts this authority."""
        context = ssl.create_default_context()
        self.configure_trust(context)
        if certificate is not None:
            context.load_cert_chain(certificate)
        return context


async def secured(sock: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
    """The non-blocking ``sock`` after a handshake as a client. Raises OSError where that failed."""
    wrapped = context.wrap_socket(
        sock, server_hostname="localhost", do_handshake_on_connect=False, suppress_ragged_eofs=False
    )
    while True:
        try:
            wrapped.do_handshake()
        except ssl.SSLWantReadError:
            await anyio.wait_readable(wrapped)
        except BaseException:
            wrapped.close()
            raise
        else:
            return wrapped
