"""Every message of the wire, version 1. Frozen, strict, nothing unknown allowed.

A message is one msgpack map. The sender is in the topic (shared.topics), so no message names it. Every message that
belongs to a run carries the run's id, so that what a persistent session kept from an earlier run confuses nobody.
"""

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

PROTOCOL = 1
"""Version of messages and payloads. A message of another version is refused by name, not misread."""

PAGE = 16
"""Chunks per page of a published payload: a device subscribes to one page at a time."""

Digest: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256 of a whole payload, hexadecimal."""
Identifier: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Text: TypeAlias = Annotated[str, StringConstraints(max_length=500)]
Name: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=200)]
"""Name of a tensor, a channel group or a metric."""
Round: TypeAlias = Annotated[int, Field(ge=0, le=1_000_000)]
Range: TypeAlias = tuple[Annotated[int, Field(ge=0, lt=2**31)], Annotated[int, Field(ge=1, lt=2**31)]]
"""Chunk indices, first included, last excluded."""
Ranges: TypeAlias = Annotated[tuple[Range, ...], Field(max_length=64)]
Metrics: TypeAlias = Annotated[dict[Name, float], Field(max_length=64)]
Hyperparameter: TypeAlias = bool | int | float | str | tuple[int | float | str, ...] | dict[str, int | float] | None


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class Blob(Message):
    """A payload of any size, addressed by its content, in chunks of `chunk` bytes (the last may be shorter)."""

    digest: Digest
    size: Annotated[int, Field(ge=1, le=2**40)]
    chunk: Annotated[int, Field(ge=512, le=2**24)]

    @property
    def chunks(self) -> int:
        return -(-self.size // self.chunk)

    @property
    def pages(self) -> int:
        return -(-self.chunks // PAGE)


# --- retained state -------------------------------------------------------------------------------------------------


class CoordinatorState(Message):
    """Retained on {fleet}/coordinator; `online=False` of the same epoch is the last will."""

    kind: Literal["coordinator"] = "coordinator"
    online: bool
    epoch: Annotated[int, Field(ge=0)]
    """Counts the starts of this coordinator: a new one makes devices offer again what has no receipt."""
    run: Identifier | None = None


class Capabilities(Message):
    """What a device can do, as its profile and its machine say."""

    profile: Identifier
    train: bool
    """Whether it may be asked to train now (its hardware allows it and its health gate is open)."""
    reason: Text = ""
    """Why not, when `train` is false."""
    examples: Annotated[int, Field(ge=0)] = 0
    memory_mib: Annotated[int, Field(ge=0)] = 0
    """Memory that its trainer may use."""
    max_packet: Annotated[int, Field(ge=1024)] = 122_880
    encodings: Annotated[tuple[Identifier, ...], Field(max_length=16)] = ()
    """Encodings of payloads that this device can read, what its link likes best first; none: float32 alone."""
    version: Text = ""


class Presence(Message):
    """Birth, health change and death of a device. `online=False` of the same epoch is the last will."""

    kind: Literal["presence"] = "presence"
    online: bool
    epoch: Annotated[int, Field(ge=0)]
    """Counts the starts of this agent: a death of an earlier epoch is ignored."""
    capabilities: Capabilities | None = None
    asleep_s: Annotated[float, Field(gt=0, le=31_536_000)] | None = None
    """With `online=False`: the device sleeps and means to be back after so many seconds, so it may be waited for."""


class Vitals(Message):
    """How a device fares, retained on {fleet}/vitals/{device} and published anew every minute or so."""

    kind: Literal["vitals"] = "vitals"
    epoch: Annotated[int, Field(ge=0)]
    """Counts the starts of this agent."""
    phase: Identifier
    """What its session does: idle, fetching, working, answering."""
    uptime_s: Annotated[float, Field(ge=0)]
    metrics: Metrics = {}
    """By name, in the unit that ends it: temperature_c, battery_pct, load_per_core, available_mib, bytes_up, ..."""


class Sealed(Message):
    """A message of the coordinator, signed. What it carries is believed only for the topic it was signed for."""

    kind: Literal["sealed"] = "sealed"
    number: Annotated[int, Field(ge=1, lt=2**63)]
    """Grows with every message signed by this key, whatever restarts: an older one is a replay."""
    body: Annotated[bytes, Field(min_length=1, max_length=2**24)]
    """The message itself, as on the topic. To clear a topic takes no signature: a forger can only delay."""
    signature: Annotated[bytes, Field(min_length=64, max_length=64)]
    """Ed25519 over the topic, the number and the body (shared.seal)."""


class Plan(Message):
    """What a run does, the same for every device and every round: enough to rebuild model and algorithm by name."""

    model: Text
    """A name of the zoo, or `package.module:callable`, which a device only follows when its own settings trust it."""
    model_options: dict[Name, Hyperparameter] = {}
    algorithm: Text
    hyperparameters: dict[Name, Hyperparameter] = {}
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    layout: Digest | None = None
    """Digest of the channel layout, where updates may be partial: both sides must have resolved the same."""
    encodings: Annotated[tuple[Identifier, ...], Field(max_length=16)] = ("float32",)
    """Encodings of updates that the coordinator reads; a device takes the one that its link likes best."""
    evaluate_every: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Rounds from one evaluation on the test split to the next, from round 1; the personalization has one anyway."""


