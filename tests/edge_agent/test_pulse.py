"""Is the agent alive? Asked by `status`, by health checks and by systemd, answered by the loop that does the work."""

import asyncio
import contextlib
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from edge_agent.pulse import answering, ask, supervised
from shared.errors import StateError
from shared.supervisor import notify

FACTS = {"device": "kitchen", "phase": "working", "connected": True}


async def test_what_is_asked_is_what_is_so_at_that_moment(tmp_path: Path) -> None:
    facts: dict[str, Any] = dict(FACTS)
    async with answering(tmp_path, lambda: facts):
        assert await asyncio.to_thread(ask, tmp_path, 5.0) == FACTS
        facts["phase"] = "idle"
        assert (await asyncio.to_thread(ask, tmp_path, 5.0))["phase"] == "idle"
    with pytest.raises(StateError, match="no agent answers"):
        ask(tmp_path, 5.0)


async def test_a_long_path_and_a_socket_that_a_killed_agent_left_are_no_obstacles(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    with contextlib.chdir(folder), socket.socket(socket.AF_UNIX) as left:
        left.bind("agent.sock")
    async with answering(folder, lambda: dict(FACTS)):
        assert (await asyncio.to_thread(ask, folder, 5.0))["device"] == "kitchen"


async def test_a_loop_that_hangs_does_not_answer(tmp_path: Path) -> None:
    async with answering(tmp_path, lambda: dict(FACTS)):
        with pytest.raises(StateError, match="hangs"):
            ask(tmp_path, 0.2)  # from within the loop, which therefore stands still


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    """The other end of NOTIFY_SOCKET."""
    address = f"\0talaria-test-{os.getpid()}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(address)
    listener.settimeout(5)
    monkeypatch.setenv("NOTIFY_SOCKET", address.replace("\0", "@"))
    return listener


async def heard(systemd: socket.socket, wanted: str) -> bytes:
    """The first datagram that says it."""
    while wanted.encode() not in (said := await asyncio.to_thread(systemd.recv, 4096)):
        pass
    return said


async def test_systemd_hears_that_we_are_ready_and_then_that_we_live(
    systemd: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    facts: dict[str, Any] = dict(FACTS)
    async with supervised(tmp_path, lambda: facts):
        assert await heard(systemd, "READY=1") == b"READY=1\nSTATUS=working, connected"
        began = asyncio.get_running_loop().time()
        for _ in range(3):
            await heard(systemd, "WATCHDOG=1")
        assert asyncio.get_running_loop().time() - began < 3 * 0.2, "later than systemd wants"
        facts["connected"] = False
        assert await heard(systemd, "STATUS") == b"STATUS=working, without its broker"


async def test_a_watchdog_of_another_process_is_not_fed(
    systemd: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    async with supervised(tmp_path, lambda: dict(FACTS)):
        await heard(systemd, "READY=1")
        systemd.settimeout(0.3)
        with pytest.raises(TimeoutError):
            await heard(systemd, "WATCHDOG=1")


@pytest.mark.parametrize("address", ["", "/nowhere/notify", "vsock:2:1234"])
def test_nobody_who_listens_is_no_error(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify(READY="1")
