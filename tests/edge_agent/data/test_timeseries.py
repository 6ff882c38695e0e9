import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.data.timeseries import windows
from shared.errors import ConfigError, DataError

HEADER = "x,y,time,label\n"


def rows(labels: str, start: int = 0) -> str:
    """One sample per letter: x counts from `start`, y is its negative."""
    return HEADER + "".join(f"{start + at},{-start - at},{at * 50},{name}\n" for at, name in enumerate(labels))


def read(path: Path, **options: Any) -> Any:
    given: dict[str, Any] = {"columns": ("x", "y"), "window": 3} | options
    return windows(path, **given)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "one.csv").write_text(rows("aaabbbabc"))
    return tmp_path / "one.csv"


def test_windows_of_one_file(file: Path) -> None:
    found = read(file)
    raw = found.take(np.arange(3))
    assert raw.shape == (3, 2, 3)
    assert raw.dtype == np.float32
    assert raw[:, 0].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert raw[:, 1].tolist() == [[0, -1, -2], [-3, -4, -5], [-6, -7, -8]]
    assert found.classes == ("a", "b")
    assert found.labels.tolist() == [0, 1, 0]  # of a, b and c once each the first
    assert found.overlap == 0


@pytest.mark.parametrize(("stride", "starts", "overlap"), [(1, 7, 2), (2, 4, 1), (3, 3, 0), (4, 2, 0)])
def test_stride_and_overlap(file: Path, stride: int, starts: int, overlap: int) -> None:
    found = read(file, stride=stride)
    assert found.take(np.arange(len(found)))[:, 0, 0].tolist() == [at * stride for at in range(starts)]
    assert found.overlap == overlap


def write_zip(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def test_owners_by_file_name_and_files_that_do_not_match(tmp_path: Path) -> None:
    path = write_zip(
        tmp_path / "data.zip",
        {
            "DATA/s2/s2_1_sw.csv": rows("aaa", 300),
            "DATA/s1/s1_2_sp.csv": rows("bbb", 200),
            "DATA/s1/s1_1_sp.csv": rows("aaaaaa", 100),
            "DATA/s1/s1_1_sw.csv": rows("aa", 500),  # shorter than a window
            "DATA/about.csv": "id,age\n1,30\n",
        },
    )
    found = read(path, files=r"(s\d+)_\d+_(sp|sw)\.csv")
    assert found.take(np.arange(4))[:, 0, 0].tolist() == [100, 103, 200, 300]  # one owner's files in turn, by name
    assert found.owners.tolist() == [0, 0, 0, 1]


def test_owners_by_column_never_share_a_window(tmp_path: Path) -> None:
    text = "x,y,who,label\n" + "".join(f"{at},0,{'ab'[at % 2]},n\n" for at in range(12))
    (tmp_path / "one.csv").write_text(text)
    found = read(tmp_path / "one.csv", owner="who")
    assert found.take(np.arange(4))[:, 0].tolist() == [[0, 2, 4], [6, 8, 10], [1, 3, 5], [7, 9, 11]]
    assert found.owners.tolist() == [0, 0, 1, 1]


def test_quotes_and_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_bytes(b'\xef\xbb\xbf"x","y","label"\r\n' + b'1,2,"sit, down # here"\r\n' * 3)
    assert read(tmp_path / "one.csv").classes == ("sit, down # here",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,z,label\n1,2,a\n", "one.csv has no column 'y'.*there is x, z, label"),
        (HEADER + "1,2,0,a\n1,two,0,a\n1,2,0,a\n", "one.csv: .*two"),
        (HEADER + "1,2,0,a\n1,nan,0,a\n1,2,0,a\n", "one.csv: line 3, column 'y' is nan"),
        (HEADER + "1,2,0,a\n1,2\n1,2,0,a\n", "one.csv: "),
        (HEADER + "1,2,0,a\n", "no series has 3 samples"),
        ("", "has no column 'x'"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "one.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "one.csv")


def test_options_that_make_no_sense(file: Path) -> None:
    for options in ({"window": 0}, {"stride": 0}, {"columns": ()}):
        with pytest.raises(ConfigError, match=r"must not be empty"):
            read(file, **options)
    with pytest.raises(ConfigError, match=r"no regular expression"):
        read(file, files="(")
    with pytest.raises(DataError, match=r"no file is called like data.options.files"):
        read(file.parent, files="two.*")
    with pytest.raises(DataError, match=r"'c' is none of data.options.classes"):
        read(file, window=1, classes=("a", "b"))
