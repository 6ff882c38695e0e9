"""Devices that lie, shout, flood and vanish: each is refused by name and counted, and none of them ends a run."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_device import Train, answering
from fleet import World, adding, running, tensors_of

from coordinator.checkpoints import RunDirectory
from coordinator.journal import read_journal
from shared.codec import encode_message, encode_payload
from shared.messages import Blob, Chunk, Message, Offer, Presence, Report, Want
from shared.tensors import Subnet, Tensors
from shared.topics import Topics, shard

Begin = Callable[..., RunDirectory]
TOPICS = Topics("talaria")
DIGEST = "1" * 64
pytestmark = pytest.mark.timeout(60)


def lying(change: Callable[[Tensors], Tensors], **fields: Any) -> Train:
    """An update that is wrong in one way."""

    def train(tensors: Tensors, task: Any) -> bytes:
        header: Any = {"run": task.run, "round": task.round, "examples": 10, "weight": 10.0} | fields
        return encode_payload(Subnet(change(tensors)), **header)

    return train


def same(tensors: Tensors) -> Tensors:
    return tensors


def first(tensors: Tensors, array: Any) -> Tensors:
    name = next(name for name, each in tensors.items() if each.dtype == np.float32)
    return tensors | {name: array(tensors[name])}


LIARS: dict[str, Train] = {
    "wrong_shape": lying(lambda tensors: first(tensors, lambda a: a[:1])),
    "wrong_dtype": lying(lambda tensors: first(tensors, lambda a: a.astype(np.float64))),
    "wrong_names": lying(lambda tensors: tensors | {"extra": np.ones(1, np.float32)}),
    "malformed_payload": lying(lambda tensors: first(tensors, lambda a: a * np.nan)),
    "foreign_run": lying(same, run="another"),
    "wrong_round": lying(same, round=9),
    "wrong_weight": lying(same, weight=1e9),
    "too_many_examples": lying(same, examples=99, weight=99.0),
    "no_examples": lying(same, examples=0, weight=0.0),
    "impossible_value": lying(lambda tensors: {n: -a if "running_var" in n else a for n, a in tensors.items()}),
    "not_finite": lying(lambda tensors: first(tensors, lambda a: np.full_like(a, 3e38))),
}


@pytest.mark.parametrize("code", LIARS)
async def test_a_lying_device_is_refused_and_the_others_go_on(begin: Begin, tmp_path: Path, code: str) -> None:
    world = World(begin(count=2, min_devices=3), tmp_path)
    liar = world.device("liar", LIARS[code])
    async with running(world.device("a", adding(1)), world.device("b", adding(3)), liar):
        await world.coordinator().run()
        await liar.settled(2)
    assert [(r.accepted, r.code) for r in liar.receipts][:2] == [(False, code)] * 2
    assert all(receipt.reason for receipt in liar.receipts[:2])
    assert {name: twin["rejected"] for name, twin in world.told("finished")[0]["devices"].items()} == {
        "a": {},
        "b": {},
        "liar": {code: 2},
    }
    lines = list(read_journal(world.directory.journal_path))
    for line in lines[:2]:
        assert sorted(entry["device"] for entry in line["accepted"]) == ["a", "b"]
        assert [(entry["device"], entry["code"]) for entry in line["rejected"]] == [("liar", code)]
        assert line["attempts"] == 1
    result = tensors_of(world.directory.global_payload(3))
    for name, array in world.initial.items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(result[name], array + 4, rtol=1e-5)


async def test_bytes_that_are_no_messages(begin: Begin, tmp_path: Path) -> None:
    """From known and unknown devices, on every topic that is read: said once per device and code."""
    world = World(begin(count=1), tmp_path)
    let_go = asyncio.Event()
    slow = world.device("slow", lambda tensors, task: answering(lambda _, t: t, "")(tensors, task))
    held = slow.train
    slow.train = lambda tensors, task: held(tensors, task) if let_go.is_set() else None
    async with running(world.device("a"), slow):
        run = asyncio.create_task(world.coordinator().run())
        await world.until("accepted")
        vandal = world.broker.link("vandal", None)
        await vandal.open()
        garbage = [b"", b"\0", b"\xff" * 100, os.urandom(1000), b"\xde\xff\xff" + b"\xa1a" * 50, b"[]", b"\x81" * 999]
        for data in garbage:
            await vandal.publish(TOPICS.up("vandal"), data)
            await vandal.publish(TOPICS.presence("vandal"), data)
            await vandal.publish(TOPICS.up("a"), data)
            await vandal.publish(TOPICS.presence("a"), data)
        wrong_shard = (shard("vandal") + 1) % 64
        await vandal.publish(f"talaria/up/{wrong_shard}/vandal", b"")
        await vandal.publish("talaria/presence/v\u00e4ndal", b"")
        let_go.set()
        world.broker.cut("slow")
        world.broker.restore("slow")
        await run
    refused = {(event["device"], event["code"]) for event in world.told("rejected")}
    assert refused == {(name, "malformed_message") for name in ("vandal", "a", "?")}
    assert len(world.told("rejected")) == 3


STRANGE: dict[str, Callable[[str], list[Message]]] = {
    "an offer without being asked": lambda run: [offer(run, 1)],
    "an offer for a round to come": lambda run: [offer(run, 2)],
    "an offer of another run": lambda run: [offer("another", 1)],
    "an offer of 512 GB": lambda run: [offer(run, 1, size=2**39)],
    "chunks that nobody granted": lambda run: [Chunk(digest="0" * 64, index=i, data=b"x") for i in range(50)],
    "a report in the middle": lambda run: [Report(run=run, round=1, examples=1, metrics={"accuracy": 1.0})],
    "a report of a round that is none": lambda run: [Report(run=run, round=10**6, examples=1, metrics={})],
    "a wish for everything": lambda run: [Want(run=run, digest="0" * 64, ranges=((0, 2**31 - 1),) * 64)],
    "a death of long ago": lambda run: [Presence(online=False, epoch=0)],
}


def offer(run: str, number: int, size: int = 1000) -> Offer:
    return Offer(run=run, round=number, blob=Blob(digest="0" * 64, size=size, chunk=512))


@pytest.mark.parametrize("what", STRANGE)
async def test_messages_that_nobody_asked_for(begin: Begin, tmp_path: Path, what: str) -> None:
    world = World(begin(count=1), tmp_path)
    a, b = world.device("a"), world.device("b")
    stranger = world.broker.link("stranger", None)
    await stranger.open()

    def train(tensors: Tensors, task: Any) -> Any:
        for message in STRANGE[what](task.run):
            topic = TOPICS.presence("a") if isinstance(message, Presence) else TOPICS.up("stranger")
            world.broker.publish(topic, encode_message(message), retain=False)
        return adding(0)(tensors, task)

    a.train = b.train = train
    async with running(a, b):
        await world.coordinator().run()
    (line, _end) = read_journal(world.directory.journal_path)
    assert sorted(entry["device"] for entry in line["accepted"]) == ["a", "b"]
    assert line["attempts"] == 1


def uploading(world: World, device: str, size: int, *chunks: Chunk, then: Callable[[], None] = lambda: None) -> Train:
    """A device that sends an offer of `size` bytes and these chunks, whatever it is granted."""

    def train(tensors: Tensors, task: Any) -> bytes | None:
        if task.action == "personalize":
            return b"a report"
        blob = Blob(digest=DIGEST, size=size, chunk=512)
        for message in (Offer(run=task.run, round=task.round, blob=blob), *chunks):
            world.broker.publish(TOPICS.up(device), encode_message(message), retain=False)
        asyncio.get_running_loop().call_soon(then)
        return None

    return train


async def test_chunks_that_do_not_fit_their_offer(begin: Begin, tmp_path: Path) -> None:
    world = World(begin(count=1, min_devices=3, deadline_s=1), tmp_path)
    short, beyond = Chunk(digest=DIGEST, index=0, data=b"x"), Chunk(digest=DIGEST, index=9, data=b"x" * 512)
    bad = world.device("bad", uploading(world, "bad", 2000, short, beyond))
    async with running(world.device("a"), world.device("b"), bad):
        await world.coordinator().run()
    line = next(read_journal(world.directory.journal_path))
    assert sorted(entry["device"] for entry in line["accepted"]) == ["a", "b"]
    assert [(entry["device"], entry["code"]) for entry in line["rejected"]] == [("bad", "malformed_payload")]


async def test_an_update_that_is_not_what_its_digest_says(begin: Begin, tmp_path: Path) -> None:
    world = World(begin(count=1, min_devices=3), tmp_path)
    chunks = [Chunk(digest=DIGEST, index=index, data=b"x" * 512) for index in (0, 1)]
    bad = world.device("bad", uploading(world, "bad", 1024, *chunks))
    async with running(world.device("a"), world.device("b"), bad):
        await world.coordinator().run()
    assert (bad.receipts[0].accepted, bad.receipts[0].code) == (False, "digest_mismatch")
    assert next(read_journal(world.directory.journal_path))["attempts"] == 1


async def test_a_device_that_vanishes_in_its_upload(begin: Begin, tmp_path: Path) -> None:
    world = World(begin(count=1, min_devices=3, personalize_deadline_s=0.5), tmp_path)
    chunk = Chunk(digest=DIGEST, index=0, data=b"x" * 512)
    gone = world.device("gone", uploading(world, "gone", 2048, chunk, then=lambda: world.broker.cut("gone")))
    async with running(world.device("a"), world.device("b"), gone):
        await world.coordinator().run()
    line = next(read_journal(world.directory.journal_path))
    assert sorted(entry["device"] for entry in line["accepted"]) == ["a", "b"]
    assert line["cohort"] == ["a", "b", "gone"]
