"""What is fuzzed: each target takes any bytes, and raises only where a promise of ours is broken.

Decoders get the bytes as they are. State machines read them as a script of events (`Script`), so that a fuzzer which
flips bytes reorders, repeats and forges what a broker, a device or a coordinator might say. Nothing here needs the
fuzzer itself: the ordinary tests replay what it found.
"""

import asyncio
import atexit
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import onnx
import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.chronicle import Chronicle
from coordinator.engine import RoundEngine
from coordinator.events import (
    CloseRound,
    DeviceFailed,
    DeviceOffline,
    OpenRound,
    Phase,
    Reported,
    Tick,
    UpdateAccepted,
    Verdict,
)
from coordinator.fleet import Fleet
from coordinator.inbox import Arrived, Inbox, Told
from coordinator.uploads import UploadDesk
from edge_agent import infer_service
from edge_agent.events import (
    Cancel,
    Done,
    Failed,
    Fetch,
    Fetched,
    Forget,
    HealthChanged,
    Key,
    LinkDown,
    LinkUp,
    Say,
    Send,
    Stalled,
    TaskCleared,
    Work,
)
from edge_agent.session import Phase as Doing
from edge_agent.session import Session
from shared import codec
from shared.chunks import Assembly, chunk_length
from shared.codec import MAGIC, decode_payload, encode_message, encode_payload
from shared.config import TransferSettings
from shared.config_rounds import RoundSettings
from shared.errors import DataError, DigestMismatch, ExportError, MalformedMessage, MalformedPayload
from shared.files import not_waiting_for_the_disk
from shared.link import Received
from shared.messages import (
    Blob,
    Capabilities,
    Chunk,
    CoordinatorState,
    Failure,
    Grant,
    InferRequest,
    Message,
    Offer,
    Plan,
    Presence,
    Receipt,
    Report,
    Sealed,
    Task,
    Want,
)
from shared.onnx_file import fill, parse
from shared.seal import Verifier, signed_bytes
from shared.topics import Topics

T = TypeVar("T")
LIMIT = 1 << 20
TOPICS = Topics("f")


