"""The report is a page that stands alone, whatever names devices and settings have."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lab import plots
from lab.report import write_report
from lab.summary import RunSummary, summarize

DEVICES = ["pi-00", "pi-01"]


@pytest.fixture
def summary() -> RunSummary:
    journal = [
        {
            "event": "round",
            "round": number,
            "evaluation": {},
            "cohort": DEVICES,
            "accepted": [
                {
                    "device": device,
                    "examples": 5,
                    "kept": 1.0 / number,
                    "metrics": {"accuracy": 0.1 * number, "accuracy_global": 0.05 * number},
                }
                for device in DEVICES
            ],
            "bytes_up": 100,
            "bytes_down": 200,
            "wall_s": 1.0,
        }
        for number in (1, 2)
    ]
    metrics = {
        "accuracy": 0.75,
        "accuracy_global": 0.5,
        "parameters": 10.0,
        "parameters_dense": 40.0,
        "bytes_up": 100.0,
    }
    reports = [{"device": device, "examples": 5, "metrics": metrics} for device in DEVICES]
    return summarize([*journal, {"event": "personalized", "evaluation": {}, "devices": reports}])


def write(path: Path, summary: RunSummary, settings: str) -> str:
    write_report(
        path,
        summary,
        title="hermes on digits",
        lead="two devices",
        profiles={"pi-00": "rpi-4b"},
        settings=settings,
        class_counts={"pi-00": [3, 2], "pi-01": [0, 5]},
        classes=["zero", "one"],
    )
    return path.read_text()


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path, summary: RunSummary) -> None:
    page = write(tmp_path / "report.html", summary, "seed = 0")
    assert "<script" not in page
    assert not re.findall(r"(?:src|href)=\"(?!#)", re.sub(r"xlink:href=\"#[^\"]*\"", "", page))
    assert page.count("<svg") == 6


def test_what_devices_and_settings_say_is_text_not_markup(tmp_path: Path, summary: RunSummary) -> None:
    page = write(tmp_path / "report.html", summary, "name = '<script>alert(1)</script>'")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_the_table_holds_the_numbers(tmp_path: Path, summary: RunSummary) -> None:
    page = write(tmp_path / "report.html", summary, "")
    assert "75.0%" in page
    assert "25.0%" in page  # parameters kept


def test_each_plot_is_well_formed_and_the_same_every_time(summary: RunSummary) -> None:
    for draw in (plots.accuracy_by_round, plots.accuracy_by_device, plots.shares_by_device, plots.kept_by_round):
        assert ElementTree.fromstring(draw(summary)).tag.endswith("svg")
        assert draw(summary) == draw(summary)


def test_a_run_in_which_nobody_reported_still_gets_a_page(tmp_path: Path) -> None:
    page = write(tmp_path / "report.html", RunSummary((), (), absent=("pi-00",)), "")
    assert "did not report at the end: pi-00" in page
