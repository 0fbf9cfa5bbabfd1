"""Turns calls of a program back into the layers that they were, so that hooks on layers see them: linear, convolution, embedding. What it computes is the same."""

from __future__ import annotations

from torch import fx, nn

_CONVOLUTIONS = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d}


def with_layers(module: fx.GraphModule) -> fx.GraphModule:
    """The same module; a call of aten's linear, convolutions (zero padding by numbers) or embedding on parameters of its own becomes a call of a layer with these."""
    made = 0
    for node in list(module.graph.nodes):
        if node.op == "call_function" and (layer := _layer(module, node)) is not None:
            name = f"layer_{made}"
            while hasattr(module, name):
                name += "_"
            made += 1
            module.add_submodule(name, layer)
            at = 1 if isinstance(layer, nn.Embedding) else 0
            with module.graph.inserting_before(node):
                call = module.graph.call_module(name, (node.args[at],))
            call.meta.update(node.meta)
            node.replace_all_uses_with(call)
            module.graph.erase_node(node)
    if made:
        module.recompile()
    return module


def _layer(module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    target = getattr(node.target, "_schema", None)
    if target is None or node.kwargs or not target.name.startswith("aten::") or getattr(node.target, "_overloadname", "") != "default":
        return None
    kind, args = target.name.removeprefix("aten::"), list(node.args)
    if kind == "linear" and len(args) in (2, 3):
        weight, bias = _parameter(module, args[1]), _parameter(module, args[2]) if len(args) > 2 else None
        if weight is not None and weight.ndim == 2 and (len(args) < 3 or args[2] is None or bias is not None):
            return _filled(nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta"), weight, bias)
    if kind == "embedding" and len(args) in (2, 3) and (weight := _parameter(module, args[0])) is not None and (len(args) < 3 or args[2] < 0):
        return _filled(nn.Embedding(*weight.shape, device="meta"), weight, None)
    if kind in _CONVOLUTIONS and len(args) >= 2 and (weight := _parameter(module, args[1])) is not None:
        bias = _parameter(module, args[2]) if len(args) > 2 else None
        if len(args) > 2 and args[2] is not None and bias is None:
            return None
        return _convolution(_CONVOLUTIONS[kind], weight, bias, args[3:])
    return None


def _convolution(cls: type, weight: nn.Parameter, bias: nn.Parameter | None, rest: list) -> nn.Module | None:
    dims = weight.ndim - 2
    stride, padding, dilation, groups = (*rest, *([1], [0], [1], 1)[len(rest) :])
    sizes = [tuple(v) if isinstance(v, (list, tuple)) else (v,) for v in (stride, padding, dilation)]
    if not all(isinstance(n, int) for v in sizes for n in v) or not isinstance(groups, int):
        return None
    stride, padding, dilation = (v * dims if len(v) == 1 else v for v in sizes)
    layer = cls(weight.shape[1] * groups, weight.shape[0], weight.shape[2:], stride, padding, dilation, groups, bias is not None, device="meta")
    return _filled(layer, weight, bias)


def _parameter(module: fx.GraphModule, node: object) -> nn.Parameter | None:
    """What a node reads, where that is a parameter of the module."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    try:
        return module.get_parameter(node.target)
    except AttributeError:
        return None


def _filled(layer: nn.Module, weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Module:
    layer.weight = weight
    if bias is not None:
        layer.bias = bias
    return layer.eval()

