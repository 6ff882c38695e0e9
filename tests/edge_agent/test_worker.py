"""The worker on scikit-learn's digits: files and metrics of a task, what it refuses, and how failures are told."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coordinator.template import dense_template
from edge_agent.data import DeviceData, load
from edge_agent.job import MEMORY, OUTCOME, PERSONAL, REFERENCE, UPDATE, Job, Outcome
from edge_agent.plan import Read
from edge_agent.worker import attempt, main, run_job
from shared.algorithms import algorithm
from shared.channel_trace import channel_layout
from shared.codec import decode_payload, encode_payload
from shared.config_data import DataSettings, PartitionSettings
from shared.encoding import Encoding
from shared.errors import ConfigError, DataError, MalformedPayload, ModelError, OutOfTime, StateError, TrainingError
from shared.messages import Blob, Plan, Task
from shared.model_state import load_tensors, state_tensors
from shared.models import build_model, example_input
from shared.profiles import Profile
from shared.pruning import narrow, shrink
from shared.tensors import Subnet, Tensors
from shared.training import Evaluation, Split, evaluate

OPTIONS = {"width": 8}
DATA = DataSettings(partition=PartitionSettings(kind="iid", devices=8, index=3))
LAYOUT = channel_layout(build_model("digitscnn", OPTIONS, seed=0), example_input("digitscnn", OPTIONS))


def initial(names: Callable[[str], bool] = lambda name: True) -> Tensors:
    tensors = state_tensors(build_model("digitscnn", OPTIONS, seed=0))
    return {name: array for name, array in tensors.items() if names(name)}


def payload(path: Path) -> Any:
    data = path.read_bytes()
    return decode_payload(data, limit=2**24)


def examples(part: Any) -> Split:
    return Split(torch.from_numpy(part.inputs), torch.from_numpy(part.labels))


class MakeJob:
    """Jobs of one device of one run, each with an output folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.made = 0

    def __call__(
        self,
        name: str = "fedavg",
        *,
        action: Any = "train",
        number: int = 1,
        download: Subnet | None = None,
        memory: Path | None = None,
        plan: dict[str, Any] | None = None,
        run: str = "run",
        device: str = "device",
        data: DataSettings = DATA,
        trust: tuple[str, ...] = (),
        deadline_s: float = 60.0,
        batch_size: int = 32,
        link: str = "ethernet",
        template: Path | None = None,
        **hyperparameters: Any,
    ) -> Job:
        self.made += 1
        out = self.root / f"out{self.made}"
        out.mkdir()
        path = self.root / f"download{self.made}"
        path.write_bytes(encode_payload(download or Subnet(initial()), run=run, round=number))
        fields: dict[str, Any] = {
            "model": "digitscnn",
            "model_options": OPTIONS,
            "algorithm": name,
            "hyperparameters": hyperparameters,
            "layout": LAYOUT.digest if ":" not in name and algorithm(name).prunes else None,
        }
        size = path.stat().st_size
        blob = Blob(digest=hashlib.sha256(path.read_bytes()).hexdigest(), size=size, chunk=1024)
        return Job(
            task=Task(
                run=run,
                action=action,
                round=number,
                plan=Plan(**{**fields, **(plan or {})}),
                payload=blob,
                time_left_s=deadline_s,
            ),
            device=device,
            payload=path,
            memory=memory,
            out=out,
            data=data,
            template=template,
            profile=Profile.model_validate(
                {
                    "id": "test",
                    "title": "",
                    "cores": 1,
                    "memory_mib": 1024,
                    "training": {"batch_size": batch_size},
                    "link": {"kind": link},
                }
            ),
            threads=1,
            trust=trust,
            deadline_s=deadline_s,
        )


@pytest.fixture
def make_job(tmp_path: Path) -> MakeJob:
    return MakeJob(tmp_path)


# --- what comes out --------------------------------------------------------------------------------------------------


