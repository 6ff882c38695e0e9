"""The global tensors of a run and what becomes of them: every accepted update counts once, whatever happens.

Blocking: reads, writes, hashes and sums. Memory O(model): one accumulator, and at the end of a round the result.
"""

from pathlib import Path
from typing import Any

from coordinator.admission import Admission, kept
from coordinator.checkpoints import RunDirectory
from coordinator.definition import Definition
from shared.aggregation import Accumulator
from shared.algorithms import algorithm, hyperparameters
from shared.codec import ALIGNMENT, MAX_HEADER, open_payload, write_payload
from shared.errors import RefusedUpdate, StateError
from shared.files import sync_directory, sync_file
from shared.messages import PayloadHeader
from shared.pruning import take
from shared.tensors import Subnet


def write_tensors(path: Path, subnet: Subnet, run: str, number: int) -> None:
    """Put a payload for the devices of round `number` at `path`, durably, whole or not at all."""
    temporary = path.with_suffix(".part")
    with temporary.open("wb") as file:
        write_payload(file, subnet, run=run, round=number)
    sync_file(temporary)
    temporary.replace(path)
    sync_directory(path.parent)


class Ledger:
    """Works in the run's folder; one call at a time."""

    def __init__(self, directory: RunDirectory, number: int) -> None:
        """`number`: the round that is open or comes next; its global tensors must be there."""
        record = directory.record()
        definition = Definition.load(directory.definition.read_bytes())
        self._directory = directory
        self._run = record.run
        self._layout = definition.layout
        self.plan = definition.plan
        self._algorithm = algorithm(record.config.algorithm.name)
        self._settings = hyperparameters(self._algorithm, record.config.algorithm.hyperparameters)
        source = directory.global_payload(number)
        with open_payload(source, limit=source.stat().st_size) as payload:
            tensors = payload.subnet.tensors
            self.limit = sum(array.nbytes + ALIGNMENT for array in tensors.values()) + MAX_HEADER
            """Bytes of the largest update that can be acceptable."""
            self._admission = Admission.of(self._run, tensors, self._layout, self._settings.weighting, self.limit)
        self._accumulator = self._fresh()

    def open(self, number: int) -> dict[str, dict[str, Any]]:
        """Start, or resume, round `number`; journal entries of the updates that were accepted before, by device."""
        self._accumulator = self._fresh()
        entries = {}
        for device, path in self._directory.accepted(number).items():
            try:
                entries[device] = self._fold(path, device, number)
            except RefusedUpdate as error:
                raise StateError(f"{path} was accepted and is damaged now ({error}); remove it to go on") from error
        return entries

    def download(self, number: int) -> Path:
        """What the cohort of round `number` is sent."""
        partial = self._directory.download(number)
        return partial if partial.exists() else self._directory.global_payload(number)

    def take(self, device: str, number: int, path: Path, examples: int) -> dict[str, Any]:
        """Admit and fold a received update; its journal entry. It counts once `RunDirectory.confirm` has returned.

        RefusedUpdate says why it is not taken: then nothing of it stays.
        """
        try:
            with self._admission.examine(path, number, examples) as (update, header):
                path = self._directory.accept(number, device, path)
                self._accumulator.add(update)
                return self._entry(device, path, header, kept(update.subnet.held))
        except RefusedUpdate:
            path.unlink()
            raise

    def close(self, number: int) -> None:
        """Make the accepted updates the tensors that round `number + 1` starts from, on disk."""
        with open_payload(self._directory.global_payload(number), limit=self.limit) as payload:
            aggregate = self._accumulator.result(payload.subnet.tensors)
            write_tensors(self._directory.global_payload(number + 1), Subnet(aggregate.tensors), self._run, number + 1)
        valid = aggregate.valid
        if valid is not None and self._layout is not None and kept(valid) < 1:
            partial = Subnet(take(aggregate.tensors, self._layout, valid), valid)
            write_tensors(self._directory.download(number + 1), partial, self._run, number + 1)

    def _fresh(self) -> Accumulator:
        return self._algorithm.aggregate(self._layout, self._settings)

    def _fold(self, path: Path, device: str, number: int) -> dict[str, Any]:
        with self._admission.examine(path, number) as (update, header):
            self._accumulator.add(update)
            return self._entry(device, path, header, kept(update.subnet.held))

    @staticmethod
    def _entry(device: str, path: Path, header: PayloadHeader, share: float) -> dict[str, Any]:
        return {
            "device": device,
            "examples": header.examples,
            "weight": header.weight,
            "bytes": path.stat().st_size,
            "kept": share,
            "metrics": header.metrics,
        }
