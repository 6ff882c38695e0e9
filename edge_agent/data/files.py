"""Where data lies: paths from the settings, and the files below a folder or inside a zip, read one at a time."""

import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from shared.errors import ConfigError, DataError

LARGEST_MEMBER = 2**28
"""Bytes that one file inside a zip may unpack to."""


def locate(path: Path, index: int) -> Path:
    """The path as it is, else below TALARIA_DATA; `{index}` and `{index:02d}` are filled in. DataError if neither is.

    index: the number of the device, data.partition.index
    """
    filled = Path(re.sub(r"\{index(?::0(\d+)d)?\}", lambda match: str(index).zfill(int(match[1] or 0)), str(path)))
    root = os.environ.get("TALARIA_DATA")
    candidates = [filled.absolute(), *([Path(root) / filled] if root else [])]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    remedy = "" if root or filled.is_absolute() else "; set TALARIA_DATA to the folder that holds the data sets"
    raise DataError(f"there is no {' and no '.join(dict.fromkeys(map(str, candidates)))}: correct data.path{remedy}")


def required(path: Path | None, what: str) -> Path:
    """The path; ConfigError if it is not set."""
    if path is None:
        raise ConfigError(f"data.path is not set: give {what}")
    return path


@dataclass(frozen=True)
class File:
    """One file: `name` is its path below the root, with /; `archive` the zip that it is in, if it is in one."""

    name: str
    path: Path
    archive: Path | None = None


def walk(root: Path) -> list[File]:
    """Every file in a zip, or below a folder and in the zips that lie in it, by name."""
    if zipfile.is_zipfile(root):
        return sorted(_members(root), key=lambda file: file.name)
    if not root.is_dir():
        raise DataError(f"{root} is neither a folder nor a zip")
    found: list[File] = []
    for path in root.rglob("*"):
        if path.suffix == ".zip":
            found.extend(_members(path))
        elif path.is_file():
            found.append(File(path.relative_to(root).as_posix(), path))
    return sorted(found, key=lambda file: file.name)


def read(files: Sequence[File]) -> Iterator[bytes]:
    """The content of each file, one at a time; every zip is opened once. DataError names a file that is broken."""
    with ExitStack() as stack:
        archives: dict[Path, zipfile.ZipFile] = {}
        for file in files:
            try:
                if file.archive is None:
                    yield file.path.read_bytes()
                    continue
                if file.archive not in archives:
                    archives[file.archive] = stack.enter_context(zipfile.ZipFile(file.archive))
                info = archives[file.archive].getinfo(file.name)
                if info.file_size > LARGEST_MEMBER:
                    raise DataError(f"{file.archive}: {file.name} would unpack to {info.file_size} bytes: refused")
                content = archives[file.archive].read(info)
            except (OSError, zipfile.BadZipFile, zlib.error) as error:
                raise DataError(f"{file.archive or file.path}: cannot read {file.name}: {error}") from error
            yield content


def _members(archive: Path) -> list[File]:
    try:
        with zipfile.ZipFile(archive) as opened:
            return [File(info.filename, archive, archive) for info in opened.infolist() if not info.is_dir()]
    except zipfile.BadZipFile as error:
        raise DataError(f"{archive} is not a zip: {error}") from error