class Script:
    """Bytes, read as choices; where they end, every further choice is the first one."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def below(self, end: int) -> int:
        return self.take(1)[0] % end if self else 0

    def take(self, count: int) -> bytes:
        found = self._data[self._at : self._at + count]
        self._at += count
        return found

    def of(self, choices: Sequence[T]) -> T:
        return choices[self.below(len(choices))]


# --- decoders -------------------------------------------------------------------------------------------------------

DECODERS = (
    codec.decode_coordinator,
    codec.decode_presence,
    codec.decode_vitals,
    codec.decode_sealed,
    codec.decode_task,
    codec.decode_uplink,
    codec.decode_downlink,
    codec.decode_infer_request,
    codec.decode_infer_reply,
)


def messages(data: bytes) -> None:
    """First byte: which decoder. What it takes is the same message when it is sent on."""
    decode: Any = DECODERS[data[0] % len(DECODERS)] if data else DECODERS[0]
    try:
        message = decode(data[1:])
    except MalformedMessage:
        return
    assert decode(encode_message(message)) == message


def payloads(data: bytes) -> None:
    """First byte: the payload as it is, or header and body put into an envelope, the body compressed by us, so that
    what is behind lengths and checksums is reached."""
    mode, rest = data[:1], data[1:]
    if mode > b"\x7f":
        size = int.from_bytes(rest[:2], "little")
        header, body = rest[2 : 2 + size], rest[2 + size :]
        if mode > b"\xbf":
            body = zstandard.compress(body)
        rest = MAGIC + len(header).to_bytes(4, "little") + header + body
    try:
        payload = decode_payload(rest, limit=LIMIT)
    except MalformedPayload:
        return
    header, tensors, held = payload.header, payload.subnet.tensors, payload.subnet.held
    assert sum(array.nbytes for array in tensors.values()) <= LIMIT
    assert all(np.isfinite(array).all() for array in tensors.values() if array.dtype.kind == "f")
    assert [(spec.name, spec.shape) for spec in header.tensors] == [(n, a.shape) for n, a in tensors.items()]
    assert held is None or all(mask.any() for mask in held.values())
    if tensors or held:
        again = decode_payload(
            encode_payload(payload.subnet, run=header.run, round=header.round, weight=header.weight),
            limit=2 * LIMIT + len(rest),
        )
        assert again.header.weight == header.weight
        assert all(np.array_equal(again.subnet.tensors[name], array) for name, array in tensors.items())


_Card = {"run": "r", "round": "1", "labels": '["a","b"]'}


def template(data: bytes) -> None:
    """An ONNX template, filled with tensors of the names and shapes that it asks for."""
    script = Script(data)
    less = script.below(4)
    try:
        model = parse(data[1:], limit=LIMIT)
        tensors: dict[str, Any] = {}
        for wanted in model.graph.initializer:
            shape = tuple(max(0, size - (less == index + 1)) for index, size in enumerate(wanted.dims))
            if np.prod([max(1, size) for size in shape], dtype=object) > LIMIT:  # numpy has no such, empty or not
                return
            tensors[wanted.name] = np.zeros(shape, onnx.helper.tensor_dtype_to_np_dtype(wanted.data_type))
        parse(fill(data[1:], tensors, _Card, limit=LIMIT), limit=2 * LIMIT)
    except ExportError:
        return


class _Sums:
    """Stands for the model in service: takes (n, 4), and any finite or other value."""

    def predict(self, raw: Any) -> Any:
        if raw.ndim != 2 or raw.shape[1] != 4:
            raise DataError(f"the model takes (n, 4), not {raw.shape}")
        with np.errstate(all="ignore"):
            powers = np.exp(raw - raw.max(axis=1, keepdims=True))
            probabilities = powers / powers.sum(axis=1, keepdims=True)
        classes = [int(row.argmax()) for row in probabilities]
        return SimpleNamespace(probabilities=probabilities, classes=classes, labels=["x" * 600] * len(classes))


def infer(data: bytes) -> None:
    """A request for inference: what decodes is answered with a reply that decodes."""
    try:
        request = codec.decode_infer_request(data)
    except MalformedMessage:
        size = min(data[0] if data else 0, 8)
        shape = tuple(max(1, byte) for byte in data[1 : 1 + size])
        if len(shape) < 2 or len(data) < 1 + size + 4:
            return
        request = InferRequest(id="i", shape=shape, data=data[1 + size :])
    reply = infer_service.answer(request, _Sums())  # type: ignore[arg-type]
    assert codec.decode_infer_reply(encode_message(reply)) == reply
    assert bool(reply.reason) or len(reply.predictions) == request.shape[0]


# --- signatures -----------------------------------------------------------------------------------------------------


@cache
def _key(number: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)


def seals(data: bytes) -> None:
    """Signed by whom it may be, cut, mixed up, flipped and replayed: only what the right key said for this topic is
    believed, and never anything older than what was believed."""
    script = Script(data)
    verifier = Verifier([_key(1).public_key(), _key(2).public_key()])
    said: set[tuple[str, bytes]] = set()
    newest: dict[tuple[int, str], int] = {}
    wire: list[tuple[int, int, bytes]] = [(0, 0, b"")]
    for _ in range(12):
        if not script:
            return
        key, topic, number = script.below(4), script.of(("t", "tt", "")), 1 + script.below(5)
        action = script.below(5)
        if action == 0:
            body = b"b" + script.take(1)
            sealed = Sealed(number=number, body=body, signature=_key(key).sign(signed_bytes(topic, number, body)))
            payload = encode_message(sealed)
            wire.append((key, number, payload))
            if key in (1, 2):
                said.add((topic, payload))
        else:
            key, number, payload = script.of(wire)
            if action == 1:
                at = script.below(max(1, len(payload)))
                payload = payload[:at] + script.take(1) + payload[at + 1 :]
            elif action == 2:
                payload = payload[: script.below(max(1, len(payload)))] + script.take(script.below(8))
            elif action == 3:
                payload = script.take(64)
        try:
            body = verifier.open(topic, payload)
        except MalformedMessage:
            assert (topic, payload) not in said or number < newest.get((key, topic), 0)
            continue
        assert (topic, payload) in said
        assert number >= newest.get((key, topic), 0)
        newest[key, topic] = number


# --- transfers ------------------------------------------------------------------------------------------------------


@cache
def _folder() -> Path:
    """In memory where the machine has such a place."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="talaria-fuzz-", dir=memory if memory.is_dir() else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _clean() -> Path:
    folder = _folder()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def chunks(data: bytes) -> None:
    """An assembly whose chunks come in any order, wrong, twice, across restarts, and for another payload meanwhile."""
    script = Script(data)
    with not_waiting_for_the_disk():
        path = _clean() / "payload"
        content = bytes(range(256)) * 12
        sizes = [(len(content), 512), (len(content) - 100, 1024)]
        blobs = [Blob(digest=hashlib.sha256(content[:s]).hexdigest(), size=s, chunk=c) for s, c in sizes]
        blob = blobs[0]
        assembly, have, spoilt = Assembly(path, blob), set[int](), False
        for _ in range(40):
            if not script:
                return
            match script.below(8):
                case 0 | 1 | 2:
                    index = script.below(8)
                    good = content[: blob.size][index * blob.chunk : (index + 1) * blob.chunk]
                    wrong = script.below(6) == 1
                    part = good[::-1] if wrong else good
                    try:
                        new = assembly.add(index, part)
                    except MalformedPayload:
                        assert index >= blob.chunks
                        continue
                    assert new == (index not in have)
                    spoilt |= new and part != good
                    have.add(index)
                case 3:
                    try:
                        assembly.add(script.below(12), script.take(script.below(40)))
                        raise AssertionError("a chunk of another length was taken")
                    except MalformedPayload:
                        pass
                case 4:
                    assembly.save()
                case 5:
                    assembly = Assembly(path, blob)  # killed, and started again
                    left = {i for i in range(blob.chunks) if not any(a <= i < b for a, b in assembly.missing())}
                    assert left <= have
                    have, spoilt = left, spoilt and bool(left)
                case 6:
                    blob = script.of(blobs)
                    assembly = Assembly(path, blob)
                    have = {i for i in range(blob.chunks) if not any(a <= i < b for a, b in assembly.missing())}
                    spoilt = spoilt and bool(have)
                case 7 if assembly.complete:
                    try:
                        found = assembly.finish().read_bytes()
                        assert hashlib.sha256(found).hexdigest() == blob.digest
                    except DigestMismatch:
                        assert spoilt
                        have, spoilt = set(), False
            assert assembly.complete == (len(have) == blob.chunks)
            assert assembly.received == sum(chunk_length(blob, index) for index in have)


