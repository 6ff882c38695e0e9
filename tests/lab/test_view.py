"""The live view shows what the coordinator tells, on a terminal and in a log."""

import io

from rich.console import Console

from lab.view import LiveView

DEVICES = {"pi-00": "rpi-4b", "pi-01": "rpi-5"}
ACCEPTED = {"device": "pi-00", "examples": 40, "bytes": 1500, "kept": 0.75, "metrics": {"accuracy": 0.5}}
EVENTS = [
    {"event": "device", "device": "pi-00", "online": True},
    {"event": "opened", "round": 1, "attempt": 1, "cohort": ["pi-00", "pi-01"]},
    {"event": "accepted", "round": 1, **ACCEPTED},
    {"event": "rejected", "device": "pi-01", "round": 1, "code": "not_finite", "reason": "conv1.weight holds NaN"},
    {
        "event": "closed",
        "round": 1,
        "cohort": ["pi-00", "pi-01"],
        "accepted": [ACCEPTED],
        "bytes_up": 1500,
        "wall_s": 2.0,
    },
    {"event": "something_new", "device": "pi-00"},
]


def drawn(*, terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=140)
    with LiveView(console, rounds=3, devices=DEVICES) as view:
        for event in EVENTS:
            view(event)
    return out.getvalue()


def test_a_log_gets_a_line_per_round_and_every_refusal_with_its_reason() -> None:
    lines = drawn(terminal=False).splitlines()
    assert lines == [
        "refused an update of pi-01: conv1.weight holds NaN",
        "round 1: 1 of 2 updates, own models 50.0%, 1.5 kB up, 2.0 s",
    ]


def test_a_terminal_gets_the_table() -> None:
    text = drawn(terminal=True)
    for part in ("pi-00", "rpi-5", "50.0%", "75.0%", "1.5 kB", "refused: not_finite"):
        assert part in text


def test_a_device_that_nobody_announced_gets_a_row() -> None:
    out = io.StringIO()
    with LiveView(Console(file=out, force_terminal=True, width=140), rounds=1, devices={}) as view:
        view({"event": "device", "device": "stranger", "online": True})
    assert "stranger" in out.getvalue()
