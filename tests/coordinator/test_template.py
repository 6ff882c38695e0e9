"""The dense template: whole, clean, dynamic, and equal to torch."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from coordinator.template import dense_template, export_global
from edge_agent.quantization import quantize
from edge_agent.torch_export import reference_onnx
from shared.channel_trace import channel_layout
from shared.errors import ExportError, ModelError
from shared.model_state import state_tensors
from shared.models import build_model, example_input
from shared.onnx_file import INPUT, OUTPUT, ModelCard, fill, parse, properties, state_names
from shared.onnx_runtime import open_session, optimize
from shared.onnx_torch import OPSET
from shared.pruning import shrink

LEAKS = (b"site-packages", str(Path(__file__).parents[2]).encode(), b"def forward", b"self.", b"File ", b"stack_trace")


def stirred(model: nn.Module) -> nn.Module:
    """In evaluation mode, with BatchNorm statistics that matter."""
    generator = torch.Generator().manual_seed(1)
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + (0.5 if "var" in name else -0.5))
    return model.eval()


def run(data: bytes, inputs: Tensor) -> np.ndarray:
    logits: np.ndarray = open_session(data).run([OUTPUT], {INPUT: inputs.numpy()})[0]
    return logits


def difference(data: bytes, model: nn.Module, inputs: Tensor) -> float:
    with torch.no_grad():
        expected = model(inputs).numpy()
    return float(np.abs(run(data, inputs) - expected).max() / max(1.0, np.abs(expected).max()))


MODELS = ["digitscnn", "lenet5", "har1d", "resnet18", "mobilenet_v2"]


@pytest.fixture(scope="module", params=MODELS)
def zoo(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, bytes]:
    """(model, example, template) of one model of the zoo."""
    model = stirred(build_model(request.param, {}, seed=0))
    example = example_input(request.param, {})
    return model, example, dense_template(model, example, {"run": "r1", "labels": '["cat", "dog"]'})


def batch(example: Tensor, size: int) -> Tensor:
    return torch.randn(size, *example.shape[1:], generator=torch.Generator().manual_seed(size))


def test_template_equals_torch_for_any_batch(zoo: tuple[nn.Module, Tensor, bytes]) -> None:
    model, example, template = zoo
    for size in (1, 5):
        assert difference(template, model, batch(example, size)) <= 1e-5


def test_every_tensor_of_the_state_is_an_initializer_and_nothing_else_is(zoo: tuple[nn.Module, Tensor, bytes]) -> None:
    model, _, template = zoo
    expected = {name: array for name, array in state_tensors(model).items() if "num_batches_tracked" not in name}
    found = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in parse(template).graph.initializer}
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_template_tells_nothing_about_this_machine(zoo: tuple[nn.Module, Tensor, bytes]) -> None:
    model = parse(zoo[2])
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        assert not part.doc_string
        assert not part.metadata_props
    assert properties(model) == {"run": "r1", "labels": '["cat", "dog"]'}
    del model.graph.initializer[:]  # random weights may spell anything
    assert not [leak for leak in LEAKS if leak in model.SerializeToString()]


def pruned(model: nn.Module, example: Tensor) -> nn.Module:
    layout = channel_layout(model, example)
    generator = np.random.default_rng(3)
    held = {}
    for group, units in layout.groups.items():
        held[group] = generator.random(units) < 0.6
        held[group][generator.integers(units)] = True
    return shrink(model, layout, held).eval()


def test_both_paths_agree_with_each_other_and_with_torch_on_pruned_networks(
    zoo: tuple[nn.Module, Tensor, bytes],
) -> None:
    model, example, template = zoo
    small = pruned(model, example)
    filled = fill(template, state_tensors(small), {})
    inputs = batch(example, 5)
    assert difference(filled, small, inputs) <= 1e-5
    assert len(filled) < 0.75 * len(template)
    if (
        sum(channel_layout(model, example).groups.values()) < 3000
    ):  # the exporter takes seconds for each layer of the others
        reference = reference_onnx(small, example, {})
        assert np.abs(run(reference, inputs) - run(filled, inputs)).max() <= 1e-5
        assert np.abs(run(reference, inputs[:1]) - run(filled, inputs[:1])).max() <= 1e-5


def test_the_optimized_file_is_the_same_network_in_standard_operators(zoo: tuple[nn.Module, Tensor, bytes]) -> None:
    model, example, template = zoo
    for network in (model, pruned(model, example)):
        filled = fill(template, state_tensors(network), {"round": "7"})
        data = optimize(filled)
        found = parse(data)
        onnx.checker.check_model(found, full_check=True)
        assert properties(found) == properties(parse(filled))
        assert found.opset_import[0].version == OPSET
        used = {node.op_type for node in found.graph.node}
        assert not used & {"BatchNormalization", "Constant", "ReduceMean"}
        for size in (1, 5):
            assert difference(data, network, batch(example, size)) <= 1e-5
        assert len(data) <= len(filled)


def settled(model: nn.Module, inputs: Tensor) -> nn.Module:
    """With the BatchNorm statistics of these inputs, without which a deep random network forgets what it was given."""
    model = copy.deepcopy(model).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(inputs)
    return model.eval()


def test_int8_follows_the_float32_network_dense_and_pruned(zoo: tuple[nn.Module, Tensor, bytes]) -> None:
    """Random weights tell classes apart by little, so this looks at what the inputs change in the logits."""
    model, example, template = zoo
    inputs = batch(example, 32)
    layers = sum(isinstance(module, nn.Conv1d | nn.Conv2d) for module in model.modules())
    least = 0.5 if layers > 50 else 0.9  # every random layer adds noise, and none has learned to bear it
    for network in (settled(model, inputs), settled(pruned(model, example), inputs)):
        float32 = optimize(fill(template, state_tensors(network), {}))
        assert difference(float32, network, inputs) <= 1e-4
        expected, found = (run(data, inputs) for data in (float32, quantize(float32, inputs.numpy(), "x86-64-avx2")))
        expected, found = expected - expected.mean(0), found - found.mean(0)
        assert (found * expected).sum() / np.linalg.norm(found) / np.linalg.norm(expected) > least


def test_the_global_model_is_written_without_torch(zoo: tuple[nn.Module, Tensor, bytes], tmp_path: Path) -> None:
    model, example, template = zoo
    moved = {name: array * 1.01 if array.dtype == np.float32 else array for name, array in state_tensors(model).items()}
    size = export_global(template, moved, {"round": "7"}, tmp_path / "global.onnx")
    data = (tmp_path / "global.onnx").read_bytes()
    assert size == len(data)
    assert properties(parse(data)) == {"run": "r1", "labels": '["cat", "dog"]', "round": "7"}
    assert np.abs(run(data, batch(example, 2)) - run(template, batch(example, 2))).max() > 1e-4


def conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 3))


class Tied(nn.Module):
    """One tensor under two names: only one of them can be filled."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.two = self.one

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.two(self.one(x))
        return result


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(4, 4)
        self.auxiliary = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.used(x)
        return result


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x.view(2, 4))
        return result


