"""An agent's process is killed in the middle of a download over a real broker, and started again."""

import asyncio
import os
from pathlib import Path

from processes import FLEET, PATIENCE_S, System

from shared.chunks import SAVE_EVERY, describe
from shared.codec import decode_uplink, decode_vitals, encode_message
from shared.link import packet_size
from shared.messages import PAGE, Failure, Plan, Task
from shared.mqtt import MqttLink
from shared.topics import Topics
from shared.transfer import PAGES_OPEN, publish_blob

CHUNK = 1024
CHUNKS = 400
FIRST = 300
"""Chunks that are there before it is killed; the others come after it."""


async def test_a_killed_download_fetches_little_more_than_what_is_missing(system: System, tmp_path: Path) -> None:
    """At most what was not yet noted on the disk comes twice."""
    broker = system.start_broker("max_inflight_messages 20")
    sniffer = await system.sniffer()
    topics = Topics(FLEET)
    path = tmp_path / "payload"
    path.write_bytes(os.urandom(CHUNK * CHUNKS))  # of no use as a model: the task fails as soon as it is fetched
    blob = describe(path, CHUNK)
    profile = tmp_path / "small.toml"
    profile.write_text('id = "small"\ntitle = "Small"\ncores = 1\nmemory_mib = 1024\n[link]\nmax_packet = 1536\n')
    link = MqttLink(system.settings, "scripted")
    await link.open()
    try:
        await publish_blob(link, topics, path, blob)
        for index in range(FIRST, CHUNKS):
            await link.publish(topics.chunk(blob.digest, index // PAGE, index), b"", retain=True)
        plan = Plan(model="digitscnn", algorithm="fedavg")
        task = Task(run="run", action="train", round=1, plan=plan, payload=blob, time_left_s=PATIENCE_S)
        await link.publish(topics.task("phone"), encode_message(task), retain=True)
        phone = await system.agent("phone", profile=str(profile), health=False, vitals_s=1.0, stall_s=30)
        packet = packet_size(topics.chunk(blob.digest, FIRST // PAGE, FIRST), CHUNK)

        async def bytes_down(at_least: float, since: int) -> float:
            """As its vital signs say, as soon as they say so much."""
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    told = [decode_vitals(each) for each in sniffer.below(topics.vitals("phone"), since)]
                    if told and told[-1].metrics["bytes_down"] >= at_least:
                        return told[-1].metrics["bytes_down"]
                    await sniffer.messages(1, since=len(sniffer.seen))

        await bytes_down(FIRST * (packet - 8), 0)
        await phone.kill()
        seen = len(sniffer.seen)
        await publish_blob(link, topics, path, blob)
        await phone.start()
        await sniffer.messages(1, topics.up("phone"), since=seen)
        failure = decode_uplink(sniffer.below(topics.up("phone"), seen)[0])
        assert isinstance(failure, Failure)
        assert failure.code == "malformed_payload", "it was fetched whole, with the digest that was announced"
        missing = (CHUNKS - FIRST) * (packet - 8)
        again = await bytes_down(missing, seen) - missing
        assert again <= (SAVE_EVERY + PAGES_OPEN * PAGE) * packet + 2000
        assert again < FIRST * packet / 2, "it began anew"
    finally:
        await link.close()
        broker.stop()