def test_a_trained_round_leaves_update_memory_and_metrics(make_job: MakeJob) -> None:
    job = make_job(number=4)
    outcome = run_job(job)
    update = payload(job.out / UPDATE)
    count = len(load(DATA).train)
    assert (update.header.run, update.header.round) == ("run", 4)
    assert (update.header.examples, update.header.weight, outcome.examples) == (count, count, count)
    assert update.header.metrics == outcome.metrics
    assert update.subnet.tensors.keys() == initial().keys()
    assert not np.array_equal(update.subnet.tensors["0.weight"], initial()["0.weight"])
    assert {path.name for path in job.out.iterdir()} == {UPDATE, MEMORY}


def test_metrics_are_those_of_what_was_received_on_the_test_split(make_job: MakeJob) -> None:
    """Evaluating after the training would make FedAvg look personalized."""
    model = build_model("digitscnn", OPTIONS, seed=5)
    expected = evaluate(model, examples(load(DATA).test))
    metrics = run_job(make_job(download=Subnet(state_tensors(model)), epochs=10)).metrics
    assert metrics["accuracy"] == metrics["accuracy_global"] == expected.accuracy
    assert metrics["loss"] == pytest.approx(expected.loss)
    assert metrics["parameters"] == metrics["parameters_dense"] == sum(p.numel() for p in model.parameters())
    assert metrics["macs"] == metrics["macs_dense"] > 0


@pytest.mark.parametrize(
    ("name", "action", "hyperparameters", "evaluations"),
    [
        ("fedavg", "train", {}, 1),  # what it received is its model
        ("fedavg", "personalize", {}, 1),
        ("fedavg", "personalize", {"finetune_epochs": 1}, 2),
        ("fedper", "train", {}, 1),  # its head is still the initial one
        ("hermes", "train", {}, 1),
    ],
)
def test_one_model_is_evaluated_once(
    make_job: MakeJob,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    action: str,
    hyperparameters: dict[str, Any],
    evaluations: int,
) -> None:
    """The same numbers would come again, for the same time."""
    counted = []

    def counting(model: torch.nn.Module, split: Split) -> Evaluation:
        counted.append(model)
        return evaluate(model, split)

    monkeypatch.setattr("edge_agent.worker.evaluate", counting)
    shared = algorithm(name).share(build_model("digitscnn", OPTIONS, seed=0), algorithm(name).hyperparameters())
    moved = {key: array + np.asarray(0.01, array.dtype) for key, array in initial(shared.__contains__).items()}
    download = Subnet(moved)
    metrics = run_job(make_job(name, action=action, download=download, **hyperparameters)).metrics
    assert len(counted) == evaluations
    assert (metrics["accuracy"] == metrics["accuracy_global"]) or evaluations == 2
    assert metrics["test_examples"] == len(load(DATA).test)


@pytest.mark.parametrize(("number", "evaluated"), [(1, True), (2, False), (3, False), (4, True), (7, True)])
def test_a_plan_says_how_often_rounds_are_evaluated(make_job: MakeJob, number: int, evaluated: bool) -> None:
    """And that changes nothing else: not what is trained, not the personalization."""
    seldom, always = (make_job(number=number, plan={"evaluate_every": every}) for every in (3, 1))
    told, full = run_job(seldom).metrics, run_job(always).metrics
    left_out = set() if evaluated else {"accuracy", "accuracy_global", "loss", "test_examples"}
    assert told == {name: value for name, value in full.items() if name not in left_out}
    one, other = payload(seldom.out / UPDATE).subnet.tensors, payload(always.out / UPDATE).subnet.tensors
    assert all(np.array_equal(one[name], other[name]) for name in initial())
    final = make_job(action="personalize", number=number + 1, plan={"evaluate_every": 1000})
    assert "accuracy" in run_job(final).metrics


def test_uniform_weighting(make_job: MakeJob) -> None:
    job = make_job(weighting="uniform")
    run_job(job)
    assert payload(job.out / UPDATE).header.weight == 1


