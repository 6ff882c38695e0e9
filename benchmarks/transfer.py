"""44.7 MB (a ResNet-18) from the coordinator to 1, 4 and 20 devices and back, through Mosquitto.

Each party is a process of its own. Beside our own protocol, with its retained pages, grants, digests and files, stand
three others, measured in the same run and through the same broker:

raw          bare sockets that speak MQTT and count the bytes: what the broker and two interpreters move at best
raw, kept    the same, and the receivers do what any receiver has to do: write a file and hash it
one PUBLISH  paho, with the whole payload in one message, counted

`down` is timed from the first chunk published to the last device that holds the verified file, `up` from the first
offer to the last update that is verified at the coordinator. A value is the median of the repetitions. Where more
processes than cores take part, time is the sum of everybody's work, so it says more about CPU seconds than about links.
"""

import argparse
import asyncio
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

import coordinator.broker
from benchmarks.common import peak_rss_mib, report
from benchmarks.transfer_parties import (
    CHUNK,
    SIZE,
    Party,
    keeping_subscriber,
    our_downloader,
    our_publisher,
    our_receiver,
    our_uploader,
    paho_publisher,
    paho_subscriber,
    raw_publisher,
    raw_subscriber,
)
from coordinator.broker import EmbeddedBroker


def cpu_s(pid: int) -> float:
    """User and system time of another process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def race(parties: list[tuple[Party, str]], folder: Path) -> dict[str, float]:
    """Run the parties through a fresh broker. Seconds until the last is done, and memory in MiB: the broker's peak,
    and by how much the first party's and the largest of the others' grew; CPU seconds likewise, the others' mean."""
    context = multiprocessing.get_context("spawn")
    processes: list[SpawnProcess] = []
    lines: list[Connection] = []
    async with EmbeddedBroker(folder / "broker") as broker:
        port = int(broker.url.rpartition(":")[2])
        for party, name in parties:
            ours, theirs = context.Pipe()
            process = context.Process(target=party, args=(theirs, port, name, folder), daemon=True)
            process.start()
            processes.append(process)
            lines.append(ours)
        idle = [line.recv() for line in lines]
        started = time.monotonic()
        for line in reversed(lines):
            line.send("go")
        ends, peaks, times = zip(*[line.recv() for line in lines], strict=True)
        broker_peak, broker_cpu = peak_rss_mib(broker.pid), cpu_s(broker.pid)
        for line in lines:
            line.send("leave")
        for process in processes:
            process.join()
    shutil.rmtree(folder / "broker")
    for _, name in parties:
        (folder / name).unlink(missing_ok=True)
    grown = [peak - before for peak, (before, _) in zip(peaks, idle, strict=True)]
    spent = [after - before for after, (_, before) in zip(times, idle, strict=True)]
    return {
        "s": max(ends) - started,
        "broker MiB": broker_peak,
        "coordinator +MiB": grown[0],
        "device +MiB": max(grown[1:]),
        "broker CPU s": broker_cpu,
        "coordinator CPU s": spent[0],
        "device CPU s": statistics.mean(spent[1:]),
    }


def contest(direction: str, devices: int) -> dict[str, list[tuple[Party, str]]]:
    """Protocol -> the coordinator's side, then each device's."""
    names = [f"device-{number}" for number in range(devices)]
    if direction == "down":
        each = [f"1-{number}" for number in range(devices)]
        return {
            "raw": [(raw_publisher, "raw"), *((raw_subscriber, name) for name in each)],
            "raw, kept": [(raw_publisher, "raw"), *((keeping_subscriber, name) for name in each)],
            "one PUBLISH": [(paho_publisher, "paho"), *((paho_subscriber, name) for name in each)],
            "ours": [(our_publisher, "coordinator"), *((our_downloader, name) for name in names)],
        }
    return {
        "raw": [(raw_subscriber, f"{devices}-raw"), *((raw_publisher, name) for name in names)],
        "raw, kept": [(keeping_subscriber, f"{devices}-raw"), *((raw_publisher, name) for name in names)],
        "one PUBLISH": [(paho_subscriber, f"{devices}-paho"), *((paho_publisher, name) for name in names)],
        "ours": [(our_receiver, str(devices)), *((our_uploader, name) for name in names)],
    }


async def measure(folder: Path, fleets: list[int], repetitions: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for direction in ("down", "up"):
        for devices in fleets:
            results: dict[str, list[dict[str, float]]] = {}
            for _ in range(repetitions):
                for protocol, parties in contest(direction, devices).items():
                    results.setdefault(protocol, []).append(await race(parties, folder))
            middle = {
                protocol: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
                for protocol, runs in results.items()
            }
            for protocol, values in middle.items():
                rows.append(
                    {
                        "direction": direction,
                        "devices": devices,
                        "protocol": protocol,
                        "s": values["s"],
                        "MB/s": devices * SIZE / 1e6 / values["s"],
                        "to raw": middle["raw"]["s"] / values["s"],
                        "to raw, kept": middle["raw, kept"]["s"] / values["s"],
                        "to one PUBLISH": middle["one PUBLISH"]["s"] / values["s"],
                        **{key: value for key, value in values.items() if key != "s"},
                    }
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 4, 20])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument(
        "--directory", default="/dev/shm", help="where files go: memory, to time the link, not the disk"
    )
    options = parser.parse_args()
    # The others need what ours does without: room for a whole payload in one packet, and for all that is not yet read.
    for limit in ("max_packet_size 1310720", "max_queued_bytes 268435456", "max_queued_messages 20000"):
        coordinator.broker.EMBEDDED = coordinator.broker.EMBEDDED.replace(limit, "")
    coordinator.broker.EMBEDDED += "max_queued_messages 100000\n"
    folder = Path(tempfile.mkdtemp(dir=options.directory))
    try:
        (folder / "payload").write_bytes(os.urandom(SIZE))
        rows = asyncio.run(measure(folder, options.devices, options.repetitions))
    finally:
        shutil.rmtree(folder)
    ours = [row for row in rows if row["protocol"] == "ours"]
    report(
        "transfer",
        rows,
        payload_bytes=SIZE,
        chunk_bytes=CHUNK,
        worst_to_raw=min(float(str(row["to raw"])) for row in ours),
        worst_to_raw_kept=min(float(str(row["to raw, kept"])) for row in ours),
        worst_to_one_publish=min(float(str(row["to one PUBLISH"])) for row in ours),
    )


if __name__ == "__main__":
    main()
