"""The SGD loop against torch.optim and against numbers computed by hand; what frozen means; evaluation."""

import copy
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shared.errors import OutOfTime, TrainingError
from shared.training import Split, evaluate, evaluation_batch, sgd


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def split(examples: int, seed: int = 0) -> Split:
    generator = seeded(seed)
    return Split(torch.randn(examples, 4, generator=generator), torch.randint(0, 3, (examples,), generator=generator))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def train(model: nn.Module, data: Split, **changes: Any) -> None:
    """One epoch of SGD with lr .1 in batches of 4, but for `changes`."""
    plain = {"epochs": 1, "lr": 0.1, "batch_size": 4, "generator": seeded(), "check_time": lambda: None}
    sgd(model, data, **{**plain, **changes})


def changed(before: dict[str, Tensor], model: nn.Module) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def test_one_step_by_hand() -> None:
    """One weight per class, input 1, label 0: softmax(0, 0) = (.5, .5), so the gradient is (-.5, .5)."""
    model = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(model.weight)
    data = Split(torch.ones(1, 1), torch.zeros(1, dtype=torch.int64))
    train(model, data, batch_size=1)
    assert model.weight.flatten().tolist() == pytest.approx([0.05, -0.05])


@settings(deadline=None)  # the first torch.optim imports torch's compiler
@given(
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    weight_decay=st.sampled_from([0.0, 0.01]),
    epochs=st.integers(0, 3),
    batch_size=st.integers(2, 9),
    examples=st.sampled_from([8, 12, 14]),
)
def test_equals_torch_optim_bit_for_bit(
    momentum: float, weight_decay: float, epochs: int, batch_size: int, examples: int
) -> None:
    ours, theirs, data = network(), network(), split(examples)
    train(ours, data, epochs=epochs, batch_size=batch_size, momentum=momentum, weight_decay=weight_decay)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=momentum, weight_decay=weight_decay)
    generator = seeded()
    for _ in range(epochs):
        for inputs, labels in data.batches(batch_size, generator):
            if len(labels) == 1:
                continue
            optimizer.zero_grad()
            nn.functional.cross_entropy(theirs(inputs), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    assert changed(state(theirs), ours) == set()


def test_momentum_does_not_outlive_the_call() -> None:
    once, twice, data = network(), network(), split(8)
    train(once, data, epochs=2, momentum=0.9)
    generator = seeded()
    train(twice, data, generator=generator, momentum=0.9)
    train(twice, data, generator=generator, momentum=0.9)
    assert not torch.equal(once[0].weight, twice[0].weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("frozen", ["0.", "1.", "3."])
def test_frozen_means_frozen(frozen: str) -> None:
    """Weight decay, momentum and BatchNorm statistics leave what is frozen bit-identical; the rest moves."""
    model = network()
    before = state(model)
    only = {name for name in before if not name.startswith(frozen)}
    train(model, split(12), epochs=2, momentum=0.9, weight_decay=0.1, only=only)
    assert changed(before, model) == only


def test_where_nothing_may_move_nothing_is_drawn() -> None:
    model, generator = network(), seeded()
    before = state(model)
    train(model, split(12), weight_decay=0.1, only=frozenset(), generator=generator)
    assert changed(before, model) == set()
    assert torch.equal(generator.get_state(), seeded().get_state())


def test_flags_modes_and_gradients_are_as_before() -> None:
    model = network().eval()
    model[0].requires_grad_(False)
    before = state(model)
    train(model, split(8), only={"0.weight", "3.weight"})
    assert changed(before, model) == {"3.weight"}, "what the model itself freezes stays frozen"
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, False, True, True, True, True]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module.training for module in model.modules())


def test_flags_are_restored_when_the_deadline_comes() -> None:
    model = network().eval()

    def too_late() -> None:
        raise OutOfTime("late")

    with pytest.raises(OutOfTime):
        train(model, split(8), check_time=too_late, only={"3.weight"})
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not model[1].training


def test_time_is_checked_before_each_batch() -> None:
    checks: list[int] = []
    train(network(), split(10), epochs=3, check_time=lambda: checks.append(1))
    assert len(checks) == 9


