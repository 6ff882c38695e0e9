"""The tables that `status --live` and `devices` show. What devices say of themselves stays in its cell."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from coordinator.devices import Row, lost
from coordinator.events import Phase
from coordinator.survey import DeviceView, State, Survey
from shared.logs import printable

REFRESH_S = 2.0
WIDE, WIDEST = 100, 140
"""Columns of a terminal from which on more is shown, and everything."""
NARROW = 70
"""Below, vital signs have no room."""
LONGEST = 24
"""Of a cell; what is longer is cut."""
GAP = 2
OLD_S = 600.0
"""From when on it is said how old vital signs are."""
SHOWN = 30
"""Devices on a terminal, and fewer where it is lower."""
ROUNDS = 10
COLOURS = {State.QUARANTINED: "red", State.UNFIT: "yellow", State.OFFLINE: "yellow", State.ASLEEP: "cyan"}
# load per core is told as a multiple: above x1 the processor cannot keep up
VITALS = (("temperature_c", "{:.0f} C"), ("battery_pct", "{:.0f} %"), ("load_per_core", "x{:.1f}"))


def devices_table(rows: Sequence[Row], now: float, *, width: int, limit: int | None) -> RenderableType:
    """`limit`: devices at most; how many are left out is said."""
    shown = rows[:limit]
    columns: dict[str, list[str]] = {
        "profile": [row.view.profile for row in shown],
        "seen": [_age(row.view.last_seen, now) for row in shown],
        "rounds": [f"{row.answered}/{row.asked}" for row in shown],
        "up": [size(row.view.bytes_up) for row in shown],
        "down": [size(row.view.bytes_down) for row in shown],
        "refused": [str(sum(row.refused.values()) or "") for row in shown],
        "vital signs": [_vitals(row.view, now, brief=width < WIDE) for row in shown],
    }
    if width < WIDE:
        del columns["down"]
    if width < WIDEST:
        del columns["profile"]
    widths = {name: min(LONGEST, max(map(len, [name, *cells]))) for name, cells in columns.items()}
    if width < NARROW:
        del columns["vital signs"]
    first = min(LONGEST if width >= WIDE else LONGEST // 2, max(map(len, ["device", *(r.view.device for r in shown)])))
    taken = first + sum(widths[name] + GAP for name in columns)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("device", width=first, overflow="ellipsis", no_wrap=True)
    table.add_column("state", max_width=max(10, width - taken - GAP), overflow="ellipsis", no_wrap=True)
    for name in columns:
        justify: JustifyMethod = "left" if name in ("profile", "vital signs") else "right"
        table.add_column(name, width=widths[name], justify=justify, overflow="ellipsis", no_wrap=True)
    for number, row in enumerate(shown):
        state = Text(printable(_state(row.view, now)), COLOURS.get(row.view.state, ""))
        table.add_row(Text(row.view.device), state, *(Text(cells[number]) for cells in columns.values()))
    left = 0 if limit is None else max(0, len(rows) - limit)
    return Group(table, Text(f"and {left} more: --json lists all", "dim")) if left else table


def rounds_table(status: dict[str, Any]) -> RenderableType:
    """The last closed rounds of coordinator.status.status_of."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in ("round", "updates", "refused", "failed", "up", "down", "s", "accuracy"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("worst", no_wrap=True, overflow="ellipsis")
    for line in [line for line in status["history"] if line["event"] == "round"][-ROUNDS:]:
        spread = line["evaluation"].get("accuracy")
        table.add_row(
            str(line["round"]),
            f"{len(line['accepted'])}/{len(line['cohort'])}",
            str(len(line["rejected"]) or ""),
            str(len(line["failed"]) or ""),
            size(line["bytes_up"]),
            size(line["bytes_down"]),
            f"{line['wall_s']:.1f}",
            "" if spread is None else f"{spread['weighted_mean']:.1%}",
            "" if spread is None else f"{spread['worst']:.1%} {spread['worst_device']}",
        )
    return table


def headline(status: dict[str, Any], survey: Survey | None, rows: Sequence[Row], now: float) -> Text:
    """How things stand, in a few lines."""
    closed = sum(line["event"] == "round" for line in status["history"])
    text = Text(f"run {status['run']}: {status['phase']}, {closed} of {status['rounds']} rounds closed\n")
    if status["attempt"] and status["phase"] != Phase.FINISHED:
        text.append(
            f"round {status['round']}, attempt {status['attempt']}: "
            f"{len(status['accepted'])} of {len(status['cohort'])} updates\n"
        )
    states = Counter(row.view.state for row in rows)
    text.append(f"{len(rows)} devices" + "".join(f", {states[state]} {state}" for state in State if states[state]))
    if survey is not None:
        broker = "" if survey.connected or not survey.serving else "; no connection to the broker"
        text.append(f"; {survey.jobs} jobs wait, {survey.board_due} publications{broker}\n")
        text.append(f"as of {time.strftime('%H:%M:%S', time.localtime(survey.written))}")
        if trouble := lost(survey, now):
            text.append(f": {trouble}", "yellow")
    return text


def show_live(draw: Callable[[Console], tuple[RenderableType, bool]]) -> None:
    """Draw until it is over, or somebody presses Ctrl-C. `draw`: (what to show, whether nothing will change)."""
    console = Console()
    try:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                shown, over = draw(console)
                live.update(shown, refresh=True)
                if over:
                    return
                time.sleep(REFRESH_S)
    except KeyboardInterrupt:
        pass


def rows_that_fit(console: Console) -> int | None:
    """Devices that a table may have: all where nobody scrolls."""
    return max(5, min(SHOWN, console.height - 8)) if console.is_terminal else None


def size(count: float) -> str:
    """1234567 -> '1.23 MB'."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _state(view: DeviceView, now: float) -> str:
    if view.state is State.ASLEEP and view.wakes_at is not None:
        late = now - view.wakes_at
        return f"asleep, {'late for' if late > 0 else 'back in'} {_span(abs(late))}"
    why = view.why if view.state in (State.UNFIT, State.QUARANTINED) else ""
    return f"{view.state}: {why}" if why else str(view.state)


def _vitals(view: DeviceView, now: float, *, brief: bool) -> str:
    if view.vitals is None:
        return ""
    metrics = view.vitals.metrics
    said = [form.format(metrics[name]) for name, form in VITALS if name in metrics]
    old = now - view.vitals.at
    age = [f"({_span(old)} ago)"] if old > OLD_S else []
    return " ".join([*([] if brief else [view.vitals.phase]), *said, *age])


def _age(at: float | None, now: float) -> str:
    return "never" if at is None else _span(max(0.0, now - at))


def _span(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
