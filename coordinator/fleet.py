"""The twins: what the coordinator knows of each device, kept from its presence and its deeds."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from coordinator.events import DeviceAsleep, DeviceOffline, DeviceOnline
from shared.messages import Capabilities, Presence, Vitals


@dataclass
class Twin:
    """One device, as seen from here. Counters are since the start of this coordinator.

    asleep_s    how long it said that it would sleep, when it was heard of last; None: it does not sleep
    last_seen   seconds of the coordinator's monotonic clock; None: not since its start
    vitals      the last that it said of itself, at `vitals_at`
    bytes_up    packets with chunks of its updates
    bytes_down  packets of the payloads that it was told to fetch, and of chunks that were sent to it again
    """

    device: str
    online: bool = False
    asleep_s: float | None = None
    epoch: int = -1
    capabilities: Capabilities | None = None
    last_seen: float | None = None
    vitals: Vitals | None = None
    vitals_at: float = 0.0
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass(frozen=True)
class Sleep:
    """Of a device's start `epoch`; `since`: seconds since 1970."""

    epoch: int
    since: float


class Fleet:
    """All devices that were ever heard of, by name."""

    def __init__(self) -> None:
        self._twins: dict[str, Twin] = {}
        self._slept: dict[str, Sleep] = {}

    def __getitem__(self, device: str) -> Twin:
        """The twin of a device; a new one where it was never heard of."""
        if device not in self._twins:
            self._twins[device] = Twin(device)
        return self._twins[device]

    def __iter__(self) -> Iterator[Twin]:
        return iter(list(self._twins.values()))

    def encodings(self, device: str) -> tuple[str, ...] | None:
        """What this device said that it reads; None: it has not come online since the start of this coordinator."""
        twin = self._twins.get(device)
        if twin is None or not (twin.online or twin.capabilities):
            return None
        return twin.capabilities.encodings if twin.capabilities else ()

    def summary(self, now: float) -> dict[str, dict[str, Any]]:
        """Device -> what it did since the start of this coordinator, and the seconds since it was last heard."""
        return {
            twin.device: {
                "online": twin.online,
                "silent_s": None if twin.last_seen is None else round(now - twin.last_seen, 1),
                "accepted": twin.accepted,
                "rejected": dict(twin.rejected),
                "failed": dict(twin.failed),
                "bytes_up": twin.bytes_up,
                "bytes_down": twin.bytes_down,
            }
            for twin in sorted(self, key=lambda twin: twin.device)
        }

    def presence(
        self, device: str, presence: Presence, now: float
    ) -> DeviceOnline | DeviceAsleep | DeviceOffline | None:
        """Take note; what the engine should hear of it, None where that is nothing new.

        A message of an earlier epoch than the last one known is late: the broker tells of an agent's death only after
        the keepalive, when its successor may long be there.
        """
        twin = self[device]
        if presence.epoch < twin.epoch:
            return None
        asleep = None if presence.online else presence.asleep_s
        known = self._slept.pop(device, None)
        changed = (twin.online, twin.epoch, twin.asleep_s) != (presence.online, presence.epoch, asleep)
        twin.epoch, twin.online, twin.asleep_s = presence.epoch, presence.online, asleep
        if presence.online or presence.capabilities is not None:
            twin.capabilities = presence.capabilities
        if presence.online:
            twin.last_seen = now
            return DeviceOnline(device, presence.capabilities)
        if not changed:
            return None
        if asleep is None:  # it did not say so itself: the broker did
            return DeviceOffline(device)
        since = known.since if known is not None and known.epoch == presence.epoch else now
        twin.last_seen = min(max(since, now - asleep), now)
        left = twin.last_seen + asleep - now
        return DeviceAsleep(device, left) if left > 0 else DeviceOffline(device)

    def asleep(self, shift: float) -> dict[str, Sleep]:
        """Who sleeps. shift: from our clock to seconds since 1970."""
        found = {
            twin.device: Sleep(twin.epoch, twin.last_seen)
            for twin in self
            if twin.asleep_s is not None and twin.last_seen is not None
        }
        return {device: Sleep(each.epoch, each.since + shift) for device, each in (self._slept | found).items()}

    def recall(self, asleep: Mapping[str, Sleep], shift: float) -> None:
        """Who slept when an earlier start of this coordinator knew of it: whose presence still says so has slept since
        then. If a clock was set meanwhile, it has slept no less than nothing, and no longer than it said."""
        self._slept = {device: Sleep(each.epoch, each.since - shift) for device, each in asleep.items()}

    def vitals(self, device: str, vitals: Vitals, now: float) -> None:
        """Take note, unless they are those of an earlier start of its agent."""
        twin = self[device]
        if vitals.epoch >= max(twin.epoch, twin.vitals.epoch if twin.vitals else -1):
            twin.vitals, twin.vitals_at = vitals, now
