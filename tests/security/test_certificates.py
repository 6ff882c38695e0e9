"""Who gets in at a real Mosquitto, and whom a client believes: certificates that are wrong in every way there is."""

import asyncio
import json
import select
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from brokers import event, message, online
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from fortress import HOSTS, TOPICS, Fortress
from paho.mqtt import client as paho

from coordinator.acl import Role
from coordinator.authority import Authority
from coordinator.certificates import LEEWAY, Pair, _issue, make_authority, make_client, make_crl, make_server
from shared.credentials import PASSING
from shared.errors import LinkError
from shared.link import Disconnected, Received

NOW = datetime.now(UTC)
CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH


async def why_not(link) -> str:
    """What the link says when it gives up, or of its first failure."""
    try:
        async with asyncio.timeout(20):
            return (await event(link, Disconnected)).reason
    except LinkError as error:
        return str(error)


async def refused_for_good(link) -> str:
    with pytest.raises(LinkError) as refused:
        await online(link)  # a reset may overtake the alert, but not for ever
    return str(refused.value)


# --- those who may not come in ---------------------------------------------------------------------------------------


async def test_without_a_certificate_nobody_comes_in(fortress, link):
    told = await refused_for_good(await link(fortress.settings("hall", cert_file=None, key_file=None)))
    assert "set broker.cert_file and broker.key_file" in told


async def test_with_a_certificate_of_another_authority_nobody_comes_in(fortress, link):
    other = make_client(make_authority("plant", NOW), "kitchen", 30, NOW)
    told = await refused_for_good(await link(fortress.stranger("other", other)))
    assert "signed by another authority" in told


async def test_an_expired_certificate_says_so(fortress, link):
    old = make_client(fortress.authority_pair, "kitchen", 1, NOW - timedelta(days=2))
    told = await refused_for_good(await link(fortress.stranger("old", old)))
    assert "it has expired: talaria-coordinator enrol --renew" in told


async def test_a_certificate_of_tomorrow_blames_the_clocks(fortress, link):
    early = make_client(fortress.authority_pair, "kitchen", 30, NOW + timedelta(days=2) + LEEWAY)
    assert "its clock, ours (" in await refused_for_good(await link(fortress.stranger("early", early)))


async def test_an_alert_that_was_there_before_our_first_packet_is_heard(fortress, link, monkeypatch):
    """Under TLS 1.3 the client believes in the connection until it reads; a slow one finds the end when it writes."""
    send = paho.Client._send_connect

    def late(client, keepalive):
        end = select.poll()
        end.register(client._sock, select.POLLHUP | select.POLLERR)
        assert end.poll(10_000), "the broker did not hang up"
        return send(client, keepalive)

    monkeypatch.setattr(paho.Client, "_send_connect", late)
    fortress.revoke("kitchen")
    fortress.reload()
    assert "it was revoked" in await why_not(await link(fortress.settings("kitchen")))


async def test_the_brokers_own_certificate_opens_no_connection(fortress, link):
    """It is for a server alone: who steals it cannot write."""
    place = fortress.folder / "broker"
    thief = fortress.settings("hall", cert_file=place / "broker.pem", key_file=place / "broker.key")
    assert "does not take our certificate" in await refused_for_good(await link(thief))


async def test_the_anonymous_and_those_with_a_password_get_no_further_than_tls(fortress):
    with socket.create_connection(("127.0.0.1", fortress.port)) as plain:
        plain.sendall(bytes([0x10, 15, 0, 4]) + b"MQTT" + bytes([4, 2, 0, 60, 0, 3]) + b"abc")
        with pytest.raises((ConnectionError, AssertionError)):  # noqa: PT012
            answer = plain.recv(4)
            assert answer[:1] == b"\x20", "closed, or an alert"
    assert "CONNACK" not in (fortress.folder / "broker.log").read_text()


