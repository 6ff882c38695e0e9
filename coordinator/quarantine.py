"""Devices that do nothing but harm or fail are not asked any more, until somebody releases them.

The truth is the folder `quarantine` in the run's: a file <device>.json for each, which the coordinator writes and
whoever releases the device deletes (`talaria-coordinator release`), also while a coordinator works. The counts of what
went wrong in a row are kept in memory only: a restart counts anew.
"""

from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from coordinator.chronicle import Chronicle
from coordinator.events import DeviceFailed, Event, Quarantined, Released, Reported, UpdateAccepted
from shared.errors import StateError
from shared.files import atomic_write

LOOK_S = 2.0
"""How often somebody looks at the folder while nothing else happens."""
EXCUSED = frozenset({"unhealthy", "out_of_time", "over_budget"})
"""Failures of a device that is as it should be: too hot, too slow, at the end of its budget."""


@dataclass(frozen=True)
class Entry:
    """since: in UTC, ISO 8601; code, reason: of the last thing that went wrong; count: of how many in a row."""

    since: str
    code: str
    reason: str
    count: int


ENTRY = TypeAdapter(Entry)


class Conduct:
    """What went wrong with each device in a row. Pure.

    after  None: nobody is quarantined
    """

    def __init__(self, after: int | None) -> None:
        self._after = after
        self._count: Counter[str] = Counter()

    def failed(self, device: str, code: str) -> int:
        """An update of the device was refused, or it failed. The number in a row if that is enough, else 0."""
        if self._after is None or code in EXCUSED:
            return 0
        self._count[device] += 1
        return self._count[device] if self._count[device] >= self._after else 0

    def forgive(self, device: str) -> None:
        """The device did what it was asked for, or was released."""
        del self._count[device]


class Ward:
    """The folder."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "quarantine"

    def devices(self) -> set[str]:
        """Who is in quarantine now."""
        return {path.stem for path in self._path.glob("*.json")}

    def entries(self) -> dict[str, Entry]:
        """Device -> why, by name. A file in another form counts as well, and says that it cannot be read."""
        return {device: self._entry(device) for device in sorted(self.devices())}

    def admit(self, device: str, entry: Entry) -> None:
        """OSError where the disk refuses."""
        self._path.mkdir(exist_ok=True)
        atomic_write(self._path / f"{device}.json", ENTRY.dump_json(entry, indent=2))

    def release(self, device: str) -> None:
        """StateError if the device is not in quarantine."""
        if device not in self.devices():
            there = ", ".join(sorted(self.devices())) or "nobody is"
            raise StateError(f"{device} is not in quarantine in {self._path.parent}; in quarantine: {there}")
        (self._path / f"{device}.json").unlink(missing_ok=True)

    def _entry(self, device: str) -> Entry:
        try:
            return ENTRY.validate_json((self._path / f"{device}.json").read_bytes())
        except (OSError, ValidationError):
            return Entry(since="", code="unknown", reason="the file cannot be read", count=0)


class Quarantine:
    """Judges what happens to devices, and keeps the engine and the folder of one mind.

    chronicle  told of `quarantined` and `released` (coordinator.server lists the events)
    """

    def __init__(self, run_dir: Path, after: int | None, chronicle: Chronicle) -> None:
        self._ward = Ward(run_dir)
        self._conduct = Conduct(after)
        self._chronicle = chronicle
        self.devices: set[str] = set()
        """As the engine knows it."""

    def changed(self) -> bool:
        """Whether somebody was put into the folder, or taken out of it, since the last `look`."""
        return self._ward.devices() != self.devices

    def look(self) -> list[Quarantined | Released]:
        """What the folder says that the engine does not know yet."""
        found = self._ward.devices()
        if found == self.devices:
            return []
        entered, left = sorted(found - self.devices), sorted(self.devices - found)
        self.devices = found
        entries = self._ward.entries()
        for device in entered:
            if (entry := entries.get(device)) is not None:
                self._chronicle.tell("quarantined", device=device, **asdict(entry))
        for device in left:
            self._conduct.forgive(device)
            self._chronicle.tell("released", device=device)
        return [*map(Quarantined, entered), *map(Released, left)]

    def follow(self, event: Event, known: int) -> None:
        """Something happened; where it was enough for a device, it is in the folder now. OSError where the disk
        refuses.

        known  devices of the run: never more than half of them are put there, for where most of them fail it is not
               they (a model that has diverged, a full disk in an image that all of them share)
        """
        match event:
            case UpdateAccepted(device) | Reported(device):
                self._conduct.forgive(device)
            case DeviceFailed(device, _, code) if count := self._conduct.failed(device, code):
                if device not in self.devices and 2 * (len(self.devices) + 1) <= known:
                    now = datetime.now(UTC).isoformat(timespec="seconds")
                    self._ward.admit(device, Entry(now, code, self._chronicle.why(device, code), count))
