"""The web server against clients that are slow, huge, many or wrong: what they cost is bounded."""

import asyncio
from collections.abc import AsyncIterator
from http import HTTPStatus

import pytest
from pydantic import ValidationError

from coordinator import http
from coordinator.broker import free_port
from coordinator.http import CONNECTIONS, LARGEST_REQUEST, Page, WebServer
from shared.config import RunSettings
from shared.errors import ConfigError

BIG = bytes(32 << 20)


async def big() -> Page:
    return Page(HTTPStatus.OK, "text/plain", BIG)


async def hello() -> Page:
    return Page(HTTPStatus.OK, "text/plain", b"hello")


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    monkeypatch.setattr(http, "PATIENCE_S", 0.3)
    port = free_port()
    async with WebServer(f"127.0.0.1:{port}", {"/": hello, "/big": big}):
        yield port


async def ask(port: int, request: bytes) -> bytes:
    """All that comes until the server hangs up; nothing where it is rude."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return await asyncio.wait_for(reader.read(), 20)
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_a_page_and_its_head(port: int) -> None:
    whole = await ask(port, b"GET /?x=1 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert whole.startswith(b"HTTP/1.1 200 OK\r\n")
    assert whole.endswith(b"Content-Length: 5\r\nConnection: close\r\n\r\nhello")
    assert await ask(port, b"HEAD / HTTP/1.1\r\n\r\n") == whole.removesuffix(b"hello")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /../etc/passwd HTTP/1.1\r\n\r\n", b"404"),
        (b"POST / HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n", b"405"),
        (b"\x16\x03\x01 hello over TLS \r\n\r\n", b"400"),
        (b"GET / HTTP/9\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * LARGEST_REQUEST + b"\r\n", b"431"),
    ],
)
async def test_wrong_requests_are_answered(port: int, request_: bytes, status: bytes) -> None:
    assert (await ask(port, request_)).startswith(b"HTTP/1.1 " + status) or status == b"431"
    assert (await ask(port, b"GET / HTTP/1.1\r\n\r\n")).endswith(b"hello")


async def test_who_says_nothing_is_hung_up_on_and_makes_room(port: int) -> None:
    """More silent clients than there may be, and one that sends a byte now and then: all are gone soon."""
    slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(CONNECTIONS)]
    slow[0][1].write(b"G")
    async with asyncio.timeout(10):
        while not (await ask(port, b"GET / HTTP/1.1\r\n\r\n")).endswith(b"hello"):
            for reader, _ in slow:
                assert await reader.read() == b""  # the end, and no answer
    for _, writer in slow:
        writer.close()


async def test_one_too_many_is_sent_away_at_once(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PATIENCE_S", 60.0)
    silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(CONNECTIONS)]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert await asyncio.wait_for(reader.read(), 20) == b""
    for each in (writer, *(writer for _, writer in silent)):
        each.close()


async def test_who_does_not_read_is_hung_up_on(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    writer.write(b"GET /big HTTP/1.1\r\n\r\n")
    await reader.readline()
    await asyncio.sleep(1.0)  # what is tested is that time passes
    received = 0
    try:
        while chunk := await reader.read(1 << 20):
            received += len(chunk)
    except ConnectionError:
        pass
    assert received < len(BIG)
    writer.close()


async def test_addresses(port: int) -> None:
    with pytest.raises(ConfigError, match=f"127.0.0.1:{port}"):
        async with WebServer(f"127.0.0.1:{port}", {}):
            pass
    with pytest.raises(ConfigError, match="cannot be used"):
        async with WebServer(f"203.0.113.1:{port}", {}):
            pass
    async with WebServer(f"[::1]:{free_port()}", {}):
        pass


@pytest.mark.parametrize(
    "address", ["localhost", ":9464", "localhost:0", "a:99999", "http://a:1", "me@a:1", "a:1/x", "a:x"]
)
def test_a_wrong_address_is_named(address: str) -> None:
    with pytest.raises(ValidationError, match=r"is not host:port: for example 127\.0\.0\.1:9464"):
        RunSettings(http=address)


def test_right_addresses() -> None:
    for address in ("127.0.0.1:9464", "[::1]:9464", "0.0.0.0:80", "coordinator.lan:9464"):
        assert RunSettings(http=address).http == address
