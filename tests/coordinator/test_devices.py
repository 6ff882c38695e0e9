"""The table of devices: who needs somebody first, for one device and for a thousand, whatever they call themselves."""

from pathlib import Path

import pytest
from rich.console import Console

from coordinator.devices import STALE_S, Row, lost, rows
from coordinator.journal import Line
from coordinator.metrics import CODES, DEVICES, Metrics
from coordinator.quarantine import Entry
from coordinator.survey import DeviceView, State, Survey, VitalSigns, read_survey, write_survey
from coordinator.tables import devices_table
from shared.errors import StateError

NOW = 1_000_000.0


def surveyed(*devices: DeviceView, **fields: object) -> Survey:
    about = {"run": "r", "written": NOW, "serving": True, "connected": True, "phase": "collecting", "round": 3}
    counts = {"attempt": 1, "jobs": 0, "granted_bytes": 0, "board_due": 0}
    return Survey(**{**about, **counts, "devices": devices, **fields})  # type: ignore[arg-type]


def closed(number: int, cohort: str, accepted: str, rejected: str = "", code: str = "not_finite") -> Line:
    trouble = [{"device": device, "code": code, "reason": "NaN"} for device in rejected]
    entries = [{"device": device} for device in accepted]
    return {"event": "round", "round": number, "cohort": list(cohort), "accepted": entries, "rejected": trouble} | {
        "failed": []
    }


def ready(name: str) -> DeviceView:
    return DeviceView(name, State.READY, last_seen=NOW - 4)


def drawn(found: list[Row], width: int, limit: int | None = None) -> list[str]:
    console = Console(width=width, height=40, record=True, file=open("/dev/null", "w"), force_terminal=True)  # noqa: SIM115
    console.print(devices_table(found, NOW, width=width, limit=limit))
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_those_that_need_somebody_come_first() -> None:
    survey = surveyed(
        ready("a"),
        ready("b"),
        ready("z"),
        DeviceView("c", State.ASLEEP),
        DeviceView("d", State.OFFLINE),
        DeviceView("e", State.UNFIT, "too hot"),
    )
    journal = [closed(1, "abz", "az", "b"), closed(2, "abz", "a", "b"), {**closed(3, "", ""), "event": "personalized"}]
    del journal[2]["cohort"], journal[2]["accepted"]
    found = rows(survey, journal, {"a": Entry("2026", "not_finite", "NaN in conv", 5), "ghost": Entry("", "x", "y", 1)})
    assert [row.view.device for row in found] == ["a", "ghost", "e", "d", "c", "b", "z"]
    assert found[0].view.why == "not_finite: NaN in conv"
    assert (found[0].asked, found[0].answered) == (2, 2)
    assert found[5].refused == {"not_finite": 2}


def test_who_was_released_is_no_longer_said_to_be_in_quarantine() -> None:
    (row,) = rows(surveyed(DeviceView("a", State.QUARANTINED, "in quarantine")), [], {})
    assert row.view.state is State.OFFLINE
    assert "released" in row.view.why


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_a_thousand_devices_with_ugly_names_fit(width: int) -> None:
    ugly = "82 C\n\x1b[31mfine\u202e"
    views = [
        DeviceView(
            f"{'gateway-with-a-long-name' * 2}-{number}",
            State.UNFIT,
            ugly,
            profile="industrial-gw-512",
            last_seen=NOW - 40 * number,
            bytes_up=123_456_789,
            bytes_down=23_456_789_000,
            vitals=VitalSigns(
                NOW, "working", 5.0, {"temperature_c": 81.2, "battery_pct": 100.0, "load_per_core": 12.0}
            ),
        )
        for number in range(1000)
    ]
    lines = drawn(rows(surveyed(*views), [], {}), width, limit=30)
    assert max(map(len, lines)) <= width
    assert lines[-1] == "and 970 more: --json lists all"
    assert len([line for line in lines if line.strip().startswith("gateway")]) == 30
    assert not any("\u202e" in line for line in lines)


def test_a_survey_is_read_as_it_was_written_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    survey = surveyed(
        DeviceView("a", State.READY, rejected={"stale": 2}, vitals=VitalSigns(1.0, "idle", 2.0, {"x_c": 1.5}))
    )
    assert read_survey(tmp_path / "fleet.json") is None
    write_survey(tmp_path / "fleet.json", survey)
    assert read_survey(tmp_path / "fleet.json") == survey
    assert survey.same_as(surveyed(*survey.devices, written=NOW + 9))
    assert not survey.same_as(surveyed(*survey.devices, round=4))
    (tmp_path / "fleet.json").write_text("{")
    with pytest.raises(StateError, match=r"fleet\.json cannot be read"):
        read_survey(tmp_path / "fleet.json")


def test_an_old_survey_is_not_taken_for_the_present() -> None:
    assert lost(surveyed(), NOW + STALE_S) == ""
    assert "nothing was heard" in lost(surveyed(), NOW + STALE_S + 1)
    assert "no coordinator" in lost(surveyed(serving=False), NOW)


def test_hostile_devices_cannot_fill_prometheus() -> None:
    views = [
        DeviceView(f"d{number:04}", State.READY, vitals=VitalSigns(NOW, "idle", 1.0, {f"m{n}": 1.0 for n in range(64)}))
        for number in range(DEVICES + 5)
    ]
    metrics = Metrics(lambda: surveyed(*views))
    for number in range(1000):
        metrics({"event": "failed", "code": f"code{number}", "device": "d", "round": 1, "reason": ""})
    page = metrics.page().decode()
    assert page.count("talaria_failures_total{") == CODES + 1
    assert 'talaria_failures_total{code="other"} ' + f"{1000 - CODES}.0" in page
    assert page.count("talaria_device_vital{") == DEVICES * 16
    assert "talaria_device_vitals_left_out 5.0" in page
    assert len(page) < 400_000
