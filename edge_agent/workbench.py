"""Where the agent's tasks are carried out: fetch, work, keep the result. One thing at a time, cancellable."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from pathlib import Path

from edge_agent.events import Done, Event, Failed, Fetched, Key
from edge_agent.install import install
from edge_agent.job import UPDATE, Job, Outcome
from edge_agent.metered import Metered
from edge_agent.store import Store, settle
from edge_agent.trainer import Work
from shared.chunks import Assembly, describe
from shared.config import AgentConfig
from shared.errors import ExportError, MalformedPayload, OutOfTime, StateError, TalariaError
from shared.link import packet_size
from shared.messages import Blob, Offer, Report, Task
from shared.profiles import Profile
from shared.topics import Topics
from shared.transfer import Download, chunk_size

log = logging.getLogger(__name__)

UPLOAD_TIMES = 2
"""How much longer than the download the first update may take on its way: mobile links are slower upwards."""
MARGIN = 0.05
"""Share of the time that is left for what surrounds training: evaluation, encoding, the disk."""


class Workbench:
    """Carries out Fetch and Work for the session, and tells it how they ended.

    count   makes the bytes on the link part of the run's traffic, and returns it as metrics
    tell    takes Fetched, Done and Failed; never called for what was cancelled
    """

    def __init__(
        self,
        config: AgentConfig,
        profile: Profile,
        store: Store,
        link: Metered,
        work: Work,
        count: Callable[[str], dict[str, float]],
        tell: Callable[[Event], None],
    ) -> None:
        self._config, self._profile = config, profile
        self._store, self._link, self._do = store, link, work
        self._count, self._tell = count, tell
        self._topics = Topics(config.fleet)
        self._limit = profile.memory_mib * 2**20
        self._free = asyncio.Lock()
        self._duty: asyncio.Task[None] | None = None
        self._chunks: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
        self._wanted: str | None = None
        self._fetch_s = 0.0

    def fetch(self, task: Task) -> None:
        """Begin to bring everything here that the task names."""
        self._begin(task, self._fetch(task))

    def work(self, task: Task, deadline: float) -> None:
        """Begin to work on a task whose payload is here; deadline: on the monotonic clock."""
        self._begin(task, self._work(task, deadline))

    def lacking(self, task: Task) -> int:
        """Upper bound of the bytes of the packets that a fetch of this task would bring; what is here already is not
        fetched again."""
        return sum(self._lacking(blob) for blob in _blobs(task))

    def _lacking(self, blob: Blob) -> int:
        bytes_, chunks = blob.size, blob.chunks
        if blob.size <= self._limit and any(self._store.downloads.glob(f"{blob.digest}*")):
            assembly = Assembly(self._path(blob), blob)
            bytes_ -= assembly.received
            chunks = sum(end - first for first, end in assembly.missing(limit=chunks))
        return bytes_ + chunks * packet_size(self._topics.chunk(blob.digest, 0, blob.chunks), 0)

    def cancel(self) -> None:
        """Stop what is under way."""
        if self._duty is not None:
            self._duty.cancel()

    async def close(self) -> None:
        """Stop what is under way, and wait until it has stopped."""
        if self._duty is not None:
            self._duty.cancel()
            await asyncio.wait([self._duty])
        async with self._free:
            pass

    def take_chunk(self, digest: str, index: int, data: bytes) -> None:
        """A chunk that arrived; ignored unless it is of what is being fetched."""
        if digest == self._wanted:
            self._chunks.put_nowait((index, data))

    def _begin(self, task: Task, duty: Coroutine[None, None, None]) -> None:
        self._duty = asyncio.create_task(self._guard(Key.of(task), duty))

    async def _guard(self, key: Key, duty: Coroutine[None, None, None]) -> None:
        """Do it, and tell if it fails."""
        me = asyncio.current_task()
        assert me is not None
        try:
            async with self._free:  # what was cancelled before may still be on its way out
                await duty
        except Exception as error:
            if me.cancelling():
                return
            if not isinstance(error, TalariaError | OSError):
                log.exception("round %d failed", key.round, extra={"run": key.run, "round": key.round})
            code = error.code if isinstance(error, TalariaError) else "agent"
            self._tell(Failed(key, code, f"{type(error).__name__}: {error}"))
        finally:
            duty.close()

    # --- fetch ---

    async def _fetch(self, task: Task) -> None:
        started = time.monotonic()
        blobs = _blobs(task)
        self._store.keep_downloads(*(blob.digest for blob in blobs))
        for blob in blobs:
            await self._download(task.run, blob)
        self._fetch_s = time.monotonic() - started
        self._tell(Fetched(Key.of(task)))

    async def _download(self, run: str, blob: Blob) -> None:
        self._check_room(blob)
        path = self._path(blob)
        download = Download(self._link, self._topics, self._config.device, run, blob, path)
        self._chunks, self._wanted = asyncio.Queue(), blob.digest
        try:
            if not download.complete:
                await download.start()
            while not download.complete:
                try:
                    async with asyncio.timeout(self._config.stall_s):
                        index, data = await self._chunks.get()
                except TimeoutError:
                    await download.on_stall()
                    continue
                try:
                    await download.on_chunk(index, data)
                except MalformedPayload as error:
                    log.warning("ignored a chunk: %s", error)
            download.finish()
        finally:
            self._wanted = None
            await download.close()

    def _check_room(self, blob: Blob) -> None:
        """Refuse what this device cannot hold, before a byte of it is fetched."""
        if blob.size > self._limit:
            raise StateError(f"a payload of {blob.size} bytes is more than this device's memory ({self._limit} bytes)")
        free = self._store.free_bytes()
        if 3 * blob.size > free:
            raise StateError(
                f"{free} bytes are free in {self._store.directory}, too few for {blob.size} bytes of payload"
            )

    def _path(self, blob: Blob) -> Path:
        return self._store.downloads / blob.digest

    # --- work ---

    async def _work(self, task: Task, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise OutOfTime("the deadline passed while the payload was being fetched")
        known_s = self._store.upload_s(task.run)
        upload_s = UPLOAD_TIMES * self._fetch_s if known_s is None else known_s
        job = Job(
            task=task,
            device=self._config.device,
            payload=self._path(task.payload),
            initial=self._path(task.initial) if task.initial else None,
            template=self._path(task.template) if task.template else None,
            memory=self._store.memory(task.run),
            out=self._store.workspace(),
            data=self._config.data,
            profile=self._profile,
            threads=self._config.threads or self._profile.training.threads,
            trust=self._config.trust,
            deadline_s=left,
            reserve_s=min(left / 2, upload_s + MARGIN * left),
        )
        started = time.monotonic()
        outcome = await self._do(job)
        if not outcome.succeeded:
            self._tell(Failed(Key.of(task), outcome.code, outcome.reason))
            return
        took = time.monotonic() - started
        known = {"run": task.run, "round": task.round}
        log.info("round %d: %s done in %.1f s, as %s", task.round, task.action, took, outcome.encoding, extra=known)
        answer = await self._answer(job, outcome)
        settled = await asyncio.to_thread(settle, job.out)
        # From here to the end nothing is awaited: what is on the disk is always told.
        self._store.commit(job.out, Key.of(task), answer, outcome.examples, settled)
        again = (task.initial, task.template) if task.action == "train" else ()  # the same in every task of the run
        self._store.keep_downloads(*(blob.digest for blob in again if blob is not None))
        self._tell(Done(Key.of(task), answer))

    async def _answer(self, job: Job, outcome: Outcome) -> Offer | Report:
        task = job.task
        if task.action == "train":
            chunk = chunk_size(min(self._link.max_packet, self._profile.link.max_packet))
            blob = await asyncio.to_thread(describe, job.out / UPDATE, chunk)
            return Offer(run=task.run, round=task.round, blob=blob)
        metrics = {**outcome.metrics, **await self._install(job, outcome), **self._count(task.run)}
        return Report(run=task.run, round=task.round, examples=outcome.examples, metrics=metrics)

    async def _install(self, job: Job, outcome: Outcome) -> dict[str, float]:
        """Metrics of the exported model; none where it was refused, which is said and does not undo the training."""
        if job.task.template is None:
            return {}
        template = self._path(job.task.template)
        running = asyncio.ensure_future(asyncio.to_thread(install, job, outcome, template, self._store.models))
        try:
            return await asyncio.shield(running)
        except ExportError as error:
            log.warning("the model in service stays: %s", error)
            return {}
        finally:
            await asyncio.wait([running])  # also when cancelled: two at once would be in each other's way


def _blobs(task: Task) -> list[Blob]:
    """Everything that a task names, in the order in which it is fetched."""
    return [blob for blob in (task.payload, task.initial, task.template) if blob is not None]
