"""Another version of the agent, on a device that works: real virtual environments, real wheels, a real broker.

systemd is the one thing that is not there: `Boot` starts what the unit says and waits until it has said READY.
"""

import hashlib
import os
import re
import shlex
import socket
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from edge_agent.pulse import ask
from edge_agent.service import UNIT, Layout, units
from edge_agent.service_command import point
from edge_agent.upgrade import Service, roll_back, upgrade, version_of
from shared.errors import StateError
from shared.profiles import load_profile
from shared.settings import load_agent_config

sys.path.insert(0, str(Path(__file__).parents[1] / "broker/support"))
sys.path.insert(0, str(Path(__file__).parent / "support"))

from brokers import Mosquitto
from wheels import SOURCE, wheel

READY_S = 120
pytestmark = pytest.mark.timeout(600)  # pip, doctors and importing libraries, several times over


class Boot:
    """What systemd does with the unit: start it, wait for READY, stop it."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.process: subprocess.Popen[bytes] | None = None
        self.service = Service(stop=self.stop, restart=self.restart, finished=lambda: False)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def restart(self) -> None:
        self.stop()
        root, text = str(self.layout.root), (self.layout.units / UNIT).read_text()
        command = shlex.split(re.findall("^ExecStart=(.*)$", text, re.M)[0])
        command = [part.replace("/opt/", f"{root}/opt/").replace("%d/", f"{root}/etc/talaria/") for part in command]
        command = [part.replace("/var/lib/", f"{root}/var/lib/") for part in command]
        address = f"talaria-boot-{os.getpid()}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(f"\0{address}")
            listener.settimeout(0.2)
            self.process = subprocess.Popen(command, env={**os.environ, "NOTIFY_SOCKET": f"@{address}"})
            end = time.monotonic() + READY_S
            while time.monotonic() < end and self.process.poll() is None:
                try:
                    if b"READY=1" in listener.recv(4096):
                        return
                except TimeoutError:
                    pass
        raise StateError(f"systemctl restart {UNIT}: it did not get ready")


@pytest.fixture(scope="module")
def boot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Boot]:
    """A device with version 1.0, installed, running and connected to its broker. Every test leaves it so."""
    folder = tmp_path_factory.mktemp("device")
    layout = Layout(folder / "root")
    version = layout.home / "versions/1.0"
    venv.create(version, symlinks=True)
    # pip and the dependencies are this environment's; only our own code is installed.
    site = next((version / "lib").glob("python3*")) / "site-packages"
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    pip = [version / "bin/python3", "-m", "pip", "install", "--quiet", "--no-deps", wheel(folder / "first", "1.0")]
    subprocess.run(pip, check=True)
    broker = Mosquitto(folder / "broker")
    layout.config.parent.mkdir(parents=True)
    layout.config.write_text(f'device = "kitchen"\nprofile = "ltem-sensor-node"\n[broker]\nurl = "{broker.url}"\n')
    config = load_agent_config(layout.config, ()).config
    layout.units.mkdir(parents=True)
    for name, text in units(config, load_profile(config.profile), layout).items():
        (layout.units / name).write_text(text)
    point(layout.home / "current", version)
    boot = Boot(layout)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PIP_NO_INDEX", "1")
            # Byte code of what is imported alone; no look at the dependencies of every package of this environment.
            patch.setenv("PIP_COMPILE", "0")
            patch.setenv("PIP_NO_WARN_CONFLICTS", "0")  # 0: pip takes the word for the value, not for the option's name
            patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
            patch.setattr("edge_agent.upgrade.SETTLED_S", 1.0)
            boot.restart()
            await_connected(boot)
            (layout.state / "models" / "precious").write_text("what the device has learned")
            yield boot
    finally:
        boot.stop()
        broker.kill()


def await_connected(boot: Boot) -> None:
    end = time.monotonic() + READY_S
    while not ask(boot.layout.state, 5.0)["connected"]:
        assert time.monotonic() < end, "never connected"
        time.sleep(0.05)


def remembered(layout: Layout) -> str:
    """A digest of the folder, without what every start counts."""
    digest = hashlib.sha256()
    for path in sorted(layout.state.rglob("*")):
        if path.is_file() and path.name not in ("epoch", "traffic", "budget"):
            digest.update(path.relative_to(layout.state).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def epoch(layout: Layout) -> int:
    return int((layout.state / "epoch").read_text())


def test_a_new_version_takes_over_and_the_one_before_can_come_back(boot: Boot, tmp_path: Path) -> None:
    layout, said = boot.layout, list[str]()
    before, started = remembered(layout), epoch(layout)
    upgrade(layout, wheel(tmp_path / "next", "2.0"), boot.service, said.append, wait_s=60)
    facts = ask(layout.state, 5.0)
    assert (facts["version"], facts["connected"]) == ("2.0", True)
    assert remembered(layout) == before
    assert epoch(layout) > started
    # What both versions have is on the disk once.
    cfg = [(layout.home / "versions" / version / "bin/activate").stat() for version in ("1.0", "2.0")]
    assert cfg[0].st_ino == cfg[1].st_ino

    roll_back(layout, boot.service, said.append, wait_s=60)
    assert ask(layout.state, 5.0)["version"] == "1.0"
    assert remembered(layout) == before
    assert sorted(path.name for path in (layout.home / "versions").iterdir()) == ["1.0", "2.0"]


CRASHES = {"edge_agent/run_command.py": "import click\n@click.command()\ndef run(): raise SystemExit(1)\n"}


def deaf() -> dict[str, str]:
    """A version that starts, and never gets through to the broker."""
    text = (SOURCE / "edge_agent/agent.py").read_text()
    changed = text.replace("await self._link.open()", "await asyncio.Event().wait()")
    assert changed != text
    return {"edge_agent/agent.py": changed}


@pytest.mark.parametrize(("changes", "why"), [(CRASHES, "did not get ready"), (deaf(), "not well after")])
def test_a_version_that_does_not_work_is_left_again_by_itself(
    boot: Boot, tmp_path: Path, changes: Mapping[str, str], why: str
) -> None:
    layout, said = boot.layout, list[str]()
    before = remembered(layout)
    with pytest.raises(StateError, match=f"2.0 does not work: .*{why}.*; 1.0 is in service again"):
        upgrade(layout, wheel(tmp_path / "next", "2.0", changes), boot.service, said.append, wait_s=3)
    await_connected(boot)
    assert ask(layout.state, 5.0)["version"] == "1.0"
    assert remembered(layout) == before
    assert (layout.home / "current").resolve().name == "1.0"


def test_a_version_that_this_device_cannot_run_is_never_started(boot: Boot, tmp_path: Path) -> None:
    layout, said = boot.layout, list[str]()
    illegal = {"onnxruntime/__init__.py": "import os, signal; os.kill(os.getpid(), signal.SIGILL)"}
    with pytest.raises(StateError, match=r"2\.0 is refused: onnxruntime: .*illegal instruction"):
        upgrade(layout, wheel(tmp_path / "next", "2.0", illegal), boot.service, said.append, wait_s=60)
    store = (SOURCE / "edge_agent/store.py").read_text()
    later = {"edge_agent/store.py": store.replace("FORMAT = 1", "FORMAT = 2")}
    with pytest.raises(StateError, match="keeps its state in format 2, this device has 1"):
        upgrade(layout, wheel(tmp_path / "later", "3.0", later), boot.service, said.append, wait_s=60)
    await_connected(boot)
    assert ask(layout.state, 5.0)["version"] == "1.0"
    assert not any("starting" in line for line in said)


def test_only_a_wheel_of_ours_is_taken(tmp_path: Path) -> None:
    assert version_of(wheel(tmp_path, "2.0rc1+local")) == "2.0rc1+local"
    for name in ("talaria.tar.gz", "torch-2.9.1-cp311-cp311-linux_x86_64.whl", "talaria-2.0-py3-none-any.whl"):
        with pytest.raises(StateError, match="no wheel of talaria"):
            version_of(tmp_path / name)