# --- the device's session -------------------------------------------------------------------------------------------


def _task(script: Script) -> Task:
    number, action = script.below(4), script.of(("train", "personalize"))
    blob = Blob(digest=script.of("ab") * 64, size=5000, chunk=1024)
    plan = Plan(model="m", algorithm="fedavg")
    return Task(
        run=script.of(("r", "s")),
        action=action,  # type: ignore[arg-type]
        round=number,
        plan=plan,
        payload=blob,
        time_left_s=float(script.below(9)),
    )


def _answer(key: Key) -> Offer | Report:
    if key.action == "personalize":
        return Report(run=key.run, round=key.round, examples=1, metrics={})
    return Offer(run=key.run, round=key.round, blob=Blob(digest=f"{key.round}" * 64, size=3000, chunk=1024))


def _session_event(script: Script, fetching: Task | None, working: Task | None, keys: list[Key]) -> Any:
    match script.below(14):
        case 0 | 1:
            return _task(script)
        case 2 | 3 if fetching:
            return Fetched(Key.of(fetching))
        case 4 | 5 if working:
            return Done(Key.of(working), _answer(Key.of(working)))
        case 2:
            return Fetched(script.of(keys))
        case 6:
            return Failed(script.of(keys), "code", "why")
        case 7:
            key = script.of(keys)
            kind = script.of(("offer", "failure", "report"))
            return Receipt(run=key.run, round=key.round, answers=kind, accepted=script.below(3) > 0)  # type: ignore[arg-type]
        case 8:
            first = script.below(6)
            span = ((first, first + 1 + script.below(255)),)
            return Grant(run=script.of(("r", "s")), digest=script.of("0123") * 64, ranges=span)
        case 9:
            return HealthChanged(script.below(2) == 0, "hot")
        case 10:
            return CoordinatorState(online=script.below(3) > 0, epoch=script.below(4), run="r")
        case 11:
            return TaskCleared()
        case 12:
            return Stalled()
        case _:
            return LinkDown() if script.below(3) == 0 else LinkUp()


