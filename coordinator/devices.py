"""What is known of each device of a run, read from its folder: also while a coordinator works in it, and after its
death. The journal has what was, fleet.json how things stood last, the quarantine who is out."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from coordinator.checkpoints import RunDirectory
from coordinator.journal import Line, read_journal
from coordinator.observatory import FILE, HEARTBEAT_S
from coordinator.quarantine import Entry, Ward
from coordinator.survey import DeviceView, State, Survey, read_survey

STALE_S = 2.5 * HEARTBEAT_S
"""A survey that is older was not written by a coordinator that is at work."""
ORDER = list(State)


@dataclass(frozen=True)
class Row:
    """One device. asked, answered: rounds; refused: updates and messages that were refused, and failures, by code; all
    of them since the run began, as of its last closed round."""

    view: DeviceView
    asked: int
    answered: int
    refused: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self.view), "rounds_asked": self.asked, "rounds_answered": self.answered} | {
            "refused_or_failed": self.refused
        }


def rows_of(directory: RunDirectory) -> tuple[Survey | None, list[Row]]:
    """(how things stood last, every device, those that need somebody first). StateError if the folder holds no run."""
    directory.record()
    survey = read_survey(directory.path / FILE)
    return survey, rows(survey, read_journal(directory.journal_path), Ward(directory.path).entries())


def rows(survey: Survey | None, journal: Iterable[Line], quarantine: dict[str, Entry]) -> list[Row]:
    """Pure. The quarantine is that of now, for it may have changed since the survey."""
    asked: Counter[str] = Counter()
    answered: Counter[str] = Counter()
    refused: dict[str, Counter[str]] = {}
    for line in journal:
        asked.update(line.get("cohort", ()))
        answered.update(entry["device"] for entry in line.get("accepted", ()))
        for entry in (*line["rejected"], *line["failed"]):
            refused.setdefault(entry["device"], Counter())[entry["code"]] += 1
    known = {} if survey is None else {view.device: view for view in survey.devices}
    names = {*known, *asked, *quarantine}
    found = [
        Row(
            _now(known.get(name) or DeviceView(name, State.OFFLINE, "not seen yet"), quarantine.get(name)),
            asked[name],
            answered[name],
            dict(refused.get(name, {})),
        )
        for name in names
    ]
    return sorted(found, key=lambda row: (ORDER.index(row.view.state), -sum(row.refused.values()), row.view.device))


def _now(view: DeviceView, entry: Entry | None) -> DeviceView:
    if entry is not None:
        return replace(view, state=State.QUARANTINED, why=f"{entry.code}: {entry.reason}")
    if view.state is State.QUARANTINED:
        return replace(view, state=State.OFFLINE, why="released; the coordinator has not seen it since")
    return view


def lost(survey: Survey, now: float) -> str:
    """Why the survey may no longer be true; empty where it is fresh."""
    if not survey.serving:
        return "no coordinator is at work"
    age = now - survey.written
    return f"nothing was heard of the coordinator for {age:.0f} s" if age > STALE_S else ""