class Task(Message):
    """Retained on {fleet}/task/{device}: what this device should do now. Latest wins; empty when there is nothing."""

    kind: Literal["task"] = "task"
    run: Identifier
    action: Literal["train", "personalize"]
    round: Round
    plan: Plan
    payload: Blob
    """The shared tensors to start from."""
    initial: Blob | None = None
    """The complete initial model of the run, dense, where it is not what the plan's seed draws. The same in every task
    of a run, so that a device fetches it once."""
    template: Blob | None = None
    """Dense ONNX template of the model, with `personalize`."""
    time_left_s: Annotated[float, Field(ge=0)]
    """Until the deadline, when the task was published; published anew whenever the device comes online."""


# --- device to coordinator ------------------------------------------------------------------------------------------


class Offer(Message):
    """`I have an update for this round.` Repeated until a receipt answers it."""

    kind: Literal["offer"] = "offer"
    run: Identifier
    round: Round
    blob: Blob


class Chunk(Message):
    """One chunk of a payload, both directions."""

    kind: Literal["chunk"] = "chunk"
    digest: Digest
    index: Annotated[int, Field(ge=0, lt=2**31)]
    data: Annotated[bytes, Field(min_length=1, max_length=2**24)]


class Want(Message):
    """`I lack these chunks and the broker does not keep them.` Answered by Chunk messages on the down topic."""

    kind: Literal["want"] = "want"
    run: Identifier
    digest: Digest
    ranges: Ranges


class Failure(Message):
    """A round that this device cannot finish."""

    kind: Literal["failure"] = "failure"
    run: Identifier
    round: Round
    code: Identifier
    reason: Text


class Report(Message):
    """Metrics of a device after personalization. The metrics travel, the data does not."""

    kind: Literal["report"] = "report"
    run: Identifier
    round: Round
    examples: Annotated[int, Field(ge=0)]
    metrics: Metrics


# --- coordinator to device ------------------------------------------------------------------------------------------


class Grant(Message):
    """Credit to send exactly these chunks now. The coordinator pulls: what is lost, it grants again."""

    kind: Literal["grant"] = "grant"
    run: Identifier
    digest: Digest
    ranges: Ranges


class Receipt(Message):
    """The end of an offer, a failure or a report: it is on disk, or it is refused for good. Safe to forget it."""

    kind: Literal["receipt"] = "receipt"
    run: Identifier
    round: Round
    answers: Literal["offer", "failure", "report"]
    """What it settles: a late receipt of a failure must not settle the offer of a second try."""
    accepted: bool
    code: Identifier = "accepted"
    reason: Text = ""


# --- inference on request -------------------------------------------------------------------------------------------


class InferRequest(Message):
    """Raw examples for the model in service on one device, as its data source would yield them."""

    kind: Literal["infer"] = "infer"
    id: Identifier
    """Chosen by the client, repeated in the reply."""
    shape: Annotated[tuple[Annotated[int, Field(ge=1, lt=2**24)], ...], Field(min_length=2, max_length=8)]
    """Examples first."""
    data: Annotated[bytes, Field(min_length=4, max_length=2**24)]
    """float32, little-endian, in C order."""


class Prediction(Message):
    """The best class of one example."""

    label: Text
    number: Annotated[int, Field(ge=0)]
    """Its index among the model's classes."""
    probability: Annotated[float, Field(ge=0, le=1)]


class InferReply(Message):
    """One prediction per example, or none and the reason."""

    kind: Literal["inferred"] = "inferred"
    id: Identifier
    predictions: Annotated[tuple[Prediction, ...], Field(max_length=1024)] = ()
    reason: Text = ""


Uplink: TypeAlias = Annotated[Offer | Chunk | Want | Failure | Report, Field(discriminator="kind")]
Downlink: TypeAlias = Annotated[Grant | Receipt | Chunk, Field(discriminator="kind")]
AnyMessage: TypeAlias = Annotated[
    CoordinatorState
    | Presence
    | Vitals
    | Sealed
    | Task
    | Offer
    | Chunk
    | Want
    | Failure
    | Report
    | Grant
    | Receipt
    | InferRequest
    | InferReply,
    Field(discriminator="kind"),
]
