"""What a round costs when devices do nothing but answer: 2, 4 and 8 agents, a model of 44.7 MB and one of 100 KB.

Mosquitto, the coordinator's program and one process per agent (benchmarks.echo_agent), as they are deployed; the model
travels down, comes back scaled, is checked, kept on the disk and folded. A round's time is from one closed round to the
next, the median over the rounds after the first that also come after the coordinator's export of the ONNX template,
which happens once. CPU time is that of the same rounds; bytes are what the broker counts over the whole run.

The bars: below 7.8 s and 0.7 CPU seconds of the coordinator per device for 44.7 MB and 8 devices, the coordinator below
400 MB and flat in the number of devices, below 0.1 s for 100 KB.

    python -m benchmarks.round
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import RESULTS, peak_rss_mib, report
from benchmarks.echo_agent import FLEET
from coordinator.broker import EmbeddedBroker
from shared.config_base import BrokerSettings
from shared.link import Received
from shared.mqtt import MqttLink

COORDINATOR = "from coordinator.cli import main; main()"
FLEETS = (2, 4, 8)


@dataclass(frozen=True)
class Case:
    """rounds: how many are measured."""

    name: str
    model: str
    options: Mapping[str, int]
    rounds: int


CASES = (
    Case("44.7 MB", "resnet18", {}, 4),
    Case("100 KB", "digitscnn", {"width": 12}, 40),
)


class CountingBroker(EmbeddedBroker):
    """Tells its counters every second."""

    def _configure(self) -> list[str]:
        command = super()._configure()
        with (self._directory / "mosquitto.conf").open("a", encoding="utf-8") as file:
            file.write("sys_interval 1\n")
        return command


@contextlib.asynccontextmanager
async def process(*arguments: str, log: Path, pipe: bool = False) -> AsyncIterator[asyncio.subprocess.Process]:
    """A child, killed at the end: there is nothing to keep."""
    with log.open("wb") as sink:
        child = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, stdout=asyncio.subprocess.PIPE if pipe else sink, stderr=sink
        )
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


def cpu_s(pids: Sequence[int]) -> float:
    """CPU seconds of these processes so far, without their children."""
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(each.user + each.system for each in times)


async def bytes_through(broker: EmbeddedBroker) -> tuple[int, int]:
    """Bytes that the broker has received and sent, once they no longer change."""
    link = MqttLink(BrokerSettings(url=broker.url), "counter")
    await link.open()
    await link.subscribe("$SYS/broker/bytes/+")
    counters: dict[str, int] = {}
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(3.5):  # what changes is told every second
            while True:
                event = await link.receive()
                if isinstance(event, Received):
                    counters[event.topic.rpartition("/")[2]] = int(event.payload)
    await link.close()
    return counters["received"], counters["sent"]


async def rounds(coordinator: asyncio.subprocess.Process) -> AsyncIterator[dict[str, Any]]:
    """The journal's lines, as rounds are closed. RuntimeError if a device or the coordinator fails."""
    assert coordinator.stdout is not None
    async for line in coordinator.stdout:
        event = json.loads(line)
        if event["event"] == "closed":
            yield event
        elif event["event"] in ("failed", "rejected", "abandoned", "warning"):
            raise RuntimeError(f"not a round to be measured: {event}")
    raise RuntimeError(f"the coordinator ended with status {await coordinator.wait()}")


async def measure(case: Case, devices: int, folder: Path) -> dict[str, object]:
    """One row of the table."""
    run = folder / "run"
    settings = {
        "run.fleet": FLEET,
        "model.name": case.model,
        "algorithm.name": "fedavg",
        "rounds.count": 1_000_000,
        "rounds.min_devices": devices,
        "rounds.quorum": devices,
        **{f"model.options.{name}": value for name, value in case.options.items()},
    }
    async with CountingBroker(folder / "broker") as broker, contextlib.AsyncExitStack() as stack:
        sets = [f"--set={key}={value}" for key, value in {**settings, "broker.url": broker.url}.items()]
        arguments = ("-c", COORDINATOR, "run", *sets, "--run-dir", str(run), "--json")
        coordinator = await stack.enter_async_context(process(*arguments, log=folder / "coordinator.log", pipe=True))
        agents = []
        for number in range(devices):
            name = f"device-{number}"
            arguments = ("-m", "benchmarks.echo_agent", broker.url, name, str(folder / name))
            agents.append(await stack.enter_async_context(process(*arguments, log=folder / f"{name}.log")))
        groups = {"coordinator": [coordinator.pid], "broker": [broker.pid], "agents": [agent.pid for agent in agents]}

        walls: list[float] = []
        before: dict[str, float] = {}
        closed_at = 0.0
        total = 0
        async for line in rounds(coordinator):
            now, total = time.monotonic(), line["round"]
            if before:
                walls.append(now - closed_at)
            elif (run / "template.onnx").exists():
                before = {name: cpu_s(pids) for name, pids in groups.items()}
            closed_at = now
            if len(walls) == case.rounds:
                break
        used = {name: (cpu_s(pids) - before[name]) / case.rounds for name, pids in groups.items()}
        peaks = {name: max(map(peak_rss_mib, pids)) for name, pids in groups.items()}
        coordinator.kill()  # before it sends more
        received, sent = await bytes_through(broker)
        floor = line["payload_bytes"] * (
            3 * devices + 1
        )  # to the broker once and from each device, from the broker twice per device
    return {
        "model": case.name,
        "devices": devices,
        "s/round": statistics.median(walls),
        "worst s": max(walls),
        "coordinator CPU s/device": used["coordinator"] / devices,
        "coordinator CPU s": used["coordinator"],
        "broker CPU s": used["broker"],
        "agents CPU s": used["agents"],
        "coordinator MiB": peaks["coordinator"],
        "broker MiB": peaks["broker"],
        "agent MiB": peaks["agents"],
        "MB in": received / total / 1e6,
        "MB out": sent / total / 1e6,
        "overhead": (received + sent) / total / floor - 1,
        "load": os.getloadavg()[0],
    }


def bars(rows: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """Bar -> whether it is met."""
    large = [row for row in rows if row["model"] == CASES[0].name]
    worst = max(large, key=lambda row: row["devices"])
    return {
        f"44.7 MB to {worst['devices']} devices in less than 7.8 s": worst["s/round"] < 7.8,
        "less than 0.7 CPU s of the coordinator per device": worst["coordinator CPU s/device"] < 0.7,
        "coordinator below 400 MB": max(row["coordinator MiB"] for row in large) * 2**20 < 400e6,
        "coordinator flat in the number of devices, within 10 %": (
            max(row["coordinator MiB"] for row in large) < 1.1 * min(row["coordinator MiB"] for row in large)
        ),
        "100 KB in less than 0.1 s": max(row["s/round"] for row in rows if row["model"] == CASES[1].name) < 0.1,
    }


async def measure_all(fleets: Sequence[int], directory: str | None) -> list[dict[str, object]]:
    rows = []
    for case in CASES:
        for devices in fleets:
            with tempfile.TemporaryDirectory(dir=directory) as folder:
                rows.append(await measure(case, devices, Path(folder)))
            print({key: value for key, value in rows[-1].items() if key in ("model", "devices", "s/round")}, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, nargs="+", default=FLEETS)
    parser.add_argument("--directory", help="where states and payloads go; the system's temporary folder without it")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args()
    rows = asyncio.run(measure_all(options.devices, options.directory))
    report("round", rows, directory=options.results, **bars(rows))


if __name__ == "__main__":
    main()
