import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.algorithms import algorithm, hyperparameters
from shared.config import AgentConfig, AlgorithmSettings, ModelSettings, RunConfig
from shared.errors import ConfigError
from shared.settings import bundled_config, example_toml, explain, load_agent_config, load_run_config, override
from shared.toml import bundled_names
from shared.validation import fields

CONFIGS = bundled_names("configs")
RUNS = [name for name in CONFIGS if name != "agent"]


@pytest.fixture
def write(tmp_path: Path) -> "Write":
    return Write(tmp_path / "run.toml")


class Write:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, text: str) -> Path:
        self.path.write_text(text)
        return self.path


def problems(path: Path | None, *sets: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_run_config(path, sets)
    assert caught.value.exit_code == 2
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_without_a_file_everything_is_a_default() -> None:
    loaded = load_run_config(None)
    assert loaded.config == RunConfig()
    assert {row.origin for row in explain(loaded)} == {"default"}


def test_a_file_overrides_defaults_and_set_overrides_the_file(write: Write) -> None:
    path = write("[rounds]\ncount = 3\ncohort = 4\nmin_devices = 5\n")
    loaded = load_run_config(path, ["rounds.count=7", "data.partition.kind=iid"])
    assert (loaded.config.rounds.count, loaded.config.rounds.cohort) == (7, 4)
    origin = {row.key: row.origin for row in explain(loaded)}
    assert origin["rounds.count"] == "--set"
    assert origin["rounds.cohort"] == str(path)
    assert origin["rounds.quorum"] == "default"
    assert origin["data.partition.kind"] == "--set"


def test_the_last_set_wins() -> None:
    assert load_run_config(None, ["rounds.count=1", "rounds.count=2"]).config.rounds.count == 2


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ("run.fleet=plant-7", "plant-7"),
        ('run.fleet="plant-7"', "plant-7"),
        ("model.options.width=8", 8),
        ("model.options.slope=.5", 0.5),
        ("model.options.slope=-.5", -0.5),
        ("model.options.wide=true", True),
        ("model.options.wide = false", False),
        ("model.options.sizes=[1, 2]", (1, 2)),
        ("model.options.path=./here", "./here"),
        ("model.options.text=a = b", "a = b"),
        ("model.options.text=1\n[run]", "1\n[run]"),
    ],
)
def test_set_takes_toml_values_and_bare_text(given_: str, expected: object) -> None:
    config = load_run_config(None, [given_]).config
    key = given_.partition("=")[0].strip()
    found = config.run.fleet if key == "run.fleet" else config.model.options[key.rpartition(".")[2]]
    assert found == expected
    assert type(found) is type(expected)


def test_set_replaces_a_whole_table(write: Write) -> None:
    path = write('[data]\noptions = { window = 5, stride = 2 }\n[model]\nname = "resnet18"')
    loaded = load_run_config(path, ["data.options={ window = 9 }"])
    assert loaded.config.data.options == {"window": 9}
    assert next(row for row in explain(loaded) if row.key == "data.options").origin == "--set"


def test_hyperparameters_are_taken_as_they_are(write: Write) -> None:
    path = write('[algorithm]\nname = "mine:ALGORITHM"\nstrength = 3\nlayers = ["a", "b"]\n')
    loaded = load_run_config(path, ["algorithm.strength=4"])
    assert loaded.config.algorithm.hyperparameters == {"strength": 4, "layers": ("a", "b")}
    rows = {row.key: row for row in explain(loaded)}
    assert rows["algorithm.strength"].origin == "--set"
    assert rows["algorithm.layers"].origin == str(path)


def test_explain_lists_the_algorithms_own_defaults() -> None:
    loaded = load_run_config(None, ["algorithm.name=fedavg", "algorithm.lr=0.5"])
    checked = hyperparameters(algorithm("fedavg"), loaded.config.algorithm.hyperparameters)
    rows = {row.key: row for row in explain(loaded, checked)}
    assert (rows["algorithm.lr"].value, rows["algorithm.lr"].origin) == (0.5, "--set")
    assert (rows["algorithm.epochs"].value, rows["algorithm.epochs"].origin) == (checked.epochs, "default")
    assert all(row.description for row in rows.values())


def test_a_broker_may_be_given_as_its_url(write: Write) -> None:
    assert load_run_config(write('broker = "mqtts://lab:1884"')).config.broker.url == "mqtts://lab:1884"
    path = write('[broker]\nurl = "embedded"\nkeepalive_s = 9')
    broker = load_run_config(path, ["broker=mqtts://lab"]).config.broker
    assert (broker.url, broker.keepalive_s) == ("mqtts://lab", 9)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1884", "127.8.0.1", "[::1]"])
def test_plaintext_needs_no_leave_where_it_stays_on_the_machine(host: str) -> None:
    assert load_agent_config(None, ["device=a", f"broker=mqtt://{host}"]).config.broker.url == f"mqtt://{host}"


