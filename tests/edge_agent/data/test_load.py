import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.data import Dataset, DeviceData, Normalization, device_data, load, read_source
from shared.config_data import DataSettings, PartitionSettings
from shared.errors import ConfigError, DataError


def whole(data: DeviceData) -> Any:
    return np.concatenate([data.train.inputs, data.validation.inputs, data.test.inputs])


def test_digits_of_one_device() -> None:
    data = load(DataSettings(partition=PartitionSettings(kind="dirichlet", devices=8, index=2)))
    assert data.shape == (1, 8, 8)
    for part in (data.train, data.validation, data.test):
        assert part.inputs.dtype == np.float32
        assert part.labels.dtype == np.int64
        assert len(part.inputs) == len(part.labels) > 0
        assert part.inputs.flags.c_contiguous
        assert part.inputs.flags.writeable
    assert (whole(data).min(), whole(data).max()) == (-1.0, 1.0)
    assert data.classes == tuple("0123456789")


def test_all_devices_together_have_every_example_once() -> None:
    settings = DataSettings(partition=PartitionSettings(kind="dirichlet", devices=4))
    dataset = read_source(settings)
    parts = []
    for index in range(4):
        part = settings.partition.model_copy(update={"index": index})
        parts.append(whole(device_data(dataset, settings.model_copy(update={"partition": part}))))
    together = np.concatenate(parts).reshape(1797, -1)
    expected = (dataset.take(np.arange(1797)).reshape(1797, -1) - 8.0) / 8.0
    assert np.array_equal(
        np.sort(together.view("V256").ravel()), np.sort(expected.astype(np.float32).view("V256").ravel())
    )


def test_normalization_is_measured_on_the_training_split_alone(tmp_path: Path) -> None:
    train = np.random.default_rng(0).normal([[[5.0], [-2.0], [3.0]]], [[[2.0], [0.5], [0.0]]], (50, 3, 7))
    test = train[:10] + 1000.0
    labels = np.zeros(50, int)
    np.savez(tmp_path / "a.npz", x_train=train, y_train=labels, x_test=test, y_test=labels[:10])
    data = load(DataSettings(source="npz", path=tmp_path / "a.npz", options={"channels": "first"}))
    mean, std = data.train.inputs.mean(axis=(0, 2)), data.train.inputs.std(axis=(0, 2))
    assert np.allclose(mean, 0, atol=1e-5)
    assert np.allclose(std, [1, 1, 0], atol=1e-4)  # the third is constant: centred only
    assert data.test.inputs.min() > 100
    assert np.allclose(data.normalization.mean, [5, -2, 3], atol=0.5)


def test_normalization_from_the_settings() -> None:
    data = load(DataSettings(mean=(4.0,), std=(2.0,)))
    assert (data.normalization.mean, data.normalization.std) == ((4.0,), (2.0,))
    assert (whole(data).min(), whole(data).max()) == (-2.0, 6.0)
    with pytest.raises(DataError, match=r"data.mean has 2 values, the inputs have 1 channels"):
        load(DataSettings(mean=(4.0, 4.0), std=(2.0, 2.0)))


def test_normalization_per_channel_by_hand() -> None:
    raw = np.array([[[1, 2]], [[3, 4]]], np.uint8).reshape(1, 2, 1, 2)
    assert Normalization((1.0, 4.0), (1.0, 0.5)).apply(raw).tolist() == [[[[0, 1]], [[-2, 0]]]]
    assert Normalization.measured(raw.astype(float)) == Normalization((1.5, 3.5), (0.5, 0.5))


# --- paths ----------------------------------------------------------------------------------------------------------


def test_paths_by_device_and_below_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "set").mkdir()
    for index in range(2):
        np.savez(tmp_path / "set" / f"client-{index:02d}.npz", x=np.full((20, 1), index), y=np.zeros(20, int))
    monkeypatch.setenv("TALARIA_DATA", str(tmp_path))
    for index in range(2):
        settings = DataSettings(
            source="npz",
            path=Path("set/client-{index:02d}.npz"),
            partition=PartitionSettings(devices=2, index=index),
            mean=(0.0,),
            std=(1.0,),
        )
        assert set(whole(load(settings)).ravel()) == {index}
    monkeypatch.chdir(tmp_path / "set")
    assert len(load(DataSettings(source="npz", path=Path("client-0{index}.npz"))).train) > 0


def test_a_missing_path_names_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TALARIA_DATA", raising=False)
    with pytest.raises(DataError, match=rf"no {tmp_path}/a.npz: correct data.path; set TALARIA_DATA"):
        load(DataSettings(source="npz", path=Path("a.npz")))
    monkeypatch.setenv("TALARIA_DATA", "/elsewhere")
    with pytest.raises(DataError, match=rf"no {tmp_path}/a.npz and no /elsewhere/a.npz: correct data.path$"):
        load(DataSettings(source="npz", path=Path("a.npz")))


# --- sources and options --------------------------------------------------------------------------------------------


def test_unknown_sources_and_options_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown data.source 'digit'; did you mean 'digits'"):
        load(DataSettings(source="digit"))
    with pytest.raises(ConfigError, match=r"unknown data.options.windw; did you mean 'window'.*takes columns, window"):
        load(DataSettings(source="csv", options={"windw": 1}))
    with pytest.raises(ConfigError, match=r"data.options.columns is missing"):
        load(DataSettings(source="csv", options={"window": 1}))
    with pytest.raises(ConfigError, match=r"unknown data.options.width; source 'digits' takes none"):
        load(DataSettings(source="digits", options={"width": 1}))


