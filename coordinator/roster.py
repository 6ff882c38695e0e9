"""Who is there, who sleeps, who is in quarantine: facts that the round engine records and asks for. Pure."""

from collections.abc import Iterable

from coordinator.cohort import Needs, unfit
from coordinator.events import DeviceAsleep, DeviceOffline, DeviceOnline, Quarantined, Released
from shared.messages import Capabilities

Presence = DeviceOnline | DeviceOffline | DeviceAsleep | Quarantined | Released


class Roster:
    """Every device that was heard of.

    known  devices that could train at some time of the run, wherever they are now

    A device that sleeps is there as far as it means to be back: for whoever can wait so long. Who oversleeps is waited
    for by those that wait already, and by nobody else until it is seen again.
    """

    def __init__(self, needs: Needs) -> None:
        self.known: set[str] = set()
        self._needs = needs
        self._there: dict[str, Capabilities | None] = {}
        self._back: dict[str, float] = {}
        self._quarantined: set[str] = set()

    def record(self, event: Presence, now: float) -> None:
        match event:
            case DeviceOnline(device, capabilities):
                self._there[device] = capabilities
                self._back.pop(device, None)
                if not unfit(capabilities, self._needs):
                    self.known.add(device)
            case DeviceAsleep(device, seconds):
                if device in self.known:  # of another one it is not known whether it can do anything
                    self._there.setdefault(device)
                    self._back[device] = now + seconds
            case DeviceOffline(device):
                self._there.pop(device, None)
                self._back.pop(device, None)
            case Quarantined(device):
                self._quarantined.add(device)
            case Released(device):
                self._quarantined.discard(device)

    def restore(self, known: Iterable[str], there: Iterable[str]) -> None:
        """After a restart: these are believed there until their presence says otherwise."""
        self.known = set(known)
        self._there = dict.fromkeys(there)
        self._back = {}

    def unfit(self, capabilities: Capabilities | None) -> str:
        """Why a device with these capabilities is not asked; empty where it can be."""
        return unfit(capabilities, self._needs)

    def quarantined(self, device: str) -> bool:
        return device in self._quarantined

    def barred(self) -> set[str]:
        """Devices that are there, and in quarantine: a round that waits for so many devices does not wait for others
        in their place, or a liar could stop the fleet by being found out."""
        return self._quarantined & self._there.keys()

    def able(self, device: str) -> bool:
        """Whether the device can be asked for work, as far as is known: now, or when it is back."""
        return device not in self._quarantined and not unfit(self._there.get(device), self._needs)

    def candidates(self, now: float, until: float) -> set[str]:
        """Devices that can be asked now for something that is over at `until`."""
        return {d for d in self._there if self.able(d) and now <= self._back.get(d, now) < until}

    def awaited(self, device: str, until: float) -> bool:
        """Whether somebody who waits until then may wait for this device."""
        return device in self._there and self._back.get(device, -float("inf")) < until
