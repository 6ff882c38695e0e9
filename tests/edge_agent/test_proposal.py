"""Which profile made-up machines are proposed, and what is said of one that does not fit it.

Their /proc and /sys are files, as such machines show them.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest

from edge_agent.proposal import Machine, look, misfits, missing_providers, propose
from shared.profiles import Profile, load_profile, profile_names

A53 = "fp asimd evtstrm crc32 cpuid"
A76 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
A7 = "half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm"
ZEN = "fpu vme sse sse2 ssse3 sse4_1 sse4_2 avx f16c fma bmi1 avx2 bmi2"
ALL = [load_profile(name) for name in profile_names()]


@dataclass(frozen=True)
class Made:
    """features: of each processor."""

    features: tuple[str, ...]
    mib: int
    board: str = ""
    files: tuple[tuple[str, str], ...] = ()
    bits: int = 64
    libc: str = "glibc"

    def look(self, root: Path) -> Machine:
        name = "flags" if "sse" in self.features[0] else "Features"
        cpuinfo = "".join(
            f"processor\t: {index}\n{name}\t: {each}\nCPU part\t: 0xd03\n\n" for index, each in enumerate(self.features)
        )
        files = {
            "proc/cpuinfo": cpuinfo + f"Serial : 1\nModel : {self.board}\n",
            "proc/meminfo": f"MemTotal: {self.mib * 1024} kB\nMemAvailable: {self.mib * 512} kB\n",
            **dict(self.files),
        }
        if self.board:
            files["proc/device-tree/model"] = f"{self.board}\0"
        for path, text in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        return look(root, bits=self.bits, libc=self.libc)


TERMUX = (("data/data/com.termux/files/usr/bin/sh", ""),)
LIMITED = (
    (".dockerenv", ""),
    ("proc/self/cgroup", "0::/\n"),
    ("sys/fs/cgroup/memory.max", f"{1024 * 2**20}"),
    ("sys/fs/cgroup/memory.current", "0"),
)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (Made((A53,) * 4, 416, "Raspberry Pi Zero 2 W Rev 1.0"), "rpi-zero-2w"),
        (Made((A53,) * 4, 3793, "Raspberry Pi 4 Model B Rev 1.5"), "rpi-4b"),
        (Made((A53,) * 4, 909, "Raspberry Pi 4 Model B Rev 1.1"), "rpi-zero-2w"),  # the one with 1 GB
        (Made((A53,) * 4, 905, "Raspberry Pi 3 Model B Plus Rev 1.3"), "rpi-zero-2w"),
        (Made((A76,) * 4, 8064, "Raspberry Pi 5 Model B Rev 1.0"), "rpi-5"),
        (Made((A76,) * 4, 3900, "Raspberry Pi 5 Model B Rev 1.0"), "rpi-4b"),  # the one with 4 GB
        (Made((A76,) * 6, 7620, "NVIDIA Jetson Orin Nano Developer Kit"), "jetson-orin-nano"),
        (Made((A53,) * 2, 3700, "BeagleBoard.org BeagleBone AI-64"), "beaglebone-ai64"),
        (Made((A76,) * 8, 7700, "Radxa ROCK 5B"), "rk3588-8g"),
        (Made((A53,) * 2, 480, "Some Vendor Gateway"), "industrial-gw-512"),
        (Made((A76,) * 8, 5600, files=TERMUX), "android-mid"),
        (Made((A76,) * 8, 11300, files=TERMUX), "android-high"),
        (Made((A76,) * 8, 2900, files=TERMUX), None),  # no profile of another class would mind its battery
        (Made((ZEN,) * 4, 15800), "x86-mini-pc"),
        (Made((ZEN + " avx512_vnni",) * 16, 64000), "x86-mini-pc"),
        (Made((ZEN,) * 4, 7800), "container"),
        (Made((ZEN,) * 8, 64000, files=LIMITED), "container"),
        (Made((A76,) * 4, 8064, "Raspberry Pi 5 Model B Rev 1.0", files=LIMITED), "container"),
        (Made((A7,), 240, "NXP i.MX6 ULL"), None),
        (Made((A7,), 256, "NXP i.MX6 ULL", bits=32), "ltem-sensor-node"),
        (Made((A53,), 100), None),
    ],
    ids=lambda given: given.board or str(given.mib) if isinstance(given, Made) else None,
)
def test_each_machine_is_proposed_its_profile(tmp_path: Path, made: Made, expected: str | None) -> None:
    proposed = propose(made.look(tmp_path), ALL)
    assert (proposed and proposed.id) == expected


def test_what_all_cores_can_counts(tmp_path: Path) -> None:
    assert Made((A53, A76), 4096).look(tmp_path).isa == "armv8.0"


def test_an_empty_machine_can_be_looked_at(tmp_path: Path) -> None:
    found = look(tmp_path, bits=64, libc="glibc")
    assert (found.cores, found.memory_mib, found.isa, found.board) == (1, None, None, "")


def said(found: Machine, name: str) -> str:
    return "\n".join(f"{status}: {text}" for status, text in misfits(found, load_profile(name)))


@pytest.mark.parametrize(
    ("made", "name", "text"),
    [
        (Made((A53,) * 2, 8064), "rpi-5", "problem: 2 cores, profile rpi-5 is for 4, and up to 3 threads"),
        (Made((A53,) * 4, 8064), "rpi-5", "warning: isa is armv8.2-dotprod, the processor is armv8.0: int8 may"),
        (Made((ZEN,) * 4, 8064), "container", ""),
        (Made((A76,) * 4, 8064), "rpi-4b", ""),
        (Made((A53,) * 4, 512, bits=32), "rpi-zero-2w", "problem: it is 32-bit ARM: PyPI has no torch"),
        (Made((A7,), 256, bits=32), "ltem-sensor-node", "warning: it is 32-bit ARM: PyPI has no torch and onnxruntime"),
        (Made((A76,) * 8, 5600, files=TERMUX, libc="libc"), "android-mid", "problem: its C library is not glibc"),
        (Made((A76,) * 8, 5600, files=TERMUX), "android-mid", "warning: no charge of a battery can be read"),
        (Made(("fpu sse sse2",), 4096), "container", "warning: no instruction set that a profile knows"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path: Path, made: Made, name: str, text: str) -> None:
    found = said(made.look(tmp_path), name)
    assert text in found
    assert text or not found, "nothing is held against a machine that fits"


def test_a_battery_that_the_profile_does_not_mind(tmp_path: Path) -> None:
    battery = (("sys/class/power_supply/BAT0/type", "Battery"), ("sys/class/power_supply/BAT0/capacity", "80"))
    found = Made((ZEN,) * 4, 16000, files=battery).look(tmp_path)
    assert "health.min_battery_pct = 0 lets training empty it" in said(found, "x86-mini-pc")
    minds = Profile.model_validate({**load_profile("x86-mini-pc").model_dump(), "health": {"min_battery_pct": 50}})
    assert list(misfits(found, minds)) == []


def test_providers() -> None:
    jetson = load_profile("jetson-orin-nano")
    assert missing_providers(jetson, ["CUDAExecutionProvider", "CPUExecutionProvider"]) == (
        "TensorrtExecutionProvider",
    )