class Exotic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(torch.cumsum(x, 1))
        return result


@pytest.mark.parametrize("export", [dense_template, reference_onnx])
def test_a_model_in_training_mode_is_refused(export: Callable[[nn.Module, Tensor, dict[str, str]], bytes]) -> None:
    with pytest.raises(ModelError, match=r"eval\(\)"):
        export(conv().train(), torch.zeros(1, 1, 8, 8), {})


@pytest.mark.parametrize(
    ("model", "match"),
    [(Tied(), "would be lost"), (Unused(), r"auxiliary\.bias, auxiliary\.weight"), (FixedBatch(), "FixedBatch")],
)
def test_a_model_that_no_device_could_fill_is_refused(model: nn.Module, match: str) -> None:
    with pytest.raises(ModelError, match=match):
        dense_template(model.eval(), torch.zeros(2, 4), {})


def test_an_operator_that_devices_do_not_run_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="CumSum"):
        dense_template(Exotic().eval(), torch.zeros(2, 4), {})


def test_unknown_metadata_is_refused_before_it_can_leak() -> None:
    with pytest.raises(ModelError, match="home"):
        dense_template(conv().eval(), torch.zeros(1, 1, 8, 8), {"home": "/home/somebody"})


def test_nothing_is_printed_and_logging_is_as_before(capfd: pytest.CaptureFixture[str]) -> None:
    before = logging.getLogger("torch.onnx").level
    dense_template(conv().eval(), torch.zeros(1, 1, 8, 8), {})
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("torch.onnx").level == before


def test_a_template_takes_exactly_its_state() -> None:
    model = conv().eval()
    template = dense_template(model, torch.zeros(1, 1, 8, 8), {})
    tensors = state_tensors(model)
    assert state_names(parse(template)) == list(tensors)
    with pytest.raises(ExportError, match=r"0\.bias"):
        fill(template, {name: array for name, array in tensors.items() if name != "0.bias"}, {})
    with pytest.raises(ExportError, match="extra"):
        fill(template, {**tensors, "extra": tensors["0.bias"]}, {})
    with pytest.raises(ExportError, match=r"0\.bias: dtype float64"):
        fill(template, {**tensors, "0.bias": tensors["0.bias"].astype(np.float64)}, {})
    for shape in ((5,), (0,), (4, 1)):
        with pytest.raises(ExportError, match=r"0\.bias: shape"):
            fill(template, {**tensors, "0.bias": np.zeros(shape, np.float32)}, {})


def test_a_card_survives_its_properties() -> None:
    card = ModelCard(run="r", round=3, model="m", model_options={"classes": 10}, labels=("a", "b"), mean=(0.5,))
    assert ModelCard.from_properties(card.properties()) == card
    assert ModelCard.from_properties({}) == ModelCard()
    for wrong in ({"round": "x"}, {"round": "-1"}, {"mean": "[NaN]"}, {"labels": "7"}, {"round": "[" * 10**5}):
        with pytest.raises(ExportError, match="metadata"):
            ModelCard.from_properties(wrong)
