"""The servers of bilibili/discovery over HTTP: one is asked until it fails, then the next. Needs httpx."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from goim_core.errors import BackboneError, ConfigurationError
from goim_core.masked import masked

try:
    import httpx
except ImportError as error:
    raise ImportError("BilibiliDiscovery needs httpx: pip install 'goim_core[discovery]'") from error

__all__ = ["Servers"]


class Servers:
    """The discovery servers at ``urls``: one is asked until it fails."""

    def __init__(self, urls: Sequence[str], timeout: float) -> None:
        checked = [_checked(url) for url in urls]
        # Not in the URLs: httpx logs those.
        self._urls = [str(url.copy_with(userinfo=b"")).rstrip("/") for url in checked]
        self._auths = [
            httpx.BasicAuth(url.username, url.password) if url.userinfo else None for url in checked
        ]
        if not self._urls:
            raise ConfigurationError("urls: expected at least one, such as 'http://10.0.0.1:7171'")
        self._timeout = timeout
        self._at = 0
        self._client: httpx.AsyncClient | None = None

    def __len__(self) -> int:
        return len(self._urls)

    @property
    def current(self) -> str:
        """The one that is asked."""
        return self._urls[self._at]

    def leave(self, server: str) -> None:
        """Ask the next from now on, unless it is no longer ``server`` that is asked."""
        if server == self.current:
            self._at = (self._at + 1) % len(self._urls)

    async def ask(
        self, method: str, what: str, fields: Mapping[str, Any], *, tries: int = 0, held: float = 0.0
    ) -> tuple[int, Any]:
        """The code and the data of an answer; the servers are tried in turn, ``tries`` of them (0: all).

        ``held`` is for how many seconds more than usual an answer may take. Raises BackboneError.
        """
        reasons: list[str] = []
        for _ in range(tries or len(self._urls)):
            server = self.current
            try:
                return await self._ask_one(method, what, fields, held)
            except (httpx.HTTPError, ValueError) as error:
                reasons.append(f"{server}: {masked(error) or type(error).__name__}")
            except AttributeError:
                # On uvloop a connection that is reset as soon as it is made has no socket to look at.
                reasons.append(f"{server}: the connection was reset")
            self.leave(server)
        raise BackboneError(f"urls: no answer to {what} from {'; '.join(reasons)}")

    async def _ask_one(
        self, method: str, what: str, fields: Mapping[str, Any], held: float
    ) -> tuple[int, Any]:
        url, auth = f"{self.current}/discovery/{what}", self._auths[self._at]
        if self._client is None:
            # These are servers of one's own: what the environment says of proxies is not for them.
            secure = any(each.startswith("https:") for each in self._urls)
            self._client = httpx.AsyncClient(trust_env=False, verify=secure)
        timeout = httpx.Timeout(self._timeout, read=self._timeout + held)
        where: dict[str, Any] = {"params": fields} if method == "GET" else {"data": fields}
        request = self._client.build_request(method, url, timeout=timeout, **where)
        request.stream = _Body(request.content)
        response = await self._client.send(request, auth=auth)
        if response.status_code != 200:
            raise ValueError(f"HTTP status {response.status_code}")
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or type(answer.get("code")) is not int:
            raise ValueError("this is no discovery server: its answer has no code")
        return answer["code"], answer.get("data")

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()


class _Body(httpx.AsyncByteStream):
    """The body of a request. httpx's own is a generator, and trio warns of one that is left unfinished."""

    def __init__(self, body: bytes) -> None:
        self._parts = iter((body,))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        for part in self._parts:
            return part
        raise StopAsyncIteration


def _checked(url: object) -> httpx.URL:
    try:
        parsed = httpx.URL(url) if isinstance(url, str) else httpx.URL("")
    except httpx.InvalidURL:
        parsed = httpx.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigurationError(f"urls: expected 'http://host:7171', got {masked(repr(url)):.80}")
    return parsed
