"""The network as a device serves it: normalized, batched, labelled, measured."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from edge_agent import slots
from edge_agent.examples import read_examples
from edge_agent.inference import Network
from edge_agent.latency import measure
from shared.errors import DataError, ExportError
from shared.onnx_runtime import available
from shared.profiles import load_profile

PROFILE = load_profile("container")


@pytest.fixture
def network(personal: Any) -> Network:
    personal.export()
    return Network(slots.in_service(personal.models) / slots.MODEL, PROFILE)


def test_raw_examples_are_normalized_as_the_card_says(network: Network, personal: Any) -> None:
    raw = np.random.default_rng(0).uniform(0, 16, (70, 1, 8, 8)).astype(np.float32)
    found = network.predict(raw)
    with torch.no_grad():
        logits = personal.network(torch.from_numpy((raw - 4) / 2))
    np.testing.assert_allclose(found.logits, logits.numpy(), atol=1e-5)
    np.testing.assert_allclose(found.probabilities, torch.softmax(logits, 1).numpy(), atol=1e-5)
    assert found.classes == tuple(logits.argmax(1).tolist())
    assert found.labels[0] == f"digit {found.classes[0]}"


def test_examples_of_another_shape_are_refused_with_both_shapes(network: Network) -> None:
    for shape in ((2, 1, 8, 9), (1, 8, 8), (0, 1, 8, 8)):
        with pytest.raises(DataError, match=r"\(1, 8, 8\)"):
            network.predict(np.zeros(shape, np.float32))


def test_a_card_that_does_not_fit_the_network_is_refused(network: Network, personal: Any, tmp_path: Path) -> None:
    model = onnx.load(slots.in_service(personal.models) / slots.MODEL)
    onnx.helper.set_model_props(model, {"mean": "[1, 2]"})
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(ExportError, match="mean"):
        Network(tmp_path / "odd.onnx", PROFILE)
    with pytest.raises(ExportError, match="not a file"):
        Network(tmp_path / "absent.onnx", PROFILE)


def test_providers_of_the_profile_are_filtered_and_the_cpu_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    here = ["CPUExecutionProvider", "XnnpackExecutionProvider", "CUDAExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: here)
    assert available(["CUDAExecutionProvider", "QNNExecutionProvider", "CPUExecutionProvider"]) == [
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ]
    assert available([]) == ["CPUExecutionProvider"]


def test_a_provider_that_is_not_there_leaves_the_cpu(personal: Any) -> None:
    wanted = PROFILE.model_copy(
        update={
            "inference": PROFILE.inference.model_copy(
                update={"providers": ("QNNExecutionProvider", "CPUExecutionProvider")}
            )
        }
    )
    assert Network(personal.template, wanted).providers == ["CPUExecutionProvider"]


@pytest.mark.parametrize(("memory", "arena"), [(512, False), (513, True)])
def test_small_devices_keep_no_arena(personal: Any, monkeypatch: pytest.MonkeyPatch, memory: int, arena: bool) -> None:
    """And threads sleep instead of spinning, on every device."""
    seen: list[Any] = []
    real = onnxruntime.InferenceSession

    def watched(model: bytes, options: Any, **rest: Any) -> Any:
        seen.append(options)
        return real(model, options, **rest)

    monkeypatch.setattr("onnxruntime.InferenceSession", watched)
    Network(personal.template, PROFILE.model_copy(update={"memory_mib": memory}), threads=2)
    (options,) = seen
    assert options.enable_cpu_mem_arena is arena
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_latencies_take_turns_and_are_percentiles() -> None:
    order: list[str] = []
    found = measure({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, seconds=0, at_least=40)
    assert order == ["a", "b"] * 43
    assert found["a"].runs == found["b"].runs == 40
    for latency in found.values():
        assert 0 <= latency.p50 <= latency.p95 <= latency.p99


# --- examples -------------------------------------------------------------------------------------------------------

SHAPE = (1, 2, 3)
BATCH = np.arange(12, dtype=np.float32).reshape(2, *SHAPE)


def read(path: Path, shape: tuple[int, ...] = SHAPE) -> dict[str, np.ndarray]:
    return {name.removeprefix(f"{path.parent}/"): array for name, array in read_examples([path], shape)}


def test_arrays_and_tables_are_read_as_they_are(tmp_path: Path) -> None:
    np.save(tmp_path / "batch.npy", BATCH.astype(np.float64))
    np.save(tmp_path / "one.npy", BATCH[1])
    np.savez(tmp_path / "named.npz", inputs=BATCH, labels=np.zeros(2))
    np.savez(tmp_path / "only.npz", anything=BATCH)
    (tmp_path / "rows.csv").write_text("a,b,c,d,e,f\n0,1,2,3,4,5\n6,7,8,9,10,11\n")
    for name in ("batch.npy", "named.npz", "only.npz", "rows.csv"):
        found = read(tmp_path / name)
        assert list(found) == [f"{name}[0]", f"{name}[1]"]
        assert np.array_equal(np.stack(list(found.values())), BATCH)
        assert found[f"{name}[0]"].dtype == np.float32
    assert np.array_equal(read(tmp_path / "one.npy")["one.npy"], BATCH[1])


def test_a_table_of_a_time_series_is_cut_into_whole_windows(tmp_path: Path) -> None:
    path = tmp_path / "walk.csv"
    path.write_text("x,y\n" + "".join(f"{step},{-step}\n" for step in range(7)))
    found = list(read_examples([path], (2, 3)))
    assert [name for name, _ in found] == [f"{path}[0]", f"{path}[1]"]
    assert np.array_equal(found[1][1], [[3, 4, 5], [-3, -4, -5]])


def test_images_are_resized_and_become_channels_of_bytes(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "photos"
    (folder / "inner").mkdir(parents=True)
    image.new("RGB", (20, 10), (255, 0, 51)).save(folder / "b.png")
    image.new("L", (4, 4), 255).save(folder / "inner" / "c.JPG")
    (folder / "notes.txt").write_text("no image")
    colour = [array for _, array in read_examples([folder], (3, 5, 7))]
    assert [array.shape for array in colour] == [(3, 5, 7)] * 2
    np.testing.assert_allclose(colour[0][:, 2, 3], [255, 0, 51])
    (name, grey), _ = read_examples([folder], (1, 5, 7))
    assert name.endswith("b.png")
    np.testing.assert_allclose(grey, 0.299 * 255 + 0.114 * 51, atol=1)


def test_what_cannot_be_read_is_named_with_what_would_be_right(tmp_path: Path) -> None:
    np.save(tmp_path / "shape.npy", np.zeros((2, 3, 3)))
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "text.npy", np.array(["a"]))
    np.savez(tmp_path / "two.npz", a=BATCH, b=BATCH)
    (tmp_path / "words.csv").write_text("a,b\nc,d\n")
    (tmp_path / "empty.csv").write_text("a,b\n")
    (tmp_path / "narrow.csv").write_text("1,2\n")
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "model.pt").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for name, match in {
        "shape.npy": r"neither \(1, 2, 3\) nor a batch",
        "object.npy": "allow_pickle",
        "text.npy": "not numeric",
        "two.npz": "`inputs`",
        "words.csv": "words.csv",
        "empty.csv": "no rows",
        "narrow.csv": "neither",
        "broken.png": "broken.png",
        "model.pt": r"'\.pt'",
        "folder": "no images",
        "absent.npy": "absent",
    }.items():
        with pytest.raises(DataError, match=match):
            list(read_examples([tmp_path / name], SHAPE))
    with pytest.raises(DataError, match="not images"):
        list(read_examples([tmp_path / "broken.png"], (6, 128)))
