"""The folder of a run: whatever kills the coordinator, a restart finds the same round and every accepted update once.

run.json                          id and settings of the run, written once
lock                              held while a coordinator works here
starts                            how often a coordinator was started here
state.json                        the checkpoint: the engine, which global payload, the last journal line
globals/00003.payload             dense shared tensors that round 3 starts from; its masks: the channels that are sent
downloads/00003/                  what round 3's devices are sent where that is not the global payload: one file for all
                                  that hold the same channels and read the same encoding
held/phone.payload                the channels of the device's last accepted update, without any tensor
rounds/00003/phone.update         accepted updates of round 3
rounds/00003/phone@00001.update   one that started from round 1, where rounds are buffered
rounds/00003/incoming/            updates that are being received; where rounds are buffered, rounds/incoming/
kept/00002/                       with run.keep_updates, what the closed round 2 was made of: phone.update, and the
                                  tensors that it started from as start.payload, once globals/ no longer has them
reports/phone.json                metrics of the personalized devices
definition.json                   what devices are told, and the channel layout
initial.payload                   the complete state that the run starts from, where the settings name one
template.onnx                     dense ONNX template of the model
journal.jsonl                     one line per closed round

The checkpoint is the only truth: what it does not refer to is removed after it is durable, or at the next start. Only
the previous round's payloads stay a round longer, for they may still be on their way to the broker, and those of a
round that somebody at work, or an accepted update, started from. What is below
held/ may be lost or old: a device is then sent more than it holds, and no more is lost than bytes.
"""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from coordinator.events import Snapshot
from coordinator.fleet import Sleep
from coordinator.journal import Journal, Line
from shared.config import RunConfig
from shared.errors import StateError
from shared.files import atomic_write, sync_directory
from shared.messages import Blob, Identifier, Report


@dataclass(frozen=True)
class RunRecord:
    run: Identifier
    config: RunConfig


@dataclass(frozen=True)
class Checkpoint:
    """
    line      the journal's newest line, which may not be in the journal yet
    payloads  what may be with the broker
    asleep    devices that sleep, and since when
    """

    engine: Snapshot
    line: Line | None = None
    payloads: tuple[Blob, ...] = ()
    asleep: dict[str, Sleep] = field(default_factory=dict)

    @property
    def round(self) -> int:
        return self.engine.closed + 1


def update_name(device: str, start: int, number: int) -> str:
    """What an update of round `number` is called that started from round `start`: the device, if they are the same."""
    return device if start == number else f"{device}@{start:05}"


def update_start(name: str, number: int) -> int:
    """The round that the update of this name started from."""
    return int(name.rpartition("@")[2]) if "@" in name else number


T = TypeVar("T")
RECORD, CHECKPOINT, REPORT = TypeAdapter(RunRecord), TypeAdapter(Checkpoint), TypeAdapter(Report)


