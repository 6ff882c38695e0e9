"""The topic families of one fleet. Broker ACLs are generated from here, and nothing else spells a topic.

The sender is a level of the topic, enforced by the broker's ACL, never a field of a message.

| topic                          | writer      | retained              | carries                                     |
|--------------------------------|-------------|-----------------------|---------------------------------------------|
| {fleet}/coordinator            | coordinator | yes, and as last will | CoordinatorState                            |
| {fleet}/presence/{device}      | device      | yes, and as last will | Presence                                    |
| {fleet}/vitals/{device}        | device      | yes                   | Vitals                                      |
| {fleet}/task/{device}          | coordinator | yes, latest wins      | Task, or nothing                            |
| {fleet}/up/{shard}/{device}    | device      | no                    | Offer, Chunk, Want, Failure, Report         |
| {fleet}/down/{device}          | coordinator | no                    | Grant, Receipt, Chunk                       |
| {fleet}/blob/{digest}/{page}/{i} | coordinator | until the round closes | raw payload bytes of one chunk            |
| {fleet}/infer/{device}         | a client    | no                    | InferRequest                                |
| {fleet}/inferred/{device}      | device      | no                    | InferReply                                  |
"""

import re
import zlib
from dataclasses import dataclass

from shared.errors import ConfigError, MalformedMessage

SHARDS = 64
"""Aggregators can take ranges of shards later; fixed, so that a device's topic never moves."""

NAME = r"[A-Za-z0-9_-]{1,64}"
"""What a fleet or a device may be called: safe as a topic level, a file name and a certificate name."""


def check_name(what: str, name: str) -> str:
    """The name itself; ConfigError if it could not be one topic level."""
    if not re.fullmatch(NAME, name):
        raise ConfigError(f"{what} {name!r} is not allowed: use 1 to 64 letters, digits, '-' and '_'")
    return name


def shard(device: str) -> int:
    """The shard of a device's uplink, 0 <= shard < SHARDS."""
    return zlib.crc32(device.encode()) % SHARDS


@dataclass(frozen=True)
class Topics:
    """The topics of one fleet."""

    fleet: str

    def __post_init__(self) -> None:
        check_name("fleet", self.fleet)

    @property
    def coordinator(self) -> str:
        return f"{self.fleet}/coordinator"

    def presence(self, device: str) -> str:
        return f"{self.fleet}/presence/{device}"

    def vitals(self, device: str) -> str:
        return f"{self.fleet}/vitals/{device}"

    def task(self, device: str) -> str:
        return f"{self.fleet}/task/{device}"

    def up(self, device: str) -> str:
        return f"{self.fleet}/up/{shard(device)}/{device}"

    def down(self, device: str) -> str:
        return f"{self.fleet}/down/{device}"

    def infer(self, device: str) -> str:
        return f"{self.fleet}/infer/{device}"

    def inferred(self, device: str) -> str:
        return f"{self.fleet}/inferred/{device}"

    def chunk(self, digest: str, page: int, index: int) -> str:
        return f"{self.fleet}/blob/{digest}/{page}/{index}"

    def page(self, digest: str, page: int) -> str:
        """Filter for one page of chunks."""
        return f"{self.fleet}/blob/{digest}/{page}/+"

    @property
    def all_presence(self) -> str:
        return f"{self.fleet}/presence/+"

    @property
    def all_vitals(self) -> str:
        return f"{self.fleet}/vitals/+"

    @property
    def all_up(self) -> str:
        return f"{self.fleet}/up/+/+"

    @property
    def all_blobs(self) -> str:
        return f"{self.fleet}/blob/#"

    @property
    def everything(self) -> str:
        return f"{self.fleet}/#"

    def sender(self, topic: str) -> str:
        """The device that wrote to a presence, vitals or up topic; MalformedMessage for any other topic."""
        match topic.split("/"):
            case [self.fleet, "presence" | "vitals", device] if re.fullmatch(NAME, device):
                return device
            case [self.fleet, "up", number, device] if re.fullmatch(NAME, device) and number == str(shard(device)):
                return device
        raise MalformedMessage(f"topic {topic!r} is not one that a device of fleet {self.fleet!r} writes to")

    def chunk_index(self, topic: str) -> tuple[str, int]:
        """(digest, chunk index) of a blob topic; MalformedMessage for any other topic."""
        match topic.split("/"):
            case [self.fleet, "blob", digest, _, index] if re.fullmatch(r"[0-9a-f]{64}", digest) and re.fullmatch(
                r"[0-9]{1,9}", index
            ):
                return digest, int(index)
        raise MalformedMessage(f"topic {topic!r} is not a chunk of fleet {self.fleet!r}")
