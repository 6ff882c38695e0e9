"""What the device remembers, on its disk and nowhere else.

    lock                   held by the running agent
    format                 number of the way in which all this is kept
    epoch                  how often this agent was started
    current                which generation counts, and whether its answer is settled
    generations/0000012/   record.json and the files of the last finished task: memory, and the update until its receipt
    downloads/             payloads, whole or in parts
    models/                exported models (edge_agent.export)
    budget                 what of the day's bytes is used up, on a metered link (edge_agent.budget)
    pace                   how long the last update took on its way; a statistic as well
    traffic                bytes sent and received during the current run; a statistic, so no write waits for the disk

A finished task becomes a generation: its files are written and synced first, then `current` is replaced in one step, so
memory and pending update change together, whatever kills the process or the power in between. What cannot be read or
does not have its digest is not used: the previous generation if it is still there, otherwise a clean start, and a
warning says so.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Literal

from edge_agent.entries import Entry, read_entry, sealed
from edge_agent.events import Key
from edge_agent.job import MEMORY, UPDATE
from shared.errors import StateError
from shared.files import atomic_write, sync_directory, sync_file
from shared.messages import Offer, Report

log = logging.getLogger(__name__)

RECORD = "record.json"
FORMAT = 1
"""Grows when a version keeps its state in a way that the one before cannot read."""
FORMAT_FILE = "format"


class Record(Entry):
    """One finished task. files: name -> SHA-256 of what must be intact; examples: this device's training examples."""

    key: Key
    answer: Offer | Report
    files: dict[str, str]
    examples: int


class Current(Entry):
    """answer: `pending` until its receipt, then `accepted`, or `dropped` where the same task may be done again."""

    generation: int
    answer: Literal["pending", "accepted", "dropped"]


class Traffic(Entry):
    """Payload bytes on the link, both ways, since the run began."""

    run: str = ""
    up: int = 0
    down: int = 0


class Pace(Entry):
    """Seconds that the last update of this run took on its way."""

    run: str = ""
    upload_s: float = 0.0