async def test_a_broker_that_knows_no_newer_tls_than_1_2_is_understood_as_well(fortress, link, tmp_path, monkeypatch):
    """It judges a certificate before the handshake is over: that is no broker that cannot be reached."""
    (tmp_path / "old.cnf").write_text(
        "openssl_conf=a\n[a]\nssl_conf=b\n[b]\nsystem_default=c\n[c]\nMaxProtocol=TLSv1.2\n"
    )
    monkeypatch.setenv("OPENSSL_CONF", str(tmp_path / "old.cnf"))
    fortress.stop()
    fortress.revoke("kitchen")
    fortress.start()
    modern = secured(fortress, "hall", ssl.TLSVersion.TLSv1_3)
    modern.minimum_version = ssl.TLSVersion.TLSv1_3
    assert greeted(fortress, modern) is None
    assert "it was revoked" in await refused_for_good(await link(fortress.settings("kitchen")))
    told = await refused_for_good(await link(fortress.settings("hall", cert_file=None, key_file=None)))
    assert "set broker.cert_file and broker.key_file" in told
    await online(await link(fortress.settings("hall")))


# --- revocation and renewal ------------------------------------------------------------------------------------------


async def test_who_is_revoked_is_cut_off_and_does_not_come_back(fortress, link):
    boss = await link(fortress.settings("coordinator"))
    await boss.subscribe(TOPICS.all_up, TOPICS.all_presence)
    kitchen, hall = await link(fortress.settings("kitchen")), await link(fortress.settings("hall"))
    await kitchen.subscribe(TOPICS.task("kitchen"))
    await kitchen.publish(TOPICS.up("kitchen"), b"before")
    assert await message(boss) == (TOPICS.up("kitchen"), b"before")
    await online(hall)
    fortress.revoke("kitchen")
    fortress.reload()
    again = await link(fortress.settings("kitchen"))
    assert "it was revoked" in await refused_for_good(again)  # so the broker has read the new lists
    with pytest.raises(LinkError, match="Not authorized"):
        await kitchen.publish(TOPICS.up("kitchen"), b"after")
    await boss.publish(TOPICS.task("kitchen"), b"secret", retain=True)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await event(kitchen, Received)
    await hall.publish(TOPICS.up("hall"), b"others are not disturbed")
    assert await message(boss) == (TOPICS.up("hall"), b"others are not disturbed")


def secured(fortress: Fortress, name: str, version: ssl.TLSVersion) -> ssl.SSLContext:
    place = fortress.folder / "devices" / name
    context = ssl.create_default_context(cafile=place / "ca.pem")
    context.load_cert_chain(place / f"{name}.pem", place / f"{name}.key")
    context.maximum_version = version
    return context


@dataclass
class Greeted:
    session: ssl.SSLSession
    resumed: bool


