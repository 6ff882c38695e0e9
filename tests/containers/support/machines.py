"""Two machines with a live systemd, in containers: one with broker and coordinator, one device. What docs/deploy.md
says to type is typed there; only the libraries are taken from an image instead of an index of packages."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from click.testing import CliRunner
from containers import podman
from sklearn.datasets import load_digits

from coordinator.cli import cli

sys.path.insert(0, str(Path(__file__).parents[2] / "edge_agent/support"))

from wheels import AGENT, wheel

T = TypeVar("T")
IMAGE = "talaria-systemd"
SERVER, DEVICE = "talaria-test-server", "talaria-test-device"
VERSION = "/opt/talaria/versions/0.1.0"
STATE = "/var/lib/talaria/agent"
LIBRARIES = """
python3 -m venv /opt/talaria/versions/0.1.0
/opt/talaria/versions/0.1.0/bin/pip install --quiet --no-deps --no-index /given/wheels/talaria-0.1.0-py3-none-any.whl
cd /opt/talaria/versions/0.1.0/lib/python3*/site-packages && echo /image$PWD | sed s,versions/0.1.0/,, >image.pth
"""
RUN = """
[model]
name = "digitscnn"
[algorithm]
name = "fedavg"
lr = 0.05
batch_size = 16
[rounds]
count = 20
min_devices = 1
quorum = 1
deadline_s = 120
"""
DATA = """
[data]
source = "npz"
path = "/srv/digits.npz"
options = { channels = "first", classes = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"] }
mean = [8.0]
std = [8.0]
"""
BROKER = """
mkdir -p /etc/talaria && cp -r keys/broker/. /etc/talaria/ && chown -R mosquitto: /etc/talaria
cp /etc/talaria/mosquitto.conf /etc/mosquitto/mosquitto.conf
systemctl restart mosquitto
"""
COORDINATOR = """
useradd --system --home-dir /var/lib/talaria --shell /usr/sbin/nologin talaria
cp -r keys/coordinator/. /etc/talaria/
cat keys/coordinator/coordinator.toml run.toml >/etc/talaria/run.toml
chown talaria: /etc/talaria /etc/talaria/{coordinator.*,signing.key,run.toml} && chmod a+r /etc/talaria/ca.pem
ln -s versions/0.1.0 /opt/talaria/current
cp /opt/talaria/current/lib/python3*/site-packages/coordinator/talaria-coordinator.service /etc/systemd/system/
systemctl enable --now talaria-coordinator
"""
AGENT_INSTALLED = """
mkdir -p /etc/talaria
cp -r keys/devices/kitchen/. /etc/talaria/
cat data.toml >>/etc/talaria/agent.toml
install -m 644 digits.npz /srv && cd /tmp
/opt/talaria/versions/0.1.0/bin/talaria-agent doctor -c /etc/talaria/agent.toml
/opt/talaria/versions/0.1.0/bin/talaria-agent install -c /etc/talaria/agent.toml
"""


class Machines:
    """`given` is /given in both of them."""

    def __init__(self, given: Path) -> None:
        self.given = given
        everything = (*AGENT, "coordinator")
        for version, changes in ("0.1.0", {}), ("0.2.0", {}), ("0.3.0", {"edge_agent/run_command.py": "1 / 0\n"}):
            wheel(given / "wheels", version, changes, everything)
        enrol = ["enrol", "--authority", given / "keys", "--fleet", "plant", "--host", "localhost"]
        made = CliRunner().invoke(cli, [str(each) for each in [*enrol, "--installed", "/etc/talaria", "kitchen"]])
        assert made.exit_code == 0, made.output
        (given / "run.toml").write_text(RUN)
        (given / "data.toml").write_text(DATA)
        digits = load_digits()
        np.savez(given / "digits.npz", x=digits.images[:300, None].astype(np.float32), y=digits.target[:300])

    def up(self) -> None:
        file = Path(__file__).with_name("systemd.Dockerfile")
        podman("build", "--isolation", "chroot", "--network", "host", "--layers", "--tag", IMAGE, "--file", str(file))
        self._start(SERVER, "none")
        self._start(DEVICE, f"container:{SERVER}")

    def down(self) -> None:
        """Print the journals, which pytest shows for a failure, and remove everything."""
        for machine in (SERVER, DEVICE):
            print(f"--- {machine}\n" + podman("exec", machine, "journalctl", "--no-pager", "-n", "60", check=False))
        for machine in (DEVICE, SERVER):
            podman("rm", "--force", "--time", "0", machine, check=False)

    def _start(self, name: str, network: str) -> None:
        # systemd mounts, and looks at other users' processes, for its services. The rest is a container's as usual.
        rights = ["--cap-add=SYS_ADMIN,SYS_PTRACE", "--security-opt=seccomp=unconfined"]
        rights += ["--security-opt=apparmor=unconfined"]
        mounts = ["--volume", f"{self.given}:/given:ro"]
        mounts += ["--mount", "type=image,source=localhost/talaria-coordinator,destination=/image"]
        podman("run", "--detach", "--name", name, "--systemd=always", *rights, "--network", network, *mounts, IMAGE)
        self.until("a system", lambda: self.sh(name, "systemctl is-system-running", check=False) == "running", 60)
        self.sh(name, LIBRARIES)

    def sh(self, machine: str, script: str, check: bool = True) -> str:
        """What root sees who types that in the folder of what was given."""
        return podman("exec", "--workdir", "/given", machine, "bash", "-ec", script, check=check)

    def show(self, machine: str, unit: str, fact: str) -> str:
        return self.sh(machine, f"systemctl show -P {fact} {unit}")

    def status(self) -> str:
        """What the agent says of itself; empty where none answers."""
        return self.sh(DEVICE, f"/opt/talaria/current/bin/talaria-agent status --state-dir {STATE}", check=False)

    def until(self, what: str, found: Callable[[], T], limit_s: float = 120) -> T:
        """Look four times a second until something is found."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            if value := found():
                return value
            time.sleep(0.25)
        raise AssertionError(f"{what} did not come within {limit_s:.0f} s")