class Store:
    """One device's state folder. Opening it counts a start; StateError if another agent has it open, or if another
    version has written it in a format of its own.

    epoch       number of this start, larger than that of every earlier one
    downloads   folder for payloads
    models      folder for exported models
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.downloads = directory / "downloads"
        self.models = directory / "models"
        self._generations = directory / "generations"
        for folder in (self.downloads, self.models, self._generations):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise StateError(f"{directory} is in use by another agent: give each agent its own state_dir") from error
        self._check_format()
        self.epoch = self._count_start()
        self._traffic = read_entry(directory / "traffic", Traffic) or Traffic()
        self._pace = read_entry(directory / "pace", Pace) or Pace()
        self._current, self._record = self._load()
        self._sweep()

    def close(self) -> None:
        os.close(self._lock)

    # --- the last finished task ---

    @property
    def done(self) -> Key | None:
        """The last task that needs no doing again."""
        return self._record.key if self._record and self._current.answer != "dropped" else None

    @property
    def answer(self) -> Offer | Report | None:
        """The answer that has no receipt yet."""
        return self._record.answer if self._record and self._current.answer == "pending" else None

    @property
    def update(self) -> Path:
        """The payload of a pending offer."""
        return self._folder / UPDATE

    @property
    def examples(self) -> int:
        """Training examples of this device, as its last task counted them; 0 before the first."""
        return self._record.examples if self._record else 0

    def memory(self, run: str) -> Path | None:
        """What the device remembers of this run; another run's memory is of no use to it."""
        known = self._record and self._record.key.run == run and MEMORY in self._record.files
        return self._folder / MEMORY if known else None

    def workspace(self) -> Path:
        """A fresh, empty folder for the results of a task, for `commit`."""
        folder = self._generation(self._current.generation + 1)
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        return folder

    def commit(self, workspace: Path, key: Key, answer: Offer | Report, examples: int, settled: dict[str, str]) -> None:
        """Make the files of the workspace, which `settle` went over, the device's memory and pending answer: durably
        and in one step."""
        record = Record(key=key, answer=answer, files=settled, examples=examples)
        atomic_write(workspace / RECORD, sealed(record))
        sync_directory(self._generations)
        self._switch(Current(generation=int(workspace.name), answer="pending"))
        self._record = record
        self._sweep()

    def forget(self, *, accepted: bool) -> None:
        """Drop the pending answer, durably. The memory stays."""
        if self.answer is not None:
            self._switch(self._current.model_copy(update={"answer": "accepted" if accepted else "dropped"}))
            self.update.unlink(missing_ok=True)

    def keep_downloads(self, *digests: str) -> None:
        """Remove every download but these, whole or in parts."""
        for path in self.downloads.iterdir():
            if not any(digest in path.name for digest in digests):
                path.unlink()

    def free_bytes(self) -> int:
        """Space that is left on the disk of this state."""
        return shutil.disk_usage(self.directory).free

    # --- traffic ---

    def traffic(self, run: str, *, up: int, down: int) -> Traffic:
        """The run's traffic with these bytes added: from them on, where it is another run than the last."""
        before = self._traffic if self._traffic.run == run else Traffic(run=run)
        return Traffic(run=run, up=before.up + up, down=before.down + down)

    def count(self, run: str, *, up: int, down: int) -> Traffic:
        """The same, written down; a killed process finds it again, and after a power failure there may be an older
        one, or none."""
        self._traffic = self.traffic(run, up=up, down=down)
        self._note("traffic", self._traffic)
        return self._traffic

    # --- pace ---

    def upload_s(self, run: str) -> float | None:
        """Seconds that the last update of this run took on its way; None where that is not known."""
        return self._pace.upload_s if self._pace.run == run else None

    def took(self, run: str, seconds: float) -> None:
        """An update of this run was on its way for so long."""
        self._pace = Pace(run=run, upload_s=seconds)
        self._note("pace", self._pace)

    # --- inside ---

    @property
    def _folder(self) -> Path:
        return self._generation(self._current.generation)

    def _note(self, name: str, entry: Entry) -> None:
        """Write it whole, without waiting for the disk."""
        temporary = self.directory / f".{name}.tmp"
        temporary.write_bytes(sealed(entry))
        temporary.replace(self.directory / name)

    def _generation(self, number: int) -> Path:
        return self._generations / f"{number:07d}"

    def _check_format(self) -> None:
        """Before anything is read: what another version keeps otherwise would look damaged, and be given up."""
        path = self.directory / FORMAT_FILE
        found = path.read_text().strip() if path.exists() else str(FORMAT)
        if found != str(FORMAT):
            self.close()
            raise StateError(
                f"{self.directory} is kept in format {found[:20]!r}, and this version knows {FORMAT}: run the "
                "version that wrote it, or give this one another state_dir"
            )
        if not path.exists():
            atomic_write(path, f"{FORMAT}\n".encode())

    def _count_start(self) -> int:
        """A fresh or broken state counts from the wall clock: later than any start that the coordinator may remember
        of a device of this name."""
        path = self.directory / "epoch"
        try:
            epoch = int(path.read_text()) + 1
        except (OSError, ValueError):
            epoch = int(time.time())
        atomic_write(path, f"{epoch}\n".encode())
        return epoch

    def _load(self) -> tuple[Current, Record | None]:
        numbers = sorted((int(p.name) for p in self._generations.iterdir() if p.name.isdigit()), reverse=True)
        current = read_entry(self.directory / "current", Current)
        if current is None:
            if not (self.directory / "current").exists():
                return Current(generation=0, answer="dropped"), None  # nothing was ever finished
        elif record := self._intact(current):
            return current, record
        for number in numbers:
            if current is not None and number >= current.generation:
                continue
            fallback = Current(generation=number, answer="dropped")
            if record := self._intact(fallback):
                log.warning("%s: the latest state is damaged; going on from the one before it", self.directory)
                return fallback, record
        log.warning("%s: the state is damaged and no earlier one is left; starting clean", self.directory)
        return Current(generation=numbers[0] if numbers else 0, answer="dropped"), None

    def _intact(self, current: Current) -> Record | None:
        folder = self._generation(current.generation)
        record = read_entry(folder / RECORD, Record)
        if record is None:
            return None
        for name, digest in record.files.items():
            if name == UPDATE and current.answer != "pending":
                continue
            if not (folder / name).is_file() or _digest(folder / name) != digest:
                log.warning("%s is damaged", folder / name)
                return None
        return record

    def _switch(self, current: Current) -> None:
        atomic_write(self.directory / "current", sealed(current))
        self._current = current

    def _sweep(self) -> None:
        """Remove every generation but the current one."""
        for folder in self._generations.iterdir():
            if folder != self._folder or self._record is None:
                shutil.rmtree(folder)


def settle(workspace: Path) -> dict[str, str]:
    """Wait until all files in the folder are on the disk; the digests of those that must be intact. Takes a while for
    large ones, and touches nothing that the store uses."""
    for path in workspace.iterdir():
        sync_file(path)
    return {name: _digest(workspace / name) for name in (MEMORY, UPDATE) if (workspace / name).exists()}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