class RunDirectory:
    """One run's folder. Every method that writes returns when the disk has it; OSError where the disk refuses."""

    def __init__(self, path: Path, *, keep: bool = False) -> None:
        """keep: what closed rounds were made of stays, for an audit."""
        self.path = path
        self._keep = keep
        self.definition = path / "definition.json"
        self.initial = path / "initial.payload"
        self.template = path / "template.onnx"
        self.journal_path = path / "journal.jsonl"

    @property
    def exists(self) -> bool:
        """Whether a run was started here."""
        return (self.path / "run.json").exists()

    def create(self, record: RunRecord) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        for name in ("globals", "downloads", "held", "rounds", "reports"):
            (self.path / name).mkdir(exist_ok=True)
        atomic_write(self.path / "run.json", RECORD.dump_json(record, indent=2))

    def discard(self) -> None:
        """No run was begun here after all."""
        (self.path / "run.json").unlink()

    def record(self) -> RunRecord:
        return self._read("run.json", RECORD)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else may work here meanwhile; StateError if somebody does. The lock dies with the process."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StateError(f"{self.path} is in use by another coordinator; stop it first") from error
            yield

    def count_start(self) -> int:
        """The number of this start, from 1."""
        path = self.path / "starts"
        number = int(path.read_text()) + 1 if path.exists() else 1
        atomic_write(path, str(number).encode())
        return number

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def peek(self) -> Checkpoint | None:
        """The last checkpoint; None before the first. Changes nothing, so it needs no lock."""
        return self._read("state.json", CHECKPOINT) if (self.path / "state.json").exists() else None

    def load(self) -> Checkpoint | None:
        """The last checkpoint, with everything removed that does not belong to it."""
        checkpoint = self.peek()
        if checkpoint is not None:
            self._settle(checkpoint)
        return checkpoint

    def save(self, checkpoint: Checkpoint) -> None:
        """The global payload of its round must have been written before."""
        atomic_write(self.path / "state.json", CHECKPOINT.dump_json(checkpoint))
        self._settle(checkpoint)

    @cached_property
    def _journal(self) -> Journal:
        return Journal(self.journal_path)

    def _settle(self, checkpoint: Checkpoint) -> None:
        if checkpoint.line is not None:
            self._journal.append(checkpoint.line)
        incoming = self.incoming(checkpoint.round)
        if not incoming.exists():
            incoming.mkdir(parents=True)
            sync_directory(self.path / "rounds")
        started = {update_start(name, checkpoint.round) for name in self.accepted(checkpoint.round)}
        numbers = {checkpoint.round - 1, checkpoint.round, *checkpoint.engine.asked.values(), *started}
        for payload in {*(self.path / "globals").iterdir()} - {self.global_payload(number) for number in numbers}:
            kept = self.kept(int(payload.stem))
            if self._keep and payload.suffix == ".payload" and kept.exists():
                self._put_by(payload, kept / "start.payload")  # its updates are there since the round was closed
            else:
                payload.unlink()
        for folder in {*(self.path / "downloads").iterdir()} - {self.downloads(number) for number in numbers}:
            shutil.rmtree(folder)
        for folder in (self.path / "rounds").iterdir():
            if folder not in (self._round(checkpoint.round), self.incoming(None)):
                if self._keep:
                    for update in folder.glob("*.update"):
                        self._put_by(update, self.kept(int(folder.name)) / update.name)
                shutil.rmtree(folder, ignore_errors=True)  # what is being received there goes the next time

    def _put_by(self, path: Path, place: Path) -> None:
        """Move a file of a closed round to where an audit looks for it."""
        if not place.parent.exists():
            place.parent.mkdir(parents=True)
            sync_directory(place.parent.parent)
            sync_directory(self.path)
        path.replace(place)
        sync_directory(place.parent)

    # --- files of a round -------------------------------------------------------------------------------------------

    def global_payload(self, number: int) -> Path:
        return self.path / "globals" / f"{number:05}.payload"

    def downloads(self, number: int) -> Path:
        """The folder of what is cut and encoded for the devices of this round; made when the first file is."""
        return self.path / "downloads" / f"{number:05}"

    def kept(self, number: int) -> Path:
        """The folder of what a closed round was made of; there where updates are kept."""
        return self.path / "kept" / f"{number:05}"

    def start(self, number: int) -> Path:
        """The global tensors that round `number` starts from, where they are now."""
        kept = self.kept(number) / "start.payload"
        return kept if kept.exists() else self.global_payload(number)

    def held(self, device: str) -> Path:
        return self.path / "held" / f"{device}.payload"

    def incoming(self, number: int | None) -> Path:
        """Where updates are received, one file per device; None: those that may arrive in a later round."""
        return (self.path / "rounds" if number is None else self._round(number)) / "incoming"

    def accepted(self, number: int) -> dict[str, Path]:
        """The accepted updates of this round by their names (`update_name`), in the order of these."""
        return dict(sorted((path.stem, path) for path in self._round(number).glob("*.update")))

    def accept(self, number: int, device: str, received: Path, start: int | None = None) -> Path:
        """Move a received update, whose bytes are durable, to the accepted ones of round `number`: after a kill it
        counts, after a power failure only when `confirm` returned before. start: the round that it started from, if
        that is another."""
        place = self._round(number) / f"{update_name(device, number if start is None else start, number)}.update"
        received.replace(place)
        return place

    def confirm(self, number: int) -> None:
        """What was accepted in this round counts from now on, whatever happens."""
        sync_directory(self._round(number))

    # --- reports ----------------------------------------------------------------------------------------------------

    def add_report(self, device: str, report: Report) -> None:
        atomic_write(self.path / "reports" / f"{device}.json", report.model_dump_json().encode())

    def reports(self) -> dict[str, Report]:
        """Device -> its report, by name."""
        return {
            path.stem: self._read(f"reports/{path.name}", REPORT)
            for path in sorted((self.path / "reports").glob("*.json"))
        }

    # ----------------------------------------------------------------------------------------------------------------

    def _round(self, number: int) -> Path:
        return self.path / "rounds" / f"{number:05}"

    def _read(self, name: str, adapter: TypeAdapter[T]) -> T:
        try:
            return adapter.validate_json((self.path / name).read_bytes())
        except FileNotFoundError as error:
            raise StateError(f"{self.path} holds no run: {name} is missing") from error
        except ValidationError as error:
            raise StateError(f"{self.path / name} cannot be read: {error}") from error
