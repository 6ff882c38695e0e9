from pathlib import Path

import pytest

from shared.errors import ConfigError
from shared.profiles import load_profile, profile_names

MINIMAL = 'id = "tiny"\ntitle = "Tiny"\ncores = 1\nmemory_mib = 1024\n'


def test_the_promised_profiles_are_there() -> None:
    assert profile_names() == ["container", "rpi-4b", "rpi-5", "rpi-zero-2w", "x86-mini-pc"]


@pytest.mark.parametrize("name", profile_names())
def test_bundled_profiles(name: str) -> None:
    profile = load_profile(name)
    assert profile.id == name
    assert profile.sources, "every profile says where its values come from"
    assert profile.training.keep_warm == (profile.memory_mib > 512)  # a loaded torch would fill a small device
    assert profile.link.max_packet <= 122_880  # what every broker takes


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
    with pytest.raises(ConfigError, match=r"did you mean 'rpi-5'.*container, rpi-4b"):
        load_profile("rpi5")
    with pytest.raises(ConfigError, match="no such file"):
        load_profile("missing.toml")
