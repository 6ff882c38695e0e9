"""The processes of a chaos run: a broker, a coordinator and agents as they are deployed, each behind its own proxy.

Who dies is started again, as an init system would; who dies without a fault to blame is noted.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from coordinator.broker import find_mosquitto
from coordinator.checkpoints import RunDirectory
from edge_agent.shared_server import LENDER
from lab.chaos_disk import Disk
from lab.chaos_plan import COORDINATOR, Fault, Kind
from lab.emulate import AGENT
from lab.emulate import COORDINATOR as COORDINATOR_CODE
from lab.proxy import HOST, Proxy, Weather
from shared.children import dying_with_us
from shared.config import AgentConfig, RunConfig
from shared.errors import BrokerError
from shared.files import atomic_write
from shared.settings import example_toml

RESTART_S = 0.5
FORGIVEN_S = 5.0
"""A party may still fail for the sake of a fault so long after the fault's end: some notice late."""
WIND_UP_S = 60.0
CLOCK = """
import sys, time
_place, _time, _time_ns = sys.argv.pop(1), time.time, time.time_ns
def _shift():
    with open(_place) as file:
        return float(file.read() or 0)
time.time = lambda: _time() + _shift()
time.time_ns = lambda: _time_ns() + int(_shift() * 1e9)
"""
"""In front of a program: its wall clock goes wrong by the seconds that a file says."""
SAVING = """autosave_interval 1
autosave_on_changes true
"""
"""Beside what `enrol` writes: what the broker had taken is there after SIGKILL."""


class Broker:
    """The Mosquitto of an authority. It can be killed, wiped and started again with other limits, on the same port."""

    def __init__(self, folder: Path, port: int) -> None:
        """folder: what the authority has made for it."""
        self.folder = folder
        self._port = port
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, limit: str = "") -> None:
        """`limit`: a line that takes the place of the one in its configuration. BrokerError where there is no
        Mosquitto."""
        program = find_mosquitto()
        if program is None:
            raise BrokerError("no mosquitto found: `apt-get install mosquitto`, or name it in TALARIA_MOSQUITTO")
        text = f"{(self.folder / 'mosquitto.conf').read_text()}{SAVING}{limit}\n"
        if os.geteuid() == 0:
            text += "user root\n"
        settings = self.folder / "chaos.conf"
        settings.write_text(text)
        with (self.folder / "broker.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                program,
                "-c",
                str(settings),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=dying_with_us(),
            )
        while self._process.returncode is None:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(HOST, self._port)
                writer.close()
                return
            await asyncio.sleep(0.02)
        raise BrokerError(f"mosquitto ended with {self._process.returncode}: see {self.folder / 'broker.log'}")

    async def kill(self, *, wipe: bool = False) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        if wipe:
            (self.folder / "data" / "mosquitto.db").unlink(missing_ok=True)