def session(data: bytes) -> None:
    """Any order of what a device hears: it never works on two things at once, never forgets an answer without its
    receipt unless it was overtaken, never sends chunks that it has not, and never sends while there is no link."""
    script, machine = Script(data), Session()
    fetching: Task | None = None
    working: Task | None = None
    linked = False
    keys = [Key("r", 1, "train", "a" * 64)]
    for _ in range(120):
        if not script:
            return
        event = _session_event(script, fetching, working, keys)
        linked = True if isinstance(event, LinkUp) else False if isinstance(event, LinkDown) else linked
        before = machine.answer
        if isinstance(event, Task):
            keys.append(Key.of(event))
        if isinstance(event, Done):
            fetching = working = None
        for action in machine.handle(event):
            match action:
                case Fetch(task):
                    assert (fetching, working) == (None, None)
                    fetching = task
                case Work(task):
                    assert fetching is not None
                    assert (Key.of(fetching), working) == (Key.of(task), None)
                    fetching, working = None, task
                case Cancel():
                    fetching = working = None
                case Say(answer):
                    assert linked
                    assert answer == machine.answer
                case Send(blob, ranges):
                    assert isinstance(machine.answer, Offer)
                    assert machine.answer.blob == blob
                    assert all(0 <= first < end <= blob.chunks for first, end in ranges)
                case Forget(answer, accepted):
                    if accepted:
                        assert isinstance(event, Receipt)
                        assert event.accepted
                        assert (event.run, event.round, event.answers) == (answer.run, answer.round, answer.kind)
                        assert answer == before
                    assert isinstance(event, Receipt | Task | TaskCleared | Done)
        if isinstance(event, Failed) and machine.phase is Doing.ANSWERING:
            fetching = working = None
        assert (machine.phase is Doing.FETCHING) == (fetching is not None)
        assert (machine.phase is Doing.WORKING) == (working is not None)
        assert (machine.phase is Doing.ANSWERING) == (machine.answer is not None)


# --- the coordinator ------------------------------------------------------------------------------------------------

DEVICES = ("a", "b", "c")
CONTENT = {(d, n): hashlib.sha256(f"{d}{n}".encode()).digest() * 40 for d in DEVICES for n in range(6)}
"""What each device would upload for a round: three chunks of 512 bytes."""
PIECE = 512


class _Coordinator:
    """Inbox, desk and engine, with a conductor that has no disk: what it is told to close, it counts."""

    def __init__(self, folder: Path, script: Script) -> None:
        self.now = 0.0
        rounds = RoundSettings(
            count=1 + script.below(3),
            quorum=1 + script.below(2),
            min_devices=2,
            deadline_s=50,
            personalize_deadline_s=50,
            enough=script.of((None, 2)),
        )
        self.quorum = rounds.quorum
        self.engine = RoundEngine("r", rounds, seed=1)
        self.folder = folder
        self.spawned: list[Coroutine[None, None, None]] = []
        self.jobs: asyncio.Queue[Any] = asyncio.Queue()
        self.said: list[tuple[str, Any]] = []
        self.accepted: dict[int, set[str]] = {}
        self.closed: list[int] = []
        fleet = Fleet()
        self.inbox = Inbox(
            topics=TOPICS,
            engine=self.engine,
            fleet=fleet,
            chronicle=Chronicle(lambda _: None, fleet, lambda: self.now),
            answer=lambda device, message: self.said.append((device, message)),
            supply=lambda *_: None,
            spawn=self.spawned.append,
            jobs=self.jobs,
            clock=lambda: self.now,
        )

    def handle(self, event: Any) -> None:
        for command in self.engine.handle(event, self.now):
            match command:
                case CloseRound(number, _):
                    assert number == len(self.closed) + 1
                    assert len(self.accepted.get(number, ())) >= self.quorum
                    self.closed.append(number)
                    self.inbox.desk = None
                case OpenRound(number, _, cohort):
                    assert number == len(self.closed) + 1
                    assert cohort
        if self.engine.attempt and self.engine.phase is not Phase.PERSONALIZING and self.inbox.desk is None:
            place = self.folder / f"{self.engine.round}"
            place.mkdir(exist_ok=True)
            self.inbox.desk = UploadDesk(
                TransferSettings(window=2, granted_mib=4 * PIECE / 2**20, stall_s=5), limit=4000, folder=place
            )

    async def settle(self) -> None:
        while self.spawned or not self.jobs.empty():
            while self.spawned:
                await self.spawned.pop()
            while not self.jobs.empty():
                await self._do(self.jobs.get_nowait())

    async def _do(self, job: Any) -> None:
        match job:
            case Arrived(device, offer, path):
                if self.inbox.welcome(device, offer, "train"):
                    assert path.read_bytes() == CONTENT[device, offer.round]
                    assert device not in self.accepted.setdefault(offer.round, set()), "counted twice"
                    assert offer.round not in self.closed, "counted after the close"
                    self.accepted[offer.round].add(device)
                    self.inbox.done(device)
                    self.handle(UpdateAccepted(device, offer.round))
                    assert self.engine.judge(device, "r", offer.round, "train") is Verdict.DUPLICATE
                else:
                    self.inbox.done(device)
            case Told(device, report):
                if self.inbox.welcome(device, report, "personalize"):
                    self.handle(Reported(device, report.round))
            case event:
                self.handle(event)

    def check(self) -> None:
        if self.inbox.desk is not None:
            assert 0 <= self.inbox.desk.granted <= 4 * PIECE
        for device, message in self.said:
            if isinstance(message, Receipt) and message.accepted and message.answers == "offer":
                assert device in self.accepted.get(message.round, ()), "a receipt for what was not taken"
        self.said.clear()
        assert self.closed == list(range(1, self.engine.round))[: len(self.closed)]