def test_a_batch_of_one_is_skipped_only_where_batch_norm_trains() -> None:
    normalized, plain = network(), nn.Linear(4, 3)
    before, before_plain = state(normalized), state(plain)
    train(normalized, split(1))
    assert changed(before, normalized) == set()
    train(normalized, split(1), only={"3.weight"})
    assert changed(before, normalized) == {"3.weight"}, "a frozen BatchNorm needs no variance"
    train(plain, split(1))
    assert changed(before_plain, plain) == {"weight", "bias"}, "a device with less than one batch still trains"


def test_hook_sees_the_gradient_and_its_change_counts() -> None:
    """before_step adds 1 to every gradient: the one step of lr .1 ends .1 lower than without."""
    with_hook, without = nn.Linear(4, 3), nn.Linear(4, 3)
    without.load_state_dict(with_hook.state_dict())

    def pull() -> None:
        for parameter in with_hook.parameters():
            assert parameter.grad is not None
            parameter.grad += 1

    train(with_hook, split(8), batch_size=8, before_step=pull)
    train(without, split(8), batch_size=8)
    torch.testing.assert_close(with_hook.weight, without.weight - 0.1)


@given(examples=st.integers(1, 30), size=st.integers(1, 10), seed=st.integers(0, 5))
def test_an_epoch_sees_every_example_once(examples: int, size: int, seed: int) -> None:
    data = Split(torch.arange(examples).float()[:, None], torch.arange(examples))
    batches = list(data.batches(size, seeded(seed)))
    assert sorted(label for _, labels in batches for label in labels.tolist()) == list(range(examples))
    assert all(torch.equal(inputs[:, 0].long(), labels) for inputs, labels in batches)
    assert all(len(labels) == size for _, labels in batches[:-1])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_told_with_the_remedy(bad: float) -> None:
    model, data = nn.Linear(4, 3), split(4)
    data.inputs[3] = bad
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf).*lower lr"):
        train(model, data, batch_size=1)
    with pytest.raises(TrainingError, match="diverged"):
        evaluate(model, data)


def test_no_examples() -> None:
    model = nn.Linear(4, 3)
    with pytest.raises(TrainingError, match="at least one"):
        train(model, split(0), batch_size=1)
    with pytest.raises(TrainingError, match="no examples"):
        evaluate(model, split(0))


@pytest.mark.parametrize("times", [1, 85, 86, 200])
def test_evaluation_by_hand(times: int) -> None:
    """Outputs are the inputs: two of three right, losses log(1 + e^-1), log(1 + e^-1) and log(1 + e^1); over and over,
    in one batch and in several, the last of which is smaller."""
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
    three = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    found = evaluate(model, Split(three.repeat(times, 1), torch.tensor([0, 1, 1]).repeat(times)))
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.loss == pytest.approx((2 * math.log(1 + math.exp(-1)) + math.log(1 + math.exp(1))) / 3)
    assert found.examples == 3 * times


@pytest.mark.parametrize(
    ("shape", "batch"), [((1, 8, 8), 256), ((1, 28, 28), 167), ((3, 32, 32), 42), ((3, 224, 224), 16)]
)
def test_large_examples_are_evaluated_in_small_batches(shape: tuple[int, ...], batch: int) -> None:
    assert evaluation_batch(torch.zeros(1, *shape)) == batch


def test_evaluation_leaves_the_model_alone() -> None:
    model = network().train()
    model[1].eval()
    before = copy.deepcopy(model)
    evaluate(model, split(9))
    assert changed(state(before), model) == set()
    assert [module.training for module in model.modules()] == [module.training for module in before.modules()]


def test_training_does_not_import_torchs_compiler() -> None:
    """It would cost every round of a forked trainer two seconds and 60 MB."""
    program = (
        "import sys, torch\n"
        "from shared.training import Split, sgd\n"
        "data = Split(torch.randn(8, 4), torch.randint(0, 3, (8,)))\n"
        "sgd(torch.nn.Linear(4, 3), data, epochs=1, lr=.1, batch_size=4, momentum=.9, weight_decay=.1,\n"
        "    generator=torch.Generator(), check_time=lambda: None)\n"
        "sys.exit('torch._dynamo' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
