"""What `talaria-coordinator run` shows to a person: a line per event, and a bar over the rounds at a terminal."""

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from shared.logs import printable


def line(event: dict[str, Any]) -> str | None:
    """One event of coordinator.server in words, on one line whatever a device put into it; None: nothing to say."""
    text = _words(event)
    return None if text is None else printable(text)


def _words(event: dict[str, Any]) -> str | None:
    match event["event"]:
        case "started":
            again = "" if event["phase"] == "gathering" and event["round"] == 1 else f", from round {event['round']} on"
            return f"run {event['run']}: {event['algorithm']} on {event['model']}, {event['rounds']} rounds{again}"
        case "broker":
            return f"broker at {event['url']}"
        case "disconnected":
            return f"no connection to the broker: {event['reason']}"
        case "device":
            return f"{event['device']} ({event['profile'] or 'unknown profile'}): {_state(event)}"
        case "opened":
            again = f", attempt {event['attempt']}" if event["attempt"] > 1 else ""
            size = f"at most {_size(event['payload_bytes'])} each, {_size(event['broker_bytes'])} at the broker"
            return f"round {event['round']}{again}: {len(event['cohort'])} devices, {size}"
        case "rejected":
            return f"refused from {event['device']}: {event['code']}, {event['reason']}"
        case "failed":
            return f"{event['device']} failed in round {event['round']}: {event['code']}, {event['reason']}"
        case "quarantined":
            why = f"{event['count']} times in a row, now {event['code']}, {event['reason']}"
            return f"{event['device']} is in quarantine: it was refused or failed {why}"
        case "released":
            return f"{event['device']} is released from quarantine"
        case "abandoned":
            return f"round {event['round']} is asked again: {event['reason']}"
        case "closed":
            updates = f"{len(event['accepted'])} of {len(event['cohort'])} updates"
            moved = f"{_size(event['bytes_up'])} up, {event['wall_s']:.1f} s"
            return f"round {event['round']} closed: {updates}, {moved}{_accuracy(event['evaluation'])}"
        case "preparing":
            return "the ONNX template of the model is still being made; then every device makes the model its own"
        case "personalizing":
            return "every device makes the model its own"
        case "reported":
            accuracy = event["metrics"].get("accuracy")
            return f"{event['device']} reported" + ("" if accuracy is None else f": accuracy {accuracy:.1%}")
        case "warning":
            return f"warning: {event['text']}"
        case "finished":
            left = "".join(
                f"; {text}: {', '.join(event[name])}"
                for name, text in (("failed", "failed"), ("absent", "never came back"))
                if event[name]
            )
            reported = f"{len(event['reported'])} devices reported{_accuracy(event['evaluation'])}"
            return f"finished: {reported}{left}; everything is in {event['run_dir']}"
    return None


def _state(event: dict[str, Any]) -> str:
    if event["online"]:
        return f"not asked: {event['unfit']}" if event["unfit"] else "ready"
    asleep = event.get("asleep_s")
    return "offline" if asleep is None else f"asleep, back in {asleep:.0f} s"


class Narrator:
    """Context manager; call it with one event at a time."""

    def __init__(self, console: Console, rounds: int) -> None:
        self._progress = Progress(
            TextColumn("rounds"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._console = console
        self._task = self._progress.add_task("", total=rounds)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] in ("closed", "opened"):
            self._progress.update(self._task, completed=event["round"] - (event["event"] == "opened"))
        if (text := line(event)) is not None:
            self._console.print(escape(text), highlight=False, soft_wrap=True)


def _accuracy(evaluation: dict[str, dict[str, Any]]) -> str:
    """How the devices' own models do; empty where nobody told."""
    if (own := evaluation.get("accuracy")) is None:
        return ""
    worst = f"worst {own['worst']:.1%} ({own['worst_device']})"
    return f", accuracy {own['weighted_mean']:.1%}, tenth percentile {own['p10']:.1%}, {worst}"


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"
