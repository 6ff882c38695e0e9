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
import hashlib
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

import paho.mqtt.client as paho

import coordinator.broker
from benchmarks import raw_mqtt
from benchmarks.common import peak_rss_mib, report
from coordinator.broker import EmbeddedBroker
from coordinator.uploads import Grants, UploadDesk
from shared.chunks import describe
from shared.codec import decode_downlink, decode_uplink, encode_message
from shared.config import BrokerSettings, TransferSettings
from shared.link import DEFAULT_MAX_PACKET, Received
from shared.memory import keep_freed_memory
from shared.messages import Chunk, Grant, Offer
from shared.mqtt import MqttLink
from shared.topics import Topics
from shared.transfer import Download, chunk_size, publish_blob, send_chunks

SIZE = 44_769_410
CHUNK = chunk_size(DEFAULT_MAX_PACKET)
TOPICS = Topics("bench")
RUN = "bench"

Party = Callable[[Connection, int, str, Path], None]
"""What a process does, given its line to the parent, the broker's port, its name and the folder of files."""


def ready(line: Connection) -> None:
    line.send((peak_rss_mib(), time.process_time()))
    line.recv()


def done(line: Connection) -> None:
    line.send((time.monotonic(), peak_rss_mib(), time.process_time()))
    line.recv()


# --- ours -----------------------------------------------------------------------------------------------------------


async def opened(port: int, name: str) -> MqttLink:
    link = MqttLink(BrokerSettings(url=f"mqtt://127.0.0.1:{port}"), name)
    await link.open()
    await link.receive()
    return link


async def received(link: MqttLink) -> Received:
    while not isinstance(event := await link.receive(), Received):
        pass
    return event


def our_publisher(line: Connection, port: int, name: str, folder: Path) -> None:
    """Publishes the blob, then tells the devices, as at the start of a round."""

    async def run() -> None:
        keep_freed_memory(256 << 20)
        link = await opened(port, name)
        blob = describe(folder / "payload", CHUNK)
        ready(line)
        await publish_blob(link, TOPICS, folder / "payload", blob)
        await link.publish(TOPICS.coordinator, encode_message(Offer(run=RUN, round=0, blob=blob)))
        done(line)
        await link.close()

    asyncio.run(run())


def our_downloader(line: Connection, port: int, name: str, folder: Path) -> None:
    async def run() -> None:
        keep_freed_memory(16 << 20)
        link = await opened(port, name)
        await link.subscribe(TOPICS.coordinator)
        ready(line)
        offer = decode_uplink((await received(link)).payload)
        assert isinstance(offer, Offer)
        download = Download(link, TOPICS, name, RUN, offer.blob, folder / name)
        await download.start()
        while True:
            event = await received(link)
            digest, index = TOPICS.chunk_index(event.topic)
            if digest == offer.blob.digest and await download.on_chunk(index, event.payload):
                break
        download.finish()
        done(line)
        await link.close()

    asyncio.run(run())


def our_uploader(line: Connection, port: int, name: str, folder: Path) -> None:
    async def run() -> None:
        keep_freed_memory(16 << 20)
        link = await opened(port, name)
        await link.subscribe(TOPICS.down(name))
        blob = describe(folder / "payload", CHUNK)
        ready(line)
        await link.publish(TOPICS.up(name), encode_message(Offer(run=RUN, round=0, blob=blob)))
        sending = set()
        while isinstance(message := decode_downlink((await received(link)).payload), Grant):
            sending.add(
                asyncio.create_task(send_chunks(link, TOPICS.up(name), folder / "payload", blob, message.ranges))
            )
        await asyncio.gather(*sending)
        done(line)
        await link.close()

    asyncio.run(run())


def our_receiver(line: Connection, port: int, name: str, folder: Path) -> None:
    """The coordinator's upload desk, until every device's update is verified."""
    devices = int(name)

    async def run() -> None:
        keep_freed_memory(256 << 20)
        link = await opened(port, "coordinator")
        await link.subscribe(TOPICS.all_up)
        desk = UploadDesk(TransferSettings(), limit=2 * SIZE, folder=folder)
        tasks: set[asyncio.Task[None]] = set()

        def send(grants: Grants) -> None:
            for device, message in grants:
                tasks.add(asyncio.create_task(link.publish(TOPICS.down(device), encode_message(message))))

        ready(line)
        left = devices
        while left:
            event = await received(link)
            device = TOPICS.sender(event.topic)
            message = decode_uplink(event.payload)
            if isinstance(message, Offer):
                send(desk.offer(device, message, 0.0))
            elif isinstance(message, Chunk):
                send(desk.chunk(device, message, 0.0))
                if (completed := desk.completed(device)) is not None:
                    completed[1].finish()
                    left -= 1
                    end = encode_message(Chunk(digest=message.digest, index=0, data=b"end"))
                    tasks.add(asyncio.create_task(link.publish(TOPICS.down(device), end)))
        await asyncio.gather(*tasks)
        done(line)
        await link.close()

    asyncio.run(run())


# --- bare sockets ---------------------------------------------------------------------------------------------------


def raw_publisher(line: Connection, port: int, name: str, folder: Path) -> None:
    data = (folder / "payload").read_bytes()
    sock = raw_mqtt.connect(port, name)
    ready(line)
    raw_mqtt.publish(sock, "raw", memoryview(data), CHUNK)
    done(line)
    raw_mqtt.close(sock)


def raw_subscriber(line: Connection, port: int, name: str, folder: Path) -> None:
    """The name is how many payloads to expect, and who it is."""
    sock = raw_mqtt.connect(port, name)
    raw_mqtt.subscribe(sock, "raw")
    ready(line)
    raw_mqtt.receive(sock, int(name.split("-")[0]) * SIZE)
    done(line)
    raw_mqtt.close(sock)


def keeping_subscriber(line: Connection, port: int, name: str, folder: Path) -> None:
    sock = raw_mqtt.connect(port, name)
    raw_mqtt.subscribe(sock, "raw")
    ready(line)
    digest = hashlib.sha256()
    with (folder / name).open("wb", buffering=0) as file:

        def keep(payload: memoryview) -> None:
            file.write(payload)
            digest.update(payload)

        raw_mqtt.receive(sock, int(name.split("-")[0]) * SIZE, keep)
    digest.hexdigest()
    done(line)
    raw_mqtt.close(sock)


# --- paho, one PUBLISH ----------------------------------------------------------------------------------------------


def paho_client(port: int, name: str) -> paho.Client:
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, name)
    client.connect("127.0.0.1", port)
    client.loop_start()
    return client


def paho_publisher(line: Connection, port: int, name: str, folder: Path) -> None:
    data = (folder / "payload").read_bytes()
    client = paho_client(port, name)
    ready(line)
    client.publish("one", data, qos=1).wait_for_publish()
    done(line)
    client.disconnect()


def paho_subscriber(line: Connection, port: int, name: str, folder: Path) -> None:
    import threading

    arrived = threading.Semaphore(0)
    subscribed = threading.Event()
    client = paho_client(port, name)
    client.on_message = lambda *_: arrived.release()
    client.on_subscribe = lambda *_: subscribed.set()
    client.subscribe("one", 1)
    subscribed.wait()
    ready(line)
    for _ in range(int(name.split("-")[0])):
        arrived.acquire()
    done(line)
    client.disconnect()


# --- the race -------------------------------------------------------------------------------------------------------


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
        coordinator.broker.MOSQUITTO = coordinator.broker.MOSQUITTO.replace(limit, "")
    coordinator.broker.MOSQUITTO += "max_queued_messages 100000\n"
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
