"""Tables of transitions: what a round engine may do next, and how that is drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

from coordinator.events import Command, Phase


@dataclass(frozen=True)
class Transition:
    """In `source`, when `guard` holds: go to `target` and yield the command of `action`."""

    source: Phase
    when: str
    guard: Callable[[Any, float], bool]
    target: Phase
    action: Callable[[Any, float], Command]


def diagram(transitions: Sequence[Transition]) -> str:
    """The state diagram as Mermaid text."""
    edges = "\n".join(
        f"    {t.source} --> {t.target}: {t.when} / {get_type_hints(t.action)['return'].__name__}" for t in transitions
    )
    return f"stateDiagram-v2\n    [*] --> {Phase.GATHERING}\n{edges}\n    {Phase.FINISHED} --> [*]\n"
