"""What every algorithm must do, ours or yours. Each check takes an algorithm and raises AssertionError if it fails:

    @pytest.mark.parametrize("check", CHECKS)
    def test_conformance(check: Check) -> None:
        check(MY_ALGORITHM, MyHyperparameters())

Two rounds on a small convolutional network with BatchNorm, on data that it learns in one, so that decisions which
depend on the accuracy are taken too.
"""

import copy
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch

from shared.aggregation import Update, WeightedMean
from shared.algorithms.base import Algorithm, DeviceRound, Hyperparameters
from shared.algorithms.device import Setup, check_fits, open_round, personal_model, remember, set_up
from shared.codec import decode_payload, encode_payload
from shared.errors import OutOfTime
from shared.model_state import state_tensors
from shared.models import build_model, example_input
from shared.partition import batch_norm_names
from shared.pruning import put, take
from shared.tensors import Subnet, Tensors
from shared.training import Split

Check: TypeAlias = Callable[[Algorithm, Hyperparameters], None]

MODEL, OPTIONS = "digitscnn", {"width": 8, "classes": 4}


def uploads_what_is_shared(algorithm: Algorithm, hp: Hyperparameters) -> None:
    """Exactly the shared names, in the shapes of the channels held, all finite; with BatchNorm local, none of its."""
    for batch_norm in ("shared", "local"):
        setup = _setup(algorithm, hp.model_copy(update={"batch_norm": batch_norm}))
        _, round_ = _two_rounds(setup)
        upload = algorithm.upload(round_, setup.hp)
        check_fits(setup, upload)
        for name, array in upload.tensors.items():
            _require(bool(np.isfinite(array).all()), f"{name} of the upload is not finite")
            private = batch_norm == "local" and name in batch_norm_names(setup.model)
            _require(not private, f"{name} is uploaded though BatchNorm is local")


def has_received_and_local_in_hand(algorithm: Algorithm, hp: Hyperparameters) -> None:
    """Before training, a device that holds every channel has what it received, and of the rest what it had."""
    setup = _setup(algorithm, hp)
    first = _round(setup, _initial(setup), {}, number=1)
    algorithm.train(first, setup.hp)
    before = state_tensors(first.model)
    received = Subnet({name: array + array.dtype.type(1) for name, array in _initial(setup).tensors.items()})
    second = _round(setup, received, remember(setup, first), number=2)
    after = state_tensors(second.model)
    if second.held is None:
        _same({name: after[name] for name in setup.shared}, received.tensors, "what was received is not in hand")
    else:
        assert setup.layout is not None
        held = take(received.tensors, setup.layout, second.held)
        _same({name: after[name] for name in setup.shared}, held, "what was received is not in hand")
    for name in setup.local:
        _require(np.array_equal(after[name], before[name]), f"local tensor {name} was not kept")


def changes_nothing_by_personalizing(algorithm: Algorithm, hp: Hyperparameters) -> None:
    """`personalize` leaves model, memory, channels and generator as they are, during the run and after it."""
    setup = _setup(algorithm, hp.model_copy(update={"finetune_epochs": 1}))
    for final in (False, True):
        remembered, received = _one_round(setup)
        round_ = _round(setup, received, remembered, number=2, final=final)
        before, drawn = remember(setup, round_), round_.generator.get_state()
        state = state_tensors(round_.model)
        own, held = personal_model(setup, round_)
        _require(own is not round_.model, "personalize must return a new module")
        _same(state_tensors(round_.model), state, "personalize changed the model in hand")
        if setup.layout is not None:
            dense = {name: array.shape for name, array in state_tensors(setup.model).items()}
            shapes = {name: array.shape for name, array in state_tensors(own).items()}
            expected = dense if held is None else setup.layout.shapes(dense, held)
            _require(shapes == expected, "personalize returned a model of other channels than those it says")
        _same(remember(setup, round_), before, "personalize changed the memory")
        _require(torch.equal(round_.generator.get_state(), drawn), "personalize changed the generator")


def leaves_the_run_alone(algorithm: Algorithm, hp: Hyperparameters) -> None:
    """Training changes neither the initial model nor what was received."""
    setup = _setup(algorithm, hp)
    initial, received = state_tensors(setup.model), _initial(setup)
    before = copy.deepcopy(received.tensors)
    algorithm.train(_round(setup, received, {}, number=1), setup.hp)
    _same(state_tensors(setup.model), initial, "training changed the run's initial model")
    _same(received.tensors, before, "training changed what was received")


def remembers_through_the_codec(algorithm: Algorithm, hp: Hyperparameters) -> None:
    """A second round from a memory that was written and read is the second round from the memory itself."""
    setup = _setup(algorithm, hp)
    remembered, received = _one_round(setup)
    payload = encode_payload(Subnet(remembered), run="check", round=1)
    read = decode_payload(payload, limit=len(payload)).subnet.tensors
    uploads = []
    for memory in (remembered, {path: array.copy() for path, array in read.items()}):
        round_ = _round(setup, received, memory, number=2)
        algorithm.train(round_, setup.hp)
        uploads.append(algorithm.upload(round_, setup.hp).tensors)
    _same(uploads[0], uploads[1], "the memory does not survive being written and read")


def repeats_with_the_same_seed(algorithm: Algorithm, hp: Hyperparameters) -> None:
    """The same seeds give the same bytes, of the upload and of the memory."""
    setup = _setup(algorithm, hp)
    (memory, first), (again, second) = _two_rounds(setup), _two_rounds(setup)
    _same(memory, again, "two runs with the same seed differ in what is remembered")
    uploads = [algorithm.upload(round_, setup.hp).tensors for round_ in (first, second)]
    _same(uploads[0], uploads[1], "two runs with the same seed differ in what is uploaded")


