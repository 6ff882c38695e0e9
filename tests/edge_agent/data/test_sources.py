"""Sources that read arrays: digits, npz, and what torchvision reads."""

import gzip
import hashlib
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.data import load, read_source
from edge_agent.data.sources import digits, npz
from edge_agent.data.torchvision_sets import cifar10, fashion_mnist, mnist
from shared.config_data import DataSettings
from shared.errors import ConfigError, DataError
from shared.torchvision_ops import torchvision

GENERATOR = np.random.default_rng(0)


def pixels(*shape: int) -> Any:
    return GENERATOR.integers(0, 256, shape, dtype=np.uint8)


# --- digits ---------------------------------------------------------------------------------------------------------


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    found, expected = digits(None), load_digits()
    assert np.array_equal(found.take(np.arange(1797)), expected.images[:, None])
    assert np.array_equal(found.labels, expected.target)
    assert found.classes == tuple("0123456789")


def test_digits_load_without_scikit_learn_or_torch() -> None:
    code = (
        "import sys; from edge_agent.data import load; from shared.config_data import DataSettings\n"
        "assert len(load(DataSettings()).train) > 1000\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'torchvision', 'sklearn', 'scipy', 'PIL')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0


def test_digits_without_scikit_learn_name_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install scikit-learn, or set data.path"):
        digits(None)


def test_digits_from_a_copy_of_the_file(tmp_path: Path) -> None:
    copy = tmp_path / "digits.csv.gz"
    with gzip.open(copy, "wt") as lines:
        lines.write(",".join(["3"] * 64) + ",7\n")
    assert digits(copy).labels.tolist() == [7]
    with gzip.open(copy, "wt") as lines:
        lines.write("1,2,3\n")
    with pytest.raises(DataError, match=r"has 3 columns"):
        digits(copy)
    copy.write_text("no gzip")
    with pytest.raises(DataError, match=r"is not the digits.csv.gz"):
        digits(copy)


# --- npz ------------------------------------------------------------------------------------------------------------


def test_npz_with_its_own_test_split(tmp_path: Path) -> None:
    train, test = pixels(6, 5, 4), pixels(3, 5, 4)
    np.savez(tmp_path / "a.npz", x_train=train, y_train=[0, 1, 2, 0, 1, 2], x_test=test, y_test=np.array([2, 1, 0]))
    found = npz(tmp_path / "a.npz")
    assert np.array_equal(found.take(np.arange(9)), np.concatenate([train, test])[:, None])
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2, 2, 1, 0]
    assert found.test is not None
    assert found.test.tolist() == [False] * 6 + [True] * 3
    assert found.classes == ("0", "1", "2")
    assert found.normalization is not None
    assert found.normalization.apply(np.array([[[0, 255]]])).tolist() == [[[-1.0, 1.0]]]


def test_npz_channels(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "last.npz", x=pixels(4, 8, 6, 3), y=np.arange(4))
    assert npz(tmp_path / "last.npz", channels="last").take(np.arange(4)).shape == (4, 3, 8, 6)
    np.savez(tmp_path / "series.npz", x=np.zeros((4, 6, 50)), y=np.arange(4))
    assert npz(tmp_path / "series.npz", channels="first").take(np.arange(4)).shape == (4, 6, 50)
    assert npz(tmp_path / "series.npz").take(np.arange(4)).shape == (4, 1, 6, 50)


def test_npz_names_its_classes(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 3)), y=np.array([0, 1]))
    assert npz(tmp_path / "a.npz", classes=("no", "yes", "perhaps")).classes == ("no", "yes", "perhaps")
    with pytest.raises(DataError, match=r"labels go from 0 to 1, classes are 1"):
        npz(tmp_path / "a.npz", classes=("no",))


class Planted:
    """What would run if the file were unpickled."""

    def __reduce__(self) -> Any:
        return (os.mkdir, ("planted",))


@pytest.mark.parametrize("name", ["x", "y", "x_train"])
def test_npz_with_pickled_objects_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    arrays = {"x": np.zeros((2, 3)), "y": np.array([0, 1])} | {name: np.array([Planted(), Planted()], object)}
    np.savez("a.npz", allow_pickle=True, **arrays)
    with pytest.raises(DataError, match=r"a\.npz: is not an \.npz file of plain arrays: it holds something"):
        npz(Path("a.npz"))
    assert not Path("planted").exists()


