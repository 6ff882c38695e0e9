"""int8: quantized without saturation, taken only where it is as good and as fast, and shown beside the rest."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edge_agent import int8, slots
from edge_agent.data import load
from edge_agent.export_command import export
from edge_agent.inference import Network
from edge_agent.quantization import quantize
from shared.channel_trace import channel_layout
from shared.codec import encode_payload
from shared.config_data import DataSettings
from shared.errors import ExportError
from shared.model_state import state_tensors
from shared.models import example_input
from shared.onnx_file import INPUT, OUTPUT, fill, parse, properties
from shared.onnx_runtime import open_session, optimize
from shared.profiles import Profile, load_profile
from shared.pruning import shrink
from shared.tensors import Array, Subnet
from shared.training import Split, sgd

Personal = Any  # the record of conftest.py
ISAS = ("x86-64-avx2", "x86-64-vnni", "armv8.0", "armv8.2-dotprod")


def wants_int8(profile: Profile, isa: Any = "x86-64-avx2") -> Profile:
    inference = profile.inference.model_copy(update={"dtype": "int8"})
    return profile.model_copy(update={"inference": inference, "isa": isa})


def operators(data: bytes) -> Counter[str]:
    return Counter(node.op_type for node in parse(data).graph.node)


def in_service(personal: Personal) -> bytes:
    return (slots.in_service(personal.models) / slots.MODEL).read_bytes()


@pytest.fixture(scope="session")
def trained(dense: torch.nn.Module) -> tuple[torch.nn.Module, Any, Split]:
    """Half of digitscnn, trained on digits; what it holds; and the validation split."""
    data = load(DataSettings())
    layout = channel_layout(dense, example_input("digitscnn", {}))
    held = {group: np.arange(units) % 2 == 0 for group, units in layout.groups.items()}
    network = shrink(dense, layout, held)
    train, validation = (
        Split(torch.from_numpy(part.inputs), torch.from_numpy(part.labels)) for part in (data.train, data.validation)
    )
    generator = torch.Generator().manual_seed(0)
    sgd(network, train, epochs=3, lr=0.1, batch_size=32, generator=generator, check_time=lambda: None)
    return network.eval(), held, validation


@pytest.fixture
def skilled(make_personal: Callable[[str], Personal], trained: tuple[torch.nn.Module, Any, Split]) -> Personal:
    """A personal model that has learned something, on a device that wants int8."""
    personal = make_personal("skilled")
    network, held, validation = trained
    with torch.no_grad():
        logits = network(validation.inputs).numpy()
    metrics = {"parameters": 1e4, "parameters_dense": 3.8e4, "macs": 2.5e5, "macs_dense": 1.2e6}
    payload = encode_payload(Subnet(state_tensors(network), held), run="run", round=3, metrics=metrics)
    personal.personal.write_bytes(payload)
    arrays = {"inputs": validation.inputs.numpy(), "labels": validation.labels.numpy(), "logits": logits}
    np.savez(personal.reference, **arrays)
    return replace(personal, network=network, profile=wants_int8(personal.profile))


@pytest.fixture
def float32(skilled: Personal) -> bytes:
    """What the device would run without int8."""
    with_payload = fill(skilled.template.read_bytes(), state_tensors(skilled.network), {"mean": "[4.0]"})
    return optimize(with_payload)


def validation(personal: Personal) -> tuple[Array, Array]:
    with np.load(personal.reference) as arrays:
        return arrays["inputs"], arrays["labels"]


# --- the quantized file ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
def test_the_quantized_file_is_one_of_ours_and_computes_in_int8(skilled: Personal, float32: bytes, isa: str) -> None:
    inputs, _ = validation(skilled)
    data = quantize(float32, inputs, isa)
    model = parse(data)
    onnx.checker.check_model(model, full_check=True)
    assert properties(model) == properties(parse(float32))
    assert model.opset_import[0].version == parse(float32).opset_import[0].version
    counts = operators(data)
    assert counts["QuantizeLinear"] >= counts["Conv"] + counts["Gemm"] == 5
    assert counts["BatchNormalization"] == 0
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    weights = [tensor for tensor in tensors.values() if len(tensor.dims) > 1]
    assert {tensor.data_type for tensor in weights} == {TensorProto.INT8}
    # A scale per output channel of every convolution.
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and len(getattr(tensors.get(node.input[0]), "dims", ())) == 4:
            assert tensors[node.input[1]].dims == [tensors[node.input[0]].dims[0]]
    zeros = {tensor.data_type for tensor in tensors.values() if not tensor.dims and tensor.data_type != 1}
    assert zeros == {TensorProto.UINT8 if isa.startswith("x86") else TensorProto.INT8}
    assert len(data) < 0.5 * len(float32)


@pytest.mark.parametrize("isa", ISAS)
def test_the_batch_stays_dynamic(skilled: Personal, float32: bytes, isa: str) -> None:
    inputs, _ = validation(skilled)
    session = open_session(quantize(float32, inputs, isa))
    for size in (1, 3, 70):
        assert session.run([OUTPUT], {INPUT: inputs[:size]})[0].shape == (size, 10)


def test_only_where_16_bits_may_overflow_do_weights_keep_to_7_bits(skilled: Personal, float32: bytes) -> None:
    largest = {}
    for isa in ISAS:
        weights = [
            numpy_helper.to_array(tensor).astype(int)
            for tensor in parse(quantize(float32, validation(skilled)[0], isa)).graph.initializer
            if tensor.data_type == TensorProto.INT8 and len(tensor.dims) > 1
        ]
        largest[isa] = max(int(np.abs(weight).max()) for weight in weights)
    assert 2 * 255 * largest["x86-64-avx2"] < 2**15 <= 2 * 255 * largest["x86-64-vnni"]
    assert largest["armv8.0"] == largest["armv8.2-dotprod"] == 127


def saturating() -> tuple[bytes, Array]:
    """A linear layer whose neighbouring products are all as large as they can be and of one sign, and its inputs."""
    weight = np.ones((64, 4), np.float32) * np.array([1, -1, 0.5, 0.25], np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gemm", [INPUT, "weight", "bias"], [OUTPUT])],
        "saturating",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.zeros(4, np.float32), "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    inputs = np.concatenate([np.ones((2, 64)), np.zeros((1, 64)), np.full((1, 64), 0.75)]).astype(np.float32)
    return model.SerializeToString(), inputs


def test_the_variant_for_avx2_computes_exactly_what_numpy_computes_where_every_product_is_as_large_as_can_be() -> None:
    """Without the seventh bit, a processor that adds pairs of products in 16 bits is far off here; with it, none is."""
    float32, inputs = saturating()
    data = quantize(float32, inputs, "x86-64-avx2")
    (exact,) = ReferenceEvaluator(onnx.load_from_string(data)).run(None, {INPUT: inputs})
    (found,) = open_session(data).run([OUTPUT], {INPUT: inputs})
    expected = inputs @ np.ones((64, 1)) * np.array([1, -1, 0.5, 0.25])
    quantum = 128 / 255  # of the logits, which reach from -64 to 64
    assert np.abs(found - exact).max() <= quantum
    assert np.abs(found - expected).max() <= 2 * quantum


def test_a_network_that_the_quantizer_cannot_take_is_an_export_error(skilled: Personal, float32: bytes) -> None:
    inputs, _ = validation(skilled)
    with pytest.raises(ExportError, match="cannot quantize"):
        quantize(float32, inputs[:, :, :3], "armv8.0")
    with pytest.raises(ExportError):
        quantize(b"not a model", inputs, "armv8.0")


# --- the gate -------------------------------------------------------------------------------------------------------


def test_agreement_and_loss_are_counted_over_the_examples() -> None:
    labels = np.array([0, 1, 0, 1])
    float32 = np.array([[2.0, 1], [1, 2], [2, 1], [2, 1]])  # right, right, right, wrong
    quantized = np.array([[2.0, 1], [2, 1], [2, 1], [1, 2]])  # right, wrong, right, right
    found = int8.judge(quantized, float32, labels, 2.0)
    assert (found.agreement, found.accuracy_loss, found.speedup) == (0.5, 0.0, 2.0)
    assert int8.judge(quantized[:2], float32[:2], labels[:2], 2.0).accuracy_loss == 0.5
    quantized[0] = np.nan
    assert int8.judge(quantized, float32, labels, 2.0).agreement == 0.25


@pytest.mark.parametrize(
    ("wrong", "examples", "speedup", "refusal"),
    [
        (0, 1, 1.0, None),
        (0, 100, 0.95, None),
        (0, 100, 0.94, "slower"),
        (1, 100, 9.0, None),  # exactly a point
        (2, 100, 9.0, "accuracy"),
        (5, 500, 9.0, None),
        (4, 100, 9.0, "agrees"),
        (1, 33, 9.0, "agrees"),
        (1, 34, 9.0, "accuracy"),
    ],
)
def test_the_gate_is_at_three_percent_one_point_and_the_same_speed(
    wrong: int, examples: int, speedup: float, refusal: str | None
) -> None:
    labels = np.zeros(examples, np.int64)
    float32 = np.tile(np.array([1.0, 0.0]), (examples, 1))
    quantized = float32.copy()
    quantized[:wrong] = [0.0, 1.0]
    found = int8.judge(quantized, float32, labels, speedup).refusal
    assert found is None if refusal is None else refusal in str(found)


def test_nothing_that_is_not_a_number_passes_the_gate() -> None:
    for fields in ((np.nan, 0.0, 2.0), (1.0, np.nan, 2.0), (1.0, 0.0, np.nan)):
        assert int8.Verdict(*fields).refusal is not None


@pytest.fixture
def at_any_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate in this process, without its look at the clock: a network this small is about as fast either way."""
    monkeypatch.setattr(int8, "MIN_SPEEDUP", 0.0)
    monkeypatch.setattr("edge_agent.export.prefer_int8", int8.examine)