def averages_equals_to_themselves(algorithm: Algorithm, hp: Hyperparameters) -> None:
    """Three equal updates of different weight make, where they hold something, an aggregate equal to them."""
    setup = _setup(algorithm, hp)
    _, round_ = _two_rounds(setup)
    upload = algorithm.upload(round_, setup.hp)
    accumulator = algorithm.aggregate(setup.layout, setup.hp, WeightedMean)
    for weight in (1.0, 2.0, 5.0):
        accumulator.add(Update(upload, weight))
    previous = _initial(setup).tensors
    expected = {name: array.copy() for name, array in previous.items()}
    if setup.layout is None:
        expected = dict(upload.tensors)
    else:
        put(expected, upload, setup.layout)
    found = accumulator.result(previous).tensors
    _require(found.keys() == setup.shared, "the aggregate has other names than what is shared")
    for name, array in found.items():
        close = np.allclose(array, expected[name], rtol=1e-5, atol=1e-6)
        _require(close, f"{name}: the aggregate of equal updates differs from them")


def stops_at_the_deadline(algorithm: Algorithm, hp: Hyperparameters) -> None:
    """`check_time` is called in training, and what it raises ends it."""
    setup = _setup(algorithm, hp)
    round_ = _round(setup, _initial(setup), {}, number=1)

    def too_late() -> None:
        raise OutOfTime("the deadline has passed")

    round_.check_time = too_late
    try:
        algorithm.train(round_, setup.hp)
    except OutOfTime:
        return
    raise AssertionError("training went on after the deadline: call round_.check_time between batches")


def trains_on_few_examples(algorithm: Algorithm, hp: Hyperparameters) -> None:
    """A device with less than one batch trains, and moves something."""
    setup = _setup(algorithm, hp)
    round_ = _round(setup, _initial(setup), {}, number=1)
    round_.train = Split(round_.train.inputs[:3], round_.train.labels[:3])
    before = {**remember(setup, round_), **algorithm.upload(round_, setup.hp).tensors}
    algorithm.train(round_, setup.hp)
    after = {**remember(setup, round_), **algorithm.upload(round_, setup.hp).tensors}
    moved = any(name not in before or not np.array_equal(after[name], before[name]) for name in after)
    _require(moved, "nothing moved on a device with three examples")


CHECKS: tuple[Check, ...] = (
    uploads_what_is_shared,
    has_received_and_local_in_hand,
    changes_nothing_by_personalizing,
    leaves_the_run_alone,
    remembers_through_the_codec,
    repeats_with_the_same_seed,
    averages_equals_to_themselves,
    stops_at_the_deadline,
    trains_on_few_examples,
)


def _setup(algorithm: Algorithm, hp: Hyperparameters) -> Setup:
    return set_up(algorithm, hp, build_model(MODEL, OPTIONS, seed=0), example_input(MODEL, OPTIONS))


def _initial(setup: Setup) -> Subnet:
    return Subnet(state_tensors(setup.model, sorted(setup.shared)))


def _examples(count: int, seed: int) -> Split:
    """Noisy pictures of four classes, each of which lights another corner."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    inputs = 0.3 * torch.randn(count, 1, 8, 8, generator=generator)
    for row, label in enumerate(labels.tolist()):
        inputs[row, 0, 4 * (label // 2) :, 4 * (label % 2) :][:4, :4] += 1.5
    return Split(inputs, labels)


def _round(setup: Setup, received: Subnet, remembered: Tensors, *, number: int, final: bool = False) -> DeviceRound:
    torch.manual_seed(number)
    return open_round(
        setup,
        received,
        remembered,
        number=number,
        final=final,
        train=_examples(64, seed=0),
        validation=_examples(24, seed=1),
        multiple=2,
        generator=torch.Generator().manual_seed(number),
        check_time=lambda: None,
    )


def _one_round(setup: Setup) -> tuple[Tensors, Subnet]:
    """What the device remembers after the first round, and what it receives in the second."""
    round_ = _round(setup, _initial(setup), {}, number=1)
    setup.algorithm.train(round_, setup.hp)
    accumulator = setup.algorithm.aggregate(setup.layout, setup.hp, WeightedMean)
    accumulator.add(Update(setup.algorithm.upload(round_, setup.hp), 1.0))
    aggregate = accumulator.result(_initial(setup).tensors)
    tensors = aggregate.tensors if setup.layout is None else take(aggregate.tensors, setup.layout, aggregate.valid)
    return remember(setup, round_), Subnet(tensors, aggregate.valid)


def _two_rounds(setup: Setup) -> tuple[Tensors, DeviceRound]:
    """What the device remembers after the second round, and that round after its training."""
    remembered, received = _one_round(setup)
    round_ = _round(setup, received, remembered, number=2)
    setup.algorithm.train(round_, setup.hp)
    return remember(setup, round_), round_


def _same(found: Tensors, expected: Tensors, complaint: str) -> None:
    """Bit for bit."""
    _require(found.keys() == expected.keys(), f"{complaint}: {sorted(found.keys() ^ expected.keys())[:5]}")
    for name, array in expected.items():
        _require(np.array_equal(found[name], array), f"{complaint}: {name}")


def _require(condition: bool, complaint: str) -> None:
    if not condition:
        raise AssertionError(complaint)