def test_the_same_job_gives_the_same_bytes_whatever_ran_before(make_job: MakeJob) -> None:
    first, second = make_job("hermes", accuracy_threshold=0.0), make_job("hermes", accuracy_threshold=0.0)
    run_job(first)
    torch.manual_seed(123)
    drawn = torch.get_rng_state()
    run_job(second)
    assert (first.out / UPDATE).read_bytes() == (second.out / UPDATE).read_bytes()
    assert (first.out / MEMORY).read_bytes() == (second.out / MEMORY).read_bytes()
    assert torch.equal(torch.get_rng_state(), drawn), "the process' own randomness is left alone"


@pytest.mark.parametrize("change", [{"device": "other"}, {"number": 2}, {"plan": {"seed": 1}}])
def test_device_round_and_seed_draw_differently(make_job: MakeJob, change: dict[str, Any]) -> None:
    first, second = make_job(), make_job(**change)
    run_job(first)
    run_job(second)
    one, other = (payload(job.out / UPDATE).subnet.tensors["0.weight"] for job in (first, second))
    assert not np.array_equal(one, other)


def test_the_profile_bounds_the_batch(make_job: MakeJob) -> None:
    jobs = make_job(batch_size=4), make_job(batch_size=32), make_job(plan={"hyperparameters": {"batch_size": 4}})
    for job in jobs:
        run_job(job)
    small, large, asked = (payload(job.out / UPDATE).subnet.tensors["0.weight"] for job in jobs)
    assert np.array_equal(small, asked)
    assert not np.array_equal(small, large)


