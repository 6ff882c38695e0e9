"""Who is who in a chaos run: an authority as `talaria-coordinator enrol` makes it, in which everybody is enrolled."""

import shutil
import ssl
from collections.abc import Iterable
from pathlib import Path

from coordinator.acl import COORDINATOR, Role
from coordinator.authority import BROKER, SIGNING_KEY, Authority
from coordinator.broker import free_port
from lab.proxy import HOST, Proxy, server_context
from shared.config_base import BrokerSettings

OBSERVER = "chaos"


class Keys:
    """The authority in a folder; everybody keeps what is theirs where it was made."""

    def __init__(self, folder: Path, fleet: str, devices: Iterable[str], keepalive_s: int) -> None:
        self.port = free_port()
        self._keepalive_s = keepalive_s
        with Authority.open(folder, fleet=fleet, hosts=[HOST], port=self.port) as authority:
            self._places = {name: authority.enrol(Role.DEVICE, name) for name in devices}
            self._places[OBSERVER] = authority.enrol(Role.OBSERVER, OBSERVER)
            self._places |= {name: authority.place(name) for name in (BROKER, COORDINATOR)}
        self._server: ssl.SSLContext = server_context(self.broker)

    @property
    def broker(self) -> Path:
        """What the broker's machine is given."""
        return self._places[BROKER]

    def way(self, name: str) -> BrokerSettings:
        """To the broker itself, with the certificate of this name."""
        place = self._places[name]
        return BrokerSettings(
            url=f"mqtts://{HOST}:{self.port}",
            ca_file=place / "ca.pem",
            cert_file=place / f"{name}.pem",
            key_file=place / f"{name}.key",
            keepalive_s=self._keepalive_s,
        )

    def proxy(self, name: str) -> Proxy:
        """In front of the broker, for the one of this name."""
        return Proxy(self.way(name), self._server)

    def coordinator_key(self, device: str) -> Path:
        """Whom the device believes."""
        return self._places[device] / "coordinator.pub"

    def signing_key(self, folder: Path) -> Path:
        """A copy of the coordinator's in the folder: the mark beside it is on the same disk then."""
        return Path(shutil.copy(self._places[COORDINATOR] / SIGNING_KEY, folder))
