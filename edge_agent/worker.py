"""The compute of one task: from a job and the download that it names to the files of edge_agent.job. No network.

The same code runs in the forked trainer of an agent (`main`, named in edge_agent.trainer), in a simulated fleet in one
process (`attempt`) and by hand: `python -m edge_agent.worker JOB.json`. Deterministic: the same job gives the same
tensors bit for bit, whatever ran before it in the process.
"""

import hashlib
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edge_agent.data import Examples, load
from edge_agent.deadline import Deadline
from edge_agent.job import MEMORY, OUTCOME, PERSONAL, REFERENCE, UPDATE, Job, Outcome
from edge_agent.plan import Read, Work, logits, prepare, rehearsal
from edge_agent.probe import is_out_of_memory, starting_width
from edge_agent.timing import stopwatch
from shared.algorithms import DeviceRound
from shared.algorithms.device import (
    Setup,
    check_fits,
    global_model,
    open_round,
    personal_model,
    remember,
    starting_channels,
)
from shared.algorithms.feedback import outgoing
from shared.codec import open_payload, size_limit, write_payload
from shared.encoding import LIKED, Encoding
from shared.errors import OutOfMemory, StateError, TalariaError, TrainingError
from shared.model_state import state_tensors
from shared.pruning import channels, macs
from shared.tensors import Masks, Subnet, Tensors
from shared.training import Split, evaluate

REFERENCE_EXAMPLES = 512
REFERENCE_BATCH = 64
LATENCY_RUNS = 50
REHEARSED_BATCHES = 2
"""A second step of SGD allocates what momentum needs."""


def main(path: Path) -> int:
    """Do the job of a JSON file; the exit status is 0 if it succeeded."""
    return 0 if attempt(Job.model_validate_json(path.read_bytes())).succeeded else 1


def attempt(job: Job, read: Read = load) -> Outcome:
    """Do the job. Whatever goes wrong, also in somebody's model or data plug-in, is an Outcome that tells it."""
    try:
        outcome = run_job(job, read)
    except TalariaError as error:
        outcome = Outcome(code=error.code, reason=str(error)[:500])
    except Exception as error:
        traceback.print_exc()
        outcome = Outcome(code=TrainingError.code, reason=f"{type(error).__name__}: {error}"[:500])
    (job.out / OUTCOME).write_text(outcome.model_dump_json())
    return outcome


def run_job(job: Job, read: Read = load) -> Outcome:
    """Do the job and write its payloads.

    read  where the data comes from; a simulated fleet reads its source only once
    Raises ConfigError (plan), ModelError, DataError, MalformedPayload (a download is not what the plan needs),
    StateError (memory), TrainingError, OutOfTime, OutOfMemory.
    """
    torch.set_num_threads(1)  # a fork that rehearses could not do with more if there were others here already
    deadline = Deadline(job.deadline_s, job.reserve_s)
    with _memory_budget(job), torch.random.fork_rng(devices=[]):
        work = prepare(job, read)
        with open_payload(job.payload, limit=_largest_payload(work.setup)) as download:
            check_fits(work.setup, download.subnet)
            start = None
            if work.setup.layout is not None and job.memory is None:
                start = _start(job, work, download.subnet, deadline)
            return _carry_out(job, work, download.subnet, start, deadline)


def _carry_out(job: Job, work: Work, received: Subnet, start: Masks | None, deadline: Deadline) -> Outcome:
    """The round itself, on a device that starts with these channels if it remembers none; None: all."""
    torch.set_num_threads(job.threads)
    torch.manual_seed(_seed(job))  # dropout draws from the global generator
    round_ = open_round(
        work.setup,
        received,
        _recall(job),
        number=job.task.round,
        final=job.task.action == "personalize",
        train=_split(work.data.train),
        validation=_split(work.data.validation),
        multiple=job.profile.inference.channel_multiple,
        generator=torch.Generator().manual_seed(_seed(job)),
        check_time=deadline.check,
        start_with=start,
        latency=None if job.template is None else stopwatch(job.template, work, job.profile, deadline.check),
    )
    return _personalize(job, work, round_) if round_.final else _train(job, work, round_, deadline)


def _start(job: Job, work: Work, received: Subnet, deadline: Deadline) -> Masks | None:
    """The channels that a device begins with for which this is the first job of the run: as many as it can train."""
    few = rehearsal(work, REHEARSED_BATCHES)

    def at(width: float) -> Masks | None:
        return starting_channels(work.setup, received, width, job.profile.inference.channel_multiple)

    def rehearse(width: float) -> None:
        with tempfile.TemporaryDirectory(dir=job.out) as folder:
            _carry_out(job.model_copy(update={"out": Path(folder)}), few, received, at(width), deadline)

    training = job.profile.training
    return at(starting_width(rehearse, training.max_width, training.memory_mib))


