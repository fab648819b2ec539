"""The gradient of a whole batch as one traced list of operations, without autograd's bookkeeping.

It changes no figure beyond rounding: the first batch is compared with autograd, and a network that
cannot be traced, or differs, is left to autograd. It is never used for private steps.
"""

from collections.abc import Callable, Sequence

import torch
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.graph import CodeGen
from torch.nn.functional import linear

# (parameters, inputs, targets) -> (gradients of the mean loss, sum of the losses)
Gradient = Callable[
    [Sequence[torch.Tensor], torch.Tensor, torch.Tensor], tuple[list[torch.Tensor], torch.Tensor]
]
# The same operations by a shorter way into torch: a small step is mostly calls.
DIRECT = {
    torch.ops.aten.mm.default: torch.mm,
    torch.ops.aten.addmm.default: torch.addmm,
    torch.ops.aten.t.default: torch.t,
    torch.ops.aten.relu.default: torch.relu,
    torch.ops.aten.sum.default: torch.sum,
    torch.ops.aten.sum.dim_IntList: torch.sum,
    torch.ops.aten.view.default: torch.reshape,
    torch.ops.aten._log_softmax.default: torch._log_softmax,
    torch.ops.aten._log_softmax_backward_data.default: torch._log_softmax_backward_data,
}
TOLERANCE = 1e-4  # of the largest gradient: float32 sums in another order


def gradient_by_autograd(
    network: torch.nn.Module, losses: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> Gradient:
    """Return the gradient at the network's own parameters, through autograd."""
    parameters = list(network.parameters())

    def gradient(
        values: Sequence[torch.Tensor], inputs: torch.Tensor, targets: torch.Tensor
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        del values  # the network's parameters are views of them
        each = losses(network(inputs), targets)
        return list(torch.autograd.grad(each.mean(), parameters)), each.detach().sum()

    return gradient


def traced_gradient(
    network: torch.nn.Module,
    losses: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    inputs: torch.Tensor,
    targets: torch.Tensor,
) -> Gradient | None:
    """Return the gradient for batches of this very shape, or None when it cannot be had.

    Args:
        network: in training mode, without dropout.
        losses: (B, K) outputs and (B,) targets to (B,) losses.
        inputs: (B, *shape) an example.
        targets: (B,) an example.
    """
    names = [name for name, _ in network.named_parameters()]
    values = [parameter.detach() for parameter in network.parameters()]
    count = len(targets)
    share = torch.full((count,), 1.0 / count, device=targets.device)  # of each loss in their mean

    def function(
        inputs: torch.Tensor, targets: torch.Tensor, *values: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        held = [value.detach().requires_grad_() for value in values]
        named = dict(zip(names, held, strict=True))
        each = losses(torch.func.functional_call(network, named, (inputs,)), targets)
        gradients = torch.autograd.grad(each, held, grad_outputs=share)
        return (*gradients, each.detach().sum())

    try:
        run = _cleaned(make_fx(function)(inputs, targets, *values)).forward
        with torch.inference_mode():
            *gradients, loss = run(inputs, targets, *values)
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return None  # an operation that tracing does not know
    expected, expected_loss = gradient_by_autograd(network, losses)(values, inputs, targets)
    size = max(float(gradient.abs().max()) for gradient in expected)
    for found, wanted in zip(gradients, expected, strict=True):
        if not float((found - wanted).abs().max()) <= TOLERANCE * size:
            return None
    if not abs(float(loss) - float(expected_loss)) <= TOLERANCE * abs(float(expected_loss)):
        return None

    def gradient(
        values: Sequence[torch.Tensor], inputs: torch.Tensor, targets: torch.Tensor
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        with torch.inference_mode():
            *gradients, loss = run(inputs, targets, *values)
        return gradients, loss

    return gradient


def _cleaned(traced: GraphModule) -> GraphModule:
    """Drop what autograd alone needed: copies for its graph, and pairs of transposes."""
    graph, ops = traced.graph, torch.ops.aten
    graph.set_codegen(CodeGen())  # plain arguments, no trees of them
    for node in list(graph.nodes):
        if node.target in {ops.detach.default, ops.alias.default}:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    for node in list(graph.nodes):
        inner = node.args[0] if node.target is ops.t.default else None
        if isinstance(inner, Node) and inner.target is ops.t.default:
            node.replace_all_uses_with(inner.args[0])
    for node in graph.nodes:
        # x w^T + b is one call, which makes the same two below Python.
        weight = node.args[2] if node.target is ops.addmm.default and not node.kwargs else None
        if isinstance(weight, Node) and weight.target is ops.t.default:
            node.target, node.args = linear, (node.args[1], weight.args[0], node.args[0])
    graph.eliminate_dead_code()
    for node in graph.nodes:
        node.target = DIRECT.get(node.target, node.target)
    traced.recompile()
    return traced
