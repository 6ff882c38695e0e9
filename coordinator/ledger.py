"""The global tensors of a run and what becomes of them: every accepted update counts once, whatever happens.

Updates are folded when the round closes, in the order of their names: float addition is not associative, and
neither the order of arrival nor a restart may show in the result, not even in its last bits.

Blocking: reads, writes, hashes and sums. Memory O(model): one accumulator at the end of a round.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from coordinator.admission import Admission, Bounds, distance, kept, largest
from coordinator.checkpoints import RunDirectory, update_start
from coordinator.definition import Definition
from coordinator.downloads import Downloads, write_tensors
from coordinator.journal import read_journal
from coordinator.possible import possible
from coordinator.staleness import moved_on
from shared.aggregation import Update
from shared.algorithms import algorithm, hyperparameters
from shared.channels import ChannelLayout
from shared.codec import open_payload, size_limit
from shared.config_rounds import AdmissionSettings
from shared.errors import MalformedPayload, RefusedUpdate, StateError
from shared.payload_header import PayloadHeader
from shared.pruning import take
from shared.robust import rule_of
from shared.tensors import Subnet, Tensors


class Ledger:
    """Works in the run's folder; one call at a time."""

    def __init__(self, directory: RunDirectory, number: int, admission: AdmissionSettings | None = None) -> None:
        """
        number     the round that is open or comes next; its global tensors must be there
        admission  None: as the run was started with
        """
        record = directory.record()
        definition = Definition.load(directory.definition.read_bytes())
        self._directory = directory
        self._run = record.run
        self._layout = definition.layout
        self._statistics = definition.statistics
        self.plan = definition.plan
        self._algorithm = algorithm(record.config.algorithm.name)
        self._settings = hyperparameters(self._algorithm, record.config.algorithm.hyperparameters)
        self._rule = rule_of(record.config.aggregation, directory.path)
        self._bounds = Bounds(admission or record.config.admission)
        for line in read_journal(directory.journal_path):
            for entry in line.get("accepted", ()):
                self._bounds.add(entry["norm"], entry["weight"])
        self.exposed = 0.0
        """Aggregate.exposed of the round that was closed last."""
        self.downloads = Downloads(directory, self._run, self._layout, self.plan.encodings)
        source = directory.global_payload(number)
        with open_payload(source, limit=source.stat().st_size) as payload:
            tensors = payload.subnet.tensors
            self.limit = size_limit(array.nbytes for array in tensors.values())
            """Bytes of the largest update that can be acceptable."""
            self._admission = Admission.of(
                self._run, tensors, self._layout, self._settings.weighting, self.limit, self.plan.encodings
            )
        self._largest = lru_cache(maxsize=1)(self._read_largest)
        self._start = lru_cache(maxsize=1)(self._map_start)

    @property
    def prunes(self) -> bool:
        return self._layout is not None

    @property
    def measures(self) -> bool:
        """Whether devices need the template while they train: they choose their channels by measured latency."""
        target = self.plan.hyperparameters.get("target")
        return isinstance(target, dict) and "latency_ms" in target

    def accepted(self, number: int) -> dict[str, dict[str, Any]]:
        """Journal entries of the updates of round `number` that were accepted so far, by their names.

        StateError names one that is damaged by now.
        """
        entries = {}
        for name, path in self._directory.accepted(number).items():
            device, start = name.partition("@")[0], update_start(name, number)
            try:
                with self._admission.examine(path, start, self._largest) as (update, header):
                    norm = self._norm(update, header)
                    entries[name] = self._entry(device, number, path, header, update.subnet, norm)
                    self._bounds.add(norm, header.weight)
            except RefusedUpdate as error:
                raise _damaged(path, error) from error
        return entries

    def take(self, device: str, number: int, path: Path, examples: int, *, start: int | None = None) -> dict[str, Any]:
        """Admit a received update into round `number`, that started from round `start`, without it from the same; its
        journal entry. It counts once `RunDirectory.confirm` has returned.

        RefusedUpdate says why it is not taken: then nothing of it stays.
        """
        try:
            with self._admission.examine(path, start or number, self._largest, examples) as (update, header):
                norm = self._norm(update, header)
                self._bounds.check(norm, header.weight)
                path = self._directory.accept(number, device, path, header.round)
                self._bounds.add(norm, header.weight)
                self.downloads.remember(device, number, update.subnet.held)
                return self._entry(device, number, path, header, update.subnet, norm)
        except RefusedUpdate:
            path.unlink()
            raise

    def close(self, number: int) -> None:
        """Make the accepted updates the tensors that round `number + 1` starts from, on disk.

        StateError names an update that is damaged by now.
        """
        updates = self._directory.accepted(number).values()
        with self.combined(self._directory.global_payload(number), updates) as new:
            write_tensors(self._directory.global_payload(number + 1), new, self._run, number + 1)

    @contextmanager
    def combined(self, start: Path, updates: Iterable[Path]) -> Iterator[Subnet]:
        """What these updates, folded in this order, make of the global tensors in `start`; it ends with the context.

        StateError names an update that is damaged by now.
        """
        accumulator = self._algorithm.aggregate(self._layout, self._settings, self._rule)
        with open_payload(start, limit=self.limit) as before:
            tensors = before.subnet.tensors
            for path in updates:
                try:
                    with open_payload(path, limit=self.limit) as payload:
                        header, subnet = payload.header, payload.subnet
                        if header.round != before.header.round:
                            subnet = self._moved_on(subnet, header, tensors, before.header.round)
                        elif header.delta:
                            subnet = _added(subnet, tensors, self._layout)
                        accumulator.add(Update(possible(subnet), header.weight))
                except MalformedPayload as error:
                    raise _damaged(path, error) from error
            aggregate = accumulator.result(tensors)
            self.exposed = aggregate.exposed
            sent = aggregate.alive if aggregate.valid is None else aggregate.valid
            yield possible(Subnet(aggregate.tensors, None if kept(sent) == 1 else sent))

    def _moved_on(self, update: Subnet, header: PayloadHeader, tensors: Tensors, number: int) -> Subnet:
        """What an update counts in round `number`, which starts from `tensors`, that started from an earlier one."""
        with open_payload(self._directory.start(header.round), limit=self.limit) as start:
            return moved_on(
                update,
                start.subnet.tensors,
                tensors,
                number - header.round,
                delta=header.delta,
                statistics=self._statistics,
                layout=self._layout,
            )

    def _read_largest(self, number: int) -> dict[str, float]:
        """The largest absolute value of every float tensor that round `number` starts from."""
        with open_payload(self._directory.global_payload(number), limit=self.limit) as payload:
            tensors = payload.subnet.tensors.items()
            return {name: largest(array) for name, array in tensors if array.dtype.kind == "f"}

    def _map_start(self, number: int) -> Tensors:
        """The tensors that round `number` starts from, as they lie in the file."""
        with open_payload(self._directory.global_payload(number), limit=self.limit) as payload:
            return payload.subnet.tensors

    def _norm(self, update: Update, header: PayloadHeader) -> float:
        return distance(update.subnet, None if header.delta else self._start(header.round), self._layout)

    @staticmethod
    def _entry(
        device: str, number: int, path: Path, header: PayloadHeader, subnet: Subnet, norm: float
    ) -> dict[str, Any]:
        return {
            "device": device,
            "start": header.round,
            "staleness": number - header.round,
            "examples": header.examples,
            "weight": header.weight,
            "bytes": path.stat().st_size,
            "encoding": header.encoding,
            "kept": kept(subnet.held),
            "norm": norm,
            "metrics": header.metrics,
        }


def _added(delta: Subnet, tensors: Tensors, layout: ChannelLayout | None) -> Subnet:
    """The update that this one is the difference to the dense tensors of: floats are added, integers are themselves."""
    start = tensors if layout is None else take(tensors, layout, delta.held)
    return Subnet(
        {name: array + start[name] if array.dtype.kind == "f" else array for name, array in delta.tensors.items()},
        delta.held,
    )


def _damaged(path: Path, error: Exception) -> StateError:
    return StateError(f"{path} was accepted and is damaged now ({error}); remove it to go on")
