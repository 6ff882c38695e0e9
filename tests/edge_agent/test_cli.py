"""talaria-agent as people start it: quick, without torch, with exit codes; and `run` over a real broker."""

import asyncio
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from coordinator.broker import EmbeddedBroker
from shared.codec import decode_presence
from shared.config_base import BrokerSettings
from shared.link import Received
from shared.messages import Presence
from shared.mqtt import MqttLink

AGENT = [sys.executable, "-c", "from edge_agent.cli import main; main()"]


def agent(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*AGENT, *arguments], capture_output=True, text=True, check=False)


def test_help_is_quick_and_teaches() -> None:
    agent("--help")  # the first one compiles
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        shown = agent("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.3, "CPU seconds: the wall clock also measures whatever else runs here"
    assert shown.returncode == 0
    for word in ("run", "doctor", "infer", "export", "Exit status"):
        assert word in shown.stdout


@pytest.mark.parametrize("command", ["run", "doctor", "infer", "export"])
def test_every_command_has_help_and_needs_no_torch(command: str) -> None:
    script = (
        "import sys; from edge_agent.cli import cli\n"
        f"cli(['{command}', '--help'], standalone_mode=False); print('torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "False"
    assert "Usage" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "named"),
    [
        (["fly"], 2, "fly"),
        (["run", "--set", "devise=kitchen"], 2, "device"),
        (["run", "--set", "device=kitchen", "--set", "profile=rpi-6"], 2, "rpi-5"),
        (["run", "-c", "no-such-file.toml"], 2, "no-such-file.toml"),
    ],
)
def test_wrong_use_is_explained_without_a_traceback(arguments: list[str], status: int, named: str) -> None:
    ended = agent(*arguments)
    assert ended.returncode == status
    assert named in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_run_serves_until_sigterm_and_says_goodbye(tmp_path: Path) -> None:
    async with EmbeddedBroker(tmp_path / "broker") as embedded, asyncio.timeout(60):
        link = MqttLink(BrokerSettings(url=embedded.url), "observer")
        await link.open()
        await link.subscribe("talaria/presence/+")
        settings = ("device=kitchen", f"broker.url={embedded.url}", f"state_dir={tmp_path / 'state'}")
        arguments = [part for setting in settings for part in ("--set", setting)]
        process = await asyncio.create_subprocess_exec(*AGENT, "run", *arguments, stderr=asyncio.subprocess.PIPE)
        birth = await _presence(link)
        assert birth.online
        process.send_signal(signal.SIGTERM)
        _, log = await process.communicate()
        assert process.returncode == 0, log.decode()
        goodbye = await _presence(link)
        assert not goodbye.online
        assert goodbye.epoch == birth.epoch
        await link.close()


async def _presence(link: MqttLink) -> Presence:
    while True:
        event = await link.receive()
        if isinstance(event, Received):
            return decode_presence(event.payload)


def test_a_full_disk_is_told_without_a_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [*AGENT, "run", "--set", "device=phone", "--set", f"state_dir={tmp_path}"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
    )
    assert done.returncode == 1
    assert "talaria-agent: [Errno 27] File too large" in done.stderr
    assert "Traceback" not in done.stderr