def _train(job: Job, work: Work, round_: DeviceRound, deadline: Deadline) -> Outcome:
    """Evaluate what was received, then one round of local work, then what the coordinator gets of it."""
    setup, plan = work.setup, job.task.plan
    due = (round_.number - 1) % plan.evaluate_every == 0
    metrics = _accuracies(work, round_, personal_model(setup, round_)[0]) if due else {}
    if (done := deadline.train(setup, round_)) < 1:
        metrics["work_done"] = done
    metrics |= _size(work, round_.model, round_.held)
    update = outgoing(
        setup.algorithm.upload(round_, setup.hp),
        round_.received,
        round_.residual,
        setup.layout,
        liked=LIKED[job.profile.link.kind],
        taken=plan.encodings,
    )
    if update.encoding is not Encoding.FLOAT32:
        metrics["encoding_loss"] = update.loss
    round_.residual = update.residual
    _remember(job, work, round_)
    examples = len(round_.train)
    with (job.out / UPDATE).open("wb") as file:
        write_payload(
            file,
            update.subnet,
            encoding=update.encoding,
            delta=update.delta,
            run=job.task.run,
            round=job.task.round,
            examples=examples,
            weight=float(examples) if setup.hp.weighting == "samples" else 1.0,
            metrics=metrics,
        )
    return Outcome(examples=examples, metrics=metrics, encoding=update.encoding.value)


def _personalize(job: Job, work: Work, round_: DeviceRound) -> Outcome:
    """The device's own model from the last global tensors, and what proves that an export of it is the same."""
    model, held = personal_model(work.setup, round_)
    metrics = _accuracies(work, round_, model) | _size(work, model, held)
    metrics["latency_ms_eager"] = _latency_ms(model, round_.validation.inputs[:1], round_.check_time)
    _remember(job, work, round_)
    with (job.out / PERSONAL).open("wb") as file:
        own = Subnet(state_tensors(model), held)
        write_payload(file, own, run=job.task.run, round=job.task.round, metrics=metrics)
    _write_reference(job.out / REFERENCE, model, round_)
    return Outcome(
        examples=len(round_.train),
        metrics=metrics,
        labels=work.data.classes,
        mean=work.data.normalization.mean,
        std=work.data.normalization.std,
    )


def _write_reference(path: Path, model: nn.Module, round_: DeviceRound) -> None:
    inputs, labels = (part[:REFERENCE_EXAMPLES] for part in (round_.validation.inputs, round_.validation.labels))
    found = []
    for batch in torch.split(inputs, REFERENCE_BATCH):  # all at once may take more memory than the training did
        round_.check_time()
        found.append(logits(model, batch))
    np.savez_compressed(path, inputs=inputs.numpy(), labels=labels.numpy(), logits=torch.cat(found).numpy())


def _accuracies(work: Work, round_: DeviceRound, personal: nn.Module) -> dict[str, float]:
    """On the test split, which decides nothing."""
    test, received = _split(work.data.test), global_model(work.setup, round_)
    own = evaluate(personal, test)
    common = own if _same(personal, received) else evaluate(received, test)
    return {
        "accuracy": own.accuracy,
        "loss": own.loss,
        "accuracy_global": common.accuracy,
        "test_examples": float(own.examples),
    }


def _same(model: nn.Module, other: nn.Module) -> bool:
    """Whether they are one model: of the same class, with the same tensors."""
    one, two = model.state_dict(), other.state_dict()
    return type(model) is type(other) and one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


def _size(work: Work, model: nn.Module, held: Masks | None) -> dict[str, float]:
    """What a model takes, beside the dense one."""
    dense, layout = work.setup.model, work.setup.layout
    sizes = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "parameters_dense": sum(parameter.numel() for parameter in dense.parameters()),
        "macs": macs(model, work.example),
        "macs_dense": macs(dense, work.example),
    }
    if layout is not None:
        sizes["channels"], sizes["channels_dense"] = channels(layout, held)
    return {name: float(size) for name, size in sizes.items()}


def _latency_ms(model: nn.Module, inputs: torch.Tensor, check_time: Callable[[], None]) -> float:
    """Median time that eager torch takes for these inputs."""
    times = []
    for _ in range(LATENCY_RUNS):
        check_time()
        start = time.perf_counter()
        logits(model, inputs)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def _recall(job: Job) -> Tensors:
    """What `_remember` wrote in the last round of this run; nothing the first time."""
    if job.memory is None:
        return {}
    with open_payload(job.memory, limit=job.memory.stat().st_size) as payload:
        if payload.header.run != job.task.run:
            raise StateError(f"{job.memory} is of run {payload.header.run}, the task of run {job.task.run}")
        return {path: array.copy() for path, array in payload.subnet.tensors.items()}


def _remember(job: Job, work: Work, round_: DeviceRound) -> None:
    with (job.out / MEMORY).open("wb") as file:
        write_payload(file, Subnet(remember(work.setup, round_)), run=job.task.run, round=job.task.round)


def _largest_payload(setup: Setup) -> int:
    """Bytes that a download can have, as it comes or decoded."""
    state = setup.model.state_dict()
    return size_limit(int(state[name].nbytes) for name in setup.shared)


def _split(examples: Examples) -> Split:
    return Split(torch.from_numpy(examples.inputs), torch.from_numpy(examples.labels))


def _seed(job: Job) -> int:
    """Of everything that is drawn: the same for the same device, round and action of a plan."""
    text = f"{job.task.plan.seed}/{job.device}/{job.task.round}/{job.task.action}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


@contextmanager
def _memory_budget(job: Job) -> Iterator[None]:
    """What torch and numpy raise when an allocation fails becomes OutOfMemory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"training does not fit into the {job.profile.training.memory_mib} MiB of profile {job.profile.id}: "
            "raise training.memory_mib, lower training.batch_size, or run a smaller model"
        ) from error


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