def _uplink(script: Script) -> tuple[str, bytes]:
    """(topic, payload) of something that a device, or somebody in its place, publishes."""
    device = script.of(DEVICES)
    number = script.below(6)
    content = CONTENT[device, number]
    blob = Blob(digest=hashlib.sha256(content).hexdigest(), size=len(content), chunk=PIECE)
    run = "r" if script.below(8) else "s"
    message: Message
    match script.below(10):
        case 0:
            able = Capabilities(profile="p", train=script.below(5) > 0, examples=1)
            presence = Presence(online=script.below(4) > 0, epoch=script.below(4), capabilities=able)
            return TOPICS.presence(device), encode_message(presence)
        case 1 | 2:
            message = Offer(run=run, round=number, blob=blob)
        case 3 | 4 | 5:
            index = script.below(4)
            data = content[index * PIECE : (index + 1) * PIECE] or b"x"
            message = Chunk(digest=blob.digest, index=index, data=data[::-1] if script.below(16) == 1 else data)
        case 6:
            message = Failure(run=run, round=number, code="c", reason="why")
        case 7:
            message = Report(run=run, round=number, examples=1, metrics={})
        case 8:
            message = Want(run=run, digest=blob.digest, ranges=((0, 1 + script.below(9)),))
        case _:
            return script.of((TOPICS.up(device), TOPICS.presence(device), "f/up/0/a", "f/x")), script.take(
                script.below(24)
            )
    return TOPICS.up(device), encode_message(message)


async def _coordinate(script: Script) -> None:
    with not_waiting_for_the_disk():
        world = _Coordinator(_clean(), script)
        for device in DEVICES:
            able = Capabilities(profile="p", train=True, examples=1)
            payload = encode_message(Presence(online=True, epoch=0, capabilities=able))
            world.inbox.receive(Received(TOPICS.presence(device), payload))
        await world.settle()
        for _ in range(80):
            if not script:
                break
            match script.below(10):
                case 0:
                    world.now += script.of((1, 6, 60))
                    world.inbox.stalled()
                    world.handle(Tick())
                case 1:
                    world.handle(script.of((DeviceFailed("a", 1, "x"), DeviceOffline("b"))))
                case _:
                    world.inbox.receive(Received(*_uplink(script)))
            if script.below(4):
                await world.settle()
            world.check()
        await world.settle()
        world.check()


@cache
def _runner() -> asyncio.Runner:
    return asyncio.Runner()


def coordinator(data: bytes) -> None:
    """Any traffic of three devices, and of others: no update is counted twice, without its receipt, after the close,
    or with other bytes than were offered; credit stays bounded; rounds close once, in order, with their quorum."""
    _runner().run(_coordinate(Script(data)))


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (messages, payloads, template, infer, seals, chunks, session, coordinator)
}