def greeted(fortress: Fortress, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> Greeted | None:
    """None where there was no CONNACK. Whether an alert says why is the network's to decide: in TLS 1.3 the broker may
    have hung up before we have read it."""
    with socket.create_connection(("127.0.0.1", fortress.port), timeout=20) as sock:
        try:
            with context.wrap_socket(sock, server_hostname="localhost", session=session) as way_in:
                way_in.sendall(bytes([0x10, 15, 0, 4]) + b"MQTT" + bytes([4, 2, 0, 60, 0, 3]) + b"abc")
                answer = way_in.recv(4)
                if not answer:
                    return None
                assert answer == b"\x20\x02\x00\x00"
                assert way_in.session is not None
                return Greeted(way_in.session, bool(way_in.session_reused))
        except (ssl.SSLError, ConnectionError):
            return None


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_that_is_resumed_does_not_get_around_the_list(fortress, version):
    contexts = {name: secured(fortress, name, version) for name in ("kitchen", "hall")}
    sessions = {}
    for name, context in contexts.items():
        first = greeted(fortress, context)
        assert first is not None
        again = greeted(fortress, context, first.session)
        assert again is not None
        assert again.resumed, "the broker takes sessions up again, so there is something to get around with"
        sessions[name] = again.session
    fortress.revoke("kitchen")
    fortress.reload()
    assert greeted(fortress, contexts["hall"], sessions["hall"]) is not None
    assert greeted(fortress, contexts["kitchen"], sessions["kitchen"]) is None


async def test_every_list_is_believed_however_fast_they_follow(fortress, link):
    """OpenSSL takes the later of two lists: within one second, too."""
    fortress.enrol("cellar", "attic")
    for device in ("kitchen", "cellar", "attic"):
        fortress.revoke(device)
        fortress.reload()
        assert "it was revoked" in await refused_for_good(await link(fortress.settings(device)))
    await online(await link(fortress.settings("hall")))


async def test_a_renewed_device_comes_in_with_its_new_key_alone(fortress, link):
    place = fortress.folder / "devices" / "kitchen"
    old = Pair((place / "kitchen.key").read_bytes(), (place / "kitchen.pem").read_bytes())
    thief = await link(fortress.stranger("old", old))
    await online(thief)
    fortress.enrol("kitchen", renew=True)
    fortress.reload()
    genuine = await link(fortress.settings("kitchen"))
    await genuine.publish(TOPICS.up("kitchen"), b"mine")
    await event(thief, Disconnected)  # the same name: there is one place
    assert "it was revoked" in await refused_for_good(await link(fortress.stranger("old", old)))


async def test_revoked_and_enrolled_anew(fortress, link):
    fortress.revoke("kitchen")
    fortress.enrol("kitchen", renew=True)
    fortress.reload()
    kitchen = await link(fortress.settings("kitchen"))
    await kitchen.publish(TOPICS.up("kitchen"), b"back")


async def test_the_brokers_certificate_is_replaced_while_it_runs(fortress, link):
    hall = await link(fortress.settings("hall"))
    await online(hall)
    fortress.enrol("broker", renew=True)
    fortress.reload()
    made = x509.load_pem_x509_certificate((fortress.folder / "broker/broker.pem").read_bytes())
    async with asyncio.timeout(20):
        while (await asyncio.to_thread(shown, fortress)).serial_number != made.serial_number:
            pass
    await hall.publish(TOPICS.up("hall"), b"the connection stays")
    await online(await link(fortress.settings("kitchen")))


def shown(fortress: Fortress) -> x509.Certificate:
    with (
        socket.create_connection(("127.0.0.1", fortress.port)) as sock,
        secured(fortress, "kitchen", ssl.TLSVersion.TLSv1_3).wrap_socket(sock, server_hostname="localhost") as way_in,
    ):
        der = way_in.getpeercert(binary_form=True)
        assert der is not None
        return x509.load_der_x509_certificate(der)


# --- whom a client believes ------------------------------------------------------------------------------------------


@pytest.fixture
async def impostor(tmp_path: Path) -> AsyncIterator[Callable[[Pair], Awaitable[int]]]:
    """await impostor(pair) -> port of a TLS server with that certificate."""
    servers: list[asyncio.Server] = []

    async def start(pair: Pair) -> int:
        path = tmp_path / f"impostor-{len(servers)}.pem"
        path.write_bytes(pair.certificate + pair.key)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(path)
        servers.append(await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context))
        return int(servers[-1].sockets[0].getsockname()[1])

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def keys(tmp_path: Path) -> Fortress:
    """An authority with one device; its broker does not run."""
    return Fortress(tmp_path / "keys", "kitchen")


async def test_a_broker_of_another_authority_is_not_believed(keys, link, impostor):
    pair = make_server(make_authority("plant", NOW), HOSTS, 30, NOW)
    url = f"mqtts://localhost:{await impostor(pair)}"
    told = await refused_for_good(await link(keys.settings("kitchen", url=url)))
    assert "does not vouch for it (unable to get local issuer" in told
    assert "check broker.ca_file" in told


