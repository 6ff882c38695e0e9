"""X.509 (RFC 5280) for one fleet: an authority, certificates with one purpose each, a revocation list. No files.

ECDSA on P-256 throughout: every TLS library of the last ten years takes it, also those of small devices, and a key
takes a millisecond.
"""

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared.errors import StateError

AUTHORITY_YEARS = 20
LEEWAY = timedelta(days=1)
"""Certificates and lists are valid from so long ago: a board without a clock of its own is often a little late."""


@dataclass(frozen=True)
class Pair:
    """A private key (PKCS #8) and its certificate, both PEM."""

    key: bytes
    certificate: bytes

    @property
    def x509(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.certificate)

    @property
    def private(self) -> ec.EllipticCurvePrivateKey:
        """StateError if it is not a key that this module has made."""
        key = load_pem_private_key(self.key, password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise StateError("the authority's key is not one of an elliptic curve: take it back from a backup")
        return key


def make_authority(fleet: str, now: datetime) -> Pair:
    """A self-signed authority that signs certificates of its fleet, and no further authorities."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"Talaria fleet {fleet}")
    usage = _usage(key_cert_sign=True, crl_sign=True)
    certificate = (
        _builder(name, name, key.public_key(), now, now + timedelta(days=365 * AUTHORITY_YEARS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, SHA256())
    )
    return _pair(key, certificate)


def make_server(authority: Pair, hosts: Iterable[str], days: int, now: datetime) -> Pair:
    """The broker's: good for these names and addresses, and for nothing but being a server."""
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return _issue(authority, "broker", ExtendedKeyUsageOID.SERVER_AUTH, x509.SubjectAlternativeName(names), days, now)


def make_client(authority: Pair, user: str, days: int, now: datetime) -> Pair:
    """For `user`, and for nothing but being a client: it cannot pose as the broker."""
    return _issue(authority, user, ExtendedKeyUsageOID.CLIENT_AUTH, None, days, now)


def make_crl(authority: Pair, revoked: Mapping[int, datetime], number: int, now: datetime) -> bytes:
    """PEM of the list of revoked serial numbers, each with its date. It must be later than every list before it, by a
    second at least: of two lists, OpenSSL takes the later one.

    It is valid as long as the authority. A list that expires makes the broker refuse everybody, and one that is handed
    over by hand gets no newer by it.
    """
    issuer = authority.x509
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(now)
        .next_update(issuer.not_valid_after_utc)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.private.public_key()), critical=False
        )
    )
    for serial, date in sorted(revoked.items()):
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(date).build()
        )
    return builder.sign(authority.private, SHA256()).public_bytes(Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _issue(
    authority: Pair,
    user: str,
    purpose: x509.ObjectIdentifier,
    names: x509.SubjectAlternativeName | None,
    days: int,
    now: datetime,
) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = authority.x509
    until = min(now + timedelta(days=days), issuer.not_valid_after_utc)
    builder = (
        _builder(_name(user), issuer.subject, key.public_key(), now, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.private.public_key()), critical=False
        )
    )
    if names is not None:
        builder = builder.add_extension(names, critical=False)
    return _pair(key, builder.sign(authority.private, SHA256()))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now.astimezone(UTC) - LEEWAY)
        .not_valid_after(until)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(**given: bool) -> x509.KeyUsage:
    every = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign crl_sign "
        "encipher_only decipher_only"
    )
    return x509.KeyUsage(**{name: given.get(name, False) for name in every.split()})


def _pair(key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> Pair:
    return Pair(key_pem(key), certificate.public_bytes(Encoding.PEM))
