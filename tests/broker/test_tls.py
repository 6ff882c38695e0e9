"""mqtts:// through a real Mosquitto, with certificates made for the test."""

import subprocess
from pathlib import Path

import pytest
from brokers import message, online

from shared.errors import LinkError


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca, server (127.0.0.1) and device as {name}.pem and {name}.key; `other` is an authority of its own."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for name in ("ca", "other"):
        openssl(
            "req", "-x509", *key, "-subj", f"/CN={name}", "-days", "2", "-keyout", f"{name}.key", "-out", f"{name}.pem"
        )
    for name, extension in (("server", "subjectAltName=IP:127.0.0.1"), ("device", "extendedKeyUsage=clientAuth")):
        (folder / "extensions").write_text(extension)
        openssl("req", *key, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "extensions")
        openssl("x509", "-req", "-in", f"{name}.csr", *signing, "-out", f"{name}.pem")
    return folder


@pytest.fixture
def server(certificates: Path) -> list[str]:
    """Lines of Mosquitto's configuration that make its listener speak TLS."""
    return [
        f"cafile {certificates / 'ca.pem'}",
        f"certfile {certificates / 'server.pem'}",
        f"keyfile {certificates / 'server.key'}",
    ]


async def test_large_messages_over_tls(mosquitto, link, certificates, server):
    url = mosquitto(*server).url.replace("mqtt:", "mqtts:")
    sender = await link(url, "sender", ca_file=certificates / "ca.pem")
    receiver = await link(url, "receiver", ca_file=certificates / "ca.pem")
    await receiver.subscribe("t")
    for n in range(40):
        await sender.publish("t", bytes([n]) * 120_000)
    for n in range(40):
        assert await message(receiver) == ("t", bytes([n]) * 120_000)


async def test_a_broker_of_another_authority_is_not_trusted(mosquitto, link, certificates, server):
    url = mosquitto(*server).url.replace("mqtt:", "mqtts:")
    wary = await link(url, "wary", ca_file=certificates / "other.pem")
    with pytest.raises(LinkError, match=r"broker\.ca_file"):
        await wary.receive()


async def test_a_client_certificate_is_shown_where_it_is_asked_for(mosquitto, link, certificates, server):
    url = mosquitto(*server, "require_certificate true", "use_identity_as_username true").url.replace("mqtt:", "mqtts:")
    ca = certificates / "ca.pem"
    known = await link(
        url, "known", ca_file=ca, cert_file=certificates / "device.pem", key_file=certificates / "device.key"
    )
    await online(known)
    unknown = await link(url, "unknown", ca_file=ca)
    with pytest.raises(LinkError, match=r"broker\.cert_file"):  # a reset may overtake the alert, but not for ever
        await online(unknown)


async def test_a_certificate_that_is_not_there_is_named(link, tmp_path):
    broken = await link("mqtts://127.0.0.1:1", "broken", ca_file=tmp_path / "nowhere.pem")
    with pytest.raises(LinkError, match=r"nowhere\.pem"):
        await broken.receive()
