"""A fleet of real processes on this machine: a broker, the coordinator and the agents, exactly as they are deployed."""

import asyncio
import contextlib
import json
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from coordinator.broker import EmbeddedBroker
from edge_agent.shared_server import LENDER
from lab.fleet import emulated_devices
from shared.config import AgentConfig, RunConfig
from shared.config_base import BrokerSettings
from shared.settings import example_toml

GOODBYE_S = 15.0
"""An agent exits by itself once its report has a receipt; one that does not is stopped this much later."""
TRAINERS = (
    "import socket; from edge_agent.shared_server import lend; lend('edge_agent.worker:main', socket.socket(fileno={}))"
)
COORDINATOR = "from coordinator.cli import main; main()"
AGENT = "from edge_agent.cli import main; main()"


async def emulate(config: RunConfig, directory: Path, on_event: Callable[[Mapping[str, Any]], None]) -> int:
    """Run the whole fleet below `directory`; the coordinator's exit status (0: the run came to its end).

    `on_event` gets what the coordinator tells (coordinator.server documents it) and `agent_exit` (device, status, log)
    for an agent that ends before the coordinator. Nothing is left running, however this ends.
    """
    directory.mkdir(parents=True, exist_ok=True)
    async with _broker(config.broker, directory) as broker:
        devices = emulated_devices(config, directory, broker)
        run_file = directory / "run.toml"
        run_file.write_text(example_toml(config.model_copy(update={"broker": broker})))
        async with asyncio.TaskGroup() as tasks, contextlib.AsyncExitStack() as stack:
            coordinator = await stack.enter_async_context(_coordinator(run_file, directory))
            lender = await stack.enter_async_context(trainers(directory))
            agents = {
                name: await stack.enter_async_context(_agent(agent, directory / "devices" / name, lender))
                for name, agent in devices.items()
            }
            watchers = [
                tasks.create_task(_watch(name, process, directory / "devices" / name / "agent.log", on_event))
                for name, process in agents.items()
            ]
            status = await _follow(coordinator, on_event)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GOODBYE_S):
                    await asyncio.gather(*(process.wait() for process in agents.values()))
            for watcher in watchers:
                watcher.cancel()
    return status


@contextlib.asynccontextmanager
async def _broker(settings: BrokerSettings, directory: Path) -> AsyncIterator[BrokerSettings]:
    """The settings to reach the broker: the given ones, or those of a broker that lives as long as this context."""
    if settings.url != "embedded":
        yield settings
        return
    async with EmbeddedBroker(directory / "broker") as embedded:
        yield BrokerSettings(url=embedded.url, keepalive_s=settings.keepalive_s)


@contextlib.asynccontextmanager
async def _process(
    *arguments: str, log: Path, pipe: bool = False, inherit: tuple[int, ...] = (), environment: Mapping[str, str] = {}
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A child of ours, ended with us: asked first, killed if it does not answer. Its stderr goes into the log.

    `inherit`: descriptors that stay open in it.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as sink:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE if pipe else sink,
            stderr=sink,
            limit=2**24,
            pass_fds=inherit,
            env={**os.environ, **environment},
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(GOODBYE_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


def _coordinator(run_file: Path, directory: Path) -> contextlib.AbstractAsyncContextManager[asyncio.subprocess.Process]:
    arguments = ("run", "-c", str(run_file), "--run-dir", str(directory), "--json")
    return _process(COORDINATOR, *arguments, log=directory / "coordinator.log", pipe=True)


@contextlib.asynccontextmanager
async def trainers(directory: Path) -> AsyncIterator[Path]:
    """The socket of one process that the trainers of all devices are forked from: a copy of the training library for
    each of them takes seconds and 200 MB that a device would not share, and an emulation need not spend."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = Path(folder) / "trainers"  # short, as the name of a socket has to be
        listener.bind(str(path))
        listener.listen(1024)
        descriptor = listener.fileno()
        async with _process(TRAINERS.format(descriptor), log=directory / "trainers.log", inherit=(descriptor,)):
            listener.close()  # or agents would wait for it when the lender is dead
            yield path


def _agent(
    agent: AgentConfig, directory: Path, lender: Path
) -> contextlib.AbstractAsyncContextManager[asyncio.subprocess.Process]:
    directory.mkdir(parents=True, exist_ok=True)
    settings = directory / "agent.toml"
    settings.write_text(example_toml(agent))
    arguments = ("run", "-c", str(settings), "--once")
    return _process(AGENT, *arguments, log=directory / "agent.log", environment={LENDER: str(lender)})


async def _follow(coordinator: asyncio.subprocess.Process, on_event: Callable[[Mapping[str, Any]], None]) -> int:
    assert coordinator.stdout is not None
    async for line in coordinator.stdout:
        on_event(json.loads(line))
    return await coordinator.wait()


async def _watch(
    device: str, process: asyncio.subprocess.Process, log: Path, on_event: Callable[[Mapping[str, Any]], None]
) -> None:
    status = await process.wait()
    if status != 0:
        on_event({"event": "agent_exit", "device": device, "status": status, "log": str(log)})
