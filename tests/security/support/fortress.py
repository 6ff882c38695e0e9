"""A real Mosquitto with the configuration that `enrol` makes, and ways in with any of its certificates."""

import os
import signal
import socket
import ssl
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from coordinator.acl import Role
from coordinator.authority import Authority
from coordinator.broker import find_mosquitto, free_port
from coordinator.certificates import Pair
from shared.config_base import BrokerSettings
from shared.topics import Topics

FLEET = "plant"
TOPICS = Topics(FLEET)
RELOADING = "Reloading config"
HOSTS = ["localhost", "127.0.0.1"]


class Fortress:
    """An authority and its broker, which is made of the generated files alone (and told that it may be root)."""

    def __init__(self, folder: Path, *devices: str) -> None:
        self.folder = folder
        self.port = free_port()
        with Authority.open(folder, fleet=FLEET, hosts=HOSTS, port=self.port) as authority:
            for device in devices:
                authority.enrol(Role.DEVICE, device)
        self._config = folder / "mosquitto.conf"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mqtts://localhost:{self.port}"

    @property
    def authority_pair(self) -> Pair:
        return Pair((self.folder / "ca.key").read_bytes(), (self.folder / "ca.pem").read_bytes())

    def enrol(self, *names: str, role: Role = Role.DEVICE, renew: bool = False) -> None:
        with Authority.open(self.folder) as authority:
            for name in names:
                (authority.renew if renew else authority.enrol)(role, name)

    def revoke(self, *names: str) -> None:
        with Authority.open(self.folder) as authority:
            for name in names:
                authority.revoke(Role.DEVICE, name)

    def settings(self, name: str, role: str = "device", **other: object) -> BrokerSettings:
        """The way in of one who is enrolled; `coordinator` is one, too."""
        place = self.folder / "coordinator" if name == "coordinator" else self.folder / f"{role}s" / name
        given = {
            "url": self.url,
            "ca_file": place / "ca.pem",
            "cert_file": place / f"{name}.pem",
            "key_file": place / f"{name}.key",
            **other,
        }
        return BrokerSettings(**given)  # type: ignore[arg-type]

    def stranger(self, name: str, pair: Pair, **other: object) -> BrokerSettings:
        """The way in with a certificate that the authority knows nothing of."""
        cert, key = self.folder / f"{name}-x.pem", self.folder / f"{name}-x.key"
        cert.write_bytes(pair.certificate)
        key.write_bytes(pair.key)
        return BrokerSettings(url=self.url, ca_file=self.folder / "ca.pem", cert_file=cert, key_file=key, **other)  # type: ignore[arg-type]

    def start(self) -> None:
        program = find_mosquitto()
        assert program is not None, "these tests need mosquitto: apt-get install mosquitto"
        made = (self.folder / "broker" / "mosquitto.conf").read_text()
        self._config.write_text(made + "log_type information\n" + ("user root\n" if os.geteuid() == 0 else ""))
        with (self.folder / "broker.log").open("ab") as log:
            self._process = subprocess.Popen([program, "-c", str(self._config)], stdout=log, stderr=log)
        anybody = ssl._create_unverified_context()
        while True:
            assert self._process.poll() is None, (self.folder / "broker.log").read_text()
            # It listens before it can stand a SIGHUP; who shakes hands is past that.
            with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", self.port)) as sock:
                with suppress(ssl.SSLError):  # up to TLS 1.2, who has no certificate
                    anybody.wrap_socket(sock).close()
                return

    def reload(self) -> None:
        """What `systemctl reload mosquitto` does; returns when it has begun, and it does nothing else in between."""
        assert self._process is not None
        assert self._process.poll() is None
        log = self.folder / "broker.log"
        before = log.read_text().count(RELOADING)
        self._process.send_signal(signal.SIGHUP)
        while log.read_text().count(RELOADING) == before:
            time.sleep(0.005)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None
