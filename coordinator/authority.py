"""The authority of one fleet: a folder that makes, renews and revokes what its members prove themselves with.

    authority.json    what was given to whom; with ca.key, all that must not be lost, nor leave this machine
    ca.key, ca.pem    signs certificates; is known to everybody
    coordinator.pub   public keys that sign what devices are told, one per line
    broker/           for the machine of the broker: mosquitto.conf, acl, crl.pem, its certificate and key
    coordinator/      for that of the coordinator: coordinator.toml, its certificate and keys
    devices/NAME/     for each device: agent.toml, its certificate and key, and whom to believe
    listeners/, clients/, observers/    the same for the other roles (coordinator.acl.Role)

What is issued is noted in authority.json first, and that its files are there afterwards: what is interrupted in between
is issued anew by the next call. No certificate is in use that authority.json does not know.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from coordinator.acl import COORDINATOR, Role, acl
from coordinator.authority_files import settings_file
from coordinator.authority_record import Issued, Record, Revoked, load_record, write_private
from coordinator.certificates import LEEWAY, Pair, make_authority, make_client, make_crl, make_server
from coordinator.mosquitto import secured
from shared.errors import ConfigError
from shared.seal import public_line
from shared.topics import check_name

BROKER = "broker"
SIGNING = "signing"
SIGNING_KEY = "signing.key"
RESERVED = (BROKER, COORDINATOR, SIGNING)
"""Names of parts of the authority, which no device can have."""
DAYS = 730
"""Validity of what is issued, by default."""
SOON = timedelta(days=30)
"""What ends within it is warned of."""


class Authority:
    """`with Authority.open(...) as authority:` holds the folder's lock; one command at a time."""

    def __init__(self, folder: Path, record: Record, days: int = DAYS) -> None:
        self.folder = folder
        self.record = record
        self._days = days
        self._ca = Pair((folder / "ca.key").read_bytes(), (folder / "ca.pem").read_bytes())
        self._now = datetime.now(UTC).replace(microsecond=0)

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        folder: Path,
        *,
        fleet: str | None = None,
        hosts: list[str] | None = None,
        port: int | None = None,
        installed: str | None = None,
        days: int = DAYS,
    ) -> Iterator[Self]:
        """The authority in the folder; made there at first, which takes fleet and hosts.

        Other hosts, another port or place later replace those before, and the broker gets a new certificate.
        ConfigError for another fleet, or where there is no authority and none can be made of what is given.
        """
        if not folder.exists() and (fleet is None or hosts is None):
            raise ConfigError(f"{folder} holds no authority yet: --fleet and --host make one")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            record = load_record(folder / "authority.json")
            if record is None:
                if fleet is None or hosts is None:
                    raise ConfigError(f"{folder} holds no authority yet: --fleet and --host make one")
                record = Record(fleet=check_name("fleet", fleet), hosts=hosts, port=port or 8883, installed=installed)
                _begin(folder, record)
            if fleet is not None and fleet != record.fleet:
                raise ConfigError(f"{folder} is the authority of fleet {record.fleet!r}: give {fleet!r} one of its own")
            authority = cls(folder, record, days)
            authority._settle(hosts or record.hosts, port or record.port, installed or record.installed)
            yield authority
        finally:
            os.close(lock)

    # --- who ----------------------------------------------------------------------------------------------------------

    def enrol(self, role: Role, name: str) -> Path:
        """The folder of a new member, or, unchanged, of one that is enrolled already. ConfigError for a name that
        cannot be used, was revoked, or whose folder is gone: only `renew` makes another key for it."""
        user = role.user(name)
        if name in RESERVED:
            raise ConfigError(f"{role} {name!r}: the name is taken by the {name} itself; choose another")
        if user in self.record.barred:
            raise ConfigError(f"{role} {name!r} was revoked: `enrol --renew {name}` lets it in again, with a new key")
        place = self._place(role, name)
        if user not in self.record.issued:
            self._issue(role, name, user)
        elif not (place / f"{name}.key").exists():
            raise ConfigError(
                f"{role} {name!r} is enrolled, and its folder {place} is not here any more: if its key is lost, too, "
                f"`enrol --renew {name}` makes another and revokes the old one"
            )
        return place

    def renew(self, role: Role, name: str) -> Path:
        """The folder with a new key and certificate; the certificate before is revoked, and the name let in again."""
        if name == SIGNING:
            return self._renew_signing()
        if name in RESERVED:
            return self._issue(name, name, name)
        user = role.user(name)
        if user not in self.record.issued and user not in self.record.barred:
            raise ConfigError(f"{role} {name!r} is not enrolled: leave --renew away")
        self.record.barred = [each for each in self.record.barred if each != user]
        return self._issue(role, name, user)

    def revoke(self, role: Role, name: str) -> None:
        """The name may do nothing any more, and its certificate opens no connection. Twice is once."""
        user = role.user(name)
        if name in RESERVED:
            raise ConfigError(f"the fleet cannot do without its {name}: `enrol --renew {name}` replaces what it has")
        if user in self.record.barred:
            return
        if user not in self.record.issued:
            known = ", ".join(sorted(each.name for each in self.record.issued.values() if each.role == role))
            raise ConfigError(f"{role} {name!r} is not enrolled; {role}s are {known or 'not enrolled yet'}")
        self._withdraw(user)
        self.record.barred.append(user)
        self._publish()

    def ending(self) -> list[Issued]:
        """What has ended or will soon."""
        return sorted(
            (each for each in self.record.issued.values() if each.until < self._now + SOON), key=lambda each: each.until
        )

    def place(self, *parts: str) -> Path:
        """A folder or file of the authority, with its absolute path."""
        return self.folder.absolute().joinpath(*parts)

    # --- how ----------------------------------------------------------------------------------------------------------

    def _settle(self, hosts: list[str], port: int, installed: str | None) -> None:
        """Complete what was interrupted; take over what is new."""
        record = self.record
        moved = (hosts, port, installed) != (record.hosts, record.port, record.installed)
        record.hosts, record.port, record.installed = hosts, port, installed
        if not self.place("coordinator.pub").exists():
            self._sign_with(self._place(COORDINATOR) / SIGNING_KEY)
        for user in (BROKER, COORDINATOR):
            if user not in record.issued or (moved and user == BROKER):
                self._issue(user, user, user)
        for user, issued in list(record.issued.items()):
            if not issued.written:
                self._issue(issued.role, issued.name, user)
        self._publish()

    def _issue(self, role: str, name: str, user: str) -> Path:
        """A new key and certificate, in the folder of its owner; the one before is revoked."""
        if user == BROKER:
            pair = make_server(self._ca, self.record.hosts, self._days, self._now)
        else:
            pair = make_client(self._ca, user, self._days, self._now)
        self._withdraw(user)
        serial, until = pair.x509.serial_number, pair.x509.not_valid_after_utc
        self.record.issued[user] = Issued(role=role, name=name, serial=f"{serial:x}", until=until)
        self._publish()
        place = self._place(role, name)
        for file, data in {**self._common(role), f"{name}.key": pair.key, f"{name}.pem": pair.certificate}.items():
            write_private(place / file, data)
        self._describe(role, name)
        self.record.issued[user].written = True
        self._save()
        return place

    def _withdraw(self, user: str) -> None:
        """Its certificate, if it has one, is not valid any more."""
        issued = self.record.issued.pop(user, None)
        if issued is not None and user != BROKER:  # nobody looks up whether the broker's was revoked
            self.record.revoked.append(Revoked(user=user, serial=issued.serial, date=self._now))

    def _publish(self) -> None:
        """authority.json, and what the broker is told of it."""
        record, folder = self.record, self._place(BROKER)
        earliest = self._now - LEEWAY
        record.listed = earliest if record.listed is None else max(earliest, record.listed + timedelta(seconds=1))
        record.lists += 1
        self._save()
        revoked = {int(each.serial, 16): each.date for each in record.revoked}
        write_private(folder / "crl.pem", make_crl(self._ca, revoked, record.lists, record.listed))
        users = [(Role(each.role), each.name) for each in record.issued.values() if each.role in tuple(Role)]
        write_private(folder / "acl", acl(record.fleet, users, record.barred).encode())

    def _describe(self, role: str, name: str) -> None:
        """The settings that go with a certificate: read by Mosquitto, the coordinator, an agent, or a client."""
        record, place = self.record, self._place(role, name)
        there = Path(record.installed) if record.installed else place
        if role == BROKER:
            place.joinpath("data").mkdir(exist_ok=True, mode=0o700)
            write_private(place / "mosquitto.conf", secured(record.fleet, record.port, there).encode())
            return
        host = f"[{record.hosts[0]}]" if ":" in record.hosts[0] else record.hosts[0]
        way = f"mqtts://{host}:{record.port}"
        file, text = settings_file(role, name, record.fleet, way, there)
        if not (place / file).exists():  # whoever has added to it keeps that
            write_private(place / file, text.encode())

    def _common(self, role: str) -> dict[str, bytes]:
        """What everybody of a role is given beside its own."""
        files = {"ca.pem": self._ca.certificate}
        if role in (COORDINATOR, Role.DEVICE):
            files["coordinator.pub"] = self.place("coordinator.pub").read_bytes()
        return files

    def _renew_signing(self) -> Path:
        """Another signing key, beside the one in use; everybody is to believe both from now on."""
        path = self._place(COORDINATOR) / f"new-{SIGNING_KEY}"
        if path.exists():
            raise ConfigError(f"{path} waits to be taken into use: move it over {SIGNING_KEY} first")
        self._sign_with(path)
        return path

    def _sign_with(self, path: Path) -> None:
        """Make a signing key; its public half becomes known first, for nobody believes what is not."""
        key = Ed25519PrivateKey.generate()
        public = self.place("coordinator.pub")
        before = public.read_text() if public.exists() else ""
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_private(path, pem)
        write_private(public, f"{before}{public_line(key.public_key())} {self._now:%Y-%m-%d}\n".encode())
        for issued in self.record.issued.values():
            place = self._place(issued.role, issued.name)
            if issued.role in (COORDINATOR, Role.DEVICE) and place.exists():
                write_private(place / "coordinator.pub", public.read_bytes())

    def _place(self, role: str, name: str = "") -> Path:
        return self.place(role) if role in RESERVED else self.place(f"{role}s", name)

    def _save(self) -> None:
        write_private(self.place("authority.json"), self.record.model_dump_json(indent=1).encode() + b"\n")


def _begin(folder: Path, record: Record) -> None:
    """The authority itself: its key first, so that no certificate is there whose key is lost."""
    made = make_authority(record.fleet, datetime.now(UTC).replace(microsecond=0))
    write_private(folder / "ca.key", made.key)
    write_private(folder / "ca.pem", made.certificate)
    write_private(folder / "authority.json", record.model_dump_json(indent=1).encode())
