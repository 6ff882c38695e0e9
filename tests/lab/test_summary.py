"""A run's summary, recomputed by hand from a small journal."""

import json
from pathlib import Path
from typing import Any

import pytest

from lab.report import device_table
from lab.summary import read_journal, summarize
from lab.wording import percent, size
from shared.errors import StateError


def round_entry(number: int, accuracies: dict[str, float], cohort: list[str]) -> dict[str, Any]:
    accepted = [
        {"device": device, "examples": 10, "weight": 10.0, "bytes": 500, "kept": 0.5, "metrics": {"accuracy": value}}
        for device, value in accuracies.items()
    ]
    return {
        "event": "round",
        "round": number,
        "evaluation": {},
        "cohort": cohort,
        "accepted": accepted,
        "bytes_up": 500 * len(accepted),
        "bytes_down": 1000,
        "wall_s": 1.5,
    }


JOURNAL = [
    round_entry(1, {"a": 0.5, "b": 0.7}, ["a", "b", "c"]),
    round_entry(2, {"a": 0.6}, ["a"]),
    {
        "event": "personalized",
        "evaluation": {},
        "devices": [
            {
                "device": "a",
                "examples": 10,
                "metrics": {
                    "accuracy": 0.9,
                    "accuracy_global": 0.8,
                    "parameters": 50.0,
                    "parameters_dense": 200.0,
                    "bytes_up": 1000.0,
                },
            },
            {"device": "b", "examples": 30, "metrics": {"accuracy": 0.7, "parameters_dense": 200.0}},
        ],
    },
]


def test_devices_get_their_rounds_and_what_dense_fedavg_would_have_moved() -> None:
    a, b = summarize(JOURNAL).devices
    assert (a.device, a.examples, a.rounds) == ("a", 10, 2)
    # 200 parameters of 4 bytes: up once per accepted update, down once more for the final model
    assert (a.dense_up, a.dense_down) == (2 * 800, 3 * 800)
    assert (b.rounds, b.dense_up, b.dense_down) == (1, 800, 1600)


def test_shares_need_both_numbers() -> None:
    a, b = summarize(JOURNAL).devices
    assert a.share("parameters") == 0.25
    assert b.share("parameters") is None
    assert a.share("macs") is None


def test_who_took_part_and_never_reported_is_named() -> None:
    assert summarize(JOURNAL).absent == ("c",)


def test_means_are_over_those_that_reported() -> None:
    summary = summarize(JOURNAL)
    assert summary.mean("accuracy") == pytest.approx(0.8)
    assert summary.mean("accuracy_global") == 0.8
    assert summary.mean("latency_ms") is None


def test_rounds_keep_their_accuracies_and_bytes() -> None:
    first, second = summarize(JOURNAL).rounds
    assert first.accuracy == {"a": 0.5, "b": 0.7}
    assert (first.bytes_up, first.bytes_down, second.bytes_up) == (1000, 1000, 500)


def test_a_device_without_a_metric_is_shown_without_it() -> None:
    table = device_table(summarize(JOURNAL), {"a": "rpi-4b"})
    a, b = table.rows
    assert a[:5] == ("a", "rpi-4b", "10", "80.0%", "90.0%")
    assert a[8] == "1/1.6 kB"
    assert b[3] == "\N{EN DASH}"
    assert len(table.header) == len(a) == len(b) == len(table.footer)


def test_a_torn_line_is_named(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    journal.write_text(json.dumps(JOURNAL[0]) + '\n{"event": "rou')
    with pytest.raises(StateError, match="line 2"):
        read_journal(journal)


def test_sizes_and_shares_for_people() -> None:
    assert [size(n) for n in (512, 4100, 44_700_000, 2e9)] == ["512 B", "4.1 kB", "44.7 MB", "2.0 GB"]
    assert percent(0.1234) == "12.3%"