@pytest.mark.usefixtures("at_any_speed")
def test_int8_goes_into_service_where_it_is_as_good(skilled: Personal, float32: bytes) -> None:
    metrics = skilled.export()
    data = in_service(skilled)
    assert operators(data)["QuantizeLinear"] > 0
    assert metrics["int8"] == 1
    assert metrics["int8_agreement"] >= 0.97
    assert metrics["int8_accuracy_loss"] <= 0.01
    assert metrics["onnx_bytes"] == len(data) < 0.5 * len(float32)
    assert metrics["parity"] <= 1e-4
    version = slots.in_service(skilled.models)
    assert {path.name for path in version.iterdir()} == {
        slots.MODEL,
        slots.TEMPLATE,
        slots.PERSONAL,
        slots.REFERENCE,
    }
    inputs, labels = validation(skilled)
    network = Network(version / slots.MODEL, skilled.profile)
    assert np.mean(network.run(inputs).argmax(1) == labels) > 0.9
    assert network.card.labels[1] == "digit 1"


@pytest.mark.usefixtures("at_any_speed")
def test_rollback_goes_back_from_int8_to_float32_and_forth(skilled: Personal) -> None:
    replace(skilled, profile=load_profile("container")).export(1)
    skilled.export(2)
    assert operators(in_service(skilled))["QuantizeLinear"] > 0
    slots.rollback(skilled.models)
    assert operators(in_service(skilled))["QuantizeLinear"] == 0
    slots.rollback(skilled.models)
    assert operators(in_service(skilled))["QuantizeLinear"] > 0


