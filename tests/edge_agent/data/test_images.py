import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge_agent.data import load
from edge_agent.data.images import images
from shared.config_data import DataSettings, PartitionSettings
from shared.errors import ConfigError, DataError


def a_png(value: int, size: tuple[int, int] = (6, 4)) -> bytes:
    """One colour, `size` is (width, height)."""
    target = io.BytesIO()
    Image.new("RGB", size, (value, 0, 255 - value)).save(target, "PNG")
    return target.getvalue()


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


FILES = {"cat/0.png": a_png(10), "cat/1.PNG": a_png(20), "dog/0.png": a_png(30), "dog/notes.txt": b"no image"}
SPLIT = {f"{part}/{name}": content for part in ("train", "test") for name, content in FILES.items()}


@pytest.mark.parametrize("write", [write_folder, write_zip])
def test_a_folder_or_zip_per_class(tmp_path: Path, write: Any) -> None:
    found = images(write(tmp_path / "set", FILES))
    assert found.classes == ("cat", "dog")
    assert found.labels.tolist() == [0, 0, 1]
    assert found.test is None
    raw = found.take(np.array([2, 0]))
    assert raw.shape == (2, 3, 4, 6)
    assert raw.dtype == np.uint8
    assert raw[:, 0, 0, 0].tolist() == [30, 10]
    assert raw[:, 2, 3, 5].tolist() == [225, 245]


def test_the_sources_test_split(tmp_path: Path) -> None:
    found = images(write_folder(tmp_path, SPLIT))
    assert found.test is not None
    assert found.test.tolist() == [True] * 3 + [False] * 3  # by name: test before train
    assert found.labels.tolist() == [0, 0, 1, 0, 0, 1]


def test_zips_inside_a_folder(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_zip(tmp_path / f"{part}.zip", {f"{part}/{name}": content for name, content in FILES.items()})
    found = images(tmp_path)
    assert found.test is not None
    assert found.test.tolist() == [True] * 3 + [False] * 3
    assert found.take(np.array([0, 5]))[:, 0, 0, 0].tolist() == [10, 30]


def test_gray_and_resized(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"a/0.png": a_png(0), "a/1.png": a_png(0, (12, 12))})
    assert images(root, color=False, size=(5, 7)).take(np.arange(2)).shape == (2, 1, 5, 7)
    with pytest.raises(DataError, match=r"a/1.png is 12x12, a/0.png is 6x4: set data.options.size"):
        images(root).take(np.arange(2))


def test_only_the_images_of_the_part_are_read(tmp_path: Path) -> None:
    """An image that cannot be read costs nobody who does not need it."""
    files = {f"{kind}/{index:02}.png": a_png(index) for kind in ("a", "b") for index in range(20)}
    root = write_folder(tmp_path, files | {"b/19.png": b"broken"})
    settings = DataSettings(source="images", path=root, options={})
    failures = []
    for index in range(2):
        part = PartitionSettings(kind="iid", devices=2, index=index)
        try:
            data = load(settings.model_copy(update={"partition": part}))
            assert data.shape == (3, 4, 6)
            assert data.train.inputs.flags.c_contiguous
        except DataError as error:
            failures.append(str(error))
    (failure,) = failures
    assert "b/19.png is not an image that can be read" in failure


def test_classes_of_the_fleet(tmp_path: Path) -> None:
    root = write_folder(tmp_path, FILES)
    found = images(root, classes=("ape", "cat", "dog"))
    assert (found.classes, found.labels.tolist()) == (("ape", "cat", "dog"), [1, 1, 2])
    with pytest.raises(DataError, match=r"'dog' is none of data.options.classes \(cat, dogs\); did you mean 'dogs'"):
        images(root, classes=("cat", "dogs"))


def test_what_holds_no_images(tmp_path: Path) -> None:
    for files in ({"a/0.txt": b""}, {"0.png": a_png(1)}):
        with pytest.raises(DataError, match=r"does not hold its images in one folder per class"):
            images(write_zip(tmp_path / "x.zip", files))
    with pytest.raises(ConfigError, match=r"data.path is not set"):
        images(None)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"neither a folder nor a zip"):
        images(tmp_path / "file")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x.zip").write_text("no zip")
    with pytest.raises(DataError, match=r"x\.zip is not a zip"):
        images(tmp_path / "broken")


def test_a_damaged_zip_names_the_file(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", FILES)
    content = path.read_bytes()
    at = content.index(a_png(10)) + 20
    path.write_bytes(content[:at] + b"\xff\xff\xff" + content[at + 3 :])
    with pytest.raises(DataError, match=r"x\.zip: cannot read cat/0\.png"):
        images(path).take(np.array([0]))


def test_a_zip_bomb_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_agent.data.files.LARGEST_MEMBER", 20)
    with pytest.raises(DataError, match=r"cat/0\.png would unpack to"):
        images(write_zip(tmp_path / "x.zip", FILES)).take(np.array([0]))
