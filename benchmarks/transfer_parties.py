"""Who takes part in benchmarks.transfer: each function is one process, given its line to the parent.

It says that it is ready, waits for the start, does its part, and says that it is done. Ours; bare sockets that speak
MQTT; and paho with the whole payload in one message.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import paho.mqtt.client as paho

from benchmarks import raw_mqtt
from benchmarks.common import peak_rss_mib
from coordinator.uploads import Grants, UploadDesk
from shared.chunks import describe
from shared.codec import decode_downlink, decode_uplink, encode_message
from shared.config import TransferSettings
from shared.config_base import BrokerSettings
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
