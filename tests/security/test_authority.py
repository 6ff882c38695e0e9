"""`enrol` and `revoke`: what lies where, who may read it, that twice is once and that an interruption harms nothing."""

import hashlib
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from coordinator import authority_record
from coordinator.acl import Role
from coordinator.authority import Authority
from coordinator.cli import cli
from shared.errors import ConfigError, TalariaError
from shared.seal import Signer, read_public_keys
from shared.settings import load_agent_config, load_run_config

FIRST = ("--fleet", "plant", "--host", "broker.example:8884,10.0.0.5")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def call(command: str, folder: Path, *arguments: str) -> str:
    done = CliRunner().invoke(cli, [command, "--authority", str(folder), *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def sums(folder: Path, pattern: str) -> dict[Path, str]:
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob(pattern) if path.is_file()}


def test_the_first_call_makes_what_everybody_needs(folder):
    call("enrol", folder, *FIRST, "kitchen")
    agent = load_agent_config(folder / "devices/kitchen/agent.toml").config
    assert (agent.device, agent.fleet, agent.broker.url) == ("kitchen", "plant", "mqtts://broker.example:8884")
    run = load_run_config(folder / "coordinator/coordinator.toml").config
    assert (run.run.fleet, run.broker.url) == ("plant", "mqtts://broker.example:8884")
    for broker in (agent.broker, run.broker):
        assert broker.ca_file is not None
        assert certificate(broker.ca_file) == certificate(folder / "ca.pem")
    assert certificate(agent.broker.cert_file).subject.rfc4514_string() == "CN=kitchen"  # type: ignore[arg-type]
    assert certificate(run.broker.cert_file).subject.rfc4514_string() == "CN=coordinator"  # type: ignore[arg-type]
    assert run.run.signing_key is not None
    assert agent.coordinator_key is not None
    assert Signer(run.run.signing_key).public in agent.coordinator_key.read_text()
    names = certificate(folder / "broker/broker.pem").extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert [str(name.value) for name in names.value] == ["broker.example", "10.0.0.5"]
    conf = (folder / "broker/mosquitto.conf").read_text()
    for line in (
        "listener 8884",
        f"crlfile {folder}/broker/crl.pem",
        "require_certificate true",
        "tls_version tlsv1.2",
    ):
        assert line in conf.splitlines()


def test_where_they_are_used_is_written_into_the_settings(folder):
    call("enrol", folder, *FIRST, "--installed", "/etc/talaria", "kitchen")
    agent = load_agent_config(folder / "devices/kitchen/agent.toml").config
    assert agent.broker.key_file == Path("/etc/talaria/kitchen.key")
    assert "acl_file /etc/talaria/acl" in (folder / "broker/mosquitto.conf").read_text()


def test_nobody_else_can_read_any_of_it(folder):
    call("enrol", folder, *FIRST, "kitchen")
    call("enrol", folder, "--renew", "kitchen", "coordinator", "broker", "signing")
    for path in [folder, *folder.rglob("*")]:
        assert not path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO), path


def test_every_certificate_has_one_purpose(folder):
    call("enrol", folder, *FIRST, "kitchen")
    for path, purpose in (("broker/broker", "1.3.6.1.5.5.7.3.1"), ("devices/kitchen/kitchen", "1.3.6.1.5.5.7.3.2")):
        made = certificate(folder / f"{path}.pem")
        usage = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert [each.dotted_string for each in usage] == [purpose]
        assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        key = load_pem_private_key((folder / f"{path}.key").read_bytes(), None)
        assert key.public_key() == made.public_key()


