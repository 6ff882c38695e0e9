"""The live view of a run: what the coordinator tells, as a table that stays in place, or as lines where it cannot.

It folds the coordinator's events (coordinator.server documents their fields) and draws; it decides nothing.
"""

from collections.abc import Mapping
from statistics import fmean
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from lab.wording import MISSING, percent, size


class LiveView:
    """Context manager; call it with one event at a time."""

    def __init__(self, console: Console, *, rounds: int, devices: Mapping[str, str]) -> None:
        """`devices`: device -> profile, in the order of the table."""
        self._console = console
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._task = self._progress.add_task("rounds", total=rounds, note="waiting for devices")
        self._rows: dict[str, dict[str, str]] = {
            device: {"profile": profile, "state": "starting"} for device, profile in devices.items()
        }
        self._live = (
            Live(self._render(), console=console, refresh_per_second=8, transient=True) if console.is_terminal else None
        )

    def __enter__(self) -> "LiveView":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Fold in one event; one of an unknown kind changes nothing, for the coordinator may tell more than we show."""
        handler = getattr(self, f"_on_{event['event']}", None)
        if handler is not None:
            handler(event)
        if self._live:
            self._live.update(self._render())

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text)

    def _row(self, event: Mapping[str, Any]) -> dict[str, str]:
        return self._rows.setdefault(event["device"], {"profile": MISSING})

    def _note(self, text: str) -> None:
        self._progress.update(self._task, note=text)

    def _on_device(self, event: Mapping[str, Any]) -> None:
        self._row(event)["state"] = "ready" if event["online"] else "[red]offline[/]"

    def _on_opened(self, event: Mapping[str, Any]) -> None:
        for device in event["cohort"]:
            self._rows.setdefault(device, {"profile": MISSING})["state"] = "training"
        again = f", attempt {event['attempt']}" if event["attempt"] > 1 else ""
        self._note(f"round {event['round']} with {len(event['cohort'])} devices{again}")

    def _on_accepted(self, event: Mapping[str, Any]) -> None:
        metrics = event["metrics"]
        self._row(event).update(
            state="[green]sent[/]",
            examples=str(event["examples"]),
            accuracy=percent(metrics.get("accuracy")),
            kept=percent(event["kept"]),
            update=size(event["bytes"]),
        )

    def _on_rejected(self, event: Mapping[str, Any]) -> None:
        self._row(event)["state"] = f"[red]refused: {event['code']}[/]"
        self._lasting(f"refused an update of {event['device']}: {event['reason']}")

    def _on_failed(self, event: Mapping[str, Any]) -> None:
        self._row(event)["state"] = f"[red]failed: {event['code']}[/]"
        self._lasting(f"{event['device']} failed in round {event['round']}: {event['reason']}")

    def _on_closed(self, event: Mapping[str, Any]) -> None:
        accuracies = [entry["metrics"]["accuracy"] for entry in event["accepted"] if "accuracy" in entry["metrics"]]
        mean = percent(fmean(accuracies)) if accuracies else MISSING
        self._progress.update(
            self._task, completed=event["round"], note=f"own models {mean} before this round's training"
        )
        if not self._live:
            took = f"{size(event['bytes_up'])} up, {event['wall_s']:.1f} s"
            updates = f"{len(event['accepted'])} of {len(event['cohort'])} updates"
            self.say(f"round {event['round']}: {updates}, own models {mean}, {took}")

    def _on_personalizing(self, event: Mapping[str, Any]) -> None:
        for row in self._rows.values():
            row["state"] = "personalizing"
        self._note("personalizing and exporting")

    def _on_reported(self, event: Mapping[str, Any]) -> None:
        metrics = event["metrics"]
        self._row(event).update(state="[green]done[/]", accuracy=percent(metrics.get("accuracy")))
        if not self._live:
            self.say(f"{event['device']}: own model {percent(metrics.get('accuracy'))}, reported")

    def _on_agent_exit(self, event: Mapping[str, Any]) -> None:
        self._row(event)["state"] = f"[red]exited {event['status']}[/]"
        self._lasting(f"the agent of {event['device']} exited with {event['status']}: see {event['log']}")

    def _lasting(self, text: str) -> None:
        self.say(f"[yellow]{text}[/]")

    def _render(self) -> RenderableType:
        table = Table(box=None, pad_edge=False, header_style="dim")
        columns = ("device", "profile", "state", "examples", "accuracy", "kept", "update")
        for name in columns:
            table.add_column(name, justify="left" if name in ("device", "profile", "state") else "right", min_width=8)
        for device, row in self._rows.items():
            table.add_row(device, *(row.get(name, MISSING) for name in columns[1:]))
        return Group(table, self._progress)
