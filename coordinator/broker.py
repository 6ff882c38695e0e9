"""The embedded broker: a Mosquitto that lives and dies with us, with amqtt as a small lab's stand-in.

It listens on the loopback interface only, where anybody may connect without a password; a fleet of real devices needs
a broker of its own (broker.url).
"""

import asyncio
import contextlib
import importlib.util
import logging
import os
import shutil
import signal
import socket
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from coordinator.mosquitto import EMBEDDED
from shared.children import dying_with_us
from shared.errors import BrokerError

HOST = "127.0.0.1"
START_S = 15.0
STOP_S = 5.0
LONGEST_DELAY_S = 30.0

AMQTT = """\
listeners:
  default:
    type: tcp
    bind: {host}:{port}
plugins:
  amqtt.plugins.authentication.AnonymousAuthPlugin:
    allow_anonymous: true
"""
AMQTT_LACKS = (
    "no mosquitto found: amqtt stands in, for small experiments only. It lacks MQTT 5, persistent sessions, redelivery "
    "after a lost connection and about two thirds of the speed; `apt-get install mosquitto` gives you all of them"
)

log = logging.getLogger(__name__)


def find_mosquitto() -> str | None:
    """Path of the program: $TALARIA_MOSQUITTO, or where systems install it (often outside a user's PATH)."""
    named = os.environ.get("TALARIA_MOSQUITTO")
    if named is not None:
        return shutil.which(named)
    return shutil.which("mosquitto", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


class EmbeddedBroker:
    """`async with EmbeddedBroker(directory) as broker:` listens on `broker.url` until the block ends.

    What it persists lies in `directory`. If it dies, it is started again on the same port.
    """

    def __init__(self, directory: Path, port: int = 0) -> None:
        """`port` 0 takes a free one."""
        self._directory = directory.absolute()
        self._fixed_port = port
        self._port = port
        self._command: list[str] = []
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"mqtt://{HOST}:{self._port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def __aenter__(self) -> Self:
        """BrokerError where no broker can be started."""
        self._directory.mkdir(parents=True, exist_ok=True)
        for _ in range(1 if self._fixed_port else 5):  # somebody may take a free port before the broker does
            self._port = self._fixed_port or free_port()
            self._check_port()
            self._command = self._configure()
            self._process = await self._start()
            if await self._accepts(self._process):
                self._supervisor = asyncio.create_task(self._supervise(self._process), name="embedded broker")
                return self
            await self._stop(self._process)
        raise BrokerError(f"{' '.join(self._command)} does not start: {self._last_words()}")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait({self._supervisor})
        if self._process is not None:
            await self._stop(self._process)

    def _check_port(self) -> None:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((HOST, self._port))
            except OSError as error:
                raise BrokerError(f"port {self._port} cannot be used ({error}): give another, or 0 for any") from error

    def _configure(self) -> list[str]:
        """Write the configuration; the command that follows it."""
        mosquitto = find_mosquitto()
        if mosquitto is not None:
            path, text = self._directory / "mosquitto.conf", EMBEDDED
            command = [mosquitto, "-c", str(path)]
            if os.geteuid() == 0:
                text += "user root\n"  # else it becomes another user, who may not write here
        elif importlib.util.find_spec("amqtt") is not None:
            log.warning(AMQTT_LACKS)
            path, text = self._directory / "amqtt.yaml", AMQTT
            command = [sys.executable, "-m", "amqtt.scripts.broker_script", "-c", str(path)]
        else:
            raise BrokerError(
                "no mosquitto found for the embedded broker: `apt-get install mosquitto`, or name the program in "
                "TALARIA_MOSQUITTO, or set broker.url to a broker of yours"
            )
        path.write_text(text.format(port=self._port, host=HOST, directory=self._directory), encoding="utf-8")
        return command

    async def _start(self) -> asyncio.subprocess.Process:
        """In a session of its own: an interrupt from the keyboard is for us, and we still need the broker to end."""
        with (self._directory / "broker.log").open("wb") as output:
            return await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=dying_with_us(signal.SIGTERM),  # it then saves what it persists
            )

    async def _accepts(self, process: asyncio.subprocess.Process) -> bool:
        """Wait until it takes connections; False if it died or never did."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_S):
                while process.returncode is None:
                    with contextlib.suppress(ConnectionError):
                        _, writer = await asyncio.open_connection(HOST, self._port)
                        writer.close()
                        return True
                    await asyncio.sleep(0.01)
        return False

    async def _supervise(self, process: asyncio.subprocess.Process) -> None:
        delay = 0.1
        while True:
            started = asyncio.get_running_loop().time()
            status = await process.wait()
            log.warning("the embedded broker died with status %s, starting it again: %s", status, self._last_words())
            if asyncio.get_running_loop().time() - started > LONGEST_DELAY_S:
                delay = 0.1
            await asyncio.sleep(delay)
            delay = min(2 * delay, LONGEST_DELAY_S)
            process = self._process = await self._start()

    async def _stop(self, process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    def _last_words(self) -> str:
        """The end of the broker's log."""
        text = (self._directory / "broker.log").read_text(encoding="utf-8", errors="replace")
        return " / ".join(text.strip().splitlines()[-3:]) or "it said nothing"