def test_npz_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    for content in (b"", b"PK\3\4 no zip", pickle.dumps([1]), b"\x93NUMPY\1\0"):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.npz: is not an \.npz file"):
            npz(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", "text")
        archive.writestr("y.npy", "text")
    with pytest.raises(DataError, match=r"a\.npz: "):
        npz(file)
    np.save(tmp_path / "b.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"is a single array"):
        npz(tmp_path / "b.npy")


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"a": np.zeros(3)}, "x and y, or x_train"),
        ({"x": np.zeros((3, 2))}, "holds x: x and y"),
        ({"x": np.zeros((3, 2)), "y": np.zeros(3)}, "one integer per example"),
        ({"x": np.zeros((3, 2)), "y": np.zeros((3, 1), int)}, "one integer per example"),
        ({"x": np.zeros(3), "y": np.zeros(3, int)}, "examples x ..."),
        ({"x": np.zeros((0, 2)), "y": np.zeros(0, int)}, "one integer per example"),
        ({name: np.zeros(()) for name in ("x_train", "y_train", "x_test", "y_test")}, "single numbers"),
        ({"x": np.zeros((3, 2)), "y": np.zeros(4, int)}, "3 inputs for 4 labels"),
        ({"x": np.zeros((3, 2)), "y": np.array([0, -1, 0])}, "labels go from -1 to 0"),
    ],
)
def test_npz_with_arrays_that_do_not_fit(tmp_path: Path, arrays: dict[str, Any], text: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=text):
        npz(tmp_path / "a.npz")


def test_npz_whose_splits_differ(tmp_path: Path) -> None:
    labels = np.zeros(2, int)
    np.savez(tmp_path / "a.npz", x_train=np.zeros((2, 3)), y_train=labels, x_test=np.zeros((2, 4)), y_test=labels)
    with pytest.raises(DataError, match=r"x_train is of shape \(2, 3\), x_test of \(2, 4\)"):
        npz(tmp_path / "a.npz")


def test_npz_with_nan(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.full((30, 2), np.nan), y=np.zeros(30, int))
    with pytest.raises(DataError, match=r"NaN or infinite"):
        load(DataSettings(source="npz", path=tmp_path / "a.npz"))


# --- torchvision ----------------------------------------------------------------------------------------------------


def write_idx(path: Path, array: Any) -> None:
    """The format of MNIST: magic with type and rank, sizes big-endian, bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes())


@pytest.mark.parametrize(
    ("name", "source", "first"), [("MNIST", mnist, "0 - zero"), ("FashionMNIST", fashion_mnist, "T-shirt/top")]
)
def test_mnist_as_torchvision_keeps_it(tmp_path: Path, name: str, source: Any, first: str) -> None:
    raw = tmp_path / name / "raw"
    train, test = pixels(5, 28, 28), pixels(2, 28, 28)
    for part, images, labels in (("train", train, [0, 1, 9, 3, 4]), ("t10k", test, [7, 8])):
        write_idx(raw / f"{part}-images-idx3-ubyte", images)
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.array(labels, np.uint8))
    found = source(tmp_path)
    assert np.array_equal(found.take(np.arange(7)), np.concatenate([train, test])[:, None])
    assert found.labels.tolist() == [0, 1, 9, 3, 4, 7, 8]
    assert found.test.tolist() == [False] * 5 + [True] * 2
    assert (len(found.classes), found.classes[0]) == (10, first)


def test_cifar10_as_torchvision_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision checks the digest of each file before it unpickles it; here those of the small files."""
    reader = torchvision().datasets.CIFAR10
    base = tmp_path / reader.base_folder
    base.mkdir()

    def write(name: str, content: Any) -> list[str]:
        (base / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((base / name).read_bytes()).hexdigest()]

    batch = pixels(3, 3, 32, 32)
    classes = list("abcdefghij")
    monkeypatch.setattr(
        reader, "train_list", [write("data_batch_1", {"data": batch.reshape(3, -1), "labels": [4, 5, 6]})]
    )
    monkeypatch.setattr(reader, "test_list", [write("test_batch", {"data": batch[:1].reshape(1, -1), "labels": [9]})])
    name, digest = write("batches.meta", {"label_names": classes})
    monkeypatch.setattr(reader, "meta", {"filename": name, "key": "label_names", "md5": digest})
    found = cifar10(tmp_path)
    assert np.array_equal(found.take(np.arange(4)), np.concatenate([batch, batch[:1]]))
    assert (found.labels.tolist(), found.classes) == ([4, 5, 6, 9], tuple(classes))
    (base / "data_batch_1").write_bytes(pickle.dumps(Planted()))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"does not hold CIFAR10"):
        cifar10(tmp_path)
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize("source", ["mnist", "fashion-mnist", "cifar10"])
def test_torchvision_sets_are_never_downloaded(tmp_path: Path, source: str) -> None:
    with pytest.raises(DataError, match=r"fetch it once: python -c .*download=True"):
        read_source(DataSettings(source=source, path=tmp_path))
    with pytest.raises(ConfigError, match=r"data.path is not set"):
        read_source(DataSettings(source=source))
    assert not list(tmp_path.iterdir())
