"""Another version of the agent beside the one in service: built, tried, switched to, and left again if it fails.

    /opt/talaria/versions/0.1.0/     a virtual environment each; files that did not change are the same on the disk
    /opt/talaria/versions/0.2.0/
    /opt/talaria/current, previous   symbolic links to two of them, replaced in one step

What the device remembers is not touched: it is the same folder for all versions, and a version that does not know its
format is refused. No version is ever in service that did not get through its own `doctor` on this machine.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent.doctor_report import problems
from edge_agent.pulse import ask
from edge_agent.service import Layout
from edge_agent.service_command import point
from edge_agent.store import FORMAT_FILE
from shared.errors import StateError

KNOWS = "from edge_agent.store import FORMAT; print(FORMAT)"
SETTLED_S = 5.0
"""A new version must still be the same process so much later."""


@dataclass(frozen=True)
class Service:
    """How the agent is started and stopped: by systemd, on a device. `restart` returns when it has said that it is
    ready, and raises StateError where it does not. `finished`: it has ended since, by itself and without an error, as
    the agent of a device that sleeps does when there is nothing to do."""

    stop: Callable[[], object]
    restart: Callable[[], object]
    finished: Callable[[], bool]


def layout_here() -> Layout:
    """The installation that runs this. StateError where it is none that `talaria-agent install` made."""
    version = Path(sys.prefix).resolve()
    home = version.parent.parent
    if version.parent.name != "versions" or not (home / "current").is_symlink():
        raise StateError(f"{version} is no installed version: `talaria-agent install` makes the service first")
    return Layout(home.parent.parent)


def version_of(wheel: Path) -> str:
    """What a wheel says in its name. StateError for another file."""
    match = re.fullmatch(r"talaria-([A-Za-z0-9_.!+]+)-[^-]+-[^-]+-[^-]+\.whl", wheel.name)
    if match is None or not wheel.is_file():
        raise StateError(f"{str(wheel)!r} is no wheel of talaria: give the file talaria-VERSION-py3-none-any.whl")
    return match[1]


def upgrade(layout: Layout, wheel: Path, service: Service, tell: Callable[[str], None], *, wait_s: float) -> None:
    """Put the version of the wheel into service. StateError where it is refused, or was left again: the version before
    is then in service, as it was."""
    current = _linked(layout, "current")
    target = layout.home / "versions" / version_of(wheel)
    if target == current:
        raise StateError(f"{target.name} is in service already")
    tell(f"building {target}")
    _build(target, current, wheel)
    before = _facts(layout)
    tell(f"trying {target.name}; the agent is stopped for it")
    service.stop()  # a doctor that shows the device's certificate to the broker would push it out
    try:
        _compare(layout, current, target)
    except StateError:
        service.restart()
        raise
    _switch(layout, target, service, tell, before, wait_s=wait_s)
    for path in (layout.home / "versions").iterdir():
        if path not in (current, target):
            shutil.rmtree(path)
            tell(f"removed: {path}")


def roll_back(layout: Layout, service: Service, tell: Callable[[str], None], *, wait_s: float) -> None:
    """Put the version before into service. StateError where there is none, or it does not work any more."""
    _switch(layout, _linked(layout, "previous"), service, tell, _facts(layout), wait_s=wait_s)


def _linked(layout: Layout, name: str) -> Path:
    link = layout.home / name
    if not link.is_symlink() or not link.exists():
        raise StateError(f"{link} names no version: there is none to go back to")
    return link.resolve()


def _build(target: Path, current: Path, wheel: Path) -> None:
    """The current version's files under another name, and the wheel installed over them, with what it wants beside.

    pip replaces files and never writes into them, so what both have is on the disk once: torch is not copied.
    """
    if target.exists():
        shutil.rmtree(target)  # was refused or interrupted
    shutil.copytree(current, target, symlinks=True, copy_function=os.link)
    python = target / "bin/python3"
    extras = "[train,infer]" if _runs(python, "import importlib.util as u; assert u.find_spec('torch')") else "[infer]"
    _python(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{wheel.absolute()}{extras}")


def _compare(layout: Layout, current: Path, target: Path) -> None:
    """StateError for a version that finds problems on this machine that the one in service does not have, or that does
    not know the format of the state."""
    known = _python(target / "bin/python3", "-c", KNOWS).strip()
    path = layout.state / FORMAT_FILE
    if path.exists() and known != path.read_text().strip():
        raise StateError(
            f"{target.name} keeps its state in format {known}, this device has {path.read_text().strip()}: see the "
            "release notes of that version for the way there"
        )
    arguments = ("doctor", "-c", str(layout.config), "--set", f"state_dir={layout.state}", "--json")
    before = problems(current / "bin/talaria-agent", arguments)
    worse = {
        check: text for check, text in problems(target / "bin/talaria-agent", arguments).items() if check not in before
    }
    if worse:
        raise StateError(f"{target.name} is refused: " + "; ".join(f"{check}: {text}" for check, text in worse.items()))


def _switch(
    layout: Layout,
    target: Path,
    service: Service,
    tell: Callable[[str], None],
    before: Mapping[str, Any],
    *,
    wait_s: float,
) -> None:
    """Start the target; if it is not well, start again what ran before, and say why."""
    current = _linked(layout, "current")
    tell(f"starting {target.name}")
    point(layout.home / "previous", current)
    point(layout.home / "current", target)
    try:
        service.restart()
        _wait(layout, target.name, service, before, wait_s)
    except StateError as error:
        tell(f"{target.name} does not work: {error}; going back to {current.name}")
        point(layout.home / "current", current)
        service.restart()
        raise StateError(f"{target.name} does not work: {error}; {current.name} is in service again") from error
    tell(f"{target.name} is in service")


def _wait(layout: Layout, version: str, service: Service, before: Mapping[str, Any], wait_s: float) -> None:
    """Until the agent answers, connected if it was before, and is still the same one a little later; or has done its
    work and sleeps."""
    end = time.monotonic() + wait_s
    since, process = time.monotonic(), None
    while time.monotonic() < end:
        facts = _facts(layout)
        if not facts and service.finished():
            return
        well = bool(facts) and (facts.get("connected") or not before.get("connected"))
        if not well or facts.get("pid") != process:
            since, process = time.monotonic(), facts.get("pid") if well else None
        elif time.monotonic() - since >= SETTLED_S:
            if facts.get("version") != version:
                raise StateError(f"version {facts.get('version')} answers in its place")
            return
        time.sleep(0.5)
    raise StateError(f"it is not well after {wait_s:g} s; see journalctl -u talaria-agent")


def _facts(layout: Layout) -> dict[str, Any]:
    """What the agent says of itself; nothing where none answers."""
    try:
        return ask(layout.state, 5.0)
    except StateError:
        return {}


def _python(python: Path, *arguments: str) -> str:
    """What it prints; StateError with its last words where it fails. Isolated: the folder that we are in is not its."""
    done = subprocess.run([str(python), "-I", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        words = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise StateError(f"{python} {' '.join(arguments[:3])}: {words[0]}")
    return done.stdout


def _runs(python: Path, code: str) -> bool:
    return subprocess.run([str(python), "-I", "-c", code], capture_output=True, check=False).returncode == 0
