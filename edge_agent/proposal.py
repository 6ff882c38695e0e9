"""Which profile is the machine's, and what of a profile does not fit it: facts that are looked at, judged purely."""

import platform
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edge_agent.health import Reading, memory_limit_mib, read
from shared.profiles import Isa, Profile

ENOUGH = 0.8
"""Share of a profile's memory that a machine of its class shows: the kernel and the graphics take theirs first."""
SPECIAL = ("android", "container")
"""Names that a machine gives itself beside its board's."""
RUNS: dict[Isa, tuple[Isa, ...]] = {
    "armv7": ("armv7",),
    "armv8.0": ("armv8.0",),
    "armv8.2-dotprod": ("armv8.2-dotprod", "armv8.0"),
    "x86-64-avx2": ("x86-64-avx2",),
    "x86-64-vnni": ("x86-64-vnni", "x86-64-avx2"),
}
"""What a processor runs as well as it could, the best first."""


@dataclass(frozen=True)
class Machine:
    """What can be seen of a machine.

    cores      that the kernel shows
    memory_mib of the machine, or of this process's control group if that is less; None: not known
    isa        None: none of those that profiles know
    board      the model in its device tree; empty where it has none
    names      of SPECIAL, those that it is
    glibc      it has the C library that wheels of torch and onnxruntime are built for; Alpine and Android have others
    """

    cores: int
    memory_mib: int | None
    isa: Isa | None
    board: str = ""
    names: frozenset[str] = frozenset()
    glibc: bool = True
    reading: Reading = field(default_factory=Reading)


def look(
    root: Path = Path("/"), *, bits: int = struct.calcsize("P") * 8, libc: str = platform.libc_ver()[0]
) -> Machine:
    """The machine whose /proc and /sys lie below `root`. bits, libc: of this Python, by which wheels are chosen."""
    processors = _processors(root)
    return Machine(
        cores=len(processors) or 1,
        memory_mib=memory_limit_mib(root),
        isa=_isa(processors, bits),
        board=_text(root / "proc/device-tree/model").rstrip("\0"),
        names=frozenset(_names(root)),
        glibc=libc == "glibc",
        reading=read(root),
    )


def propose(machine: Machine, profiles: Iterable[Profile]) -> Profile | None:
    """By what the machine calls itself, otherwise the largest of its instruction set that fits; None if none does."""
    fitting = [p for p in profiles if not any(_too_small(machine, p))]
    board = [p for p in fitting if any(machine.board.startswith(name) for name in p.known_as if name not in SPECIAL)]
    special = [p for p in fitting if machine.names & set(p.known_as)]
    phone = "android" in machine.names  # which no profile of another class would protect
    like = [p for p in fitting if machine.isa and p.isa in RUNS[machine.isa] and "android" not in p.known_as]
    others = [p for p in like if "container" not in p.known_as]
    for candidates in (board, special) if phone else (board, special, others, like):
        if candidates:
            return max(candidates, key=lambda p: (p.training.enabled, p.memory_mib, p.cores, p.id))
    return None


def misfits(machine: Machine, profile: Profile) -> Iterator[tuple[Literal["warning", "problem"], str]]:
    """("problem" or "warning", what does not fit and what to do) for each."""
    for text in _too_small(machine, profile):
        yield "problem", text
    if machine.isa is None:
        yield "warning", "no instruction set that a profile knows (AVX2, ARMv7 or later): int8 may be slow or wrong"
    elif profile.isa not in RUNS[machine.isa] and profile.inference.dtype == "int8":
        yield "warning", f"isa is {profile.isa}, the processor is {machine.isa}: int8 may be slow or saturate"
    elif profile.isa not in RUNS[machine.isa]:
        yield "warning", f"isa is {profile.isa}, the processor is {machine.isa}; it matters to int8 alone"
    if machine.isa == "armv7" or not machine.glibc:
        why = "it is 32-bit ARM" if machine.glibc else "its C library is not glibc"
        what = "train and infer" if profile.training.enabled else "infer"
        yield (
            ("problem" if profile.training.enabled else "warning"),
            f"{why}: PyPI has no torch and onnxruntime for it, so it cannot {what}; take a 64-bit Debian",
        )
    charge = machine.reading.battery_pct
    if profile.health.min_battery_pct > 0 and charge is None:
        yield "warning", "no charge of a battery can be read, so health.min_battery_pct stops nothing"
    if profile.health.min_battery_pct == 0 and charge is not None and profile.training.enabled:
        yield "warning", "it has a battery, and health.min_battery_pct = 0 lets training empty it"


def missing_providers(profile: Profile, available: Iterable[str]) -> tuple[str, ...]:
    """Providers of the profile that the installed onnxruntime does not have."""
    return tuple(each for each in profile.inference.providers if each not in set(available))


def _too_small(machine: Machine, profile: Profile) -> Iterator[str]:
    if machine.cores < profile.cores:
        threads = max(profile.training.threads, profile.inference.threads)
        more = f", and up to {threads} threads" if threads > machine.cores else ""
        yield f"{machine.cores} cores, profile {profile.id} is for {profile.cores}{more}"
    if machine.memory_mib is not None and machine.memory_mib < ENOUGH * profile.memory_mib:
        yield f"{machine.memory_mib} MiB, profile {profile.id} is for {profile.memory_mib} MiB"


def _names(root: Path) -> Iterator[str]:
    if (root / "data/data/com.termux").exists() or (root / "system/build.prop").exists():
        yield "android"
    marks = (root / ".dockerenv", root / "run/.containerenv")
    groups = _text(root / "proc/1/cgroup") + _text(root / "proc/self/cgroup")
    if any(mark.exists() for mark in marks) or any(name in groups for name in ("/docker", "/libpod", "/kubepods")):
        yield "container"


def _processors(root: Path) -> list[dict[str, str]]:
    """One record per processor of /proc/cpuinfo."""
    found: list[dict[str, str]] = []
    for line in _text(root / "proc/cpuinfo").splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        if name == "processor":
            found.append({})
        if found:
            found[-1][name] = value
    return found


def _isa(processors: list[dict[str, str]], bits: int) -> Isa | None:
    """Of what all processors can, where large and small ones differ."""
    features = [set((each.get("flags") or each.get("Features") or "").split()) for each in processors]
    common = set.intersection(*features) if features else set()
    if "avx2" in common:
        return "x86-64-vnni" if common & {"avx512_vnni", "avx_vnni"} else "x86-64-avx2"
    if bits == 32 and common & {"neon", "asimd"}:
        return "armv7"
    if "asimd" in common:
        return "armv8.2-dotprod" if "asimddp" in common else "armv8.0"
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