def test_twice_is_once(folder):
    call("enrol", folder, *FIRST, "kitchen", "hall")
    before = sums(folder, "**/*.pem") | sums(folder, "**/*.key") | sums(folder, "**/*.toml")
    call("enrol", folder, *FIRST, "kitchen", "hall")
    call("enrol", folder, "hall")
    after = sums(folder, "**/*.pem") | sums(folder, "**/*.key") | sums(folder, "**/*.toml")
    changed = {path.name for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert changed <= {"crl.pem"}


@pytest.mark.parametrize("name", ["broker", "coordinator", "signing", "a.client", "a/b", "", "x" * 65])
def test_names_that_are_taken_or_impossible_are_refused(folder, name):
    call("enrol", folder, *FIRST)
    with pytest.raises(ConfigError):
        call("enrol", folder, name)
    for reserved in ("broker", "coordinator"):
        with pytest.raises(ConfigError, match="cannot do without"):
            call("revoke", folder, reserved)


def test_what_is_missing_or_contradicts_is_said(folder):
    with pytest.raises(ConfigError, match="--fleet and --host make one"):
        call("enrol", folder, "kitchen")
    for host in ("broker example", "a,,b", ":1", "a:x", "http://a"):
        with pytest.raises(ConfigError, match="--host"):
            call("enrol", folder, "--fleet", "plant", "--host", host)
    call("enrol", folder, *FIRST)
    with pytest.raises(ConfigError, match="authority of fleet 'plant'"):
        call("enrol", folder, "--fleet", "other")
    with pytest.raises(ConfigError, match="is not enrolled"):
        call("enrol", folder, "--renew", "kitchen")
    with pytest.raises(ConfigError, match="is not enrolled"):
        call("revoke", folder, "kitchen")


def test_a_folder_that_was_handed_over_is_not_made_again_by_mistake(folder):
    """That would revoke the certificate of a device that works."""
    call("enrol", folder, *FIRST, "kitchen")
    (folder / "devices/kitchen").rename(folder / "elsewhere")
    with pytest.raises(ConfigError, match="enrol --renew kitchen"):
        call("enrol", folder, "kitchen")


def test_revoked_and_let_in_again(folder):
    call("enrol", folder, *FIRST, "kitchen")
    first = certificate(folder / "devices/kitchen/kitchen.pem").serial_number
    call("revoke", folder, "kitchen")
    call("revoke", folder, "kitchen")
    assert "user kitchen\ntopic deny #" in (folder / "broker/acl").read_text()
    with pytest.raises(ConfigError, match="was revoked"):
        call("enrol", folder, "kitchen")
    call("enrol", folder, "--renew", "kitchen")
    assert "user kitchen" not in (folder / "broker/acl").read_text()
    crl = x509.load_pem_x509_crl((folder / "broker/crl.pem").read_bytes())
    assert [each.serial_number for each in crl] == [first]


def test_what_somebody_added_to_the_settings_stays(folder):
    call("enrol", folder, *FIRST, "kitchen")
    path = folder / "devices/kitchen/agent.toml"
    path.write_text(path.read_text().replace('fleet = "plant"', 'fleet = "plant"\nprofile = "rpi-5"'))
    call("enrol", folder, "--renew", "kitchen")
    assert load_agent_config(path).config.profile == "rpi-5"


def test_the_broker_moves(folder):
    call("enrol", folder, *FIRST, "kitchen")
    call("enrol", folder, "--host", "new.example", "hall")
    names = certificate(folder / "broker/broker.pem").extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert [str(name.value) for name in names.value] == ["new.example"]
    assert "listener 8883" in (folder / "broker/mosquitto.conf").read_text()
    assert load_agent_config(folder / "devices/hall/agent.toml").config.broker.url == "mqtts://new.example:8883"


def test_another_signing_key_is_known_before_it_is_used(folder):
    call("enrol", folder, *FIRST, "kitchen")
    said = call("enrol", folder, "--renew", "signing")
    assert "new-signing.key" in said
    used, new = (Signer(folder / "coordinator" / name).public for name in ("signing.key", "new-signing.key"))
    assert used != new
    for path in ("coordinator.pub", "devices/kitchen/coordinator.pub", "coordinator/coordinator.pub"):
        text = (folder / path).read_text()
        assert len(read_public_keys(folder / path)) == 2
        assert text.index(used) < text.index(new)
    with pytest.raises(ConfigError, match="waits to be taken into use"):
        call("enrol", folder, "--renew", "signing")


def test_what_ends_soon_is_warned_of(folder):
    assert "ends on" not in call("enrol", folder, *FIRST, "kitchen")
    said = call("enrol", folder, "--days", "20", "hall")
    assert "the certificate of hall ends on" in said
    assert "enrol --renew hall" in said
    assert "kitchen ends" not in said


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("action", ["first", "enrol", "renew", "revoke"])
def test_an_interruption_at_any_write_is_made_good_by_the_next_call(folder, tmp_path, monkeypatch, action):
    """The n-th write does not happen, for every n; then the same command again."""
    writes = authority_record.atomic_write

    def act(at: Path) -> None:
        with Authority.open(at, fleet="plant", hosts=["broker.example"]) as authority:
            if action in ("first", "enrol"):
                authority.enrol(Role.DEVICE, "kitchen")
            elif action == "renew":
                authority.renew(Role.DEVICE, "kitchen")
            else:
                authority.revoke(Role.DEVICE, "kitchen")

    for number in range(100):
        at = tmp_path / f"{action}-{number}"
        if action != "first":
            with Authority.open(at, fleet="plant", hosts=["broker.example"]) as authority:
                if action != "enrol":
                    authority.enrol(Role.DEVICE, "kitchen")
        left = number

        def failing(path: Path, data: bytes) -> None:
            nonlocal left
            if left == 0:
                raise Interrupted
            left -= 1
            writes(path, data)

        monkeypatch.setattr(authority_record, "atomic_write", failing)
        try:
            act(at)
            done = True
        except Interrupted:
            done = False
        monkeypatch.setattr(authority_record, "atomic_write", writes)
        act(at)
        check(at, revoked=action == "revoke")
        if done:
            break
    assert done
    assert number > 3


def check(folder: Path, *, revoked: bool) -> None:
    """Whoever is in the record has a certificate of this authority, with its key, that is not revoked."""
    with Authority.open(folder) as authority:
        record = authority.record
    crl = x509.load_pem_x509_crl((folder / "broker/crl.pem").read_bytes())
    ca = certificate(folder / "ca.pem")
    assert crl.is_signature_valid(ca.public_key())  # type: ignore[arg-type]
    assert set(record.issued) == {"broker", "coordinator"} | (set() if revoked else {"kitchen"})
    assert (record.barred == ["kitchen"]) is revoked
    for user, issued in record.issued.items():
        place = folder / (issued.role if issued.role == issued.name else f"devices/{issued.name}")
        made = certificate(place / f"{issued.name}.pem")
        made.verify_directly_issued_by(ca)
        assert f"{made.serial_number:x}" == issued.serial, user
        assert load_pem_private_key((place / f"{issued.name}.key").read_bytes(), None).public_key() == made.public_key()
        assert crl.get_revoked_certificate_by_serial_number(made.serial_number) is None
    assert read_public_keys(folder / "coordinator.pub")
    signing = Signer(folder / "coordinator/signing.key").public
    assert signing in (folder / "coordinator.pub").read_text()
    if not revoked:
        assert signing in (folder / "devices/kitchen/coordinator.pub").read_text()


def test_a_damaged_record_is_not_taken_for_none(folder):
    call("enrol", folder, *FIRST, "kitchen")
    (folder / "authority.json").write_text("{")
    with pytest.raises(TalariaError, match="take it back from a backup"):
        call("enrol", folder, *FIRST, "kitchen")


def test_who_watches_with_the_coordinators_own_certificate_is_told_not_to(folder):
    """The broker has one place for it: the coordinator would be thrown off."""
    call("enrol", folder, *FIRST)
    call("enrol", folder, "--role", "observer", "alice")

    def refusal(settings: str) -> str:
        done = CliRunner().invoke(cli, ["watch", "-c", str(folder / settings), "--kind", "wrong"])
        assert isinstance(done.exception, ConfigError)
        return str(done.exception)

    assert "enrol --role observer NAME" in refusal("coordinator/coordinator.toml")
    assert "--kind 'wrong' is none of" in refusal("observers/alice/broker.toml"), "nothing against the certificate"
