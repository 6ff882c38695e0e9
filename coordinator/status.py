"""How a run stands, read from its folder: also while a coordinator works in it."""

from dataclasses import asdict
from typing import Any

from coordinator.checkpoints import RunDirectory
from coordinator.events import Phase
from coordinator.journal import read_journal
from coordinator.quarantine import Ward


def status_of(directory: RunDirectory) -> dict[str, Any]:
    """run, phase, round (open or next), rounds, attempt, cohort, accepted (devices of this round), reported,
    quarantined (device -> coordinator.quarantine.Entry), history (lines of the journal).
    StateError if the folder holds no run."""
    record, checkpoint = directory.record(), directory.peek()
    phase = checkpoint.engine.phase if checkpoint else Phase.GATHERING
    number = checkpoint.round if checkpoint else 1
    return {
        "run": record.run,
        "phase": str(phase),
        "round": number,
        "rounds": record.config.rounds.count,
        "attempt": checkpoint.engine.attempt if checkpoint else 0,
        "cohort": list(checkpoint.engine.cohort) if checkpoint else [],
        "accepted": sorted({name.partition("@")[0] for name in directory.accepted(number)}),
        "reported": sorted(directory.reports()),
        "quarantined": {device: asdict(entry) for device, entry in Ward(directory.path).entries().items()},
        "history": list(read_journal(directory.journal_path)),
    }


def describe_status(status: dict[str, Any]) -> str:
    """The same for a person."""
    rounds = [line for line in status["history"] if line["event"] == "round"]
    lines = [f"run {status['run']}: {status['phase']}, {len(rounds)} of {status['rounds']} rounds closed"]
    if status["attempt"]:
        waiting = sorted(set(status["cohort"]) - set(status["accepted"]))
        lines.append(
            f"round {status['round']}, attempt {status['attempt']}: {len(status['accepted'])} updates, "
            f"not yet from {', '.join(waiting) or 'nobody'}"
        )
    for line in rounds[-10:]:
        trouble = len(line["rejected"]) + len(line["failed"])
        lines.append(
            f"  round {line['round']}: {len(line['accepted'])} of {len(line['cohort'])} updates, "
            f"{line['bytes_up']} bytes up, {line['wall_s']} s" + (f", {trouble} refused or failed" if trouble else "")
        )
    for device, entry in status["quarantined"].items():
        lines.append(
            f"in quarantine since {entry['since']}: {device}, {entry['count']} times in a row refused or failed, "
            f"{entry['code']}: {entry['reason']}"
        )
    if status["reported"]:
        lines.append(f"reported after personalization: {', '.join(status['reported'])}")
    return "\n".join(lines)