def test_options_of_the_wrong_type() -> None:
    with pytest.raises(ConfigError, match=r"data.options.window = 'wide': must be a valid integer"):
        load(DataSettings(source="csv", options={"window": "wide", "columns": ("x",)}))
    with pytest.raises(ConfigError, match=r"data.options.channels = 'middle': must be 'first', 'last' or 'none'"):
        load(DataSettings(source="npz", options={"channels": "middle"}))


OWN = """
import numpy as np
from edge_agent.data import Dataset

def source(path, *, count: int = 30, **more):
    labels = (np.arange(count) % 3).astype(np.uint8)
    return Dataset(labels[:, None].astype(float), labels, ("a", "b", "c"), owners=labels)

def nothing(path):
    return None

def empty():
    return None
"""


def test_a_source_of_your_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_source_of_tests.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_source_of_tests", raising=False)
    part = PartitionSettings(kind="natural", devices=3, index=1)
    name = "my_source_of_tests:source"
    data = load(DataSettings(source=name, partition=part, options={"count": 60, "free": 1}))
    assert len(whole(data)) == 20
    assert set(data.train.labels) == {1}
    assert data.train.labels.dtype == np.int64
    with pytest.raises(DataError, match=r"returned a NoneType, not an edge_agent.data.Dataset"):
        load(DataSettings(source="my_source_of_tests:nothing"))
    with pytest.raises(ConfigError, match=r"has no 'missing'"):
        load(DataSettings(source="my_source_of_tests:missing"))
    with pytest.raises(ConfigError, match=r"not a callable"):
        load(DataSettings(source="my_source_of_tests:__name__"))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"labels": np.zeros(3)}, "one integer per example"),
        ({"labels": np.zeros((3, 1), int)}, "one integer per example"),
        ({"labels": np.zeros(0, int), "inputs": np.zeros((0, 1))}, "there are no examples"),
        ({"owners": np.zeros(2, int)}, "2 owners for 3 labels"),
        ({"test": np.zeros(4, bool)}, "4 test for 3 labels"),
        ({"labels": np.array([0, 1, 5])}, "labels go from 0 to 5, classes are 2"),
    ],
)
def test_a_dataset_must_fit_together(fields: dict[str, Any], text: str) -> None:
    given: dict[str, Any] = {"inputs": np.zeros((3, 1)), "labels": np.zeros(3, int), "classes": ("a", "b")} | fields
    with pytest.raises(DataError, match=text):
        Dataset(**given)


@pytest.mark.parametrize("inputs", [np.zeros(3), np.array([["a"], ["b"], ["c"]]), np.full((3, 1), np.inf)])
def test_inputs_must_be_finite_numbers_with_channels(inputs: Any) -> None:
    with pytest.raises(DataError, match=r"inputs"):
        Dataset(inputs, np.zeros(3, int), ("a",)).take(np.arange(3))


# --- the real data sets ---------------------------------------------------------------------------------------------


@pytest.mark.data
def test_mnist_over_20_devices(data_dir: Path) -> None:
    total = trained = 0
    for index in range(20):
        settings = DataSettings(
            source="npz",
            path=data_dir / "mnist-dirichlet-20" / "client-{index:02d}.npz",
            options={"classes": tuple("0123456789")},
            max_per_class=20,
            partition=PartitionSettings(devices=20, index=index),
        )
        data = load(settings)
        assert data.shape == (1, 28, 28)
        assert np.bincount(data.train.labels).max() <= 20
        trained += len(data.train)
        total += len(load(settings.model_copy(update={"max_per_class": None})).train)
        total += len(data.validation) + len(data.test)
    assert total == 70_000
    assert 1_400 < trained <= 1_487


@pytest.mark.data
def test_cifar10_as_images(data_dir: Path) -> None:
    part = PartitionSettings(kind="dirichlet", devices=20, index=3, alpha=0.1)
    data = load(DataSettings(source="images", path=data_dir / "cifar10-jpeg", partition=part))
    assert data.shape == (3, 32, 32)
    assert (len(data.classes), data.classes[0]) == (10, "airplane")
    assert len(data.train) > len(data.test) > 0
    train, test = (np.bincount(part.labels, minlength=10) / len(part) for part in (data.train, data.test))
    assert np.allclose(train, test, atol=0.05)  # the source's test split follows the same skew


@pytest.mark.data
def test_phones_and_watches(data_dir: Path) -> None:
    settings = DataSettings(
        source="csv",
        path=data_dir / "har-phone-watch" / "DATA.zip",
        options={
            "columns": ("x_acc", "y_acc", "z_acc", "x_gyro", "y_gyro", "z_gyro"),
            "window": 40,
            "stride": 20,
            "files": r"(s\d+)_\d+_(sp|sw)\.csv",
        },
        partition=PartitionSettings(kind="natural", devices=46),
    )
    dataset = read_source(settings)
    assert dataset.owners is not None
    assert len(np.unique(dataset.owners)) == 46
    assert dataset.classes == ("SEATED", "SITTING_DOWN", "STANDING_UP", "TURNING", "WALKING")
    for index in range(46):
        part = settings.partition.model_copy(update={"index": index})
        data = device_data(dataset, settings.model_copy(update={"partition": part}))
        assert data.shape == (6, 40)
        assert set(data.train.labels) == set(data.test.labels) == set(range(5))
