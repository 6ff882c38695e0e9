"""How much a metered link may still carry today, kept on the disk so that a restart does not renew it.

A day ends when the wall clock shows a later UTC day than it ever did, or when the machine has been up for 24 hours
since the day began. So a clock that is set back, or starts in 1970 at every boot until the network tells the time,
renews nothing; and one that was once far in the future does not lock the device out for longer than a day of uptime.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_agent.entries import Entry, read_entry, sealed
from shared.files import atomic_write

DAY_S = 86_400
UNSAVED = 0.01
"""Share of the budget that a kill may leave uncounted: a write to the disk for each such share, not for each packet."""
MIB = 2**20


@dataclass(frozen=True)
class Moment:
    """day: UTC, by the wall clock, since 1970; up_s: since the machine was booted, sleep included; boot: which one."""

    day: int
    up_s: float
    boot: str


class Spent(Entry):
    """number: of this day among those that were counted; used: bytes since it began; passed_s: uptime since then, until
    `up_s` of `boot`."""

    number: int = 0
    day: int
    used: int = 0
    passed_s: float = 0.0
    up_s: float = 0.0
    boot: str = ""


def now() -> Moment:
    """What the clocks of this machine say."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return Moment(int(time.time() // DAY_S), time.clock_gettime(clock), boot)


def advanced(spent: Spent, moment: Moment) -> Spent:
    """The record at this moment: of a new day, or of the same with the uptime that has passed."""
    before = spent.up_s if moment.boot == spent.boot else 0.0
    passed = spent.passed_s + max(0.0, moment.up_s - before)
    if moment.day > spent.day or passed >= DAY_S:
        return Spent(number=spent.number + 1, day=moment.day, up_s=moment.up_s, boot=moment.boot)
    return spent.model_copy(update={"passed_s": passed, "up_s": moment.up_s, "boot": moment.boot})


class Budget:
    """The bytes of one day, `daily_mib` of them, both ways.

    path  file that remembers; where it is damaged the day counts as used up, for nobody knows what was
    """

    def __init__(self, path: Path, daily_mib: float, moment: Callable[[], Moment] = now) -> None:
        self._path, self._moment = path, moment
        self._limit = int(daily_mib * MIB)
        known, found = path.exists(), read_entry(path, Spent)
        start = moment()
        fresh = Spent(day=start.day, used=self._limit if known else 0, up_s=start.up_s, boot=start.boot)
        self._spent = found or fresh
        self._saved = found.used if found else -1
        self._refused = 0
        if known and not found:
            self.save()
        self._turn()

    @property
    def left(self) -> int:
        """Bytes that today still has; below 0 where a finished update had to be delivered nevertheless."""
        self._turn()
        return self._limit - self._spent.used

    def spend(self, count: int) -> None:
        """So many bytes went over the link."""
        self._turn()
        self._spent = self._spent.model_copy(update={"used": self._spent.used + count})
        if self._spent.used - self._saved >= UNSAVED * self._limit:
            self.save()

    def fits(self, count: int) -> bool:
        """Whether so many bytes may be fetched today. Where not, `problem` says so until the day ends."""
        if count <= self.left:
            return True
        self._refused = count
        return False

    def problem(self) -> str:
        """Why nothing more may be fetched today; empty where something may."""
        left = self.left
        rest = f"{max(left, 0) / MIB:.1f} of the day's {self._limit / MIB:g} MiB are left"
        if self._refused > self._limit:
            return f"the task takes {self._refused / MIB:.1f} MiB and {rest}: raise link.daily_mib of the profile"
        if self._refused > max(left, 0):
            return f"the task takes {self._refused / MIB:.1f} MiB and {rest}; they are renewed at 00:00 UTC"
        return "" if left > 0 else f"{rest}; they are renewed at 00:00 UTC"

    def save(self) -> None:
        """Make the count durable."""
        if self._spent.used != self._saved:
            atomic_write(self._path, sealed(self._spent))
            self._saved = self._spent.used

    def _turn(self) -> None:
        number, self._spent = self._spent.number, advanced(self._spent, self._moment())
        if self._spent.number != number:
            self._refused, self._saved = 0, -1
