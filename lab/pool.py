"""Trainers for a whole simulated fleet: as many as there are cores, in processes that share the data. No torch here."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from edge_agent.job import Job, Outcome
from edge_agent.trainer import GRACE_S
from shared.children import dying_with_us
from shared.config_data import DataSettings
from shared.errors import ConfigError, DataError

LONGEST_LINE = 2**24


@dataclass(frozen=True)
class _Trainer:
    """The connection to one trainer, and its process id."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    process: int

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process, signal.SIGKILL)
        self.writer.close()


class TrainerPool:
    """An edge_agent.trainer.Work for all devices of a fleet: each job in whichever trainer is free.

    Async context manager; entering it reads the data of the whole fleet, each source once (lab.trainers). ConfigError
    or DataError where that fails.

    cpu_s     CPU seconds that the trainers took for all jobs so far
    classes   what the classes are called
    counts    device -> its training examples of each class
    """

    def __init__(self, data: Mapping[str, DataSettings], size: int | None = None) -> None:
        """`data`: device -> what it learns from; size: trainers, the machine's cores by default."""
        self._data = data
        self.size = min(size or os.cpu_count() or 1, len(data))
        self.cpu_s = 0.0
        self.classes: tuple[str, ...] = ()
        self.counts: dict[str, list[int]] = {}
        self._free: asyncio.Queue[_Trainer | None] = asyncio.Queue()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))  # short, as a socket's name has to be
            self._path = folder / "trainers"
            self._server = await self._start()
            stack.push_async_callback(self._stop)
            await self._read_data()
            for _ in range(self.size):
                self._free.put_nowait(None)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def __call__(self, job: Job) -> Outcome:
        """Do the job. Its deadline starts when a trainer is free."""
        trainer = await self._free.get()
        fit = None
        try:
            trainer = trainer or await self._connect()
            async with asyncio.timeout(job.deadline_s + GRACE_S):
                outcome = await self._do(trainer, job)
            fit = trainer
            return outcome
        except TimeoutError:
            return Outcome(code="out_of_time", reason="the trainer was killed: it did not stop at its deadline")
        except (OSError, asyncio.IncompleteReadError):
            reason = "the trainer died in this job: killed by the kernel, as when memory is short, or by what it ran"
            return Outcome(code="crashed", reason=reason)
        finally:
            if trainer is not fit and trainer is not None:
                trainer.kill()
            self._free.put_nowait(fit)

    async def _do(self, trainer: _Trainer, job: Job) -> Outcome:
        trainer.writer.write(job.model_dump_json().encode() + b"\n")
        await trainer.writer.drain()
        cpu_s, _, outcome = (await trainer.reader.readuntil()).partition(b" ")
        self.cpu_s += float(cpu_s)
        return Outcome.model_validate_json(outcome)

    async def _start(self) -> asyncio.subprocess.Process:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self._path))
            listener.listen(self.size)
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "lab.trainers",
                str(listener.fileno()),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=LONGEST_LINE,
                pass_fds=(listener.fileno(),),
                preexec_fn=dying_with_us(),
            )

    async def _read_data(self) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        fleet = {device: settings.model_dump(mode="json") for device, settings in self._data.items()}
        self._server.stdin.write(json.dumps(fleet).encode())
        self._server.stdin.close()
        line = await self._server.stdout.readline()
        if not line:
            raise DataError("the process that reads the fleet's data died: is there enough memory for all of it?")
        answer = json.loads(line)
        if "code" in answer:
            raise (ConfigError if answer["code"] == ConfigError.code else DataError)(answer["text"])
        self.classes, self.counts = tuple(answer["classes"]), answer["counts"]

    async def _connect(self) -> _Trainer:
        reader, writer = await asyncio.open_unix_connection(self._path, limit=LONGEST_LINE)
        return _Trainer(reader, writer, int(await reader.readuntil()))

    async def _stop(self) -> None:
        """The trainers go with the process that they were forked from."""
        while not self._free.empty():
            if trainer := self._free.get_nowait():
                trainer.writer.close()
        if self._server.returncode is None:
            self._server.kill()
        await self._server.wait()
