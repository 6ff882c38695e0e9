"""The progress of simulations: one bar over the rounds, with how the fleet fares and what it has sent."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lab.wording import percent, size


class SimulationProgress:
    """Context manager; `begin` a simulation, then call it with one event at a time. Off a terminal, a line per round
    takes the place of the bar."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("", total=None, note="")
        self._moved = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, title: str, rounds: int) -> None:
        """The next events are of another simulation."""
        self._title, self._moved = title, 0
        self._progress.reset(self._task, description=title, total=rounds, note="preparing")

    def __call__(self, event: Mapping[str, Any]) -> None:
        match event["event"]:
            case "closed":
                self._moved += event["bytes_up"] + event["bytes_down"]
                note = f"{fares(event)}, {size(self._moved)} moved"
                self._progress.update(self._task, completed=event["round"], note=note)
                if not self._console.is_terminal:
                    self._console.print(
                        f"{self._title}, round {event['round']}: {note}, {event['wall_s']:.1f} s", soft_wrap=True
                    )
            case "personalizing":
                self._progress.update(self._task, note="personalizing every device")
            case "failed" | "rejected":
                self._console.print(f"[yellow]{self._title}: {event['device']}: {event['reason']}[/]", soft_wrap=True)
            case "given up":
                self._console.print(f"[yellow]{self._title} has no result: {event['reason']}[/]", soft_wrap=True)
            case "warning":
                self._console.print(f"[yellow]{self._title}: {event['text']}[/]", soft_wrap=True)


def fares(event: Mapping[str, Any]) -> str:
    """How the devices' own models do, in a few words."""
    spread = event["evaluation"].get("accuracy")
    if spread is None:
        return "not evaluated"
    return f"accuracy {percent(spread['weighted_mean'])}, worst {percent(spread['worst'])} ({spread['worst_device']})"