def test_plaintext_elsewhere_needs_leave() -> None:
    given = ["device=a", "broker=mqtt://192.168.1.10"]
    with pytest.raises(ConfigError, match=r"192\.168\.1\.10' leaves this machine in the clear"):
        load_agent_config(None, given)
    assert load_agent_config(None, [*given, "broker.plaintext=true"]).config.broker.plaintext


def test_relative_paths_start_at_the_working_directory(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the file: a bundled configuration must not write its runs into the installed package."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded = load_run_config(write('[run]\ndirectory = "results"'), ["data.path=~/digits"])
    assert loaded.config.run.directory.absolute() == tmp_path / "elsewhere" / "results"
    assert loaded.config.data.path == Path.home() / "digits"


# --- refusals -------------------------------------------------------------------------------------------------------


def test_unknown_keys_name_the_nearest_and_the_allowed(write: Write) -> None:
    path = write("[rounds]\ncuont = 3")
    (line,) = problems(path)
    assert line.startswith(f"rounds.cuont ({path}): unknown; did you mean 'count'? [rounds] takes count, cohort,")


def test_a_key_at_the_wrong_place_names_the_right_one(write: Write) -> None:
    (line,) = problems(write("alpha = 0.1"))
    assert "did you mean 'data.partition.alpha'?" in line


def test_wrong_types_name_key_value_origin_and_what_is_allowed() -> None:
    (line,) = problems(None, "rounds.count=five")
    assert line == 'rounds.count = "five" (--set): must be a valid integer (rounds to run; at least 1, at most 1000000)'


@pytest.mark.parametrize(
    "given_",
    [
        "rounds.count=true",
        "rounds.count=5.0",
        'rounds.count="5"',
        "rounds.count=0",
        "rounds.deadline_s=inf",
        "rounds.deadline_s=nan",
        "rounds.deadline_s=0",
        "run.fleet=5",
        "run.fleet=a/b",
        "run.directory=[1]",
        "fleet.profiles=[]",
        "fleet.profiles=container",
        "data.mean=[1, 2]",
        "data.options.day={ a = [1] }",
        "algorithm.lr={ a = 'x' }",
        "rounds=5",
        "broker.url=http://x",
        "broker.url=mqtt://user:secret@x",
        "broker.keepalive_s=4",
    ],
)
def test_no_value_is_bent_into_shape(given_: str) -> None:
    (line,) = problems(None, given_)
    assert line.startswith(given_.partition("=")[0]) or line.startswith("data: mean and std")


def test_choices_name_the_nearest() -> None:
    (line,) = problems(None, "data.partition.kind=dirchlet")
    assert line.endswith("must be one of whole, iid, dirichlet, classes, natural; did you mean 'dirichlet'?")


def test_unknown_profiles_are_found_before_anything_runs() -> None:
    (line,) = problems(None, 'fleet.profiles=["rpi5"]')
    assert line.startswith("fleet.profiles = \"rpi5\" (--set): unknown profile 'rpi5'; did you mean 'rpi-5'?")


@pytest.mark.parametrize(
    ("sets", "text"),
    [
        (["rounds.quorum=3"], "quorum 3 can never be met when a round may open with 2 devices: raise min_devices"),
        (["rounds.quorum=3", "rounds.cohort=2"], "quorum 3 can never be met by a cohort of 2: raise cohort"),
        (["rounds.cohort=5", "rounds.quorum=4"], "min_devices 2 is less than quorum 4: raise it"),
        (["data.validation=0.5", "data.test=0.5"], "leave nothing to train on"),
        (["data.partition.index=1"], "index 1 is not one of 1 devices"),
        (["data.partition.devices=3"], "data.partition.devices 3 contradicts fleet.devices 8"),
        (["broker.cert_file=a", "broker.url=mqtts://x"], "cert_file and key_file belong together"),
        (["broker.ca_file=a"], "certificates need an mqtts:// url"),
        (["broker.password_file=a"], "password_file needs username"),
        (["broker=mqtt://192.168.1.10"], "leaves this machine in the clear: use mqtts://"),
        (["broker=mqtt://localhost.example.com"], "set broker.plaintext = true"),
    ],
)
def test_impossible_combinations_name_the_remedy(sets: list[str], text: str) -> None:
    (line,) = problems(None, *sets)
    assert text in line


def test_all_problems_are_listed_together(write: Write) -> None:
    lines = problems(write("[rounds]\ncount = 0\ncuont = 1\n[fleet]\ndevices = 0"), "run.seed=-1")
    assert [line.split()[0] for line in lines] == ["run.seed", "rounds.count", "rounds.cuont", "fleet.devices"]


@pytest.mark.parametrize("given_", ["rounds.count", "=5", "rounds.count=", ".count=5", "rounds..count=5"])
def test_set_without_key_or_value(given_: str) -> None:
    with pytest.raises(ConfigError, match="is not key=value"):
        load_run_config(None, [given_])


def test_set_below_a_value(write: Write) -> None:
    with pytest.raises(ConfigError, match="'count' is a value, not a section"):
        load_run_config(write("[rounds]\ncount = 3"), ["rounds.count.more=1"])


def test_files_that_cannot_be_read(write: Write, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: no such file"):
        load_run_config(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match=r"run\.toml: is not TOML: .*line 2"):
        load_run_config(write("[run]\nfleet = plant"))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_run_config(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'[run]\nfleet = "\xe9"')
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load_run_config(tmp_path / "latin.toml")


def test_a_device_needs_a_name_and_a_real_broker() -> None:
    with pytest.raises(ConfigError, match="device: has no default and must be given"):
        load_agent_config(None)
    with pytest.raises(ConfigError, match="embedded broker belongs to the coordinator"):
        load_agent_config(None, ["device=a", "broker=embedded"])
    assert load_agent_config(None, ["device=a"]).config == AgentConfig(device="a")


# --- examples -------------------------------------------------------------------------------------------------------


def test_an_example_explains_every_key_and_loads_again(write: Write) -> None:
    text = example_toml(RunConfig())
    assert load_run_config(write(text)).config == RunConfig()
    lines = text.splitlines()
    for key, _ in fields(RunConfig):
        name = key.rpartition(".")[2]
        assert any(line.startswith((f"{name} = ", f"# {name} = ")) for line in lines), key


def test_what_is_commented_out_in_an_example_is_valid_where_it_stands_alone(write: Write) -> None:
    """Each suggested value has the type that the setting takes."""
    text = example_toml(RunConfig())
    for name in ("cohort", "max_per_class", "path", "username"):
        load_run_config(write(text.replace(f"# {name} = ", f"{name} = ")))


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
scalars = st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False) | texts | st.booleans()
tables = st.dictionaries(texts, scalars | st.lists(st.integers(0, 9) | texts, max_size=3).map(tuple), max_size=4)


@given(options=tables, fleet=st.from_regex(r"\A[A-Za-z0-9_-]{1,64}\Z"), directory=texts.filter(lambda t: "\0" not in t))
def test_any_configuration_survives_being_written_and_read(
    options: dict[str, object], fleet: str, directory: str
) -> None:
    config = RunConfig.model_validate(
        {"model": {"options": options}, "run": {"fleet": fleet, "directory": Path("x" + directory)}}
    )
    table = tomllib.loads(example_toml(config))
    again = RunConfig.model_validate(table)
    assert again == config


@pytest.mark.parametrize("name", RUNS)
def test_bundled_runs_load_and_their_hyperparameters_are_known(name: str) -> None:
    config = load_run_config(bundled_config(name)).config
    hyperparameters(algorithm(config.algorithm.name), config.algorithm.hyperparameters)
    assert config.rounds.min_devices <= config.fleet.devices or name == "production"


def test_the_demo_is_what_is_promised() -> None:
    config = load_run_config(bundled_config("demo")).config
    assert (config.algorithm.name, config.data.source, config.fleet.devices) == ("hermes", "digits", 8)
    assert len(set(config.fleet.profiles)) >= 3
    assert config.broker.url == "embedded"


def test_production_is_what_is_generated_from_the_settings() -> None:
    """A setting that is added, renamed or explained anew shows up here: write the generated text into the file."""
    path = bundled_config("production")
    config = load_run_config(path).config
    checked = hyperparameters(algorithm(config.algorithm.name), config.algorithm.hyperparameters)
    assert path.read_text() == example_toml(config, checked)


def test_the_agents_example_is_what_is_generated_from_the_settings() -> None:
    path = bundled_config("agent")
    assert path.read_text() == example_toml(load_agent_config(path).config)


def test_unknown_bundled_configurations_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match="configs has no 'dmeo'; did you mean 'demo'"):
        bundled_config("dmeo")


def test_reading_settings_imports_no_torch() -> None:
    code = (
        "import sys; from shared.settings import bundled_config, load_run_config, load_agent_config, explain\n"
        "explain(load_run_config(bundled_config('demo'), []))\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def test_free_tables_reach_their_owner() -> None:
    assert ModelSettings(options={"a": (1, 2)}).options == {"a": (1, 2)}
    assert AlgorithmSettings.model_validate({"name": "x", "lr": 1}).hyperparameters == {"lr": 1}


def test_what_set_does_not_name_stays_as_it_was_in_a_run_that_goes_on() -> None:
    before = load_run_config(bundled_config("production")).config
    after = override(before, ["transfer.window=7", "broker.keepalive_s=30"])
    assert after.transfer == before.transfer.model_copy(update={"window": 7})
    assert after.broker == before.broker.model_copy(update={"keepalive_s": 30})
    untouched = {"transfer": before.transfer, "broker": before.broker}
    assert after.model_copy(update=untouched) == before


def test_a_run_that_goes_on_is_checked_with_what_set_says() -> None:
    with pytest.raises(ConfigError, match="window"):
        override(load_run_config(None).config, ["transfer.window=0"])
