"""Has the ONNX template made while rounds go on."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

from coordinator.checkpoints import RunDirectory


class TemplateJob:
    """Runs coordinator.make_template in a child process. `warn` is told why there will be no template, if so."""

    def __init__(self, directory: RunDirectory, warn: Callable[[str], None]) -> None:
        self._directory = directory
        self._warn = warn
        self._task: asyncio.Task[Path | None] | None = None

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._make())

    async def result(self) -> Path | None:
        """The file; None where the model has no ONNX form, or onnx is not installed."""
        self.start()
        assert self._task is not None
        return await self._task

    async def stop(self) -> None:
        """Leave nothing running."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _make(self) -> Path | None:
        if self._directory.template.exists():
            return self._directory.template
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "coordinator.make_template",
            str(self._directory.path),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            _, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode == 0:
            return self._directory.template
        last = errors.decode(errors="replace").strip().rpartition("\n")[2]
        self._warn(f"no ONNX template, so devices will not export: {last}")
        return None
