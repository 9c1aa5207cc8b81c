"""TLS over a non-blocking socket, with the methods of one: wires and channels see no difference.

Made of ``ssl.MemoryBIO``, so it reads and writes the socket with plain calls and needs no task. All
plain text that is given is taken: cipher text that the kernel does not take waits here, and nothing
that is encrypted is ever dropped, which would break the stream.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from math import inf
from os import PathLike, fspath
from pathlib import Path
from typing import TypeAlias

from goim_core.errors import ConfigurationError
from goim_core.outbox import Account

__all__ = ["TLSSocket", "server_context"]

FilePath: TypeAlias = str | PathLike[str]

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2: forward secrecy and AEAD only (RFC 9325 section 4.2). Those of TLS 1.3 are all so."""

RECORD = 1 << 14
"""The largest plain text of a TLS record (RFC 8446 section 5.1)."""


def server_context(
    certificate: FilePath, private_key: FilePath | None = None, *, client_ca: FilePath | None = None
) -> ssl.SSLContext:
    """A server's context with defaults of today: TLS 1.2 and 1.3, and no cipher without forward secrecy.

    ``certificate`` is a PEM file with the chain, the server's own first; ``private_key`` one with its key,
    where that is not in the same file. ``client_ca`` is a PEM file with the authorities of clients: who has
    no certificate of theirs is turned away in the handshake.

    Raises :class:`~goim_core.errors.ConfigurationError` that names the argument.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    # One is enough for a client with one connection. The key that seals tickets is the context's own, so
    # that it ends when certificates are loaded again; without tickets OpenSSL would keep sessions itself.
    context.num_tickets = 1
    _load_certificate(context, certificate, private_key)
    if client_ca is not None:
        _load_client_ca(context, client_ca)
    return context


def _load_certificate(context: ssl.SSLContext, certificate: FilePath, private_key: FilePath | None) -> None:
    def no_password() -> str:
        raise ConfigurationError("private_key: expected a key without a password")

    files = (
        {"certificate": certificate}
        if private_key is None
        else {
            "certificate": certificate,
            "private_key": private_key,
        }
    )
    for argument, file in files.items():
        _check_readable(argument, file)
    try:
        context.load_cert_chain(certificate, private_key, no_password)
    except ssl.SSLError as error:
        # Which of the two it is, OpenSSL does not always say.
        named, shown = ", ".join(files), " with ".join(repr(fspath(file)) for file in files.values())
        raise ConfigurationError(f"{named}: cannot use {shown}: {_said(error)}") from None


def _load_client_ca(context: ssl.SSLContext, client_ca: FilePath) -> None:
    _check_readable("client_ca", client_ca)
    try:
        context.load_verify_locations(client_ca)
    except ssl.SSLError as error:
        raise ConfigurationError(f"client_ca: cannot use {fspath(client_ca)!r}: {_said(error)}") from None
    context.verify_mode = ssl.CERT_REQUIRED


def _check_readable(argument: str, file: FilePath) -> None:
    try:
        with Path(file).open("rb"):
            pass
    except OSError as error:
        raise ConfigurationError(f"{argument}: cannot read {fspath(file)!r}: {error.strerror}") from None


def _said(error: ssl.SSLError) -> str:
    return error.reason.replace("_", " ").lower() if error.reason else "not in PEM, or not all of it is there"


class TLSSocket:
    """The server's end of TLS over ``raw``.

    ``on_blocked`` is called when cipher text has to wait, which is in the ``account``. ``deadline`` is its
    owner's: when to give the peer up, unless it has taken some. With ``in_turns``, :meth:`recv` leaves the
    handshake to calls of :meth:`read`: each of its steps takes as long as many frames do, so that its
    owner shares them out.
    """

    __slots__ = (
        "_incoming",
        "_outgoing",
        "_tls",
        "_waiting",
        "account",
        "deadline",
        "in_turns",
        "on_blocked",
        "raw",
    )

    def __init__(self, raw: socket.socket, context: ssl.SSLContext) -> None:
        self.raw = raw
        self.on_blocked: Callable[[], None] | None = None
        self.account: Account | None = None
        self.deadline = inf
        self.in_turns = False
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._waiting = memoryview(b"")

    def fileno(self) -> int:
        """The socket's descriptor, -1 when closed."""
        return self.raw.fileno()

    @property
    def established(self) -> bool:
        """Whether the handshake is done."""
        return self._tls.version() is not None

    @property
    def due(self) -> bool:
        """Whether something of the handshake has come that :meth:`read` has not seen."""
        return self.in_turns and self._incoming.pending > 0

    @property
    def blocked(self) -> bool:
        """Whether cipher text waits for the socket to take it."""
        return bool(self._waiting)

    @property
    def waiting(self) -> int:
        """How many bytes of cipher text wait."""
        return len(self._waiting)

    def recv(self, size: int) -> bytes:
        """Plain text from up to ``size`` bytes of the socket, empty at the end.

        Raises BlockingIOError while there is none yet (during the handshake too), OSError when broken;
        :class:`ssl.SSLError` is one.
        """
        data = self.raw.recv(size)
        if not data:
            return b""
        self._incoming.write(data)
        if self.in_turns:
            raise BlockingIOError
        return self.read()

    def read(self) -> bytes:
        """Plain text of what was received: as :meth:`recv`, but for the socket."""
        parts = []
        try:
            while part := self._tls.read(RECORD):
                parts.append(part)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            self.flush()  # the alert that says why
            raise
        else:
            return b"".join(parts)
        self.flush()
        if self.in_turns and self.established:
            self.in_turns = False
        if not parts:
            raise BlockingIOError
        return b"".join(parts)

    def go_on(self) -> bytes:
        """Do what is :attr:`due` of the handshake; plain text that came behind it. Raises OSError."""
        with contextlib.suppress(BlockingIOError):
            return self.read()
        return b""

    def send(self, data: bytes) -> int:
        """Encrypt and send all of ``data``. Raises BlockingIOError while earlier cipher text waits."""
        if self._waiting and not self.flush():
            raise BlockingIOError
        size = self._tls.write(data)
        self.flush()
        return size

    def flush(self) -> bool:
        """Send cipher text; True when none waits any more."""
        if self._outgoing.pending:
            # A view, so that what waits is not copied at each step of sending it.
            self._wait_for(memoryview(bytes(self._waiting) + self._outgoing.read()))
        while self._waiting:
            try:
                sent = self.raw.send(self._waiting)
            except BlockingIOError:
                if self.on_blocked is not None:
                    self.on_blocked()
                return False
            self._wait_for(self._waiting[sent:])
            self.deadline = inf
        return True

    def _wait_for(self, waiting: memoryview) -> None:
        if self.account is not None:
            self.account.add(len(waiting) - len(self._waiting))
        self._waiting = waiting

    def shutdown(self, how: int) -> None:
        """Say that no more plain text follows (close_notify), then shut the socket down."""
        # Raised because the peer has not answered it yet, or the handshake was never finished.
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        if self.flush():
            self.raw.shutdown(how)

    def close(self) -> None:
        """Close the socket."""
        self._wait_for(memoryview(b""))
        self.account = None  # a push that is under way may still write here, and nothing waits any more
        self.raw.close()
