"""Health: what is read from a made-up machine, and what the profile makes of it."""

from pathlib import Path

import pytest

from edge_agent.health import Reading, Verdict, judge, memory_limit_mib, read
from shared.profiles import Profile

PROFILE = Profile.model_validate(
    {
        "id": "test",
        "title": "test",
        "cores": 2,
        "memory_mib": 4096,
        "training": {"memory_mib": 500},
        "health": {
            "max_temperature_c": 80,
            "resume_temperature_c": 70,
            "min_battery_pct": 30,
            "max_load_per_core": 2,
            "min_available_mib": 100,
        },
    }
)
FINE = Reading(temperature_c=50, battery_pct=90, load_per_core=0.5, available_mib=2000)


def put(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_fine_machine() -> None:
    verdict = judge(FINE, PROFILE)
    assert verdict.ok
    assert verdict.reason == ""


def test_what_is_unknown_does_not_count() -> None:
    assert judge(Reading(), PROFILE).ok
    assert judge(Reading(), PROFILE, before=Verdict({"heat": "hot", "charge": "empty"})).ok


@pytest.mark.parametrize(
    ("reading", "named"),
    [
        (Reading(temperature_c=80.5), "80 C is above 80 C"),
        (Reading(battery_pct=29), "battery 29 % is below 30 %"),
        (Reading(load_per_core=2.1), "load 2.1 per core is above 2.0"),
        (Reading(available_mib=599), "599 MiB of memory are available, 600 MiB are needed"),
    ],
)
def test_each_limit_is_a_reason(reading: Reading, named: str) -> None:
    verdict = judge(reading, PROFILE)
    assert not verdict.ok
    assert named in verdict.reason


@pytest.mark.parametrize(
    "reading", [Reading(temperature_c=80, battery_pct=30, load_per_core=2, available_mib=600)], ids=["at the limits"]
)
def test_the_limits_themselves_are_allowed(reading: Reading) -> None:
    assert judge(reading, PROFILE).ok


def test_a_hot_machine_must_cool_down() -> None:
    verdicts = []
    verdict = Verdict()
    for temperature in (75, 81, 79, 71, 70, 79):
        verdict = judge(Reading(temperature_c=temperature), PROFILE, before=verdict)
        verdicts.append(verdict.ok)
    assert verdicts == [True, False, False, False, True, True]


CHARGED = Profile.model_validate(
    {**PROFILE.model_dump(), "health": {**PROFILE.health.model_dump(), "resume_battery_pct": 50}}
)


def test_an_empty_battery_must_be_charged_again() -> None:
    verdicts = []
    verdict = Verdict()
    for charge in (31, 29, 31, 49, 50, 31):
        verdict = judge(Reading(battery_pct=charge), CHARGED, before=verdict)
        verdicts.append(verdict.ok)
    assert verdicts == [True, False, False, False, True, True]


def test_on_the_charger_it_trains_at_any_charge_and_unplugged_it_stops() -> None:
    empty = judge(Reading(battery_pct=10), CHARGED)
    assert not empty.ok
    charging = judge(Reading(battery_pct=11, on_mains=True), CHARGED, before=empty)
    assert charging.ok
    assert not judge(Reading(battery_pct=12), CHARGED, before=charging, working=True).ok


def test_what_was_refused_for_one_reason_need_not_recover_from_another() -> None:
    """A busy device at 75 C and 40 % may train as soon as it is idle, since neither was ever exceeded."""
    busy = judge(Reading(temperature_c=75, battery_pct=40, load_per_core=9), CHARGED)
    assert set(busy.problems) == {"load"}
    assert judge(Reading(temperature_c=75, battery_pct=40), CHARGED, before=busy).ok


def test_the_trainers_own_load_and_memory_do_not_stop_it_but_heat_does() -> None:
    assert judge(Reading(load_per_core=9, available_mib=10), PROFILE, working=True).ok
    assert not judge(Reading(temperature_c=90), PROFILE, working=True).ok
    assert not judge(Reading(battery_pct=5), PROFILE, working=True).ok


def test_a_profile_that_only_infers_never_trains() -> None:
    profile = PROFILE.model_copy(update={"training": PROFILE.training.model_copy(update={"enabled": False})})
    verdict = judge(FINE, profile)
    assert not verdict.ok
    assert "only infers" in verdict.reason


def test_reading_an_empty_machine(tmp_path: Path) -> None:
    assert read(tmp_path) == Reading()
    assert memory_limit_mib(tmp_path) is None


def test_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    put(
        tmp_path,
        {
            "sys/class/thermal/thermal_zone0/temp": "45000\n",
            "sys/class/thermal/thermal_zone1/temp": "61500\n",
            "sys/class/thermal/thermal_zone2/temp": "nonsense\n",
            "sys/class/power_supply/BAT0/type": "Battery\n",
            "sys/class/power_supply/BAT0/capacity": "42\n",
            "sys/class/power_supply/mouse/type": "Battery\n",
            "sys/class/power_supply/mouse/scope": "Device\n",
            "sys/class/power_supply/mouse/capacity": "3\n",
            "proc/loadavg": "6.00 1.00 1.00 1/99 1234\n",
            "proc/meminfo": "MemTotal:  4194304 kB\nMemFree: 1 kB\nMemAvailable:  2097152 kB\n",
        },
    )
    assert read(tmp_path) == Reading(temperature_c=61.5, battery_pct=42, load_per_core=1.5, available_mib=2048)
    assert memory_limit_mib(tmp_path) == 4096


def test_a_battery_does_not_count_on_mains(tmp_path: Path) -> None:
    supplies = "sys/class/power_supply"
    put(tmp_path, {f"{supplies}/BAT0/type": "Battery", f"{supplies}/BAT0/capacity": "5"})
    put(tmp_path, {f"{supplies}/AC/type": "Mains", f"{supplies}/AC/online": "0"})
    assert read(tmp_path) == Reading(battery_pct=5, on_mains=False)
    put(tmp_path, {f"{supplies}/AC/online": "1"})
    assert read(tmp_path) == Reading(battery_pct=5, on_mains=True)
    assert judge(read(tmp_path), PROFILE).ok


@pytest.mark.parametrize(
    ("files", "on_mains"),
    [
        ({"battery/status": "Charging"}, True),  # many phones: the charger itself is not shown
        ({"battery/status": "Full"}, True),
        ({"battery/status": "Discharging"}, False),
        ({"battery/status": "Not charging"}, False),
        ({"battery/status": "Not charging", "usb/type": "USB", "usb/online": "1"}, True),  # held at its threshold
        ({"battery/status": "Charging", "usb/type": "USB_DCP", "usb/online": "1"}, True),
        ({"battery/status": "Discharging", "usb/type": "USB", "usb/online": "1"}, False),  # the charger is too weak
        ({"usb/type": "USB", "usb/online": "0", "wireless/type": "Wireless", "wireless/online": "1"}, True),
        ({"usb/type": "USB", "usb/online": "0"}, False),
    ],
)
def test_a_phone_on_its_charger(tmp_path: Path, files: dict[str, str], on_mains: bool) -> None:
    supplies = "sys/class/power_supply"
    put(tmp_path, {f"{supplies}/battery/type": "Battery", f"{supplies}/battery/capacity": "20"})
    put(tmp_path, {f"{supplies}/{name}": f"{text}\n" for name, text in files.items()})
    assert read(tmp_path) == Reading(battery_pct=20, on_mains=on_mains)


MIB = 2**20


def test_control_group_version_2(tmp_path: Path) -> None:
    base = "sys/fs/cgroup"
    put(
        tmp_path,
        {
            "proc/meminfo": "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n",
            "proc/self/cgroup": "0::/system.slice/agent.service\n",
            f"{base}/system.slice/memory.max": "max\n",
            f"{base}/system.slice/memory.current": "0\n",
            f"{base}/system.slice/agent.service/memory.max": f"{512 * MIB}\n",
            f"{base}/system.slice/agent.service/memory.current": f"{300 * MIB}\n",
            f"{base}/system.slice/agent.service/memory.stat": f"anon {100 * MIB}\ninactive_file {200 * MIB}\n",
        },
    )
    assert memory_limit_mib(tmp_path) == 512
    assert read(tmp_path).available_mib == 412, "file cache can be had"


def test_control_group_version_1_inside_a_container(tmp_path: Path) -> None:
    base = "sys/fs/cgroup/memory"
    put(
        tmp_path,
        {
            "proc/meminfo": "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n",
            "proc/self/cgroup": "5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n0::/\n",
            f"{base}/memory.limit_in_bytes": f"{256 * MIB}\n",
            f"{base}/memory.usage_in_bytes": f"{56 * MIB}\n",
        },
    )
    assert memory_limit_mib(tmp_path) == 256
    assert read(tmp_path).available_mib == 200
    put(tmp_path, {f"{base}/memory.limit_in_bytes": "9223372036854771712"})
    assert memory_limit_mib(tmp_path) == 8192


def test_this_machine_can_be_read() -> None:
    reading = read()
    assert reading.available_mib is not None
    assert reading.available_mib > 0
    assert reading.load_per_core is not None
