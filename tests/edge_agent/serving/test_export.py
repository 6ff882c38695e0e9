"""From template and personal tensors to the model in service: proved first, switched in one step, kept on refusal."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from edge_agent import slots
from edge_agent.acceptance import examine
from edge_agent.inference import Network
from edge_agent.torch_export import export as torch_export
from shared import onnx_file
from shared.errors import ConfigError, ExportError
from shared.files import sync_directory, sync_file
from shared.onnx_file import parse, properties

Personal = Any  # the record of conftest.py


def round_in_service(models: Path) -> int:
    """Loads the model in service, so a torn one fails."""
    data = (slots.in_service(models) / slots.MODEL).read_bytes()
    onnx.checker.check_model(parse(data), full_check=True)
    return int(properties(parse(data))["round"])


def test_the_personal_model_goes_into_service_with_its_metrics(personal: Personal) -> None:
    metrics = personal.export()
    version = slots.in_service(personal.models)
    assert metrics["parity"] <= 1e-5
    assert metrics["onnx_bytes"] == (version / slots.MODEL).stat().st_size
    assert metrics["onnx_bytes_dense"] == len(personal.template.read_bytes())
    assert metrics["onnx_bytes"] < 0.5 * metrics["onnx_bytes_dense"]
    assert 0 < metrics["latency_ms"] <= metrics["latency_ms_p95"]
    assert metrics["latency_ms_dense"] > 0
    network = Network(version / slots.MODEL, personal.profile)
    assert (network.card.run, network.card.round, network.card.labels[1]) == ("run", 3, "digit 1")
    for size in (1, 5, 150):
        inputs = torch.randn(size, 1, 8, 8)
        with torch.no_grad():
            expected = personal.network(inputs).numpy()
        np.testing.assert_allclose(network.run(inputs.numpy()), expected, atol=1e-5)


def test_the_file_in_service_tells_nothing_about_this_machine(personal: Personal, tmp_path: Path) -> None:
    personal.export()
    model = parse((slots.in_service(personal.models) / slots.MODEL).read_bytes())
    del model.graph.initializer[:]
    data = model.SerializeToString()
    for leak in (str(tmp_path), str(Path(__file__).parents[3]), "site-packages", "self.", "stack_trace"):
        assert leak.encode() not in data


def test_the_torch_path_makes_the_same_network(personal: Personal, tmp_path: Path) -> None:
    personal.export()
    version = slots.in_service(personal.models)
    size = torch_export(str(version), str(tmp_path / "torch.onnx"))
    assert size == (tmp_path / "torch.onnx").stat().st_size
    inputs = np.random.default_rng(0).normal(size=(5, 1, 8, 8)).astype(np.float32)
    ours, torchs = (Network(path, personal.profile) for path in (version / slots.MODEL, tmp_path / "torch.onnx"))
    np.testing.assert_allclose(ours.run(inputs), torchs.run(inputs), atol=1e-5)
    assert ours.card == torchs.card


def test_the_torch_path_imports_no_model_that_is_not_trusted(personal: Personal, tmp_path: Path) -> None:
    personal.export()
    version = slots.in_service(personal.models)
    model = onnx.load(version / slots.MODEL)
    onnx.helper.set_model_props(model, {"model": "antigravity:fly"})
    onnx.save(model, version / slots.MODEL)
    with pytest.raises(ConfigError, match="antigravity:fly"):
        torch_export(str(version), str(tmp_path / "out.onnx"))


# --- what is refused ------------------------------------------------------------------------------------------------


def external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def external_in_name_only(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].external_data.add(key="location", value="../../secret")


def custom_domain(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.example"
    model.opset_import.add(domain="com.example", version=1)


def custom_domain_unimported(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.microsoft"


def loop(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Loop"


def subgraph(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("body", onnx.GraphProto(name="g")))


def function(model: onnx.ModelProto) -> None:
    model.functions.add(name="f", domain="")


def missing_initializer(model: onnx.ModelProto) -> None:
    del model.graph.initializer[0]


def twice(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def length_bomb(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 2**40


def negative(model: onnx.ModelProto) -> None:
    for axis in (0, 1):
        model.graph.initializer[0].dims[axis] = -model.graph.initializer[0].dims[axis]


def strings(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = onnx.TensorProto.STRING


def old_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 11


def other_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "x"


def foreign_metadata(model: onnx.ModelProto) -> None:
    onnx.helper.set_model_props(model, {"path": "/home/user"})


def broken_wiring(model: onnx.ModelProto) -> None:
    model.graph.node[-1].input[0] = "nowhere"


def other_network(model: onnx.ModelProto) -> None:
    """Same tensors, other function: only the parity check can tell."""
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type = "Tanh"


def impossible_shape(model: onnx.ModelProto) -> None:
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    conv.attribute.extend([onnx.helper.make_attribute("strides", [0, 0])])


def weight_behind_int8(model: onnx.ModelProto) -> None:
    """The coordinator's own weight, where the device's should be."""
    weight = model.graph.initializer[0]
    name = weight.name
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight).astype(np.int8), "hidden"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.01), "scale"))
    model.graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", ["hidden", "scale"], [name]))


TAMPERED = [
    weight_behind_int8,
    external,
    external_in_name_only,
    custom_domain,
    custom_domain_unimported,
    loop,
    subgraph,
    function,
    missing_initializer,
    twice,
    length_bomb,
    negative,
    strings,
    old_opset,
    other_input,
    foreign_metadata,
    broken_wiring,
    other_network,
    impossible_shape,
]


@pytest.mark.parametrize("tamper", TAMPERED, ids=lambda function: function.__name__)
def test_a_tampered_template_is_refused_and_the_old_model_stays(
    personal: Personal, tamper: Callable[[onnx.ModelProto], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_agent.export.accept", examine)  # in this process: one process per case costs seconds
    personal.export(1)
    model = onnx.load_from_string(personal.template.read_bytes())
    tamper(model)
    personal.template.unlink()
    personal.template.write_bytes(model.SerializeToString())
    with pytest.raises(ExportError):
        personal.export(2)
    assert round_in_service(personal.models) == 1
    assert not (personal.models / "incoming").exists()


@pytest.mark.parametrize("keep", [0, 1, 100, -1000, -1])
def test_a_truncated_template_is_refused(personal: Personal, keep: int) -> None:
    data = personal.template.read_bytes()
    personal.template.write_bytes(data[:keep])
    with pytest.raises(ExportError):
        personal.export()
    with pytest.raises(ExportError, match="no model is in service"):
        slots.in_service(personal.models)


def test_a_giant_template_is_refused_before_it_is_read(personal: Personal) -> None:
    with personal.template.open("r+b") as file:
        file.truncate(onnx_file.MAX_BYTES + 1)  # sparse: takes no space
    with pytest.raises(ExportError, match="larger"):
        personal.export()
    with pytest.raises(ExportError, match="larger than the 10 "):
        parse(bytes(11), limit=10)


def test_a_model_that_differs_from_the_trainers_is_refused_and_the_old_one_stays(
    personal: Personal, tmp_path: Path
) -> None:
    personal.export(1)
    with np.load(personal.reference) as arrays:
        inputs, logits = arrays["inputs"], arrays["logits"]
    wrong = tmp_path / "wrong.npz"
    scale = max(1.0, float(np.abs(logits).max()))
    for offset, match in ((2e-4, "differ"), (np.nan, "differ")):
        moved = logits.copy()
        moved[3, 4] += offset * scale
        np.savez(wrong, inputs=inputs, logits=moved)
        with pytest.raises(ExportError, match=match):
            personal.export(2, reference=wrong)
        assert round_in_service(personal.models) == 1
    np.savez(wrong, inputs=inputs, logits=logits[:, :-1])
    with pytest.raises(ExportError, match="shape"):
        personal.export(2, reference=wrong)
    np.savez(wrong, inputs=np.full_like(inputs, np.inf), logits=logits)
    with pytest.raises(ExportError, match="not finite"):
        personal.export(2, reference=wrong)
    assert round_in_service(personal.models) == 1


def test_a_runtime_that_dies_of_the_model_takes_only_the_child_with_it(
    personal: Personal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    personal.export(1)
    package = tmp_path / "path" / "onnxruntime"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    with pytest.raises(ExportError, match="SIGILL"):
        personal.export(2)
    assert round_in_service(personal.models) == 1


# --- slots ----------------------------------------------------------------------------------------------------------


def test_the_previous_version_is_kept_and_comes_back(personal: Personal) -> None:
    with pytest.raises(ExportError, match="nothing to go back to"):
        slots.rollback(personal.models)
    for round_ in (1, 2, 3):
        personal.export(round_)
        assert round_in_service(personal.models) == round_
    for expected in (2, 3, 2):
        slots.rollback(personal.models)
        assert round_in_service(personal.models) == expected
    personal.export(4)
    slots.rollback(personal.models)
    assert round_in_service(personal.models) == 2


class Crash(BaseException):
    """Power is cut."""


def crashing(function: Callable[..., Any], countdown: list[int]) -> Callable[..., Any]:
    """The function, unless it is the n-th change of the disk."""

    def step(*args: Any, **kwargs: Any) -> Any:
        if countdown[0] == 0:
            raise Crash
        countdown[0] -= 1
        return function(*args, **kwargs)

    return step


def prepare_copy(models: Path, round_: int) -> None:
    """The version in service once more, under another round, as `export_personal` prepares it."""
    source = slots.in_service(models)
    incoming = slots.prepare(models)
    shutil.copytree(source, incoming, dirs_exist_ok=True)
    model = onnx.load(incoming / slots.MODEL)
    onnx.helper.set_model_props(model, {**properties(model), "round": str(round_)})
    onnx.save(model, incoming / slots.MODEL)


def test_a_crash_at_any_step_leaves_the_old_model_or_the_new_one(
    personal: Personal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cuts before the first, second, ... change of the disk, until an installation gets through."""
    monkeypatch.setattr("edge_agent.export.accept", lambda *_: {})
    personal.export(0)
    personal.export(1)
    switched: list[bool] = []
    crashed = True
    while crashed:
        old, new = round_in_service(personal.models), 2 + len(switched)
        prepare_copy(personal.models, new)
        with monkeypatch.context() as patch:
            countdown = [len(switched)]
            patch.setattr(slots, "sync_file", crashing(sync_file, countdown))
            patch.setattr(slots, "sync_directory", crashing(sync_directory, countdown))
            patch.setattr("shutil.rmtree", crashing(shutil.rmtree, countdown))
            for name in ("replace", "symlink_to", "unlink"):
                patch.setattr(Path, name, crashing(getattr(Path, name), countdown))
            try:
                slots.commit(personal.models)
                crashed = False
            except Crash:
                pass
        found = round_in_service(personal.models)
        assert found in (old, new)
        switched.append(found == new)
    assert len(switched) > 8
    assert switched == sorted(switched)  # the old one up to the switch, the new one from then on
    slots.rollback(personal.models)
    assert round_in_service(personal.models) == old