def test_personalization_leaves_a_model_and_what_proves_it(make_job: MakeJob) -> None:
    trained = make_job("hermes", accuracy_threshold=0.0, pruning_amount=0.5, multiple=2)
    run_job(trained)
    again: dict[str, Any] = {"download": Subnet(initial()), "memory": trained.out / MEMORY}
    job = make_job("hermes", action="personalize", number=2, finetune_epochs=1, **again)
    outcome = run_job(job)
    assert {path.name for path in job.out.iterdir()} == {PERSONAL, REFERENCE, MEMORY}
    personal = payload(job.out / PERSONAL).subnet
    model = shrink(build_model("digitscnn", OPTIONS, seed=0), LAYOUT, personal.held)
    load_tensors(model, personal.tensors)
    with np.load(job.out / REFERENCE, allow_pickle=False) as reference:
        inputs, labels, logits = reference["inputs"], reference["labels"], reference["logits"]
    data = load(DATA)
    np.testing.assert_array_equal(inputs, data.validation.inputs)
    np.testing.assert_array_equal(labels, data.validation.labels)
    assert labels.dtype == np.int64
    with torch.no_grad():
        np.testing.assert_allclose(model.eval()(torch.from_numpy(inputs)).numpy(), logits, atol=1e-6)
    metrics = outcome.metrics
    assert metrics["accuracy"] == evaluate(model, examples(data.test)).accuracy
    assert metrics["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert metrics["parameters"] <= 0.5 * metrics["parameters_dense"]
    assert metrics["channels"] == sum(int(mask.sum()) for mask in personal.held.values()) < metrics["channels_dense"]
    assert metrics["macs"] < metrics["macs_dense"]
    assert metrics["latency_ms_eager"] > 0
    assert (outcome.labels, outcome.mean, outcome.std) == (
        data.classes,
        data.normalization.mean,
        data.normalization.std,
    )


def test_finetuning_is_after_the_last_round_only(make_job: MakeJob) -> None:
    plain = make_job(action="personalize")
    tuned = make_job(action="personalize", finetune_epochs=2)
    before, after = run_job(plain).metrics, run_job(tuned).metrics
    assert before["accuracy"] == before["accuracy_global"] == after["accuracy_global"] < after["accuracy"]


def test_fedbabu_reports_its_initial_and_its_personalized_accuracy(make_job: MakeJob) -> None:
    """Initial is the global body under the head that the run's seed drew, on every device the same; during the rounds
    a device has no other model."""
    trained = initial(lambda name: not name.startswith("14."))
    for number in (1, 2, 3):
        job = make_job("fedbabu", download=Subnet(trained), number=number)
        metrics = run_job(job).metrics
        assert metrics["accuracy"] == metrics["accuracy_global"]
        trained = payload(job.out / UPDATE).subnet.tensors
    assert not any(name.startswith("14.") for name in trained)
    model = build_model("digitscnn", OPTIONS, seed=0)
    load_tensors(model, trained)
    memory, download = job.out / MEMORY, Subnet(trained)
    last = run_job(make_job("fedbabu", action="personalize", number=4, download=download, memory=memory)).metrics
    assert last["accuracy_global"] == evaluate(model, examples(load(DATA).test)).accuracy
    assert last["accuracy"] > last["accuracy_global"]


# --- what a device remembers -----------------------------------------------------------------------------------------


def test_local_tensors_stay_on_the_device_and_come_back(make_job: MakeJob) -> None:
    body = Subnet(initial(lambda name: not name.startswith("14.")))
    first = make_job("fedper", download=body)
    run_job(first)
    sent, kept = (payload(first.out / name) for name in (UPDATE, MEMORY))
    head = kept.subnet.tensors["local/14.weight"]
    assert not np.array_equal(head, initial()["14.weight"])
    assert sent.subnet.tensors.keys() == body.tensors.keys()
    assert head.tobytes() not in (first.out / UPDATE).read_bytes()
    second = make_job("fedper", download=body, memory=first.out / MEMORY, number=2, epochs=0)
    metrics = run_job(second).metrics
    assert np.array_equal(payload(second.out / MEMORY).subnet.tensors["local/14.weight"], head)
    assert metrics["accuracy_global"] == run_job(make_job("fedper", download=body, epochs=0)).metrics["accuracy"]


def test_a_pruned_device_goes_on_from_its_channels(make_job: MakeJob) -> None:
    first = make_job("hermes", accuracy_threshold=0.0, multiple=2)
    run_job(first)
    second = make_job("hermes", accuracy_threshold=0.0, multiple=2, number=2, memory=first.out / MEMORY)
    run_job(second)
    before, after = (payload(job.out / UPDATE).subnet.held for job in (first, second))
    assert all((after[group] <= before[group]).all() for group in LAYOUT.groups)
    assert sum(mask.sum() for mask in after.values()) < sum(mask.sum() for mask in before.values())


def test_the_profile_says_in_which_multiples_channels_are_kept(make_job: MakeJob) -> None:
    job = make_job("hermes", accuracy_threshold=0.0, pruning_amount=0.5)
    run_job(job)
    held = payload(job.out / UPDATE).subnet.held
    assert {int(mask.sum()) % 8 for mask in held.values()} == {0}, "8, which profiles have unless they say otherwise"


def test_memory_of_another_run_or_model_is_refused(make_job: MakeJob) -> None:
    first = make_job("hermes", accuracy_threshold=0.0)
    run_job(first)
    with pytest.raises(StateError, match="of run run, the task of run other"):
        run_job(make_job("hermes", run="other", memory=first.out / MEMORY))
    first.out.joinpath(MEMORY).write_bytes(
        encode_payload(Subnet({"local/nothing": np.zeros(3, np.float32)}), run="run", round=1)
    )
    with pytest.raises(StateError, match="does not fit"):
        run_job(make_job("hermes", memory=first.out / MEMORY))


# --- encodings -------------------------------------------------------------------------------------------------------


def test_the_link_and_the_plan_decide_on_the_encoding(make_job: MakeJob) -> None:
    """Lossy ones carry differences, which with what was received make the model that was trained."""
    exact = make_job()
    run_job(exact)
    trained = payload(exact.out / UPDATE).subnet.tensors
    sizes = {}
    for link, allowed, expected in (
        ("ethernet", ("float32", "int8"), "float32"),
        ("wifi", ("float32", "float16", "int8"), "float16"),
        ("lte", ("float32", "float16", "int8"), "int8"),
        ("nb-iot", ("topk", "int8"), "topk"),
        ("nb-iot", ("float32",), "float32"),
        ("ethernet", ("int8",), "int8"),
    ):
        job = make_job(plan={"encodings": allowed}, link=link)
        outcome = run_job(job)
        update = payload(job.out / UPDATE)
        assert outcome.encoding == update.header.encoding == expected
        assert update.header.delta == (expected != "float32")
        assert ("encoding_loss" in outcome.metrics) == update.header.delta
        start = initial() if update.header.delta else {}
        for name, array in update.subnet.tensors.items():
            change = trained[name] - initial()[name]
            close = np.abs(array + start.get(name, 0) * (array.dtype.kind == "f") - trained[name]).max()
            assert close <= {"topk": 1.0, "float32": 0.0}.get(expected, 0.01) * max(np.abs(change).max(), 1e-4), name
        sizes[expected] = (job.out / UPDATE).stat().st_size
    assert sizes["topk"] < sizes["int8"] < sizes["float16"] < sizes["float32"]
    assert sizes["topk"] < 0.15 * sizes["float32"]


def test_what_an_encoding_lost_is_in_the_next_update(make_job: MakeJob) -> None:
    """Also of a device that prunes in between; and a round that is done again gives the same bytes."""
    plan = {"encodings": ("topk",)}
    settings: dict[str, Any] = {"accuracy_threshold": 0.0, "pruning_amount": 0.3, "multiple": 2}
    first = make_job("hermes", plan=plan, link="nb-iot", **settings)
    run_job(first)
    memory, sent = payload(first.out / MEMORY).subnet.tensors, payload(first.out / UPDATE).subnet
    residual = {name.partition("/")[2]: array for name, array in memory.items() if name.startswith("residual/")}
    assert {array.shape == sent.tensors[name].shape for name, array in residual.items()} == {True}
    again = [
        make_job("hermes", plan=plan, link="nb-iot", number=2, memory=first.out / MEMORY, epochs=0, **settings)
        for _ in range(2)
    ]
    for job in again:
        run_job(job)
    assert (again[0].out / UPDATE).read_bytes() == (again[1].out / UPDATE).read_bytes()
    assert (again[0].out / MEMORY).read_bytes() == (again[1].out / MEMORY).read_bytes()
    update, left = payload(again[0].out / UPDATE).subnet, payload(again[0].out / MEMORY).subnet.tensors
    fewer = narrow(Subnet(residual, sent.held), LAYOUT, update.held).tensors
    assert fewer["0.weight"].shape != residual["0.weight"].shape
    for name, array in fewer.items():  # nothing was trained: all that is sent, or still left, was left before
        rest = left.get(f"residual/{name}", 0)
        np.testing.assert_allclose(update.tensors[name] + rest, array, atol=1e-6)


def test_without_a_loss_nothing_is_kept_for_later(make_job: MakeJob) -> None:
    job = make_job("hermes")
    run_job(job)
    groups = {path.partition("/")[0] for path in payload(job.out / MEMORY).subnet.tensors}
    assert groups <= {"held"}, "the values of what is held are sent anew"


def test_a_compressed_download_is_read(make_job: MakeJob) -> None:
    job = make_job()
    job.payload.write_bytes(encode_payload(Subnet(initial()), encoding=Encoding.INT8, run="run", round=1))
    size = job.payload.stat().st_size
    blob = job.task.payload.model_copy(update={"size": size})
    run_job(job.model_copy(update={"task": job.task.model_copy(update={"payload": blob})}))
    assert not payload(job.out / UPDATE).header.delta


def test_milliseconds_are_measured_with_the_coordinators_template(make_job: MakeJob, tmp_path: Path) -> None:
    """On this device, which takes far longer than the target, and so takes a step."""
    path = tmp_path / "template.onnx"
    path.write_bytes(
        dense_template(build_model("digitscnn", OPTIONS, seed=0).eval(), example_input("digitscnn", OPTIONS), {})
    )
    settings: dict[str, Any] = {"target": {"latency_ms": 1e-4}, "accuracy_threshold": 0.0, "multiple": 2}
    job = make_job("hermes", template=path, **settings)
    metrics = run_job(job).metrics
    assert metrics["parameters"] < metrics["parameters_dense"]
    assert payload(job.out / MEMORY).subnet.tensors["beginning/latency_ms"][0] > 0
    path.write_bytes(b"nonsense")
    with pytest.raises(TrainingError, match=r"target\.latency_ms cannot be measured: not an ONNX file"):
        run_job(make_job("hermes", template=path, **settings))


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["model", "algorithm"])
def test_code_is_imported_only_if_this_device_trusts_it(make_job: MakeJob, part: str) -> None:
    names = {"model": "shared.models_zoo:digitscnn", "algorithm": "shared.algorithms.fedavg:FEDAVG"}
    plan = {part: names[part], "model_options": {"width": 8, "input_shape": (1, 8, 8)} if part == "model" else OPTIONS}
    with pytest.raises(ConfigError, match=f"import '{names[part]}'.*trust"):
        run_job(make_job(plan=plan))
    assert run_job(make_job(plan=plan, trust=(names[part],))).succeeded


