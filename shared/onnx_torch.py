"""From a torch module to an ONNX graph without the exporter's surprises."""

import contextlib
import logging
import warnings
from collections.abc import Iterator

import numpy as np
import onnx
import torch
from onnx import GraphProto, ModelProto, NodeProto, numpy_helper
from torch import Tensor, nn

from shared.errors import ModelError
from shared.onnx_file import INPUT, OUTPUT, tidy

OPSET = 20
"""What is written. ONNX Runtime reads it, with the file format (IR 10) that comes with it, since 1.18."""


def to_onnx(model: nn.Module, example: Tensor, *, optimize: bool) -> ModelProto:
    """The model as one self-contained ONNX graph with a dynamic batch, and nothing in it about this machine.

    example   float32 (batch, ...), any batch
    optimize  False keeps every tensor of the state under its own name; True folds and renames, as the exporter likes

    ModelError if the model is in training mode, which the exporter would take and freeze with its dropout; if it cannot
    be exported; or if it works for one batch size only.
    """
    if model.training:
        raise ModelError("cannot export a model in training mode: call model.eval() first")
    batch = example[:1].expand(2, *example.shape[1:]).contiguous()  # a batch of 1 may be taken for a constant
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                model,
                (batch,),
                dynamo=True,
                opset_version=OPSET,
                optimize=optimize,
                external_data=False,
                verbose=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: "batch"},),
            )
    except Exception as error:  # whatever torch.export meets in the model's own code
        raise ModelError(f"{type(model).__name__} cannot be exported to ONNX: {error}") from error
    assert program is not None
    exported = program.model_proto
    _clean(exported)
    return exported


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about its own dependencies; what matters, it raises."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _clean(model: ModelProto) -> None:
    graph = model.graph
    shapes = {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.input, *graph.output)}
    _flatten_again(graph, shapes)
    _pool_again(graph, shapes)
    _fold_casts(graph, shapes)
    _drop_zero_biases(graph)
    _drop_dead_nodes(graph)
    tidy(model, {})
    del model.functions[:]


def _dims(shape: onnx.TypeProto.Tensor) -> list[int | str]:
    return [entry.dim_param or entry.dim_value for entry in shape.shape.dim]


def _flatten_again(graph: GraphProto, shapes: dict[str, onnx.TypeProto.Tensor]) -> None:
    """`x.flatten(1)` arrives as a Reshape to a literal width, which is wrong for a smaller network: undo that."""
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[0] not in shapes or node.output[0] not in shapes:
            continue
        before, after = _dims(shapes[node.input[0]]), _dims(shapes[node.output[0]])
        if len(after) == 2 and before and before[0] == after[0] and isinstance(after[0], str):
            node.CopyFrom(onnx.helper.make_node("Flatten", [node.input[0]], [node.output[0]], name=node.name, axis=1))


def _pool_again(graph: GraphProto, shapes: dict[str, onnx.TypeProto.Tensor]) -> None:
    """Pooling to one value per channel arrives as a mean over axes, for which the runtime leaves its own layout of the
    tensors, and int8: undo that."""
    made_by = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type != "ReduceMean" or len(node.input) != 2 or node.input[0] not in shapes:
            continue
        rank = len(_dims(shapes[node.input[0]]))
        axes = made_by.get(node.input[1])
        if axes is not None and axes.op_type == "Reshape":  # of a constant, to the shape that it has
            axes = made_by.get(axes.input[0])
        if axes is None or axes.op_type != "Constant" or rank < 3:
            continue
        everywhere = {int(axis) % rank for axis in constant_value(axes).ravel()} == set(range(2, rank))
        if everywhere and all(attribute.i == 1 for attribute in node.attribute if attribute.name == "keepdims"):
            pool = onnx.helper.make_node("GlobalAveragePool", [node.input[0]], [node.output[0]], name=node.name)
            node.CopyFrom(pool)


def _fold_casts(graph: GraphProto, shapes: dict[str, onnx.TypeProto.Tensor]) -> None:
    """A literal number arrives as CastLike(Constant, activation): make it a constant of the activation's type."""
    constants = {node.output[0]: node for node in graph.node if node.op_type == "Constant"}
    for node in graph.node:
        if node.op_type == "CastLike" and node.input[0] in constants and node.input[1] in shapes:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(shapes[node.input[1]].elem_type)
            value = constant_value(constants[node.input[0]]).astype(dtype)
            node.CopyFrom(constant(node.output[0], value))


def constant_value(node: NodeProto) -> np.ndarray:
    value = onnx.helper.get_attribute_value(node.attribute[0])
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def constant(name: str, value: np.ndarray) -> NodeProto:
    return onnx.helper.make_node("Constant", [], [name], name=name, value=numpy_helper.from_array(value, name))


def _drop_zero_biases(graph: GraphProto) -> None:
    """A convolution without bias arrives with one of zeros, which the runtime cannot fuse and whose size is literal."""
    made_by = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type == "Conv" and len(node.input) == 3:
            bias = made_by.get(node.input[2])
            if bias is not None and bias.op_type == "Expand":
                source = made_by.get(bias.input[0])
                if source is not None and source.op_type == "Constant" and not constant_value(source).any():
                    del node.input[2]


def _drop_dead_nodes(graph: GraphProto) -> None:
    used = {value.name for value in graph.output}
    alive = []
    for node in reversed(graph.node):
        if used.intersection(node.output):
            used.update(node.input)
            alive.append(node)
    del graph.node[:]
    graph.node.extend(reversed(alive))
