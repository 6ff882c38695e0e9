"""What stands before the tensors of a payload, version 1; shared.codec has the bytes around it."""

from typing import Annotated, Literal

from pydantic import Field

from shared.messages import Identifier, Message, Metrics, Name, Round


class TensorSpec(Message):
    """One tensor of a payload; its bytes follow the header, little-endian, in C order."""

    name: Name
    dtype: Literal["float32", "float16", "float64", "int64", "int32", "uint8", "bool"]
    shape: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**40)], ...], Field(max_length=8)]
    encoding: Identifier | None = None
    """How its bytes are coded (shared.encoding); None: they are the values themselves."""
    kept: Annotated[int, Field(ge=0, lt=2**40)] = 0
    """Values that are there, with `topk`; the others are 0."""


class PayloadHeader(Message):
    """What stands before the tensors of a payload: a global download, an update, or a device's memory."""

    protocol: Literal[1] = 1
    run: Identifier
    round: Round
    examples: Annotated[int, Field(ge=0, le=2**40)] = 0
    """Training examples behind an update."""
    weight: Annotated[float, Field(ge=0)] = 0.0
    """What the update weighs in the mean: examples, or 1 where the algorithm weighs uniformly."""
    metrics: Metrics = Field(default_factory=dict)
    encoding: Identifier = "float32"
    """One of shared.encoding.Encoding."""
    delta: bool = False
    """Float tensors are what is added to the global ones of the round, cut to the same channels; integers are not."""
    compressed: bool = False
    """All that follows the header is one zstd frame."""
    masks: Annotated[dict[Name, bytes], Field(max_length=4096)] | None = None
    """Held channels: one bit per unit of each channel group, most significant bit first; None: all held."""
    units: Annotated[dict[Name, Annotated[int, Field(ge=1, lt=2**24)]], Field(max_length=4096)] | None = None
    """Units of each group in `masks`: how many of its bits count."""
    tensors: Annotated[tuple[TensorSpec, ...], Field(max_length=65_536)]
