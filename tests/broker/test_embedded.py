"""The embedded broker starts, serves, comes back, and leaves nothing running."""

import asyncio
import importlib.util
import os
import signal
import socket
import sys
from contextlib import suppress

import pytest
from brokers import PATIENCE_S, event, message, online

from coordinator.broker import EmbeddedBroker, free_port
from shared.errors import BrokerError
from shared.link import Disconnected


async def gone(pid: int) -> None:
    """Return when this process, which need not be our child, has ended."""
    with suppress(ProcessLookupError):
        ended = asyncio.Event()
        descriptor = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(descriptor, ended.set)
        async with asyncio.timeout(PATIENCE_S):
            await ended.wait()
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)


async def test_it_serves_and_is_gone_afterwards(link, tmp_path):
    async with EmbeddedBroker(tmp_path / "broker") as broker:
        pid = broker.pid
        client = await link(broker.url, "client")
        await client.subscribe("t")
        await client.publish("t", b"x")
        assert await message(client) == ("t", b"x")
        await client.close()
    await gone(pid)


async def test_what_it_persisted_is_there_the_next_time(link, tmp_path):
    for expected in (False, True):
        async with EmbeddedBroker(tmp_path / "broker") as broker:
            client = await link(broker.url, "client")
            assert (await online(client)).session_present is expected
            await client.publish("t", b"x", retain=True)
            await client.close()


async def test_it_comes_back_when_it_dies(link, tmp_path):
    async with EmbeddedBroker(tmp_path / "broker") as broker:
        client = await link(broker.url, "client")
        await online(client)
        os.kill(broker.pid, signal.SIGKILL)
        await event(client, Disconnected)
        await online(client)
        await client.close()


async def test_it_dies_with_its_parent(tmp_path):
    program = f"""
import asyncio
from pathlib import Path
from coordinator.broker import EmbeddedBroker

async def live():
    async with EmbeddedBroker(Path({str(tmp_path)!r}) / "broker") as broker:
        print(broker.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(live())
"""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    parent.kill()
    await parent.wait()
    await gone(pid)


async def test_a_port_in_use_is_refused(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BrokerError, match=str(port)):
            async with EmbeddedBroker(tmp_path / "broker", port):
                pass


async def test_a_given_port_is_used(tmp_path):
    port = free_port()
    async with EmbeddedBroker(tmp_path / "broker", port) as broker:
        assert broker.url == f"mqtt://127.0.0.1:{port}"


async def test_a_program_that_does_not_start_is_quoted(tmp_path, monkeypatch):
    program = tmp_path / "mosquitto"
    program.write_text("#!/bin/sh\necho no such luck\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("TALARIA_MOSQUITTO", str(program))
    with pytest.raises(BrokerError, match="no such luck"):
        async with EmbeddedBroker(tmp_path / "broker"):
            pass


async def test_without_any_broker_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TALARIA_MOSQUITTO", "/nowhere/mosquitto")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "amqtt" else find(name))
    with pytest.raises(BrokerError, match="apt-get install mosquitto"):
        async with EmbeddedBroker(tmp_path / "broker"):
            pass


async def test_amqtt_stands_in_and_says_what_it_lacks(link, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TALARIA_MOSQUITTO", "/nowhere/mosquitto")
    async with EmbeddedBroker(tmp_path / "broker") as broker:
        warnings = [record.getMessage() for record in caplog.records if record.name == "coordinator.broker"]
        assert len(warnings) == 1
        assert "MQTT 5" in warnings[0]
        pid = broker.pid
        client = await link(broker.url, "client")
        await client.subscribe("t")
        await client.publish("t", b"x")
        assert await message(client) == ("t", b"x")
        await client.close()
    await gone(pid)
