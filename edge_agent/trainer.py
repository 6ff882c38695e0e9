"""Runs the trainer in a process of its own. The agent itself never imports torch.

Whatever ends that process - its memory budget, the kernel's out-of-memory killer, an illegal instruction in a wheel
that was not built for this processor - is an Outcome with a code, and the agent lives on.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from pydantic import ValidationError

from edge_agent.job import OUTCOME, Job, Outcome
from edge_agent.shared_server import LENDER

Work: TypeAlias = Callable[[Job], Awaitable[Outcome]]
"""Does a job: writes its files into job.out and tells how it ended. Cancelled, it leaves nothing running."""

GRACE_S = 10.0
"""A trainer watches its deadline itself, between batches; one that does not is killed this much later."""
STOP_S = 5.0
"""A killed process is gone well within this."""


class Trainer:
    """A Work: each job in a fork of `edge_agent.fork_server`, one at a time; or of the server that LENDER names.

    keep_warm  keep the training library loaded between jobs (about 220 MB), so that a job starts in milliseconds;
               otherwise the memory is given back after each
    entry      `module:function` that is called with the path of the job's JSON
    """

    def __init__(self, *, keep_warm: bool = True, entry: str = "edge_agent.worker:main", grace_s: float = GRACE_S):
        self._keep_warm = keep_warm
        self._entry = entry
        self._grace_s = grace_s
        self._server: asyncio.subprocess.Process | None = None
        self._ready = False
        self._busy = asyncio.Lock()

    async def warm(self) -> None:
        """Begin to load the training library, so that the first job need not wait for it."""
        if self._keep_warm:
            async with self._busy:
                await self._start()

    async def __call__(self, job: Job) -> Outcome:
        """Run the job. Never raises for what happens in the trainer; cancelled, it kills it first."""
        end = time.monotonic() + job.deadline_s
        async with self._busy:
            try:
                async with asyncio.timeout(job.deadline_s):
                    await self._start()
                    await self._until_ready()
                return await self._run(job.model_copy(update={"deadline_s": max(end - time.monotonic(), 0.001)}))
            except TimeoutError:
                return Outcome(code="out_of_time", reason="the deadline passed while the training library was loading")
            finally:
                if not self._keep_warm:
                    await self.close()

    async def close(self) -> None:
        """End the fork server and what it runs. Bounded."""
        server, self._server = self._server, None
        if server is None or server.returncode is not None:
            return
        assert server.stdin is not None
        if self._ready:
            server.stdin.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_S):
                    await server.wait()
        if server.returncode is None:  # still loading, or hanging
            server.kill()
            await server.wait()

    async def _start(self) -> None:
        if self._server is None or self._server.returncode is not None:
            self._ready = False
            lender = os.environ.get(LENDER)
            server = ("edge_agent.shared_server", lender) if lender else ("edge_agent.fork_server", self._entry)
            self._server = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                *server,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )

    async def _until_ready(self) -> None:
        if not self._ready:
            self._ready = await self._reply() == "ready"

    async def _reply(self) -> str:
        """The fork server's next line; empty if it died."""
        assert self._server is not None
        assert self._server.stdout is not None
        return (await self._server.stdout.readline()).decode().strip()

    async def _run(self, job: Job) -> Outcome:
        path = job.out / "job.json"
        path.write_text(job.model_dump_json())
        try:
            async with asyncio.timeout(job.deadline_s + self._grace_s):
                await self._command(str(path))
                status = await self._reply()
        except TimeoutError:
            await self._kill_job()
            return Outcome(code="out_of_time", reason="the trainer was killed: it did not stop at its deadline")
        except asyncio.CancelledError:
            await self._kill_job()
            raise
        if not status:
            return await self._server_died()
        return _outcome(job, int(status))

    async def _command(self, line: str) -> None:
        assert self._server is not None
        assert self._server.stdin is not None
        with contextlib.suppress(ConnectionError):  # the missing reply tells that it died
            self._server.stdin.write(f"{line}\n".encode())
            await self._server.stdin.drain()

    async def _kill_job(self) -> None:
        try:
            async with asyncio.timeout(STOP_S):
                await self._command("")
                await self._reply()
        except TimeoutError:
            await self.close()

    async def _server_died(self) -> Outcome:
        """It could not load the training library, or the kernel chose it when memory was short."""
        assert self._server is not None
        status = await self._server.wait()
        if status >= 0:
            return Outcome(
                code="crashed",
                reason=f"the training library could not be loaded (exit status {status}); see `talaria-agent doctor`",
            )
        return _signalled(-status)


def _outcome(job: Job, status: int) -> Outcome:
    """What the trainer wrote, or what its exit status (negative: a signal) says."""
    if status < 0:
        return _signalled(-status)
    path = job.out / OUTCOME
    try:
        return Outcome.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return Outcome(
            code="crashed", reason=f"the trainer ended with status {status} and left no outcome; see its log"
        )


def _signalled(number: int) -> Outcome:
    name = signal.Signals(number).name
    if number == signal.SIGKILL:
        reason = f"the trainer was killed ({name}), as the kernel does when memory is short"
        return Outcome(code="out_of_memory", reason=f"{reason}; lower training.memory_mib or batch_size in the profile")
    if number == signal.SIGILL:
        reason = f"the training library uses an instruction that this processor lacks ({name})"
        return Outcome(code="illegal_instruction", reason=f"{reason}; install torch 2.9 on ARMv8.0")
    return Outcome(code="crashed", reason=f"the trainer was ended by {name}")