@pytest.mark.usefixtures("at_any_speed")
def test_int8_that_was_calibrated_on_garbage_is_refused(skilled: Personal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges a thousand times too small: every activation is cut off."""
    monkeypatch.setattr(
        "edge_agent.quantization.quantize", lambda data, inputs, isa: quantize(data, inputs / 1000, isa)
    )
    metrics = skilled.export()
    assert metrics["int8"] == 0
    assert metrics["int8_agreement"] < 0.97
    assert operators(in_service(skilled))["QuantizeLinear"] == 0
    assert metrics["onnx_bytes"] == len(in_service(skilled))


def test_int8_that_is_slower_is_refused(skilled: Personal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "MIN_SPEEDUP", float("inf"))
    monkeypatch.setattr("edge_agent.export.prefer_int8", int8.examine)
    metrics = skilled.export()
    assert metrics["int8"] == 0
    assert metrics["int8_agreement"] >= 0.97
    assert metrics["int8_speedup"] > 0
    assert operators(in_service(skilled))["QuantizeLinear"] == 0


def test_in_its_own_process_the_gate_tells_what_it_did(skilled: Personal) -> None:
    """Whichever way this machine's clock decides."""
    metrics = skilled.export()
    data = in_service(skilled)
    assert metrics["int8"] == float(operators(data)["QuantizeLinear"] > 0)
    assert metrics["onnx_bytes"] == len(data)
    assert (metrics["int8"] == 1) == (metrics["int8_speedup"] >= int8.MIN_SPEEDUP)
    assert not (slots.in_service(skilled.models) / "int8.onnx").exists()


def test_a_quantizer_that_dies_leaves_float32(
    skilled: Personal, float32: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace(skilled, profile=load_profile("container")).export()
    version = slots.in_service(skilled.models)
    (version / "int8.onnx").write_bytes(b"half of it")
    package = tmp_path / "path" / "onnxruntime"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    before = in_service(skilled)
    assert int8.prefer_int8(version, skilled.profile) == {"int8": 0.0}
    assert in_service(skilled) == before
    assert not (version / "int8.onnx").exists()


# --- side by side ---------------------------------------------------------------------------------------------------


def compared(personal: Personal, *arguments: str) -> str:
    state = str(personal.models.parent)
    result = CliRunner().invoke(export, ["--state-dir", state, "--compare", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.usefixtures("at_any_speed")
def test_compare_shows_what_is_in_service_beside_what_it_came_from(skilled: Personal, float32: bytes) -> None:
    skilled.export()
    report = json.loads(compared(skilled, "--json"))
    inputs, labels = validation(skilled)
    rows = report["rows"]
    assert list(rows) == ["dense", "shrunk", "int8"]
    assert (report["in_service"], report["examples"]) == ("int8", len(labels))
    dense, shrunk, quantized = rows.values()
    with torch.no_grad():
        correct = skilled.network(torch.from_numpy(inputs)).numpy().argmax(1) == labels
    assert shrunk["accuracy"] == pytest.approx(correct.mean())
    assert quantized["accuracy"] == pytest.approx(correct.mean(), abs=0.01)
    assert (dense["accuracy"], dense["agreement"], shrunk["agreement"]) == (None, None, None)
    assert 0.97 <= quantized["agreement"] <= 1
    assert dense["bytes"] == skilled.template.stat().st_size
    assert quantized["bytes"] == len(in_service(skilled)) < shrunk["bytes"] < dense["bytes"]
    assert (dense["parameters"], shrunk["parameters"], quantized["macs"]) == (3.8e4, 1e4, 2.5e5)
    for row in rows.values():
        assert row["faster"] == pytest.approx(dense["latency"]["p50"] / row["latency"]["p50"])
        assert row["smaller"] == pytest.approx(dense["bytes"] / row["bytes"])


def test_compare_makes_int8_where_float32_is_in_service_and_leaves_no_trace(skilled: Personal) -> None:
    replace(skilled, profile=load_profile("container")).export()
    version = slots.in_service(skilled.models)
    before = {path.name: path.read_bytes() for path in version.iterdir()}
    lines = compared(skilled, "--profile", "rpi-5").splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["accuracy", "dense", "shrunk", "int8"]
    assert lines[1].split()[1:3] == ["-", "-"]
    assert lines[3].split()[1].endswith("%")
    assert lines[4].startswith("in service: shrunk")
    assert {path.name: path.read_bytes() for path in version.iterdir()} == before


def test_compare_says_why_there_is_no_int8(skilled: Personal, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> bytes:
        raise ExportError("no int8 for you")

    replace(skilled, profile=load_profile("container")).export()
    monkeypatch.setattr("edge_agent.compare.quantize", never)
    text = compared(skilled)
    assert [line.split()[0] for line in text.splitlines()[1:3]] == ["dense", "shrunk"]
    assert "no int8 for you" in text