def test_another_layout_than_the_coordinators(make_job: MakeJob) -> None:
    with pytest.raises(ModelError, match="same version"):
        run_job(make_job("hermes", plan={"layout": "0" * 64}))
    with pytest.raises(ModelError, match="same version"):
        run_job(make_job("hermes", plan={"layout": None}))


@pytest.mark.parametrize(
    ("download", "complaint"),
    [
        (Subnet(initial(lambda name: name != "0.weight")), "0.weight"),
        (Subnet({**initial(), "extra": np.zeros(1, np.float32)}), "extra"),
        (Subnet({**initial(), "14.bias": np.zeros(11, np.float32)}), r"14.bias is float32\[11\]"),
        (Subnet({**initial(), "14.bias": np.zeros(10, np.float64)}), "14.bias is float64"),
        (Subnet(initial(), LAYOUT.full()), "does not prune"),
        (Subnet({**initial(), "14.bias": np.full(10, np.nan, np.float32)}), "not finite"),
    ],
    ids=["missing", "unknown", "shape", "dtype", "partial", "nan"],
)
def test_a_download_that_is_not_what_the_plan_shares(make_job: MakeJob, download: Subnet, complaint: str) -> None:
    with pytest.raises(MalformedPayload, match=complaint):
        run_job(make_job(download=download))


