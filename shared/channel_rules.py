"""What each operation does to the labels of its operands: one rule per kind of operation, found by its name.

A rule may join labels (channels that must go together), freeze them (channels that must stay) and bind them to axes of
parameters. Where removing a channel would not be the same as setting it to zero, or where the code spells out a number
of channels, the rule freezes: it never guesses.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from shared.channel_calls import Call, Size, Trace, tensors_in
from shared.channel_labels import fixed, spread

Rule: TypeAlias = Callable[[Trace, Call], Any]
"""Gives the labels of the output: a tensor for a tensor, a list for several."""


def freeze(trace: Trace, call: Call) -> Any:
    """Channels are mixed, or their number matters: all that goes in stays, and so does what comes out."""
    for tensor in call.inputs():
        trace.labels.freeze(trace.of(tensor))
    return [fixed(tensor.shape) for tensor in tensors_in(call.output)]


def convolution(trace: Trace, call: Call) -> Any:
    data, weight, bias = call.data, call.argument(1, "weight"), call.argument(2, "bias")
    groups = call.argument(6, "groups", 1)
    if not trace.is_state(weight) or call.output.dim() != weight.dim():
        return freeze(trace, call)
    entering = trace.labels.along(trace.of(data), 1)
    if groups > 1 and weight.shape[1] == 1:  # depthwise: a channel in, its own channels out
        leaving = entering.repeat_interleave(weight.shape[0] // groups)
        trace.bind(weight, 0, leaving)
    else:
        leaving = trace.labels.fresh(weight.shape[0])
        entering_slots, leaving_slots = entering.view(groups, -1), leaving.view(groups, -1)
        trace.labels.join(entering_slots, entering_slots[:1])  # every group must lose the same channels
        trace.labels.join(leaving_slots, leaving_slots[:1])
        trace.bind(weight, 1, entering_slots[0])
        trace.produce(weight, leaving)
    trace.bind(bias, 0, leaving)
    return spread(leaving, call.output.shape, 1)


def linear(trace: Trace, call: Call) -> Any:
    data, weight, bias = call.data, call.argument(1, "weight"), call.argument(2, "bias")
    if not trace.is_state(weight):
        return freeze(trace, call)
    trace.bind(weight, 1, trace.labels.along(trace.of(data), data.dim() - 1))
    leaving = trace.labels.fresh(weight.shape[0])
    trace.produce(weight, leaving)
    trace.bind(bias, 0, leaving)
    return spread(leaving, call.output.shape, call.output.dim() - 1)


def per_channel_norm(trace: Trace, call: Call) -> Any:
    """Each channel is normalized by its own statistics."""
    names = ("running_mean", "running_var", "weight", "bias")
    labels = trace.labels.along(trace.of(call.data), 1)
    for position, name in enumerate(names, start=1):
        trace.bind(call.argument(position, name), 0, labels)
    return spread(labels, call.output.shape, 1)


def prelu(trace: Trace, call: Call) -> Any:
    data, weight = call.data, call.argument(1, "weight")
    if weight.numel() > 1:
        trace.bind(weight, 0, trace.labels.along(trace.of(data), 1))
    return trace.of(data)


def elementwise(trace: Trace, call: Call) -> Any:
    """Operands of one place are one channel. One value for many channels (an attention map, a factor) stays."""
    if not isinstance(call.output, Tensor):
        return freeze(trace, call)
    shape = call.output.shape
    operands = [trace.of(tensor).expand(shape) for tensor in call.inputs()]
    stretched = [
        [axis for axis in range(-tensor.dim(), 0) if tensor.shape[axis] == 1 < shape[axis]]
        + list(range(-len(shape), -tensor.dim()))
        for tensor in call.inputs()
    ]
    joined: list[Tensor] = []
    for operand, axes in zip(operands, stretched, strict=True):
        if any(trace.labels.varies(other, axis) for axis in axes for other in operands if other is not operand):
            trace.labels.freeze(operand)
        else:
            joined.append(operand)
    for operand in joined[1:]:
        trace.labels.join(joined[0], operand)
    return joined[0] if joined else fixed(shape)


def window(trace: Trace, call: Call) -> Any:
    """Pooling, resampling and padding: positions change, channels (axis 1) do not."""
    labels = trace.of(call.data)
    outputs = list(tensors_in(call.output))
    batched = labels.dim() == int(call.name[-2]) + 2 if call.name[-2:] in ("1d", "2d", "3d") else labels.dim() > 2
    same = all(output.shape[:2] == labels.shape[:2] and output.dim() == labels.dim() for output in outputs)
    if not batched or not same or any(trace.labels.varies(labels, axis) for axis in range(2, labels.dim())):
        return freeze(trace, call)
    rows = labels[(slice(None), slice(None), *[slice(0, 1)] * (labels.dim() - 2))]
    return [rows.expand(output.shape) for output in outputs]


def reduction(trace: Trace, call: Call) -> Any:
    """Mean, sum, maximum, ... over axes along which the channel does not change."""
    labels = trace.of(call.data)
    if isinstance(call.argument(1, "other"), Tensor):
        return elementwise(trace, call)
    over = call.argument(1, "dim", call.kwargs.get("axis"))
    if over is None or isinstance(over, bool) or over == ():
        over = range(labels.dim())
    axes = [over] if isinstance(over, int) else over
    if any(trace.labels.varies(labels, axis) for axis in axes):
        return freeze(trace, call)
    for axis in axes:
        labels = labels.narrow(axis, 0, 1)
    return [labels.reshape(output.shape) for output in tensors_in(call.output)]


def unchanged(trace: Trace, call: Call) -> Any:
    """The values may change, each by itself and by nothing but numbers."""
    return trace.of(call.data)


def rearrange(trace: Trace, call: Call) -> Any:
    """The same operation, done to the labels. No argument depends on the number of channels."""
    return call.on(trace.of(call.data))


def concatenate(trace: Trace, call: Call) -> Any:
    return call.on([trace.of(tensor) for tensor in call.argument(0, "tensors")])


def expand_as(trace: Trace, call: Call) -> Any:
    return trace.of(call.data).expand(call.output.shape)


def reshape(trace: Trace, call: Call) -> Any:
    """As `rearrange`, but where the size of an axis of channels is spelled out, they stay.

    -1 is not spelled out, nor is a size read from another axis: those channels then go together.
    """
    sizes = call.settings or tuple(call.kwargs.values())
    sizes = tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else sizes
    if not all(isinstance(size, int) for size in sizes):
        return freeze(trace, call)
    labels, known = trace.of(call.data), trace.labels
    labels = labels.reshape(sizes) if call.name == "view" else call.on(labels)
    for axis, size in enumerate(sizes):
        if isinstance(size, Size):
            if known.varies(labels, axis) or known.varies(size.labels, size.axis):
                known.join(known.along(labels, axis), known.along(size.labels, size.axis))
        elif size != -1 and known.varies(labels, axis):
            return freeze(trace, call)
    return labels


def cut(trace: Trace, call: Call) -> Any:
    """Indexing and splitting: by numbers in the code, so an axis of channels must come out whole."""
    labels = trace.of(call.data)
    if any(isinstance(item, Tensor | list) for item in _flat(call.settings)):
        return freeze(trace, call)
    for axis in range(labels.dim()):
        if trace.labels.varies(labels, axis):
            places = spread(torch.arange(labels.shape[axis]), labels.shape, axis)
            if any(np.unique(output.numpy()).size != labels.shape[axis] for output in tensors_in(call.on(places))):
                return freeze(trace, call)
    return call.on(labels)


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple):
        for item in value:
            yield from _flat(item)
    else:
        yield value


def _named(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    **_named(convolution, "conv1d conv2d conv3d"),
    **_named(linear, "linear"),
    **_named(per_channel_norm, "batch_norm instance_norm"),
    **_named(prelu, "prelu"),
    **_named(
        elementwise,
        "relu relu6 hardtanh hardswish hardsigmoid silu gelu elu selu celu leaky_relu mish softplus softsign "
        "logsigmoid sigmoid tanh hardshrink softshrink tanhshrink threshold rrelu "
        "dropout dropout1d dropout2d dropout3d feature_dropout alpha_dropout feature_alpha_dropout "
        "abs neg exp log log1p expm1 sqrt rsqrt square pow reciprocal sign clamp clip round floor ceil sin cos erf "
        "add radd iadd sub rsub isub mul rmul imul multiply div rdiv idiv truediv rtruediv itruediv true_divide "
        "maximum minimum where masked_fill lerp addcmul addcdiv "
        "gt lt ge le eq ne logical_and logical_or logical_not",
    ),
    **_named(
        unchanged,
        "clone contiguous detach requires_grad to float double half bfloat16 type type_as cpu cuda "
        "zeros_like ones_like full_like empty_like rand_like randn_like",
    ),
    **_named(
        window,
        "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool1d lp_pool2d "
        "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
        "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
        "max_pool1d_with_indices max_pool2d_with_indices interpolate upsample pad",
    ),
    **_named(reduction, "mean sum amax amin max min var std prod logsumexp argmax argmin"),
    **_named(
        rearrange,
        "flatten permute transpose swapaxes swapdims movedim moveaxis squeeze unsqueeze t T mT flip",
    ),
    **_named(concatenate, "cat concat concatenate stack"),
    **_named(reshape, "view reshape expand"),
    **_named(expand_as, "expand_as"),
    **_named(cut, "getitem chunk split narrow select unbind tensor_split"),
    **_named(
        freeze,
        "group_norm layer_norm rms_norm local_response_norm normalize softmax log_softmax softmin glu cumsum "
        "matmul rmatmul mm bmm addmm baddbmm einsum scaled_dot_product_attention multi_head_attention_forward "
        "lstm gru rnn_tanh rnn_relu embedding embedding_bag bilinear "
        "conv_transpose1d conv_transpose2d conv_transpose3d pixel_shuffle pixel_unshuffle channel_shuffle "
        "unfold fold unflatten repeat tile repeat_interleave roll index_select gather",
    ),
}
