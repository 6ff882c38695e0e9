"""Does the journal tell the truth? Every closed round's aggregate is computed again from the kept updates.

Needs a run with run.keep_updates.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from coordinator.admission import kept
from coordinator.checkpoints import RunDirectory, update_name
from coordinator.journal import Line, read_journal
from shared.codec import open_payload, write_payload
from shared.errors import MalformedPayload, StateError
from shared.tensors import Subnet

if TYPE_CHECKING:
    from coordinator.ledger import Ledger


@dataclass
class Audit:
    """What an audit found.

    rounds   closed rounds whose aggregate was computed again, and came out bit for bit as the journal says
    updates  accepted updates that were looked at
    unkept   closed rounds of which nothing was kept: they closed while run.keep_updates was off
    faults   what is not as the journal says, a sentence each; empty: everything is
    """

    rounds: int = 0
    updates: int = 0
    unkept: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def audit_run(directory: RunDirectory) -> Audit:
    """Compare the journal of the run with what was kept. Changes nothing.

    StateError if the folder holds no run, or a coordinator works in it. Memory O(model); about as long as closing all
    those rounds took.
    """
    run = directory.record().run
    with directory.locked():
        return _audit(directory, run)


def _audit(directory: RunDirectory, run: str) -> Audit:
    from coordinator.ledger import Ledger  # imports torch

    found, checkpoint = Audit(), directory.peek()
    lines = list(read_journal(directory.journal_path))
    closed = [line for line in lines if line["event"] == "round"]
    if (numbers := [line["round"] for line in closed]) != list(range(1, len(closed) + 1)):
        found.faults.append(f"the journal has rounds {numbers}, which are not 1, 2, 3 ...")
    if checkpoint is None:
        return found
    missing = checkpoint.engine.closed - len(closed)
    if missing not in ((0, 1) if checkpoint.line not in lines else (0,)):  # killed before the last line was written
        found.faults.append(f"the checkpoint has {checkpoint.engine.closed} closed rounds, the journal {len(closed)}")
    ledger = Ledger(directory, checkpoint.round)
    for before, line in zip([None, *closed], closed, strict=False):
        number, start = line["round"], _start(directory, line["round"])
        if not directory.kept(number).exists():
            found.unkept.append(number)
        elif start is None:
            found.faults.append(f"round {number}: the global tensors that it started from are missing")
        elif before is not None and (digest := _digest(start)) != before["digest"]:
            found.faults.append(
                f"round {number} started from {digest}, but round {before['round']} ended with {before['digest']}"
            )
        else:
            _audit_round(found, directory, ledger, run, line, start)
    for line in lines:
        if line["event"] == "personalized" and closed and line["digest"] != closed[-1]["digest"]:
            found.faults.append(f"personalized from {line['digest']}, the last round ended with {closed[-1]['digest']}")
    return found


def _audit_round(found: Audit, directory: RunDirectory, ledger: "Ledger", run: str, line: Line, start: Path) -> None:
    number, entries = line["round"], line["accepted"]
    names = [update_name(entry["device"], entry["start"], number) for entry in entries]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        found.faults.append(f"round {number}: the journal counts {', '.join(twice)} more than once")
    files = dict(sorted((path.stem, path) for path in directory.kept(number).glob("*.update")))  # as they were folded
    told = dict(zip(names, entries, strict=True))
    for device in sorted(told.keys() - files.keys()):
        found.faults.append(f"round {number}: the update of {device}, which the journal counts, is missing")
    for device in sorted(files.keys() - told.keys()):
        found.faults.append(f"round {number}: {files[device]} is kept, but the journal does not count it")
    wrong = len(found.faults)
    for device in sorted(files.keys() & told.keys()):
        found.updates += 1
        found.faults += _compare(files[device], told[device], ledger.limit, run, number)
    if len(found.faults) > wrong:
        return
    try:
        with ledger.combined(start, files.values()) as new:
            digest = _digest_of(new, run, number + 1)
    except (StateError, MalformedPayload) as error:
        found.faults.append(f"round {number}: cannot be computed again: {error}")
        return
    if digest != line["digest"]:
        found.faults.append(f"round {number} ended with {line['digest']}; computed again it is {digest}")
    else:
        found.rounds += 1


def _compare(path: Path, entry: Line, limit: int, run: str, number: int) -> list[str]:
    """What a kept update says of itself that the journal says differently."""
    try:
        with open_payload(path, limit=limit) as payload:
            header, share = payload.header, kept(payload.subnet.held)
    except MalformedPayload as error:
        return [f"round {number}: {path} is damaged: {error}"]
    said = {
        "run": (header.run, run),
        "round": (header.round, entry["start"]),
        "weight": (header.weight, entry["weight"]),
        "examples": (header.examples, entry["examples"]),
        "encoding": (header.encoding, entry["encoding"]),
        "kept": (share, entry["kept"]),
        "bytes": (path.stat().st_size, entry["bytes"]),
    }
    return [
        f"round {number}: {name} of {path} is {ours!r}, the journal says {told!r}"
        for name, (ours, told) in said.items()
        if ours != told
    ]


def _start(directory: RunDirectory, number: int) -> Path | None:
    """The global tensors that round `number` started from, where they are still there."""
    places = directory.kept(number) / "start.payload", directory.global_payload(number)
    return next((path for path in places if path.exists()), None)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Hash:
    """A file that keeps nothing but the digest of what is written."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def write(self, block: bytes | memoryview) -> int:
        self.sha256.update(block)
        return memoryview(block).nbytes


def _digest_of(subnet: Subnet, run: str, number: int) -> str:
    """SHA-256 of the global payload that these tensors would be written as."""
    sink = _Hash()
    write_payload(cast(BinaryIO, sink), subnet, run=run, round=number)
    return sink.sha256.hexdigest()