def test_masks_of_a_download_are_checked(make_job: MakeJob) -> None:
    held = {**LAYOUT.full(), "0": np.arange(8) < 4}
    with pytest.raises(MalformedPayload, match=r"0\.weight"):
        run_job(make_job("hermes", download=Subnet(initial(), held)))
    with pytest.raises(MalformedPayload, match="masks"):
        run_job(make_job("hermes", download=Subnet(initial(), {"0": held["0"]})))


def test_a_download_larger_than_announced(make_job: MakeJob) -> None:
    job = make_job()
    job.payload.write_bytes(job.payload.read_bytes() + bytes(64))
    with pytest.raises(MalformedPayload):
        run_job(job)


def test_data_that_does_not_fit_the_model(make_job: MakeJob) -> None:
    with pytest.raises(DataError, match=r"\(1, 8, 8\) and 10 classes.*\(1, 28, 28\)"):
        run_job(make_job(plan={"model": "lenet-small", "model_options": {}}))
    with pytest.raises(DataError, match=r"10 classes.*tells 4 apart"):
        run_job(make_job(plan={"model_options": {"classes": 4}}))


def test_hyperparameters_of_the_wire_are_checked(make_job: MakeJob) -> None:
    with pytest.raises(ConfigError, match="lr"):
        run_job(make_job(lr=-1.0))


