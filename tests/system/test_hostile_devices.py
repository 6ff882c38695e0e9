"""Devices that lie. Each is refused with its reason, the honest ones get their mean, and the run comes to its end."""

from typing import Any

import msgpack
import numpy as np
from fake_device import FakeDevice, Train
from processes import FLEET, System
from scripted_fleet import constant, device, expected_digest, filled, running

from shared.chunks import describe
from shared.codec import encode_payload
from shared.messages import Blob, Chunk, Offer, Task
from shared.tensors import Subnet, Tensors
from shared.topics import Topics

HONEST = {"a": (0, 1), "b": (100, 10)}
TOPICS = Topics(FLEET)


def update(change: Any = None, **fields: Any) -> Train:
    """An update that would be accepted, if `change(tensors)` and `fields` of its header left it alone."""

    def train(tensors: Tensors, task: Task) -> bytes:
        sent = filled(tensors, 1.0)
        if change is not None:
            change(sent)
        header = {"run": task.run, "round": task.round, "examples": 5, "weight": 5.0, **fields}
        return encode_payload(Subnet(sent), **header)

    return train


def first_float(tensors: Tensors) -> str:
    return next(name for name, array in tensors.items() if array.dtype.kind == "f")


def wrong_shape(tensors: Tensors) -> None:
    tensors[first_float(tensors)] = np.ones((3, 3), np.float32)


def infinite(tensors: Tensors) -> None:
    tensors[first_float(tensors)].flat[0] = np.float32(1e38)


def missing(tensors: Tensors) -> None:
    del tensors[first_float(tensors)]


def not_a_number(tensors: Tensors, task: Task) -> bytes:
    """The codec would not write it."""
    whole = bytearray(update()(tensors, task) or b"")  # type: ignore[arg-type]
    whole[-4:] = np.float32(np.nan).tobytes()
    return bytes(whole)


def huge_header(tensors: Tensors, task: Task) -> bytes:
    """A payload of some hundred bytes that announces 10 GB of tensors."""
    header = {
        "protocol": 1,
        "run": task.run,
        "round": task.round,
        "examples": 5,
        "weight": 5.0,
        "metrics": {},
        "masks": None,
        "units": None,
        "tensors": [{"name": name, "dtype": "float32", "shape": [2_500, 1_000_000]} for name in tensors],
    }
    packed: bytes = msgpack.packb(header)
    return b"TLR1" + len(packed).to_bytes(4, "little") + packed + bytes(64)


def long_header(tensors: Tensors, task: Task) -> bytes:
    """Its header says that it is 4 GB long."""
    return b"TLR1" + b"\xff\xff\xff\xff" + bytes(200)


LIES: dict[str, tuple[Train, str]] = {
    "shape": (update(wrong_shape), "wrong_shape"),
    "names": (update(missing), "wrong_names"),
    "infinite": (update(infinite), "not_finite"),
    "nan": (not_a_number, "malformed_payload"),
    "foreign-payload": (update(run="another-run"), "foreign_run"),
    "old-payload": (update(round=7), "wrong_round"),
    "heavy": (update(weight=1e6), "wrong_weight"),
    "huge-header": (huge_header, "malformed_payload"),
    "long-header": (long_header, "malformed_payload"),
}
"""Devices that answer their task with a lie -> how it is refused."""


async def test_every_lie_is_refused_with_its_reason_and_the_honest_finish(system: System) -> None:
    system.start_broker()
    coordinator = await system.coordinator(
        devices=len(HONEST) + len(LIES) + 5,
        rounds=1,
        exports=False,
        limits={"quorum": len(HONEST), "personalize_deadline_s": 2.0},
    )
    honest = [device(system, name, constant(*answer)) for name, answer in HONEST.items()]
    liars = [device(system, name, lie) for name, (lie, _) in LIES.items()]
    # These say nothing by themselves: what they say is up to the test.
    greedy, foreign, sloppy, noisy, thief = silent = [
        device(system, name, lambda tensors, task: None) for name in ("greedy", "foreign", "sloppy", "noisy", "thief")
    ]
    async with running(*honest, *liars, *silent):
        run = (await coordinator.event("started"))["run"]
        assert len((await coordinator.event("opened"))["cohort"]) == len(honest) + len(liars) + len(silent)
        for name, (_, code) in LIES.items():
            refused = await coordinator.event("rejected", device=name)
            assert refused["code"] == code, refused
            assert refused["reason"]

        await greedy.say(Offer(run=run, round=1, blob=Blob(digest="0" * 64, size=10 * 2**30, chunk=65536)))
        assert str(10 * 2**30) in (await coordinator.event("rejected", device="greedy", code="too_large"))["reason"]

        blob = _stored(foreign, b"an update")
        for offer, code in (
            (Offer(run="another-run", round=1, blob=blob), "foreign_run"),
            (Offer(run=run, round=3, blob=blob), "future"),
        ):
            await foreign.say(offer)
            await coordinator.event("rejected", device="foreign", code=code)

        # Chunks of an update that was never offered, and one that is not its offer's.
        await sloppy.say(Chunk(digest="1" * 64, index=0, data=b"x"))
        blob = _stored(sloppy, b"an update")
        await sloppy.say(Offer(run=run, round=1, blob=blob))
        await sloppy.say(Chunk(digest=blob.digest, index=5, data=b"another"))
        await coordinator.event("rejected", device="sloppy", code="malformed_payload")
        await sloppy.say(Chunk(digest=blob.digest, index=0, data=b"Another!!"))
        await coordinator.event("rejected", device="sloppy", code="digest_mismatch")

        for garbage in (b"", b"\xff" * 100, msgpack.packb({"v": 99, "kind": "offer"}), msgpack.packb([[[1]]] * 50)):
            for topic in (TOPICS.up("noisy"), TOPICS.presence("noisy")):
                await noisy.link.publish(topic, garbage)
        await noisy.link.publish(f"{FLEET}/up/0/..", b"who?")
        await coordinator.event("rejected", device="noisy", code="malformed_message")
        await coordinator.event("rejected", device="?", code="malformed_message")

        # What was accepted is offered again, and so is what another device was accepted with.
        await coordinator.event("accepted", device="b")
        blob = describe(honest[1].folder / "1.update", 3584)
        for replaying in (honest[1], thief):
            await replaying.say(Offer(run=run, round=1, blob=blob))

        assert not coordinator.events("closed"), "devices are still waited for"
        for each in silent:
            await each.announce(online=False)
        closed = await coordinator.event("closed")
        await coordinator.finished()
    assert sorted(entry["device"] for entry in closed["accepted"]) == sorted(HONEST)
    payload = coordinator.run_dir / "globals/00002.payload"
    assert closed["digest"] == expected_digest(payload, run, 1, list(HONEST.values()))
    refusals = {(entry["device"], entry["code"]) for entry in closed["rejected"]}
    assert refusals >= {(name, code) for name, (_, code) in LIES.items()}
    assert not [entry for entry in refusals if entry[0] in HONEST]


def _stored(owner: FakeDevice, update: bytes) -> Blob:
    path = owner.folder / "stored"
    path.write_bytes(update)
    return describe(path, 3584)
