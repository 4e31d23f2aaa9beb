"""Networks as ONNX graphs, written from their recorded steps.

A calibration and a search measure dozens of networks, and PyTorch's exporter takes seconds for each. Here a network is
written step by step, with the operators that the exporter would write (a test compares them), in a tenth of the time;
one with any step that is not known here is left to the exporter. Files for the user are always the exporter's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from htas.data.nests import replaced
from htas.formats.onnx import GraphWriter, Norm, Unknown, Writer, is_known, module_node, network_graph, rank_of
from htas.graph.blocks import Reads
from htas.graph.labels import bound, dims_of
from htas.graph.modes import copied, evaluating, untouched
from htas.graph.record import Call, Value, values_in
from htas.graph.runs import recorded_run

BINARY = {"add": "Add", "radd": "Add", "sub": "Sub", "mul": "Mul", "multiply": "Mul", "rmul": "Mul", "div": "Div",
          "truediv": "Div", "matmul": "MatMul", "bmm": "MatMul", "mm": "MatMul", "pow": "Pow", "maximum": "Max",
          "minimum": "Min"}  # fmt: skip
"""Functions of two tensors, or of a tensor and a number."""
UNARY = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "exp": "Exp", "sqrt": "Sqrt", "neg": "Neg", "abs": "Abs",
         "hardswish": "HardSwish", "softplus": "Softplus", "reciprocal": "Reciprocal", "log": "Log"}  # fmt: skip
MODULES: Mapping[str, Callable[..., nn.Module]] = {
    "relu6": nn.ReLU6, "silu": nn.SiLU, "gelu": nn.GELU, "hardsigmoid": nn.Hardsigmoid, "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU, "max_pool1d": nn.MaxPool1d, "max_pool2d": nn.MaxPool2d, "max_pool3d": nn.MaxPool3d,
    "avg_pool1d": nn.AvgPool1d, "avg_pool2d": nn.AvgPool2d, "avg_pool3d": nn.AvgPool3d,
    "adaptive_avg_pool1d": nn.AdaptiveAvgPool1d, "adaptive_avg_pool2d": nn.AdaptiveAvgPool2d,
    "adaptive_avg_pool3d": nn.AdaptiveAvgPool3d, "hardtanh": nn.Hardtanh,
}  # fmt: skip
"""Functions that have a module of the same options, in the same order."""
SHAPED = {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "ravel", "view_as", "reshape_as"}
TURNED = {"permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims", "t", "T", "mT"}
PARTS = {"chunk", "split", "split_with_sizes", "tensor_split", "unbind"}
DROPOUTS = {"dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"}
SAME = {"contiguous", "clone", "detach", "to", "float", "type_as", "data", "identity", "expand", "expand_as"}
"""Functions that change nothing, where sizes and number format stay."""
REDUCED = {"mean": "ReduceMean", "sum": "ReduceSum", "amax": "ReduceMax", "amin": "ReduceMin", "max": "ReduceMax",
           "min": "ReduceMin"}  # fmt: skip
VIEWS = SHAPED | TURNED | PARTS | {"__getitem__", "narrow", "expand", "select", "detach", "data"}
"""Functions whose results may share memory with what they read."""


def is_written(model: nn.Module, example: tuple[Tensor, ...]) -> bool:
    """Whether a network is written here, for inputs like `example`, [N, *shape] each, and not by the slow exporter."""
    return written_graph(copied(model).eval().cpu(), example) is not None


def static_graph(model: nn.Module, example: tuple[Tensor, ...]) -> bytes:
    """A network in eval mode as one self-contained ONNX file for inputs of exactly the shapes of `example`,
    [N, *shape] each: written here, or by PyTorch's exporter where a step is not known here.

    Raises UserError where PyTorch cannot export the network.
    """
    return written_graph(model, example) or network_graph(model, example, dynamic=False)


def written_graph(model: nn.Module, example: tuple[Tensor, ...]) -> bytes | None:
    """A network in eval mode as ONNX for inputs of exactly the shapes of `example`, [N, *shape] each; None for an
    unknown step."""
    if any(part._forward_hooks or part._forward_pre_hooks for part in model.modules()):
        return None  # the steps would lack the hooks
    try:
        writer = Writer(example[0].dtype)
        write_network(writer, model, example)
        return writer.content()
    except Exception:  # the exporter may succeed, or its error is the one to show
        return None


def write_network(writer: GraphWriter, model: nn.Module, example: tuple[Tensor, ...]) -> None:
    """A network in eval mode, for inputs of exactly the shapes of `example`, [N, *shape] each, in any format.

    Raises Unknown for a step that is not known here or to the writer.
    """
    with untouched(model), evaluating(model):
        _Graph(model, example, writer).write()


class _Graph:
    def __init__(self, model: nn.Module, example: tuple[Tensor, ...], writer: GraphWriter) -> None:
        self.record = recorded_run(model, example)
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.reads = Reads(self.record)
        self.writer = writer
        self.names: dict[Value, str] = {}

    def write(self) -> None:
        """The whole graph."""
        for value in self.record.inputs:
            self.names[value] = self.writer.input(f"input{len(self.writer.inputs)}", value.shape)
        for call in self.record.calls:
            self._check_overwritten(call)
            if any(out.derived and out in self.reads.users for out in call.outputs):
                self._add(call)
        names: set[str] = set()
        for value in values_in(self.record.outputs):
            name = self.name(value)
            if name in names or name.startswith(("input", "weight")):
                name = self.writer.node("Identity", [name])
            names.add(name)
            self.writer.output(name)

    def name(self, value: Any) -> str:
        """The name of a tensor, or of a number; what depends on no input is a constant."""
        if not isinstance(value, Value):
            return self.writer.constant(torch.tensor(float(value)))
        if value not in self.names:
            if value.derived or not value.tensor.is_floating_point():
                raise Unknown(value)
            self.names[value] = self.writer.constant(value.tensor)
        return self.names[value]

    def _add(self, call: Call) -> None:
        if any(not value.tensor.is_floating_point() for value in (*call.outputs[:1], *call.values)):
            raise Unknown(call.name)
        args, kwargs = replaced((call.args, call.kwargs), _plain)
        call = replace(call, args=args, kwargs=kwargs)
        if call.name.strip("_") in PARTS and not call.module:
            self._parts(call)
            return
        used = [out for out in call.outputs if out in self.reads.users]
        if used != call.outputs[:1]:
            raise Unknown(call.name)
        if call.whole:
            raise Unknown(call.whole)
        source, self.writer.path = call.values[0], call.module or ""
        self.names[used[0]] = self._module(call, source) if call.module else self._function(call, source)

    def _check_overwritten(self, call: Call) -> None:
        """Raise where a value that is overwritten in place may share memory with another."""
        module = self.modules.get(call.module) if call.module else None
        inplace = call.name.endswith("_") and not call.name.endswith("__") and not module
        if not call.values or not (inplace or call.kwargs.get("inplace") or getattr(module, "inplace", False)):
            return
        if isinstance(module, nn.modules.dropout._DropoutNd) or call.name in DROPOUTS:
            return
        source = call.values[0]
        readers = (self.record.calls[place] for place in self.reads.users[call.values[0]] if place >= 0)
        shared = any(map(self._is_view, readers))
        while source.call is not None and self._is_view(source.call) and not shared:
            source = source.call.values[0]
            shared = len(self.reads.users[source]) > 1
        if shared:
            raise Unknown(call.name)

    def _is_view(self, call: Call) -> bool:
        return call.name in VIEWS or isinstance(self.modules.get(call.module or "?"), nn.Flatten | nn.Unflatten)

    # -- modules -------------------------------------------------------------------------------------------------------

    def _module(self, call: Call, source: Value) -> str:
        module, name, rank = self.modules[call.module], self.name(source), len(source.shape)
        if len(call.args) != 1 or call.kwargs or module.training:
            raise Unknown(call.module)
        match module:
            case nn.Identity() | nn.modules.dropout._DropoutNd():
                return name
            case nn.modules.batchnorm._BatchNorm() if self._norm_after(source) is module:
                return name
            case nn.Flatten() | nn.Unflatten():
                return self._shaped(name, call.outputs[0].shape)
            case nn.modules.conv._ConvNd() if module.padding == "same" and set(module.stride) == {1}:
                module = _explicit(module)
            case nn.Upsample() if rank == 4:
                return self._resized(name, call.outputs[0], str(module.mode), bool(module.align_corners))
            case nn.LayerNorm() if module.weight is not None:
                tensors = [self.writer.constant(each) for each in (module.weight, module.bias) if each is not None]
                axis = -len(module.normalized_shape)
                return self.writer.node("LayerNormalization", [name, *tensors], axis=axis, epsilon=module.eps)
            case nn.Softmax() if module.dim is not None:
                return self.writer.node("Softmax", [name], axis=module.dim)
            case nn.PixelShuffle() if rank == 4:
                return self.writer.node("DepthToSpace", [name], blocksize=module.upscale_factor, mode="CRD")
            case nn.ZeroPad2d() | nn.ConstantPad2d() | nn.ReflectionPad2d() | nn.ReplicationPad2d():
                mode = {nn.ReflectionPad2d: "reflect", nn.ReplicationPad2d: "edge"}.get(type(module), "constant")
                return self._padded(name, rank, module.padding, mode, getattr(module, "value", 0.0))
        return self._simple(module, name, source, call.outputs[0])

    def _simple(self, module: nn.Module, name: str, source: Value, out: Value) -> str:
        """A pool, an activation, or a layer with weights."""
        rank = len(source.shape)
        match module:
            case nn.modules.pooling._AdaptiveAvgPoolNd() if rank == rank_of(module):
                before, after = source.shape[2:], out.shape[2:]
                if set(after) == {1}:
                    return self._reduced("ReduceMean", name, range(2, rank), keep=True)
                if any(one % other for one, other in zip(before, after, strict=True)):
                    raise Unknown(module)
                window = [one // other for one, other in zip(before, after, strict=True)]
                return self.writer.node("AveragePool", [name], kernel_shape=window, strides=window)
            case nn.modules.pooling._MaxPoolNd() if module.ceil_mode and not module.return_indices:
                return self._wide_pool(module, name, source.shape[2:], out.shape[2:])
            case nn.modules.pooling._AvgPoolNd() if module.ceil_mode:
                sides = (_several(each, rank - 2) for each in (module.kernel_size, module.stride, module.padding))
                windows = list(zip(source.shape[2:], *sides, strict=True))
                if any((size + 2 * pad - side) % step for size, side, step, pad in windows):
                    raise Unknown(module)  # the last window is not whole
                twin: Any = copied(module)
                twin.ceil_mode = False
                return module_node(self.writer, twin, name, rank)
            case nn.Hardtanh():
                bounds = [self.name(bound) for bound in (module.min_val, module.max_val)]
                return self.writer.node("Clip", [name, *bounds])
        pools = nn.modules.pooling._MaxPoolNd | nn.modules.pooling._AvgPoolNd
        if isinstance(module, nn.modules.conv._ConvNd | pools) and rank != rank_of(module):
            raise Unknown(module)  # PyTorch takes it for an input without a batch
        return module_node(self.writer, module, name, rank, self._norm_after(out))

    def _wide_pool(self, module: Any, name: str, before: Sequence[int], after: Sequence[int]) -> str:
        """A maximum pool whose last windows reach beyond the input."""
        options = (module.kernel_size, module.stride, module.padding, module.dilation)
        kernel, stride, padding, dilation = (_several(each, len(before)) for each in options)
        more = [
            (count - 1) * step + far * (side - 1) + 1 - size - pad
            for count, step, far, side, size, pad in zip(after, stride, dilation, kernel, before, padding, strict=True)
        ]
        pads = [*padding, *(max(pad, each) for pad, each in zip(padding, more, strict=True))]
        return self.writer.node(
            "MaxPool", [name], kernel_shape=kernel, strides=stride, pads=pads, dilations=dilation
        )  # fmt: skip

    def _norm_after(self, value: Value) -> Norm | None:
        """The norm that a convolution feeds alone, which becomes part of it."""
        users = self.reads.users.get(value, set())
        if len(users) != 1 or users == {-1} or value.call is None or not value.call.module:
            return None
        convolution = self.modules[value.call.module]
        norm = self.modules.get(self.record.calls[next(iter(users))].module)
        plain = isinstance(convolution, nn.Conv1d | nn.Conv2d | nn.Conv3d) and isinstance(norm, Norm)
        return norm if plain and isinstance(norm, Norm) and is_known(norm) else None

    # -- functions -----------------------------------------------------------------------------------------------------

    def _function(self, call: Call, source: Value) -> str:
        kind, out, args = call.name.strip("_"), call.outputs[0], call.args
        if kind in BINARY and len(args) == 2 and not call.kwargs:
            return self.writer.node(BINARY[kind], [self.name(each) for each in args])
        if kind in ("rsub", "rtruediv", "rdiv") and len(args) == 2:
            return self.writer.node("Sub" if kind == "rsub" else "Div", [self.name(each) for each in reversed(args)])
        if kind in ("cat", "concat", "concatenate"):
            axis = bound(call, "tensors", "dim").get("dim", 0) % len(out.shape)
            return self.writer.node("Concat", [self.name(each) for each in call.values], axis=axis)
        if kind == "stack":
            axis = bound(call, "tensors", "dim").get("dim", 0) % len(out.shape)
            one = [*out.shape[:axis], 1, *out.shape[axis + 1 :]]
            return self.writer.node("Concat", [self._shaped(self.name(each), one) for each in call.values], axis=axis)
        if len(call.values) == 1:
            return self._of_one(kind, call, self.name(source), source, out)
        if kind == "layer_norm":
            options = bound(call, "input", "shape", "weight", "bias", "eps")
            tensors = [self.name(options[each]) for each in ("weight", "bias") if options.get(each) is not None]
            norm = {"axis": -len(options["shape"]), "epsilon": options.get("eps", 1e-5)}
            return self.writer.node("LayerNormalization", [self.name(source), *tensors], **norm)
        if kind in ("conv1d", "conv2d", "conv3d", "linear", "batch_norm"):
            return self._layer(kind, call, source)
        raise Unknown(call.name)

    def _of_one(self, kind: str, call: Call, name: str, source: Value, out: Value) -> str:
        """A function of one tensor."""
        options = {key: each for key, each in call.kwargs.items() if key != "inplace"}
        if kind in UNARY and len(call.args) == 1 and not options:
            return self.writer.node(UNARY[kind], [name])
        if kind in SAME and source.shape == out.shape and source.tensor.dtype == out.tensor.dtype:
            return name
        if kind in DROPOUTS and not bound(call, "input", "p", "training").get("training", True):
            return name
        if kind in SHAPED:
            return self._shaped(name, out.shape)
        if kind in TURNED:
            return self.writer.node("Transpose", [name], perm=_order(call, len(source.shape)))
        if kind in MODULES:
            return self._simple(MODULES[kind](*call.args[1:], **options), name, source, out)
        match kind:
            case "getitem":
                return self._item(name, source, out, call.args[1])
            case "narrow" | "select" if not options:
                dim, start = call.args[1] % len(source.shape), call.args[2]
                length = call.args[3] if kind == "narrow" else 1
                return self._shaped(self._slice(name, [(dim, start, start + length, 1)]), out.shape)
            case "softmax":
                return self.writer.node("Softmax", [name], axis=bound(call, "input", "dim")["dim"])
            case "clamp":
                limits = bound(call, "input", "min", "max")
                bounds = [self.name(each) if each is not None else "" for each in map(limits.get, ("min", "max"))]
                return self.writer.node("Clip", [name, *bounds])
            case "interpolate":
                mode = bound(call, "input", "size", "scale_factor", "mode", "align_corners")
                return self._resized(name, out, str(mode.get("mode", "nearest")), bool(mode.get("align_corners")))
            case "pad":
                pad = bound(call, "input", "pad", "mode", "value")
                how = str(pad.get("mode", "constant")).replace("replicate", "edge")
                return self._padded(name, len(source.shape), pad["pad"], how, pad.get("value") or 0.0)
            case "pixel_shuffle" if len(source.shape) == 4:
                return self.writer.node("DepthToSpace", [name], blocksize=int(call.args[1]), mode="CRD")
        if kind in REDUCED and "dtype" not in options:
            given = bound(call, "input", "dim", "keepdim")
            dims = dims_of(given.get("dim"), len(source.shape))
            return self._reduced(REDUCED[kind], name, dims, keep=bool(given.get("keepdim", False)))
        raise Unknown(call.name)

    def _layer(self, kind: str, call: Call, source: Value) -> str:
        """A layer by a function, whose weights depend on no input."""
        name, rank = self.name(source), len(source.shape)
        if kind == "batch_norm":
            options = bound(call, "input", "mean", "var", "weight", "bias", "training", "momentum", "eps")
            tensors = [options[each] for each in ("weight", "bias", "mean", "var")]
            if options.get("training") or not all(isinstance(each, Value) for each in tensors):
                raise Unknown(kind)
            weights = [self.name(each) for each in tensors]
            return self.writer.node("BatchNormalization", [name, *weights], epsilon=options.get("eps", 1e-5))
        options = bound(call, "input", "weight", "bias", "stride", "padding", "dilation", "groups")
        weights = [self.name(options[each]) for each in ("weight", "bias") if options.get(each) is not None]
        if kind == "linear":
            if rank == 2:
                return self.writer.node("Gemm", [name, *weights], transB=1)
            turned = self.writer.node("Transpose", weights[:1], perm=[1, 0])
            last = self.writer.node("MatMul", [name, turned])
            return self.writer.node("Add", [last, weights[1]]) if weights[1:] else last
        if rank != int(kind[-2]) + 2 or isinstance(options.get("padding"), str):
            raise Unknown(kind)
        stride, padding, dilation = (
            _several(options.get(each, usual), rank - 2)
            for each, usual in (("stride", 1), ("padding", 0), ("dilation", 1))
        )
        return self.writer.node(
            "Conv", [name, *weights], kernel_shape=options["weight"].shape[2:], strides=stride, pads=[*padding] * 2,
            dilations=dilation, group=options.get("groups", 1),
        )  # fmt: skip

    # -- moves ---------------------------------------------------------------------------------------------------------

    def _shaped(self, name: str, shape: Sequence[int]) -> str:
        return self.writer.node("Reshape", [name, self.writer.constant(torch.tensor(shape))], allowzero=1)

    def _reduced(self, op: str, name: str, dims: Sequence[int], *, keep: bool) -> str:
        return self.writer.node(op, [name, self.writer.constant(torch.tensor(list(dims)))], keepdims=int(keep))

    def _slice(self, name: str, cuts: Sequence[tuple[int, int, int, int]]) -> str:
        """The part from start to end by a step, for some dimensions."""
        axes, starts, ends, steps = (self.writer.constant(torch.tensor(each)) for each in zip(*cuts, strict=True))
        return self.writer.node("Slice", [name, starts, ends, axes, steps])

    def _parts(self, call: Call) -> None:
        source, start = call.values[0], 0
        single = call.name == "unbind"
        options = bound(call, "input", "dim") if single else bound(call, "input", "parts", "dim")
        dim, name = int(options.get("dim", 0)) % len(source.shape), self.name(source)
        for out in call.outputs:
            size = 1 if single else out.shape[dim]
            if out in self.reads.users:
                part = self._slice(name, [(dim, start, start + size, 1)])
                self.names[out] = self._shaped(part, out.shape) if single else part
            start += size

    def _item(self, name: str, source: Value, out: Value, index: Any) -> str:
        """Slices, whole numbers, new dimensions, and an ellipsis."""
        items = list(index) if isinstance(index, tuple) else [index]
        if not all(each is None or each is Ellipsis or isinstance(each, int | slice) for each in items):
            raise Unknown(index)
        missing = len(source.shape) - sum(each is not None and each is not Ellipsis for each in items)
        at = next((place for place, each in enumerate(items) if each is Ellipsis), len(items))
        items[at : at + 1] = [slice(None)] * missing
        cuts = []
        for dim, each in enumerate(each for each in items if each is not None):
            size = source.shape[dim]
            part = each if isinstance(each, slice) else slice(each % size, each % size + 1)
            start, end, step = part.indices(size)
            if (start, end, step) != (0, size, 1):
                cuts.append((dim, start, end, step))
        name = self._slice(name, cuts) if cuts else name
        return name if len(items) == len(out.shape) == len(source.shape) and not any(
            isinstance(each, int) for each in items
        ) else self._shaped(name, out.shape)  # fmt: skip

    def _resized(self, name: str, out: Value, mode: str, corners: bool) -> str:
        sizes = self.writer.constant(torch.tensor(out.shape))
        if mode == "nearest":
            options = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        elif mode == "bilinear" and len(out.shape) == 4:
            options = {"coordinate_transformation_mode": "align_corners" if corners else "half_pixel"}
        else:
            raise Unknown(mode)
        return self.writer.node("Resize", [name, "", "", sizes], mode=mode.removeprefix("bi"), **options)

    def _padded(self, name: str, rank: int, padding: Any, mode: str, value: float) -> str:
        if mode not in ("constant", "reflect", "edge"):
            raise Unknown(mode)
        sides = _several(padding, 4) if isinstance(padding, int) else [int(each) for each in padding]
        pairs = list(zip(sides[::2], sides[1::2], strict=True))[::-1]  # the last dimension comes first
        pairs = [(0, 0)] * (rank - len(pairs)) + pairs
        pads = torch.tensor([before for before, _ in pairs] + [after for _, after in pairs])
        return self.writer.node("Pad", [name, self.writer.constant(pads), self.name(value)], mode=mode)


def _explicit(module: nn.modules.conv._ConvNd) -> nn.Module:
    """A convolution with padding "same" as one with numbers."""
    spans = [dilation * (side - 1) for dilation, side in zip(module.dilation, module.kernel_size, strict=True)]
    if any(span % 2 for span in spans):
        raise Unknown(module)
    twin = copied(module)
    twin.padding = tuple(span // 2 for span in spans)
    return twin


def _order(call: Call, rank: int) -> list[int]:
    """The order of dimensions that a function turns a tensor into."""
    function: Any = call.function
    labels = torch.empty([dim + 2 for dim in range(rank)], device="meta")
    return [size - 2 for size in function(labels, *call.args[1:], **call.kwargs).shape]


def _several(value: Any, count: int) -> list[int]:
    return [int(each) for each in value] if isinstance(value, tuple | list) else [int(value)] * count


def _plain(leaf: Any) -> Any:
    return int(leaf) if isinstance(leaf, int) and not isinstance(leaf, bool) else leaf
