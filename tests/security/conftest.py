"""What the tests of security share: the broker as `enrol` makes it, and links that are gone when the test is."""

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from shared.config_base import BrokerSettings
from shared.link import Will
from shared.mqtt import MqttLink

for _support in ("security/support", "system/support", "broker/support", "coordinator", "edge_agent/support"):
    sys.path.insert(0, str(Path(__file__).parents[1] / _support))

from fortress import Fortress  # noqa: E402


@pytest.fixture
def fortress(tmp_path: Path) -> Iterator[Fortress]:
    """An authority with the devices kitchen and hall, and its broker, which runs."""
    fortress = Fortress(tmp_path / "keys", "kitchen", "hall")
    fortress.start()
    yield fortress
    fortress.stop()


@pytest.fixture
async def link() -> AsyncIterator[Callable[..., Awaitable[MqttLink]]]:
    """await link(settings, client id="x", will=None, versions=(5, 4)) -> an open link, closed at the end."""
    links: list[MqttLink] = []

    async def start(
        settings: BrokerSettings, client_id: str = "x", will: Will | None = None, versions: tuple[int, ...] = (5, 4)
    ) -> MqttLink:
        made = MqttLink(settings, client_id, will, versions=versions)  # type: ignore[arg-type]
        links.append(made)
        await made.open()
        return made

    yield start
    for each in links:
        await each.close()
