import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from lab.fleet import emulated_devices
from shared.config import FleetSettings, RunConfig
from shared.errors import ConfigError
from shared.profiles import Profile, load_profile, profile_names

MINIMAL = 'id = "tiny"\ntitle = "Tiny"\ncores = 1\nmemory_mib = 1024\n'


DOCUMENT = Path(__file__).parents[2] / "docs/profiles.md"


def test_the_promised_profiles_are_there() -> None:
    assert set(profile_names()) >= {
        "android-high",
        "android-mid",
        "beaglebone-ai64",
        "container",
        "industrial-gw-512",
        "jetson-orin-nano",
        "ltem-sensor-node",
        "mcu-behind-gateway",
        "rk3588-8g",
        "rpi-4b",
        "rpi-5",
        "rpi-zero-2w",
        "x86-mini-pc",
    }


@pytest.mark.parametrize("name", profile_names())
def test_bundled_profiles(name: str) -> None:
    profile = load_profile(name)
    assert profile.id == name
    assert profile.sources, "every profile says where its values come from"
    assert profile.training.keep_warm == (profile.memory_mib > 512)  # a loaded torch would fill a small device
    assert profile.link.max_packet <= 122_880  # what every broker takes
    assert profile.health.resume_battery_pct >= profile.health.min_battery_pct
    assert (profile.link.daily_mib is not None) == (profile.link.kind in ("lte", "lte-m", "nb-iot"))


def test_no_two_profiles_claim_the_same_machine() -> None:
    """Phones apart, of which the doctor takes the largest that fits."""
    claims = [(board, name) for name in profile_names() for board in load_profile(name).known_as if board != "android"]
    assert len({board for board, _ in claims}) == len(claims)


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _fields(field.annotation, f"{name}.")
        else:
            yield f"{prefix}{name}"


def test_the_document_says_what_every_field_changes_and_where() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| ([^|]+) \|([^|]*)\|$", DOCUMENT.read_text(), re.MULTILINE)
    assert [field for field, _, _ in rows] == list(_fields(Profile)), "in the order of shared/profiles.py"
    root = DOCUMENT.parents[1]
    for field, _, where in rows:
        files = re.findall(r"`([\w/]+\.py)`", where)
        leaf = field.rpartition(".")[2]
        assert files or field in ("title", "sources"), f"{field}: where?"
        for file in files:
            assert re.search(rf"\.{leaf}\b", (root / file).read_text()), f"{file} does not read {field}"


def test_the_document_names_every_profile() -> None:
    assert set(re.findall(r"^\| `([a-z0-9-]+)` \|", DOCUMENT.read_text(), re.MULTILINE)) >= set(profile_names())


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_can_be_emulated(name: str) -> None:
    config = RunConfig(fleet=FleetSettings(devices=2, profiles=(name,)))
    agent = next(iter(emulated_devices(config, Path("run")).values()))
    assert agent.profile == name
    assert agent.threads == 1 or load_profile(name).training.enabled


def test_a_profile_of_your_own(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(MINIMAL)
    profile = load_profile(str(tmp_path / "tiny.toml"))
    assert (profile.id, profile.training.threads, profile.inference.channel_multiple) == ("tiny", 1, 8)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ("[training]\nthreads = 2", "training.threads 2 is more than the 1 cores"),
        ("[inference]\nthreads = 2", "inference.threads 2 is more than the 1 cores"),
        ("[training]\nmemory_mib = 1000", "leave a tenth of memory_mib"),
        ("[inference]\nproviders = ['CUDAExecutionProvider']", "must be CPUExecutionProvider"),
        ("[health]\nresume_temperature_c = 90", "must not exceed max_temperature_c"),
        ("isa = 'armv7'", "armv7 has no torch: set training.enabled = false"),
        ("[training]\nthread = 1", "training.thread.*unknown; did you mean 'threads'"),
        ("[link]\nkind = 'wlan'", "must be one of loopback, ethernet, wifi, lte, lte-m, nb-iot"),
        ("[training]\nkeep_warm = 1", "training.keep_warm = 1"),
    ],
)
def test_impossible_profiles_are_refused(tmp_path: Path, more: str, text: str) -> None:
    (tmp_path / "tiny.toml").write_text(MINIMAL + more)
    with pytest.raises(ConfigError, match=text):
        load_profile(str(tmp_path / "tiny.toml"))


def test_infer_only_needs_no_training_budget(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(MINIMAL + "[training]\nenabled = false\nmemory_mib = 0")
    assert not load_profile(str(tmp_path / "tiny.toml")).training.enabled


def test_unknown_profiles_name_the_nearest_and_all() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'rpi-5'.*rk3588-8g, rpi-4b"):
        load_profile("rpi5")
    with pytest.raises(ConfigError, match="no such file"):
        load_profile("missing.toml")
