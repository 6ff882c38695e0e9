"""Fixtures: brokers and links that are gone when the test is."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from shared.config_base import BrokerSettings
from shared.link import Will
from shared.mqtt import MqttLink

sys.path.insert(0, str(Path(__file__).parent / "support"))

from brokers import Mosquitto, Peer


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Callable[..., Mosquitto]]:
    """mosquitto(*configuration lines, persistent=False) -> a running broker."""
    started: list[Mosquitto] = []

    def start(*lines: str, persistent: bool = False) -> Mosquitto:
        started.append(Mosquitto(tmp_path / f"mosquitto-{len(started)}", *lines, persistent=persistent))
        return started[-1]

    yield start
    for broker in started:
        broker.kill()


@pytest.fixture
async def link() -> AsyncIterator[Callable[..., Awaitable[MqttLink]]]:
    """await link(url, client id, will=None, versions=(5, 4), **settings) -> an open link, closed at the end."""
    links: list[MqttLink] = []

    async def start(
        url: str, client_id: str, will: Will | None = None, versions: tuple[int, ...] = (5, 4), **settings: object
    ) -> MqttLink:
        made = MqttLink(BrokerSettings(url=url, **settings), client_id, will, versions=versions)  # type: ignore[arg-type]
        links.append(made)
        await made.open()
        return made

    yield start
    for each in links:
        await each.close()


@pytest.fixture
async def fake_broker() -> AsyncIterator[Callable[[Callable[[Peer], Awaitable[None]]], Awaitable[str]]]:
    """await fake_broker(behave) -> url of a server that runs `behave(peer)` for each connection, then hangs up."""
    servers: list[asyncio.Server] = []

    async def start(behave: Callable[[Peer], Awaitable[None]]) -> str:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                await behave(Peer(reader, writer))
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        servers.append(server)
        return f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    yield start
    for server in servers:
        server.close()
