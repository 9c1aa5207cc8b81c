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

__all__ = ["TLSSocket"]

RECORD = 1 << 14
"""The largest plain text of a TLS record (RFC 8446 section 5.1)."""


class TLSSocket:
    """The server's end of TLS over ``raw``. ``on_blocked`` is called when cipher text has to wait."""

    __slots__ = ("_incoming", "_outgoing", "_tls", "_waiting", "on_blocked", "raw")

    def __init__(self, raw: socket.socket, context: ssl.SSLContext) -> None:
        self.raw = raw
        self.on_blocked: Callable[[], None] | None = None
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._waiting = memoryview(b"")

    def fileno(self) -> int:
        """The socket's descriptor, -1 when closed."""
        return self.raw.fileno()

    @property
    def blocked(self) -> bool:
        """Whether cipher text waits for the socket to take it."""
        return bool(self._waiting)

    def recv(self, size: int) -> bytes:
        """Plain text from up to ``size`` bytes of the socket, empty at the end.

        Raises BlockingIOError while there is none yet (during the handshake too), OSError when broken;
        :class:`ssl.SSLError` is one.
        """
        data = self.raw.recv(size)
        if not data:
            return b""
        self._incoming.write(data)
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
        if not parts:
            raise BlockingIOError
        return b"".join(parts)

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
            self._waiting = memoryview(bytes(self._waiting) + self._outgoing.read())
        while self._waiting:
            try:
                sent = self.raw.send(self._waiting)
            except BlockingIOError:
                if self.on_blocked is not None:
                    self.on_blocked()
                return False
            self._waiting = self._waiting[sent:]
        return True

    def shutdown(self, how: int) -> None:
        """Say that no more plain text follows (close_notify), then shut the socket down."""
        # Raised because the peer has not answered it yet, or the handshake was never finished.
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        if self.flush():
            self.raw.shutdown(how)

    def close(self) -> None:
        """Close the socket."""
        self.raw.close()
