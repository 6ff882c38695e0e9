"""Lets others see how a run stands while it runs: fleet.json for the tables, and, where run.http says so, pages.

/metrics  for Prometheus (coordinator.metrics)
/health   200 while the broker is connected and the disk takes what is written, else 503; JSON, with the reasons. That
          it answers says that the loop is alive
"""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from coordinator.http import Page, WebServer
from coordinator.survey import Survey, write_survey
from shared.errors import ConfigError

PERIOD_S = 5.0
"""From one look to the next; fleet.json is written when something has changed."""
HEARTBEAT_S = 60.0
"""It is written at least so often, so that its age tells whether a coordinator is at work."""
FILE = "fleet.json"
PROBE = ".probe"
PROBE_S = 2.0
"""How long the disk is believed after it was asked: who asks for /health in a loop must not keep it busy."""


class Observatory:
    """Context manager for as long as the coordinator works in the run's folder."""

    def __init__(self, address: str | None, folder: Path) -> None:
        """`address`: host:port of the pages; None: none."""
        self.look: Callable[[], Survey | None] = lambda: None
        """How things stand; set once there is a fleet."""
        self._address = address
        self._folder = folder
        self._broker = "not connected to the broker yet"
        self._stack = AsyncExitStack()
        self._written: Survey | None = None
        self._disk = ""
        self._probed = -PROBE_S
        self._probing = asyncio.Lock()
        self._metrics: Callable[[dict[str, Any]], None] | None = None

    async def __aenter__(self) -> Self:
        """ConfigError where the address cannot be used."""
        async with AsyncExitStack() as stack:
            if self._address is not None:
                try:
                    from coordinator.metrics import Metrics
                except ImportError as error:
                    raise ConfigError(f"run.http needs {error.name}: pip install 'talaria[coordinator]'") from error
                metrics = self._metrics = Metrics(lambda: self.look())

                async def page() -> Page:
                    return Page(HTTPStatus.OK, "text/plain; version=0.0.4; charset=utf-8", metrics.page())

                pages = {"/metrics": page, "/health": self._health}
                await stack.enter_async_context(WebServer(self._address, pages))
            keeping = asyncio.create_task(self._keep())
            stack.push_async_callback(self._stop, keeping)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def note(self, event: dict[str, Any]) -> None:
        """One event of coordinator.server."""
        match event:
            case {"event": "connected"}:
                self._broker = ""
            case {"event": "disconnected", "reason": reason}:
                self._broker = f"not connected to the broker: {reason}"
        if self._metrics is not None:
            self._metrics(event)

    # ----------------------------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            await self._write()

    async def _write(self, *, serving: bool = True) -> None:
        survey = self.look()
        if survey is None:
            return
        survey = replace(survey, serving=serving, connected=not self._broker and serving)
        before = self._written
        if before is None or not survey.same_as(before) or survey.written - before.written >= HEARTBEAT_S:
            with contextlib.suppress(OSError):  # what needs the disk says so; the view of it must not end a run
                await asyncio.to_thread(write_survey, self._folder / FILE, survey)
                self._written = survey

    async def _stop(self, keeping: asyncio.Task[None]) -> None:
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping
        await self._write(serving=False)

    async def _health(self) -> Page:
        async with self._probing:
            if time.monotonic() - self._probed >= PROBE_S:
                self._disk, self._probed = await asyncio.to_thread(self._probe), time.monotonic()
        reasons = [reason for reason in (self._broker, self._disk) if reason]
        status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
        body = json.dumps({"status": "failing" if reasons else "ok", "reasons": reasons}).encode() + b"\n"
        return Page(status, "application/json", body)

    def _probe(self) -> str:
        """Why nothing can be written; empty where it can."""
        path = self._folder / PROBE
        try:
            with path.open("wb") as file:
                file.write(bytes(4096))
                file.flush()
                os.fsync(file.fileno())
            path.unlink()
        except OSError as error:
            return f"{self._folder} cannot be written: {error.strerror or error}"
        return ""
