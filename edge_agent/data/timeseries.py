"""Time series in CSV files, cut into windows."""

import io
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from edge_agent.data.dataset import Dataset, Raw
from edge_agent.data.files import File, read, required, walk
from edge_agent.data.labels import as_indices
from shared.errors import ConfigError, DataError
from shared.plugins import nearest


def windows(
    path: Path | None,
    *,
    columns: tuple[str, ...],
    window: int,
    stride: int | None = None,
    label: str = "label",
    owner: str = "",
    files: str = r".*\.csv",
    classes: tuple[str, ...] = (),
) -> Dataset:
    """N x channels x `window` float32 from one CSV file, or from those in a folder or a zip whose path matches `files`.

    columns  the channels, by name; rows are samples, in the order of time; files follow each other by name
    window   samples per example; its label is the commonest of its rows
    stride   samples from one window to the next, by default `window`: no overlap
    owner    column of whose sample it is: windows never mix owners. Without it, the groups of the regular expression
             `files` name the owner of a file: (s\\d+)_\\d+_(sp|sw)\\.csv makes `s01-sp` of DATA/s01/s01_02_sp.csv
    classes  all of the fleet, where this device may lack some
    Inputs are normalized per channel by what the device's own training split measures, unless data.mean is set.
    """
    step = window if stride is None else stride
    if not columns or window < 1 or step < 1:
        raise ConfigError(f"data.options: columns {columns} must not be empty, window {window}, stride {step} positive")
    root = required(path, "a CSV file, or a folder or zip of them")
    inputs: list[Raw] = []
    labels: list[str] = []
    owners: list[str] = []
    for name, series, names in _series(root, files, columns, label, owner):
        for start in range(0, len(series) - window + 1, step):
            inputs.append(series[start : start + window].T)
            values, counts = np.unique(names[start : start + window], return_counts=True)
            labels.append(str(values[counts.argmax()]))
            owners.append(name)
    if not inputs:
        raise DataError(f"{root}: no series has {window} samples: lower data.options.window")
    known, numbers = as_indices(labels, classes, str(root))
    # Files are read by name; a stable sort keeps each owner's windows together and in the order of time.
    _, who = np.unique(owners, return_inverse=True)
    order = np.argsort(who, kind="stable")
    overlap = -(-window // step) - 1
    return Dataset(np.stack(inputs)[order], numbers[order], known, owners=who[order], overlap=overlap)


def _series(root: Path, files: str, columns: tuple[str, ...], label: str, owner: str) -> Iterator[tuple[str, Raw, Raw]]:
    """(owner, samples x channels, label of each sample) for each owner in each file."""
    try:
        pattern = re.compile(files)
    except re.error as error:
        raise ConfigError(f"data.options.files {files!r} is no regular expression: {error}") from error
    found = [File(root.name, root)] if root.suffix.lower() == ".csv" else walk(root)
    matches = [(file, pattern.fullmatch(PurePosixPath(file.name).name)) for file in found]
    chosen = [(file, match) for file, match in matches if match]
    if not chosen:
        raise DataError(f"{root}: no file is called like data.options.files {files!r}")
    for (file, match), content in zip(chosen, read([file for file, _ in chosen]), strict=True):
        wanted = (label, *((owner,) if owner else ()))
        values, texts = _parse(f"{file.path}: {file.name}", content, columns, wanted)
        whose = texts[:, 1] if owner else np.full(len(values), "-".join(filter(None, match.groups())))
        for name in dict.fromkeys(whose.tolist()):
            rows = whose == name
            yield name, values[rows], texts[rows, 0]


def _parse(where: str, content: bytes, columns: tuple[str, ...], texts: tuple[str, ...]) -> tuple[Raw, Raw]:
    """(rows x columns as float32, rows x texts). DataError names the file, the line and the column."""
    try:
        text = content.decode("utf-8-sig")
        header = [name.strip().strip('"') for name in text.partition("\n")[0].split(",")]
        for name in (*columns, *texts):
            if name not in header:
                raise DataError(f"{where} has no column {name!r}{nearest(name, header)}; there is {', '.join(header)}")
        values = _columns(text, np.float32, [header.index(name) for name in columns])
        words = _columns(text, np.str_, [header.index(name) for name in texts])
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise DataError(f"{where}: line {row + 2}, column {columns[column]!r} is {values[row, column]}: no number")
    return values, words


def _columns(text: str, kind: type[np.generic], places: list[int]) -> Raw:
    return np.loadtxt(
        io.StringIO(text), kind, delimiter=",", skiprows=1, usecols=places, ndmin=2, quotechar='"', comments=None
    )
