"""What a fleet and its coordinator say to each other, decoded: one line per message, chunks summed up. Pure.

It shows what is there and believes nothing: what cannot be decoded is a line as well, with the reason.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from coordinator.tables import size
from shared.codec import decode_any
from shared.errors import Forged, MalformedMessage, Replayed, WireError
from shared.link import Received, packet_size
from shared.logs import printable
from shared.messages import PAGE, AnyMessage, Chunk, Message, Sealed, Task
from shared.seal import Verifier
from shared.topics import Topics

MESSAGES = tuple(kind.model_fields["kind"].default for kind in get_args(get_args(AnyMessage)[0]) if kind is not Sealed)
KINDS = (*MESSAGES, "blob", "cleared", "malformed")
"""What a line can be about: a message of the protocol, chunks of a payload, a topic that was emptied, or none of it."""
QUIET_S = 1.0
"""Seconds without a further chunk after which the chunks so far make a line."""
PENDING = 256
"""Sums of chunks that are kept at the same time."""


@dataclass(frozen=True)
class Seen:
    """One line. seal: signed, unsigned, forged or replayed, `sealed` where no key is known; empty for what is never
    signed. fields: of the message, what is large left out."""

    at: float
    topic: str
    kind: str
    device: str
    bytes: int
    text: str
    seal: str = ""
    retained: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class _Sum:
    first: Seen
    chunks: int = 0
    bytes: int = 0
    last: float = 0.0


class Watcher:
    """kinds, devices: what is asked for; nothing: everything. verifier: None where no key is known."""

    def __init__(
        self,
        topics: Topics,
        kinds: Iterable[str] = (),
        device: str | None = None,
        verifier: Verifier | None = None,
    ) -> None:
        self._topics = topics
        self._kinds = frozenset(kinds) or frozenset(KINDS)
        self._device = device
        self._verifier = verifier
        self._sums: dict[tuple[str, str], _Sum] = {}

    def filters(self) -> list[str]:
        """What to subscribe to: chunks only where they are asked for, for they are nearly all of the bytes."""
        topics, device = self._topics, self._device
        if device is None:
            names = ["coordinator", "presence/+", "vitals/+", "task/+", "up/+/+", "down/+", "infer/+", "inferred/+"]
            found = [f"{topics.fleet}/{name}" for name in names]
        else:
            by_device: list[Callable[[str], str]] = [
                topics.presence, topics.vitals, topics.task, topics.up, topics.down, topics.infer, topics.inferred
            ]  # fmt: skip
            found = [topic(device) for topic in by_device]
        blobs = "blob" in self._kinds and device is None
        return [*found, topics.all_blobs] if blobs else found

    def see(self, received: Received, now: float) -> Iterator[Seen]:
        """The lines that are complete with this message. `now`: seconds since 1970."""
        seen, chunk = self._look(received, now)
        if chunk is not None:
            yield from self._add(seen, chunk, now)
            return
        yield from self._finish(lambda sum_: sum_.first.device == seen.device)
        if seen.kind in self._kinds:
            yield seen

    def rest(self, now: float) -> Iterator[Seen]:
        """Sums of chunks of which nothing came for a while."""
        yield from self._finish(lambda sum_: now - sum_.last >= QUIET_S)

    # ----------------------------------------------------------------------------------------------------------------

    def _look(self, received: Received, now: float) -> tuple[Seen, str | None]:
        """(the line, what chunks it is to be summed up with)."""
        topic, payload = received.topic, received.payload
        total = packet_size(topic, len(payload))
        device = ""

        def seen(kind: str, text: str, seal: str = "", fields: Mapping[str, Any] | None = None) -> Seen:
            return Seen(now, topic, kind, device, total, printable(text), seal, received.retained, fields or {})

        parts = topic.split("/")
        if len(parts) < 2 or parts[0] != self._topics.fleet:
            return seen("malformed", "not a topic of this fleet"), None
        if parts[1] == "blob":
            return self._blob(received, seen)
        device = printable(parts[-1]) if len(parts) > 2 else ""
        if not payload:
            return seen("cleared", f"nothing on {'/'.join(parts[1:])} any more"), None
        seal = ""
        try:
            body, seal = self._open(topic, payload)
            message = decode_any(body)
            if isinstance(message, Chunk):
                return seen("chunk", f"{message.digest[:8]}..", seal), message.digest
            return seen(message.kind, _brief(message), seal, _fields(message)), None
        except WireError as error:
            return seen("malformed", f"{error.code}: {error}", seal), None

    def _blob(self, received: Received, seen: Callable[..., Seen]) -> tuple[Seen, str | None]:
        try:
            digest, index = self._topics.chunk_index(received.topic)
        except MalformedMessage as error:
            return seen("malformed", str(error)), None
        what = "blob" if received.payload else "cleared"
        return seen("blob", f"{digest[:8]}.. page {index // PAGE}{'' if received.payload else ' cleared'}"), (
            f"{what}/{digest}/{index // PAGE}"
        )

    def _open(self, topic: str, payload: bytes) -> tuple[bytes, str]:
        """(the message itself, what is known of its signature)."""
        message = decode_any(payload)
        ours = topic.split("/")[1] in ("coordinator", "task", "down")
        if not isinstance(message, Sealed):
            # whole chunks are never signed: the digest that they belong to is
            return payload, "unsigned" if ours and self._verifier and not isinstance(message, Chunk) else ""
        if self._verifier is None:
            return message.body, "sealed"
        try:
            return self._verifier.open(topic, payload), "signed"
        except (Forged, Replayed) as error:
            return message.body, error.code

    def _add(self, seen: Seen, chunk: str, now: float) -> Iterator[Seen]:
        if seen.kind not in self._kinds:
            return
        key = (seen.topic if seen.kind == "chunk" else "", chunk)
        if key not in self._sums:
            if len(self._sums) >= PENDING:
                yield from self._finish(lambda _: True)
            self._sums[key] = _Sum(seen)
        found = self._sums[key]
        found.chunks, found.bytes, found.last = found.chunks + 1, found.bytes + seen.bytes, now

    def _finish(self, over: Callable[[_Sum], bool]) -> Iterator[Seen]:
        for key in [key for key, sum_ in self._sums.items() if over(sum_)]:
            found = self._sums.pop(key)
            text = f"{found.first.text}: {found.chunks} chunks, {size(found.bytes)}"
            fields = {"chunks": found.chunks}
            first = found.first
            yield Seen(
                first.at, first.topic, first.kind, first.device, found.bytes, text, first.seal, first.retained, fields
            )


def _brief(message: Message) -> str:
    """The main fields, short."""
    said = []
    for name in type(message).model_fields:
        value = getattr(message, name)
        if name in ("kind", "plan") or value is None or value in ("", (), {}):
            continue
        said.append(f"{name}={_short(value)}")
    if isinstance(message, Task):
        said.append(f"{message.plan.algorithm} on {message.plan.model}")
    return " ".join(said)


def _short(value: Any) -> str:
    match value:
        case Message() if hasattr(value, "digest") and hasattr(value, "size"):
            return f"{value.digest[:8]}..({size(value.size)})"
        case Message():
            return f"({_brief(value)})"
        case bytes():
            return f"({size(len(value))})"
        case float():
            return f"{value:g}"
        case dict():
            return "{" + ", ".join(f"{name}: {_short(each)}" for name, each in value.items()) + "}"
        case str() if len(value) == 64 and value.isalnum():
            return f"{value[:8]}.."
        case tuple():
            return "[" + ", ".join(_short(each) for each in value) + "]"
    return str(value)


def _fields(message: Message) -> dict[str, Any]:
    """For JSON: bytes are told by their number."""

    def plain(value: Any) -> Any:
        if isinstance(value, bytes):
            return {"bytes": len(value)}
        if isinstance(value, dict):
            return {name: plain(each) for name, each in value.items()}
        return [plain(each) for each in value] if isinstance(value, list | tuple) else value

    fields: dict[str, Any] = plain(message.model_dump(exclude={"kind"}))
    return fields