class Party:
    """A program of ours, started again whenever it ends, until it is told to rest.

    command  its arguments now, which may change from one start to the next
    done     an exit status 0 that ends it for good; None: it is told to rest
    """

    def __init__(self, name: str, code: str, command: Callable[[], list[str]], log: Path, disk: Disk) -> None:
        self.name = name
        self.disk = disk
        self.lines: list[dict[str, Any]] = []
        self.starts = 0
        self.odd: list[str] = []
        """Ends that no fault explains."""
        self.excused_until = 0.0
        self.proxy: Proxy | None = None
        self.environment: Mapping[str, str] = {}
        self.ended = asyncio.Event()
        self._code = code
        self._command = command
        self._log = log
        self._clock = log.with_suffix(".clock")
        self._process: asyncio.subprocess.Process | None = None
        self._held = False
        self._resting = False
        log.parent.mkdir(parents=True, exist_ok=True)
        self.set_clock(0.0)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.returncode is None else None

    def set_clock(self, seconds: float) -> None:
        """Its wall clock is wrong by so much from now on."""
        temporary = self._clock.with_suffix(".tmp")
        temporary.write_text(str(seconds))
        temporary.replace(self._clock)

    def signal(self, number: signal.Signals) -> None:
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def kill(self, seconds: float) -> None:
        """SIGKILL; it stays down for so long."""
        self._held = True
        self.excuse()
        self.signal(signal.SIGKILL)
        await asyncio.sleep(seconds)
        self._held = False

    def excuse(self) -> None:
        """If it ends now, or a moment later, a fault is to blame."""
        self.excused_until = time.monotonic() + FORGIVEN_S

    async def serve(self) -> None:
        """Keep it running until `rest`, or until it comes to its end by itself."""
        try:
            while not self._resting:
                if self._held:
                    await asyncio.sleep(0.05)
                    continue
                status = await self._live()
                if status == 0:
                    return
                if not self._resting and not self.disk.full and time.monotonic() > self.excused_until:
                    self.odd.append(f"{self.name} ended with status {status}: see {self._log}")
                await asyncio.sleep(RESTART_S)
        finally:
            self.ended.set()

    async def _live(self) -> int:
        self.starts += 1
        with self._log.open("ab") as log:
            log.write(f"--- start {self.starts}\n".encode())
            log.flush()
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                CLOCK + self._code,
                str(self._clock),
                *self._command(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=2**24,
                env={**os.environ, **self.environment},
                preexec_fn=dying_with_us(),
            )
        self.disk.limit(self._process.pid)
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            with contextlib.suppress(ValueError):  # a line that a kill tore
                self.lines.append(json.loads(line))
        return await self._process.wait()

    async def rest(self) -> None:
        """Stop it as an init system would, and kill it if it does not."""
        self._resting, self._held = True, False
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(WIND_UP_S):
                await self.ended.wait()
        except TimeoutError:
            self.odd.append(f"{self.name} does not end {WIND_UP_S:.0f} s after SIGTERM: see {self._log}")
            self.signal(signal.SIGKILL)
            await self.ended.wait()


def coordinator_party(config: RunConfig, run_dir: Path, folder: Path, disk: Disk, proxy: Proxy) -> Party:
    """One run's coordinator; a run that was begun is gone on with.

    An ONNX template that lies in `folder` is the run's: it need not make its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):  # where there is none, or no room for it, it makes its own
        template = (folder / "template.onnx").read_bytes()
        run_dir.mkdir()
        atomic_write(RunDirectory(run_dir).template, template)
    settings = folder / f"{run_dir.name}.toml"
    settings.write_text(example_toml(config.model_copy(update={"broker": proxy.way})))

    def command() -> list[str]:
        if (run_dir / "run.json").exists():
            return ["run", "--resume", str(run_dir), "--json"]
        return ["run", "-c", str(settings), "--run-dir", str(run_dir), "--json"]

    party = Party(COORDINATOR, COORDINATOR_CODE, command, folder / f"{run_dir.name}-coordinator.log", disk)
    party.proxy = proxy
    return party


def agent_party(agent: AgentConfig, folder: Path, disk: Disk, proxy: Proxy, lender: Path) -> Party:
    """One device; it serves every run until it is told to rest."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "agent.toml"
    settings.write_text(example_toml(agent.model_copy(update={"broker": proxy.way})))
    party = Party(agent.device, AGENT, lambda: ["run", "-c", str(settings)], folder / "agent.log", disk)
    party.proxy = proxy
    party.environment = {LENDER: str(lender)}
    return party


def weather(fault: Fault) -> Weather:
    """On the link of the party that it strikes."""
    match fault.kind:
        case Kind.LINK_SLOW:
            return Weather(rate=20_000 + 200_000 * fault.strength)
        case Kind.LINK_LATE:
            return Weather(delay_s=0.02 + 0.3 * fault.strength)
        case Kind.ACKS_LOST:
            return Weather(deaf=True)
        case Kind.REPEATED:
            return Weather(repeats=2 + round(2 * fault.strength))
        case _:
            return Weather(dead=True)
