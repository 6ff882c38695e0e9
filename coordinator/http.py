"""The smallest web server that a Prometheus, a load balancer and a person with curl need: GET of a few pages.

It has no authentication, so what it serves holds no secret, and what a client costs is bounded: connections, the size
of a request, and the time that each takes.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Self, TypeAlias
from urllib.parse import urlsplit

from shared.errors import ConfigError

LARGEST_REQUEST = 8192
"""Bytes of a request's head."""
CONNECTIONS = 32
"""At the same time; further ones are closed at once."""
PATIENCE_S = 5.0
"""For a request to be here, and again for the answer to be taken."""


@dataclass(frozen=True)
class Page:
    status: HTTPStatus
    kind: str
    body: bytes


Pages: TypeAlias = Mapping[str, Callable[[], Awaitable[Page]]]


class WebServer:
    """Context manager: pages by path, at `address` (host:port)."""

    def __init__(self, address: str, pages: Pages) -> None:
        self._address = address
        self._pages = pages
        self._open = 0
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        """ConfigError where the address cannot be had."""
        parts = urlsplit(f"//{self._address}")
        try:
            self._server = await asyncio.start_server(self._serve, parts.hostname, parts.port, limit=LARGEST_REQUEST)
        except OSError as error:
            raise ConfigError(
                f"run.http {self._address!r} cannot be used: {error.strerror or error}; give each run on this machine "
                "an address of this machine and a port of its own"
            ) from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()  # not waited for: a client that does not go would hold up the end

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= CONNECTIONS:
                async with asyncio.timeout(PATIENCE_S):
                    head, page = await self._answer(reader)
                lines = [
                    f"HTTP/1.1 {page.status.value} {page.status.phrase}",
                    f"Content-Type: {page.kind}",
                    f"Content-Length: {len(page.body)}",
                    "Connection: close",
                ]
                writer.write("\r\n".join([*lines, "", ""]).encode() + (b"" if head else page.body))
                async with asyncio.timeout(PATIENCE_S):
                    await writer.drain()
                    writer.close()
                    await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # a client that is slow, or gone
        finally:
            self._open -= 1
            with suppress(OSError):
                writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader) -> tuple[bool, Page]:
        """(whether only the head is wanted, the answer)."""
        try:
            request = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return False, _said(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        match request.split(b"\r\n", 1)[0].split(b" "):
            case [b"GET" | b"HEAD" as method, target, b"HTTP/1.0" | b"HTTP/1.1"]:
                page = self._pages.get(target.split(b"?")[0].decode("latin-1"))
                return method == b"HEAD", _said(HTTPStatus.NOT_FOUND) if page is None else await page()
            case [_, _, b"HTTP/1.0" | b"HTTP/1.1"]:
                return False, _said(HTTPStatus.METHOD_NOT_ALLOWED)
        return False, _said(HTTPStatus.BAD_REQUEST)


def _said(status: HTTPStatus) -> Page:
    return Page(status, "text/plain; charset=utf-8", f"{status.phrase}\n".encode())
