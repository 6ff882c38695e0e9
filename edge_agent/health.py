"""May this machine train now? Read from /sys and /proc, judged by the profile; what cannot be read does not count."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from shared.profiles import Profile

POLL_S = 15.0
"""Period of the agent's readings: temperatures and batteries move slowly. A task is also judged when it arrives."""


@dataclass(frozen=True)
class Reading:
    """One look at the machine; None: not known.

    temperature_c   hottest thermal zone, degrees Celsius
    battery_pct     charge of the emptiest battery
    on_mains        a supply is connected and no battery is being emptied: the charge does not count
    load_per_core   one-minute load average per core
    available_mib   memory that can still be had, within this process's control group
    """

    temperature_c: float | None = None
    battery_pct: float | None = None
    on_mains: bool = False
    load_per_core: float | None = None
    available_mib: int | None = None


@dataclass(frozen=True)
class Verdict:
    """problems: what is exceeded (`heat`, `charge`, ...) -> by how much, in words."""

    problems: Mapping[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def reason(self) -> str:
        return "; ".join(self.problems.values())

    @property
    def code(self) -> str:
        """Of the failure that it makes of a task."""
        return "over_budget" if list(self.problems) == ["budget"] else "unhealthy"


def judge(reading: Reading, profile: Profile, *, before: Verdict = Verdict(), working: bool = False) -> Verdict:
    """The verdict on a reading.

    before   the last verdict: what was too hot must cool down to the resume temperature, and what was too empty be
             charged to the resume charge
    working  our trainer is running: load and memory are then its own, and only heat and charge can stop it
    """
    limits, training = profile.health, profile.training
    hottest = limits.resume_temperature_c if "heat" in before.problems else limits.max_temperature_c
    emptiest = limits.min_battery_pct
    if "charge" in before.problems:
        emptiest = max(emptiest, limits.resume_battery_pct)
    needed = training.memory_mib + limits.min_available_mib
    problems = {}
    if not training.enabled:
        problems["profile"] = f"profile {profile.id} only infers"
    if reading.temperature_c is not None and reading.temperature_c > hottest:
        problems["heat"] = f"{reading.temperature_c:.0f} C is above {hottest:.0f} C"
    if reading.battery_pct is not None and not reading.on_mains and reading.battery_pct < emptiest:
        problems["charge"] = f"battery {reading.battery_pct:.0f} % is below {emptiest:.0f} %"
    if not working and reading.load_per_core is not None and reading.load_per_core > limits.max_load_per_core:
        problems["load"] = f"load {reading.load_per_core:.1f} per core is above {limits.max_load_per_core:.1f}"
    if not working and reading.available_mib is not None and reading.available_mib < needed:
        problems["memory"] = f"{reading.available_mib} MiB of memory are available, {needed} MiB are needed"
    return Verdict(problems)


def read(root: Path = Path("/")) -> Reading:
    """Look at the machine whose /proc and /sys lie below `root`."""
    temperatures = [t / 1000 for t in _numbers(root / "sys/class/thermal", "thermal_zone*/temp") if t > 0]
    load = _number(root / "proc/loadavg")
    battery_pct, on_mains = _power(root / "sys/class/power_supply")
    return Reading(
        temperature_c=max(temperatures, default=None),
        battery_pct=battery_pct,
        on_mains=on_mains,
        load_per_core=None if load is None else load / (os.cpu_count() or 1),
        available_mib=_available_mib(root),
    )


def memory_limit_mib(root: Path = Path("/")) -> int | None:
    """Memory that this process can have at most: the machine's, or its control group's if that is less."""
    groups = [limit for limit, _ in _groups(root)]
    total = _meminfo(root, "MemTotal")
    return min([*groups, *([] if total is None else [total])], default=None)


def _power(supplies: Path) -> tuple[float | None, bool]:
    """Charge of the emptiest battery, and whether something else feeds the machine.

    A battery that says `Discharging` is believed before a supply that says `online`: a weak charger does not keep up
    with a phone that trains, and a USB port that feeds others is online as well.
    """
    charges, states, fed = [], set(), False
    for supply in sorted(supplies.glob("*")):
        if _text(supply / "type") != "Battery":
            fed = fed or _text(supply / "online") not in (None, "0")
        elif _text(supply / "scope") != "Device":  # a mouse has one too
            states.add(_text(supply / "status"))
            if (charge := _number(supply / "capacity")) is not None:
                charges.append(charge)
    on_mains = "Discharging" not in states and (fed or bool(states & {"Charging", "Full"}))
    return min(charges, default=None), on_mains


def _available_mib(root: Path) -> int | None:
    candidates = [limit - used for limit, used in _groups(root)]
    machine = _meminfo(root, "MemAvailable")
    if machine is not None:
        candidates.append(machine)
    return min(candidates, default=None)


def _groups(root: Path) -> list[tuple[int, int]]:
    """(limit, used) in MiB of every control group with a memory limit that this process is in, of version 1 and 2.

    Inside a container its own group is mounted at the top, outside it lies below; the limits of all parents hold.
    """
    found = []
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, own = line.split(":", 2)
        if controllers == "":
            base, limit_name, used_name = root / "sys/fs/cgroup", "memory.max", "memory.current"
        elif controllers == "memory":
            base, limit_name, used_name = (
                root / "sys/fs/cgroup/memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
            )
        else:
            continue
        group = base / own.lstrip("/")
        for folder in (group, *group.parents):
            limit, used = _number(folder / limit_name), _number(folder / used_name)
            if limit is not None and used is not None and limit < 2**60:  # version 1 writes 2**63 for none
                used -= _reclaimable(folder)
                found.append((int(limit / 2**20), int(used / 2**20)))
            if folder == base:
                break
    return found


def _reclaimable(group: Path) -> float:
    """Bytes of file cache that the kernel counts as used but gives back under pressure."""
    lines = [line.split() for line in (_text(group / "memory.stat") or "").splitlines()]
    fields = {words[0]: float(words[1]) for words in lines if len(words) == 2}
    return fields.get("total_inactive_file", fields.get("inactive_file", 0.0))


def _meminfo(root: Path, field: str) -> int | None:
    for line in (_text(root / "proc/meminfo") or "").splitlines():
        name, _, rest = line.partition(":")
        if name == field:
            return int(rest.split()[0]) // 1024
    return None


def _numbers(folder: Path, pattern: str) -> list[float]:
    return [number for path in folder.glob(pattern) if (number := _number(path)) is not None]


def _number(path: Path) -> float | None:
    """The first word of a file as a number."""
    words = (_text(path) or "").split()
    try:
        return float(words[0]) if words else None
    except ValueError:
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
