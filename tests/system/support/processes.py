"""Real processes of a fleet in the hands of a test: started, stopped, killed, and awaited by what they say."""

import asyncio
import contextlib
import functools
import json
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from brokers import Mosquitto

from coordinator.template import dense_template
from shared.config import AgentConfig, AlgorithmSettings, ModelSettings, RunConfig, RunSettings, TransferSettings
from shared.config_base import BrokerSettings
from shared.config_data import DataSettings, PartitionSettings
from shared.config_rounds import RoundSettings
from shared.link import Received
from shared.models import build_model, example_input
from shared.mqtt import MqttLink
from shared.onnx_file import ModelCard
from shared.settings import example_toml

P = TypeVar("P", bound="Process")

PATIENCE_S = 90.0
"""No wait takes this long on any machine, unless what is waited for never comes."""
GONE_S = 20.0
"""What has to end by itself has ended by then."""
MARK = "TALARIA_SYSTEM_TEST"
FLEET = "system"


def command(name: str) -> str:
    """The installed command, beside this Python."""
    return str(Path(sys.executable).parent / name)


class Process:
    """One program and what it has said on one of its streams, over all its starts."""

    def __init__(self, arguments: list[str], *, listen: str, log: Path) -> None:
        """listen: `stdout` or `stderr`; the other stream goes into `log`."""
        self.lines: list[str] = []
        self._arguments = arguments
        self._listen = listen
        self._log = log
        self._news = asyncio.Condition()
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        assert not self.running
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if self._listen == "stdout" else log,
                stderr=asyncio.subprocess.PIPE if self._listen == "stderr" else log,
                limit=2**24,
            )
        self._reader = asyncio.create_task(self._read(self._process))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        stream = getattr(process, self._listen)
        async for line in stream:
            async with self._news:
                self.lines.append(line.decode().rstrip("\n"))
                self._news.notify_all()
        await process.wait()
        async with self._news:
            self._news.notify_all()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Return when it holds; looked at whenever the process says something, and when it ends."""
        try:
            async with asyncio.timeout(PATIENCE_S), self._news:
                while not holds():
                    assert self._reader is not None
                    assert self.running, f"ended with {self.status}: {self.last_words()}"
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"it never came. {self.last_words()}") from None

    @property
    def status(self) -> int | None:
        return self._process.returncode if self._process else None

    async def ended(self) -> int:
        """Its exit status, once everything that it said is in `lines`."""
        assert self._process is not None
        assert self._reader is not None
        try:
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.shield(self._reader)
        except TimeoutError:
            raise AssertionError(f"it does not end. {self.last_words()}") from None
        assert self._process.returncode is not None
        return self._process.returncode

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    async def kill(self) -> None:
        """SIGKILL, and gone when this returns."""
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)
        await self.ended()

    def last_words(self) -> str:
        said = "\n".join(self.lines[-15:])
        return f"{Path(self._arguments[0]).name} said:\n{said}\nand in its log:\n{self._log.read_text()[-2000:]}"


class Coordinator(Process):
    """`talaria-coordinator run --json`; its events are those of coordinator.server."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.config, self.run_dir = config, folder / "run"
        settings = folder / "run.toml"
        settings.write_text(example_toml(config))
        arguments = [command("talaria-coordinator"), "run", "-c", str(settings), "--run-dir", str(self.run_dir)]
        super().__init__([*arguments, "--json"], listen="stdout", log=folder / "coordinator.log")

    def events(self, name: str, since: int = 0, **fields: Any) -> list[dict[str, Any]]:
        """What was told of that name, with these fields, from the line `since` on."""
        told = [json.loads(line) for line in self.lines[since:]]
        return [event for event in told if event["event"] == name and event.items() >= fields.items()]

    async def event(self, name: str, since: int = 0, **fields: Any) -> dict[str, Any]:
        """The first such event, waited for."""
        await self.until(lambda: bool(self.events(name, since, **fields)))
        return self.events(name, since, **fields)[0]

    async def finished(self) -> dict[str, Any]:
        """The run's end: the last event, after a clean exit."""
        assert await self.ended() == 0, self.last_words()
        return self.events("finished")[-1]

    def journal(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.run_dir / "journal.jsonl").read_text().splitlines()]


class Agent(Process):
    """`talaria-agent run --once`, with more options where they are given."""

    def __init__(self, folder: Path, config: AgentConfig, *options: str) -> None:
        self.config = config
        folder.mkdir(parents=True, exist_ok=True)
        settings = folder / "agent.toml"
        settings.write_text(example_toml(config))
        arguments = [command("talaria-agent"), "run", "-c", str(settings), "--once", *options]
        super().__init__(arguments, listen="stderr", log=folder / "agent.log")

    async def says(self, text: str, since: int = 0) -> None:
        await self.until(lambda: any(text in line for line in self.lines[since:]))


