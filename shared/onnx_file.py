"""ONNX files of ours: what they may contain, what they say about themselves, and how a template becomes a model.

A *template* is the dense network, exported once by the coordinator: its initializers are the tensors of the model's
state under their own names, everything else is a Constant node. A device makes its own, physically smaller model by
replacing initializers, which needs neither torch nor the seconds that torch.onnx.export takes.

No torch here. A template comes off the wire, so it is hostile until `parse` has seen it.
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Self

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, numpy_helper
from pydantic import BaseModel, ConfigDict, Field

from shared.errors import ExportError
from shared.messages import Hyperparameter
from shared.tensors import Tensors

INPUT, OUTPUT = "input", "logits"
"""Names of the only input, float32 (batch, ...), and the only output, float32 (batch, classes)."""
MAX_BYTES = 2**30
"""Bytes of the largest file that is read; protobuf itself ends at twice that."""
OPSETS = range(18, onnx.defs.onnx_opset_version() + 1)
"""Older ones cannot say what is exported here."""
COUNTER = "num_batches_tracked"
"""BatchNorm counts its batches under this name; no network reads it, so no ONNX file has it."""

_OPERATORS = """
    Abs Add And AveragePool BatchNormalization Cast CastLike Clip Concat Constant Conv DequantizeLinear Div Elu Equal
    Erf Exp Expand Flatten GRU Gather Gelu Gemm GlobalAveragePool GlobalMaxPool GroupNormalization HardSigmoid HardSwish
    Identity InstanceNormalization IsNaN LSTM LayerNormalization LeakyRelu Log LogSoftmax MatMul Max MaxPool Min Mish
    Mul Neg Not Or PRelu Pad Pow QuantizeLinear RNN Reciprocal ReduceMax ReduceMean ReduceSum Relu Reshape Selu
    SequenceAt Shape Sigmoid Slice Softmax Softplus Split SplitToSequence Sqrt Squeeze Sub Tanh Transpose Unsqueeze
    Where
"""
OPERATORS = frozenset(_OPERATORS.split())
"""What a network of ours may compute: no control flow, so no file can run for ever; no operators of third parties, so
nothing is loaded to run one."""

DTYPES: dict[int, np.dtype[np.generic]] = {
    TensorProto.FLOAT: np.dtype("f4"),
    TensorProto.FLOAT16: np.dtype("f2"),
    TensorProto.DOUBLE: np.dtype("f8"),
    TensorProto.INT64: np.dtype("i8"),
    TensorProto.INT32: np.dtype("i4"),
    TensorProto.INT8: np.dtype("i1"),
    TensorProto.UINT8: np.dtype("u1"),
    TensorProto.BOOL: np.dtype("?"),
}
"""Element types that are taken."""


class ModelCard(BaseModel):
    """What a file says about itself, in its metadata_props: enough to use it, nothing about the machine or the data.

    mean, std  normalization of the input, one value or one per channel: the network reads (raw - mean) / std, where
               raw is what the device's data source yields (images: 0 to 255)
    labels     names of the classes, in the order of the logits
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    run: str = Field("", max_length=64)
    round: int = Field(0, ge=0)
    layout: str = Field("", max_length=64)
    model: str = Field("", max_length=500)
    model_options: dict[str, Hyperparameter] = {}
    labels: tuple[str, ...] = Field((), max_length=100_000)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @classmethod
    def from_properties(cls, properties: Mapping[str, str]) -> Self:
        """The card behind string properties. Text stands as it is, everything else as JSON; ExportError for a key
        that is no field of a card, or a value that is not of its type."""
        if unknown := sorted(properties.keys() - cls.model_fields.keys()):
            raise ExportError(f"model metadata {', '.join(unknown)}: known keys are {', '.join(cls.model_fields)}")
        text = {name for name, field in cls.model_fields.items() if field.annotation is str}
        try:
            fields = {key: value if key in text else json.loads(value) for key, value in properties.items()}
            return cls.model_validate(fields)
        except (ValueError, RecursionError) as error:
            raise ExportError(f"model metadata: {error}") from error

    def properties(self) -> dict[str, str]:
        """The string properties behind `from_properties`; what has its default is left out."""
        fields = self.model_dump(mode="json", exclude_defaults=True)
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in fields.items()}


def properties(model: ModelProto) -> dict[str, str]:
    """The file's own metadata."""
    return {entry.key: entry.value for entry in model.metadata_props}


def state_names(model: ModelProto) -> list[str]:
    """Names of the tensors that a template takes, in the file's order."""
    return [tensor.name for tensor in model.graph.initializer]


def parse(data: bytes, *, limit: int = MAX_BYTES) -> ModelProto:
    """The ONNX model in `data`, whoever sent it. ExportError says what it contains that no file of ours does."""
    if len(data) > limit:
        raise ExportError(f"ONNX file of {len(data)} bytes is larger than the {limit} allowed here")
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise ExportError(f"not an ONNX file: {error}") from error
    graph = model.graph
    if not graph.node:
        raise ExportError("not an ONNX file: no nodes")
    _check_text(model)
    opsets = [(entry.domain, entry.version) for entry in model.opset_import]
    if len(opsets) != 1 or opsets[0][0] != "" or opsets[0][1] not in OPSETS:
        raise ExportError(
            f"ONNX operator sets {opsets}: exactly one is taken, the default, {OPSETS[0]} to {OPSETS[-1]}"
        )
    if model.functions or model.training_info or graph.sparse_initializer or graph.quantization_annotation:
        raise ExportError("ONNX file has functions, training, sparse tensors or quantization: none of them is taken")
    if [value.name for value in graph.input] != [INPUT] or [value.name for value in graph.output] != [OUTPUT]:
        raise ExportError(f"ONNX file must have one input, {INPUT!r}, and one output, {OUTPUT!r}")
    _check_tensors(graph.initializer)
    _check_nodes(graph.node)
    ModelCard.from_properties(properties(model))
    return model


