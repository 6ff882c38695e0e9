"""What must hold after a chaos run, whatever happened in it. Each check answers with the sentences of what does not."""

import logging
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordinator.checkpoints import RunDirectory
from coordinator.journal import read_journal
from edge_agent import slots
from edge_agent.store import Store
from shared.errors import ExportError, StateError

if TYPE_CHECKING:
    from coordinator.audit import Audit

LARGEST_MIB = 1500.0
"""No process of ours may need more: torch itself takes a third of that."""
GROWTH_MIB = 60.0
GROWTH = 1.3
"""What one life of a process may need later, over what it needed before, beside GROWTH_MIB."""


@dataclass
class Evidence:
    """What was seen of one run from outside.

    accepted  (round that it started from, device) of every update that the coordinator said it had accepted
    receipts  (round, device) of every receipt of an accepted update that was seen on the wire
    reported  devices that the coordinator's last line counts as personalized
    """

    accepted: list[tuple[int, str]] = field(default_factory=list)
    receipts: set[tuple[int, str]] = field(default_factory=set)
    reported: list[str] = field(default_factory=list)


def lost_or_twice(run_dir: Path, evidence: Evidence) -> Iterable[str]:
    """An update that was accepted, or whose receipt was seen, is in the journal, once."""
    counted = Counter(
        (entry["start"], entry["device"])
        for line in read_journal(run_dir / "journal.jsonl")
        if line["event"] == "round"
        for entry in line["accepted"]
    )
    for (number, device), count in counted.items():
        if count > 1:
            yield f"{run_dir.name}: round {number} counts {device} {count} times"
    for (number, device), count in Counter(evidence.accepted).items():
        if count > 1:
            yield f"{run_dir.name}: the update of {device} in round {number} was accepted {count} times"
        if (number, device) not in counted:
            yield f"{run_dir.name}: the update of {device} in round {number} was accepted, and is lost"
    for number, device in sorted(evidence.receipts - counted.keys()):
        yield f"{run_dir.name}: {device} has a receipt for round {number}, and its update is lost"


def audited(run_dir: Path) -> tuple["Audit", list[str]]:
    """Every aggregate is the one that comes out again."""
    from coordinator.audit import audit_run  # imports torch, which a fleet that starts need not wait for

    found = audit_run(RunDirectory(run_dir))
    faults = [f"{run_dir.name}: {fault}" for fault in found.faults]
    if found.unkept:
        faults.append(f"{run_dir.name}: nothing was kept of rounds {found.unkept}")
    return found, faults


class _Complaints(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def torn(device: str, state: Path, *, personalized: bool) -> Iterable[str]:
    """The device's state opens without a complaint; the model in service loads and computes."""
    logger, complaints = logging.getLogger("edge_agent.store"), _Complaints()
    logger.addHandler(complaints)
    try:
        Store(state).close()
    except (StateError, OSError) as error:
        yield f"{device}: its state does not open: {error}"
    finally:
        logger.removeHandler(complaints)
    yield from (f"{device}: {text}" for text in complaints.said)
    try:
        folder = slots.in_service(state / "models")
    except ExportError as error:
        if personalized:
            yield f"{device}: reported a personal model, but {error}"
        return
    try:
        import onnxruntime

        session = onnxruntime.InferenceSession(folder / slots.MODEL, providers=["CPUExecutionProvider"])
        session.get_inputs()
    except Exception as error:
        yield f"{device}: its model does not load: {error}"


def unbounded(samples: Mapping[tuple[str, int], Sequence[float]]) -> Iterable[str]:
    """Memory by (party, start), in MiB at even times: bounded, and not growing with time."""
    for (party, start), values in samples.items():
        if values and max(values) > LARGEST_MIB:
            yield f"{party}, start {start}: {max(values):.0f} MiB, more than {LARGEST_MIB:.0f}"
        if len(values) < 60:
            continue  # too short a life to tell
        quarter = len(values) // 4
        early, late = statistics.median(values[quarter : 2 * quarter]), statistics.median(values[-quarter:])
        if late > GROWTH * early + GROWTH_MIB:
            yield f"{party}, start {start}: grew from {early:.0f} to {late:.0f} MiB"


def tracebacks(logs: Iterable[Path]) -> Iterable[str]:
    """A program of ours that dies says why in one line; a traceback is a bug, whatever caused it."""
    for log in logs:
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        for index, line in enumerate(lines):
            if line.startswith("Traceback ("):
                last = next((each for each in lines[index + 1 :] if each and not each.startswith((" ", "Trace"))), "")
                yield f"{log}, line {index + 1}: a traceback: {last}"


def disbelieved(logs: Iterable[Path]) -> Iterable[str]:
    """Nobody lies in a chaos run, so everything that devices hear is theirs to believe; but what links repeat or
    overtake may come too late (`replayed`)."""
    for log in logs:
        for line in log.read_text(errors="replace").splitlines() if log.exists() else ():
            if "ignored a message on" in line and ": replayed: " not in line:
                yield f"{log}: {line}"


def evidence_of(lines: Iterable[Mapping[str, Any]]) -> Evidence:
    """From what a coordinator told, over all its starts."""
    found = Evidence()
    for line in lines:
        if line.get("event") == "accepted":
            found.accepted.append((line["start"], line["device"]))
        elif line.get("event") == "finished":
            found.reported = line["reported"]
    return found