class Sniffer:
    """Sees every message on the broker, in order: (topic, payload)."""

    def __init__(self, url: str) -> None:
        self.seen: list[tuple[str, bytes]] = []
        self._link = MqttLink(BrokerSettings(url=url), "sniffer")
        self._news = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await self._link.open()
        self._task = asyncio.create_task(self._listen())
        await self._link.subscribe("#")

    async def _listen(self) -> None:
        while True:
            event = await self._link.receive()
            if isinstance(event, Received):
                async with self._news:
                    self.seen.append((event.topic, event.payload))
                    self._news.notify_all()

    async def messages(self, count: int, topic: str = "", since: int = 0) -> None:
        """Return when so many messages were seen below that topic, from number `since` on."""
        async with asyncio.timeout(PATIENCE_S), self._news:
            while sum(found.startswith(topic) for found, _ in self.seen[since:]) < count:
                await self._news.wait()

    def below(self, topic: str, since: int = 0) -> list[bytes]:
        return [payload for found, payload in self.seen[since:] if found.startswith(topic)]

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        await self._link.close()


class System:
    """What one test runs. Everything that it starts carries a mark in its environment, and so do its descendants."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = uuid.uuid4().hex
        os.environ[MARK] = self.mark
        self.broker: Mosquitto | None = None
        self._processes: list[Process] = []
        self._sniffers: list[Sniffer] = []

    def start_broker(self, *lines: str, persistent: bool = False) -> Mosquitto:
        self.broker = Mosquitto(self.folder / "mosquitto", *lines, persistent=persistent)
        return self.broker

    @property
    def settings(self) -> BrokerSettings:
        assert self.broker is not None
        return BrokerSettings(url=self.broker.url)

    async def coordinator(
        self,
        algorithm: str = "fedavg",
        *,
        devices: int,
        rounds: int = 1,
        broker: BrokerSettings | None = None,
        exports: bool | None = True,
        transfer: TransferSettings | None = None,
        initial: Path | None = None,
        limits: dict[str, Any] | None = None,
        **hyperparameters: Any,
    ) -> Coordinator:
        """Start one that waits for `devices` devices.

        exports: None has it make its template itself, which takes longer than a round; True gives it one that is there
            already; False one that is of no use, where no device will make a model of it
        limits: of RoundSettings, in place of patient ones
        """
        given = {"min_devices": devices, "quorum": devices, "deadline_s": PATIENCE_S, **(limits or {})}
        config = RunConfig(
            run=RunSettings(fleet=FLEET),
            broker=broker or self.settings,
            model=ModelSettings(initial=initial),
            algorithm=AlgorithmSettings(name=algorithm, **{"epochs": 1, "lr": 0.1, **hyperparameters}),
            rounds=RoundSettings(count=rounds, **{"personalize_deadline_s": PATIENCE_S, **given}),
            transfer=transfer or TransferSettings(stall_s=2),
        )
        coordinator = Coordinator(self.folder, config)
        if exports is not None:
            coordinator.run_dir.mkdir()
            (coordinator.run_dir / "template.onnx").write_bytes(template() if exports else b"of no use")
        return await self._started(coordinator)

    async def agent(
        self, name: str, broker: BrokerSettings | None = None, options: tuple[str, ...] = (), **settings: Any
    ) -> Agent:
        """Start one with a few digits of its own."""
        folder = self.folder / "devices" / name
        given = {
            "data": DataSettings(partition=PartitionSettings(kind="iid", devices=4), max_per_class=12),
            "stall_s": 2,
            **settings,
        }
        config = AgentConfig(
            device=name, fleet=FLEET, broker=broker or self.settings, state_dir=folder / "state", **given
        )
        return await self._started(Agent(folder, config, *options))

    async def sniffer(self) -> Sniffer:
        sniffer = Sniffer(self.settings.url)
        self._sniffers.append(sniffer)
        await sniffer.open()
        return sniffer

    async def _started(self, process: P) -> P:
        self._processes.append(process)
        await process.start()
        return process

    def running(self) -> dict[int, str]:
        """Everything of this test that runs, whoever started it: pid -> command."""
        return dict(_marked(f"{MARK}={self.mark}".encode()))

    async def gone(self, command: str = "") -> None:
        """Return when nothing of this test runs whose command contains that, or AssertionError that names it."""
        end = asyncio.get_running_loop().time() + GONE_S
        while left := {pid: name for pid, name in self.running().items() if command in name}:
            assert asyncio.get_running_loop().time() < end, f"still running: {left}"
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        """Kill whatever still runs."""
        for sniffer in self._sniffers:
            await sniffer.close()
        for process in self._processes:
            if process.running:
                await process.kill()
        if self.broker is not None:
            self.broker.kill()
        for pid in self.running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        del os.environ[MARK]


@functools.cache
def template() -> bytes:
    """A template of a run with the usual model, but for the run's name."""
    model = ModelSettings()
    card = ModelCard(run="prepared", model=model.name, model_options=model.options)
    dense = build_model(model.name, model.options, seed=0).eval()
    return dense_template(dense, example_input(model.name, model.options), card.properties())


def _marked(mark: bytes) -> Iterator[tuple[int, str]]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    yield int(folder.name), (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