def test_the_deadline_ends_the_training(make_job: MakeJob) -> None:
    with pytest.raises(OutOfTime, match="raise the round's deadline"):
        run_job(make_job(deadline_s=0.001))


# --- partial work ---------------------------------------------------------------------------------------------------


def test_who_runs_short_of_time_uploads_the_steps_that_were_done(make_job: MakeJob) -> None:
    """Of 50 epochs of one batch the first: what a job of one epoch uploads, bit for bit, and weighs."""
    few = DataSettings(partition=PartitionSettings(kind="iid", devices=100, index=3))
    short = make_job(deadline_s=60.0, epochs=50, data=few).model_copy(update={"reserve_s": 60.0})
    outcome, whole = run_job(short), make_job(epochs=1, data=few)
    assert "work_done" not in run_job(whole).metrics
    assert outcome.metrics["work_done"] == 1 / 50
    part, full = payload(short.out / UPDATE), payload(whole.out / UPDATE)
    assert (part.header.examples, part.header.weight) == (full.header.examples, full.header.weight)
    for name, array in full.subnet.tensors.items():
        np.testing.assert_array_equal(part.subnet.tensors[name], array)


def test_where_a_part_is_no_update_the_reserve_is_no_reason_to_stop(make_job: MakeJob) -> None:
    job = make_job("ditto", deadline_s=60.0, epochs=1).model_copy(update={"reserve_s": 60.0})
    assert "work_done" not in run_job(job).metrics
    assert attempt(make_job("ditto", deadline_s=0.001)).code == "out_of_time"


# --- how failures are told -------------------------------------------------------------------------------------------


def test_failures_are_outcomes_with_a_code(make_job: MakeJob) -> None:
    job = make_job(deadline_s=0.001)
    outcome = attempt(job)
    assert (outcome.succeeded, outcome.code) == (False, "out_of_time")
    assert Outcome.model_validate_json((job.out / OUTCOME).read_bytes()) == outcome


def allocates_too_much(settings: DataSettings) -> DeviceData:
    torch.empty(2**50, dtype=torch.uint8)
    return load(settings)


def raises_memory_error(settings: DataSettings) -> DeviceData:
    raise MemoryError


@pytest.mark.parametrize("read", [allocates_too_much, raises_memory_error])
def test_memory_that_is_not_there(make_job: MakeJob, read: Read) -> None:
    outcome = attempt(make_job(), read)
    assert outcome.code == "out_of_memory"
    assert "lower training.batch_size" in outcome.reason


def test_a_plug_in_that_raises_is_told(make_job: MakeJob) -> None:
    def broken(settings: DataSettings) -> DeviceData:
        raise ZeroDivisionError("in somebody's code " + "x" * 1000)

    outcome = attempt(make_job(), broken)
    assert outcome.code == "training"
    assert outcome.reason.startswith("ZeroDivisionError: in somebody's code")


def test_main_reads_the_job_and_exits_by_its_outcome(make_job: MakeJob, tmp_path: Path) -> None:
    good, late = make_job(), make_job(deadline_s=0.001)
    paths = []
    for number, job in enumerate((good, late)):
        paths.append(tmp_path / f"job{number}.json")
        paths[-1].write_text(job.model_dump_json())
    assert [main(path) for path in paths] == [0, 1]
    assert json.loads((good.out / OUTCOME).read_text())["code"] == "succeeded"


def test_it_runs_as_a_program(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(deadline_s=0.001)
    (tmp_path / "job.json").write_text(job.model_dump_json())
    done = subprocess.run(
        [sys.executable, "-m", "edge_agent.worker", str(tmp_path / "job.json")], capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, b"")
    assert Outcome.model_validate_json((job.out / OUTCOME).read_bytes()).code == "out_of_time"