async def test_a_broker_of_another_name_is_not_believed(keys, link, impostor):
    pair = make_server(keys.authority_pair, ["broker.example", "10.0.0.5"], 30, NOW)
    port = await impostor(pair)
    for host in ("localhost", "127.0.0.1"):
        told = await refused_for_good(await link(keys.settings("kitchen", url=f"mqtts://{host}:{port}")))
        assert f"not made for {host!r}" in told


async def test_a_device_cannot_pose_as_the_broker(keys, link, impostor):
    """Not even with a certificate for the broker's name: what devices have is for clients alone."""
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    pair = _issue(keys.authority_pair, "kitchen", CLIENT, names, 30, NOW)
    url = f"mqtts://localhost:{await impostor(pair)}"
    assert "purpose" in await refused_for_good(await link(keys.settings("kitchen", url=url)))
    genuine = certificate(keys.folder / "devices/kitchen/kitchen.pem")
    usage = genuine.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [CLIENT], "as in every device's"


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


@pytest.mark.parametrize(
    ("since", "reason"),
    [
        (timedelta(days=-40), "it has expired, as the clock"),
        (timedelta(days=2) + LEEWAY, "it is not yet valid: the clock"),
    ],
)
async def test_a_wrong_clock_is_named_and_waited_for(keys, link, impostor, since, reason):
    """A board without a battery starts in the past, and is right a minute later: nobody should have to restart it."""
    pair = make_server(keys.authority_pair, HOSTS, 30, NOW + since)
    waiting = await link(keys.settings("kitchen", url=f"mqtts://localhost:{await impostor(pair)}"))
    told = await why_not(waiting)
    assert reason in told
    assert f"{datetime.now(UTC):%Y-%m-%d}" in told
    assert waiting._over is None
    assert len(PASSING) == 2


# --- lists that would lock everybody out -----------------------------------------------------------------------------


def test_the_list_of_revoked_certificates_lives_as_long_as_the_authority(keys):
    crl = x509.load_pem_x509_crl((keys.folder / "broker/crl.pem").read_bytes())
    assert crl.next_update_utc == keys.authority_pair.x509.not_valid_after_utc
    assert crl.last_update_utc <= datetime.now(UTC) - LEEWAY + timedelta(hours=1), "a broker's clock may be late"


async def test_a_list_that_has_expired_locks_everybody_out(fortress, link):
    """Why ours does not expire: this is what Mosquitto does with one."""
    fortress.stop()
    short = Pair(fortress.authority_pair.key, fortress.authority_pair.certificate)
    builder = x509.CertificateRevocationListBuilder().issuer_name(short.x509.subject)
    old = builder.last_update(NOW - timedelta(days=2)).next_update(NOW - timedelta(days=1))
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding

    (fortress.folder / "broker/crl.pem").write_bytes(old.sign(short.private, SHA256()).public_bytes(Encoding.PEM))
    fortress.start()
    assert "does not take our certificate" in await refused_for_good(await link(fortress.settings("hall")))


def test_lists_grow_and_name_what_was_revoked(keys):
    before = x509.load_pem_x509_crl((keys.folder / "broker/crl.pem").read_bytes())
    serial = x509.load_pem_x509_certificate((keys.folder / "devices/kitchen/kitchen.pem").read_bytes()).serial_number
    assert before.get_revoked_certificate_by_serial_number(serial) is None
    keys.revoke("kitchen")
    after = x509.load_pem_x509_crl((keys.folder / "broker/crl.pem").read_bytes())
    assert after.get_revoked_certificate_by_serial_number(serial) is not None
    assert after.last_update_utc > before.last_update_utc
    assert make_crl(keys.authority_pair, {}, 1, NOW)


def test_revocation_is_for_one_role_of_a_name(keys):
    keys.enrol("kitchen", role=Role.LISTENER)
    keys.revoke("kitchen")
    with Authority.open(keys.folder) as authority:
        assert "kitchen.listener" in authority.record.issued
        assert json.loads((keys.folder / "authority.json").read_text())["barred"] == ["kitchen"]
