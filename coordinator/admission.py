"""Is this update acceptable? Asked of every update before anything is made of it."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np

from coordinator.possible import check_possible
from shared.aggregation import Update
from shared.channels import ChannelLayout
from shared.codec import open_payload
from shared.config_rounds import AdmissionSettings
from shared.encoding import Encoding
from shared.errors import MalformedPayload, RefusedUpdate
from shared.payload_header import PayloadHeader
from shared.pruning import take
from shared.tensors import Array, Masks, Subnet, Tensors

LARGEST = 1e30
"""Bound of weight * value: far above any model, and hundreds of millions of such terms still fit a float32 sum."""
LATELY = 100
"""Accepted updates that a new one is compared with."""
FEW = 3
"""Accepted updates without which there is nothing to compare with."""
BLOCK = 1 << 16
"""Elements whose squares are summed at once."""


@dataclass(frozen=True)
class Admission:
    """What updates of this run look like.

    shapes     the dense shape of every shared name
    dtypes     its dtype
    layout     None: only dense updates are acceptable
    weighting  what an update has to weigh: its examples, or 1
    limit      bytes of the largest acceptable update
    encodings  how it may be encoded, beside float32, which is what is left where a device cannot follow
    """

    run: str
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, np.dtype[Any]]
    layout: ChannelLayout | None
    weighting: Literal["samples", "uniform"]
    limit: int
    encodings: tuple[str, ...]

    @classmethod
    def of(
        cls,
        run: str,
        tensors: Tensors,
        layout: ChannelLayout | None,
        weighting: Literal["samples", "uniform"],
        limit: int,
        encodings: tuple[str, ...] = (),
    ) -> "Admission":
        shapes = {name: array.shape for name, array in tensors.items()}
        dtypes = {name: array.dtype for name, array in tensors.items()}
        return cls(run, shapes, dtypes, layout, weighting, limit, encodings)

    @contextmanager
    def examine(
        self, path: Path, number: int, start: Callable[[int], Mapping[str, float]], examples: int = 0
    ) -> Iterator[tuple[Update, PayloadHeader]]:
        """The update in this file, for round `number`; its arrays end with the context.

        start     round -> the largest absolute value of each float tensor that it started from: differences add to it
        examples  how many the device said that it has; 0: it did not say
        RefusedUpdate says what is wrong with it, whatever the file contains.
        """
        try:
            with open_payload(path, limit=self.limit) as payload:
                header, subnet = payload.header, payload.subnet
                self._check_header(header, number, examples)
                self._check_tensors(subnet.tensors, subnet.held)
                self._check_values(subnet.tensors, header.weight, start(number) if header.delta else {})
                yield Update(subnet, header.weight), header
        except MalformedPayload as error:
            raise RefusedUpdate(error.code, str(error)) from error

    def _check_header(self, header: PayloadHeader, number: int, examples: int) -> None:
        if header.run != self.run:
            raise RefusedUpdate("foreign_run", f"the payload belongs to run {header.run!r}, this is {self.run!r}")
        if header.round != number:
            raise RefusedUpdate("wrong_round", f"the payload belongs to round {header.round}, this is {number}")
        if header.encoding not in (Encoding.FLOAT32, *self.encodings):
            raise RefusedUpdate(
                "wrong_encoding",
                f"the update is encoded as {header.encoding}; this run takes {', '.join(self.encodings)}",
            )
        if header.examples == 0:
            raise RefusedUpdate("no_examples", "nothing was learnt from: 0 examples")
        if 0 < examples < header.examples:
            raise RefusedUpdate(
                "too_many_examples", f"{header.examples} examples claimed; the device said that it has {examples}"
            )
        weight = float(header.examples) if self.weighting == "samples" else 1.0
        if header.weight != weight:
            raise RefusedUpdate("wrong_weight", f"weight {header.weight}; {self.weighting} weighting makes it {weight}")

    def _check_tensors(self, tensors: Tensors, held: Masks | None) -> None:
        if tensors.keys() != self.shapes.keys():
            odd = sorted(tensors.keys() ^ self.shapes.keys())
            raise RefusedUpdate("wrong_names", f"missing or unknown: {', '.join(odd[:5])} ({len(odd)} names)")
        if held is not None:
            if self.layout is None:
                raise RefusedUpdate("wrong_masks", "channel masks, but nothing is pruned in this run")
            self.layout.check(held)
        for name, dense in self.shapes.items():
            array = tensors[name]
            shape = self.layout.shape(name, dense, held) if self.layout is not None and held is not None else dense
            if array.dtype != self.dtypes[name]:
                raise RefusedUpdate("wrong_dtype", f"{name} is {array.dtype}, not {self.dtypes[name]}")
            if array.shape != shape:
                raise RefusedUpdate("wrong_shape", f"{name} has shape {list(array.shape)}, not {list(shape)}")

    def _check_values(self, tensors: Tensors, weight: float, start: Mapping[str, float]) -> None:
        for name, array in tensors.items():
            if array.dtype.kind == "f" and not (largest(array) + start.get(name, 0.0)) * weight <= LARGEST:
                raise RefusedUpdate("not_finite", f"{name} holds values that no sum can take (weight {weight})")
            if array.dtype.kind != "f" or not start:  # integers are themselves also among differences
                check_possible(name, array)


class Bounds:
    """How far an update may move, and how much it may weigh, beside those that were accepted lately.

    A median is not moved by fewer than half of what it is taken of, so liars who are a minority cannot move a bound.
    The first FEW updates of a run are compared with nothing; a robust rule (shared.robust) bears them.
    """

    def __init__(self, settings: AdmissionSettings) -> None:
        self._settings = settings
        self._norms: deque[float] = deque(maxlen=LATELY)
        self._weights: deque[float] = deque(maxlen=LATELY)

    def check(self, norm: float, weight: float) -> None:
        """RefusedUpdate for an update of this norm (`distance`) and weight, where it is too far beside the others."""
        settings = self._settings
        _check_bound("norm_too_large", "moved by a norm of", norm, self._norms, settings.max_norm, "admission.max_norm")
        _check_bound("weight_too_large", "weighs", weight, self._weights, settings.max_weight, "admission.max_weight")

    def add(self, norm: float, weight: float) -> None:
        """One more was accepted."""
        self._norms.append(norm)
        self._weights.append(weight)


def _check_bound(code: str, what: str, value: float, before: deque[float], times: float | None, setting: str) -> None:
    if times is None or len(before) < FEW:
        return
    usual = median(before)
    if value > times * usual:
        raise RefusedUpdate(
            code, f"it {what} {value:.6g}; {setting} = {times:g} times the median {usual:.6g} is {times * usual:.6g}"
        )


def distance(update: Subnet, start: Tensors | None, layout: ChannelLayout | None) -> float:
    """L2 norm, over all floats that an update holds, of what it changed. start: the dense tensors that it started from;
    None: it is a difference already."""
    total = 0.0
    for name, array in update.tensors.items():
        if array.dtype.kind == "f":
            ours = array.reshape(-1)
            theirs = None
            if start is not None:
                dense = {name: start[name]}
                theirs = (dense if layout is None else take(dense, layout, update.held))[name].reshape(-1)
            for at in range(0, ours.size, BLOCK):
                change = ours[at : at + BLOCK].astype(np.float64)
                if theirs is not None:
                    change -= theirs[at : at + BLOCK]
                total += float(change @ change)
    return float(np.sqrt(total))


def largest(array: Array) -> float:
    """Largest absolute value, without a copy; NaN where there is one."""
    return max(float(array.max()), -float(array.min())) if array.size else 0.0


def kept(held: Masks | None) -> float:
    """Share of all channels that are held."""
    if not held:
        return 1.0
    return sum(int(mask.sum()) for mask in held.values()) / sum(mask.size for mask in held.values())