def _check_text(model: ModelProto) -> None:
    """Text that is no UTF-8 would come out of protobuf as bytes, which nobody who reads a name expects."""
    graph = model.graph
    texts = [text for entry in model.metadata_props for text in (entry.key, entry.value)]
    texts += [tensor.name for tensor in graph.initializer]
    for node in graph.node:
        texts += [node.name, node.domain, node.op_type, *node.input, *node.output]
        texts += [attribute.name for attribute in node.attribute]
    if odd := [text for text in texts if not isinstance(text, str)]:
        raise ExportError(f"ONNX name {odd[0]!r} is not UTF-8")


def _check_tensors(tensors: Iterable[TensorProto]) -> None:
    seen = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise ExportError(f"ONNX tensor {tensor.name!r} is there twice")
        seen.add(tensor.name)
        if tensor.external_data or tensor.data_location != TensorProto.DEFAULT:
            raise ExportError(f"ONNX tensor {tensor.name!r} points to another file: tensors must be inside")
        if tensor.data_type not in DTYPES:
            raise ExportError(f"ONNX tensor {tensor.name!r} has element type {tensor.data_type}, which is not taken")
        expected = math.prod(tensor.dims) * DTYPES[tensor.data_type].itemsize
        if any(size < 0 for size in tensor.dims) or len(tensor.raw_data) != expected:
            raise ExportError(
                f"ONNX tensor {tensor.name!r} of shape {tuple(tensor.dims)} has {len(tensor.raw_data)} bytes of data"
            )


def _check_nodes(nodes: Iterable[NodeProto]) -> None:
    for node in nodes:
        if node.domain or node.op_type not in OPERATORS:
            known = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            raise ExportError(f"ONNX operator {known} of node {node.name!r} is not among those that devices run")
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                _check_tensors([attribute.t])
            elif attribute.type not in (
                AttributeProto.FLOAT,
                AttributeProto.INT,
                AttributeProto.STRING,
                AttributeProto.FLOATS,
                AttributeProto.INTS,
                AttributeProto.STRINGS,
            ):
                raise ExportError(
                    f"ONNX attribute {attribute.name!r} of node {node.name!r} is a graph or a list of them"
                )


def tidy(model: ModelProto, metadata: Mapping[str, str]) -> None:
    """Bring what a tool of ours wrote into the form that `parse` takes, in place: tensors as raw bytes, one operator
    set, these properties, no free text (exporters write local paths and source lines), and no shapes, which a smaller
    network would contradict."""
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    standard = [entry for entry in model.opset_import if not entry.domain]
    del model.opset_import[:]
    model.opset_import.extend(standard)  # the runtime lists every set that it knows, whether a node is of it or not
    for part in (model, model.graph, *model.graph.node, *model.graph.input, *model.graph.output):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    del model.graph.value_info[:]
    onnx.helper.set_model_props(model, dict(metadata))


def fill(template: bytes, tensors: Tensors, metadata: Mapping[str, str], *, limit: int = MAX_BYTES) -> bytes:
    """The template with these tensors as its state: an ordinary ONNX file, small where the tensors are.

    tensors   every name of the template, in its dtype, of its dense shape or cut down on any axis; BatchNorm's
              counters may be among them and are left out
    metadata  properties of a ModelCard, written over those of the template

    ExportError if a name is missing or unknown, or if a tensor cannot stand for the template's.
    """
    model = parse(template, limit=limit)
    given = {name: array for name, array in tensors.items() if name.rpartition(".")[2] != COUNTER}
    wanted = state_names(model)
    if missing := [name for name in wanted if name not in given]:
        raise ExportError(f"the template needs tensors that the model does not have: {', '.join(missing)}")
    if unknown := sorted(given.keys() - set(wanted)):
        raise ExportError(f"the template has no place for these tensors of the model: {', '.join(unknown)}")
    card = ModelCard.from_properties({**properties(model), **metadata})
    dense = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for tensor in model.graph.initializer:
        array = given[tensor.name]
        dims = dense[tensor.name]
        if array.dtype != DTYPES[tensor.data_type]:
            raise ExportError(f"{tensor.name}: dtype {array.dtype} is not the template's")
        if array.ndim != len(dims) or any(not 0 < size <= most for size, most in zip(array.shape, dims, strict=True)):
            raise ExportError(f"{tensor.name}: shape {array.shape} is not {dims}, nor {dims} cut down")
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
    for node in model.graph.node:
        if node.op_type == "Conv" and len(node.input) > 1 and node.input[1] in dense:
            _regroup(node, dense[node.input[1]], given[node.input[1]].shape)
    onnx.helper.set_model_props(model, card.properties())
    data: bytes = model.SerializeToString()
    return data


def _regroup(node: NodeProto, dense: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Fit a convolution's `group` to a weight (out, in / group, ...) that was cut down from `dense`. A depthwise one
    (one input channel per group) loses whole groups; any other grouped one loses channels in each of its groups."""
    if len(dense) < 3:
        raise ExportError(f"{node.input[1]}: {dense} is no shape of a convolution's weight")
    for attribute in node.attribute:
        if attribute.name == "group" and attribute.i > 1:
            per_group = dense[0] // attribute.i if dense[1] == 1 else 0
            groups = shape[0] // per_group if per_group else attribute.i
            if not groups or shape[0] % groups or (per_group and shape[0] % per_group):
                raise ExportError(f"{node.input[1]}: {shape[0]} channels do not divide into the groups of {dense}")
            attribute.i = groups
