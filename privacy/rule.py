"""What the private step asks of one trained layer: the contract that each layer kind fulfils.

It computes nothing: rules live beside their layers, and the step drives them.

A network's private copy shares the storage of the user's weights, and none of its parameters
requires a gradient. Every module that has parameters of its own gets one rule, made once:

    rule = LinearRule(module)            # UncoveredError: this use of the layer has no rule
    module.forward = rule.forward        # (what the module's own forward takes and gives)

and in each physical batch, in this order:

    outputs = network(x)                 # each rule.forward records what it needs later
    losses.sum().backward()              # input gradients only; each rule records output gradients
    rule.rows                            # must be len(x), or 0: then the layer adds nothing
    rule.norms_squared()                 # (B,)
    rule.drop(broken)                    # only when some row has no finite norm
    rule.weighted_sum(weights)           # or per_sample(slice) where rows are summed by patient
    rule.clear()                         # always, also after an error
"""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn

from privacy.errors import PrivacyError


class UncoveredError(PrivacyError):
    """A layer, or a way of using it, for which there is no rule: the whole network falls back.

    Raised by a rule's constructor, or by its ``forward``; the message is one line that names what
    is not covered.
    """


class Gradients(Protocol):
    """Per-sample gradients of one layer's own parameters, without holding them if they are large.

    Every list is in the order of ``module.parameters(recurse=False)``.
    """

    @property
    def rows(self) -> int:
        """B of the pass that was recorded; 0 when the layer was not called or got no gradient."""

    def norms_squared(self) -> Tensor:
        """Return (B,) float32 or float64: squared L2 norm of each row's gradient of this layer.

        To 1e-5 relative, NaN or inf where a gradient holds one. Called once or more per pass.
        """

    def drop(self, broken: Tensor) -> None:
        """Let the (B,) bool rows ``broken``, which hold NaN or inf, count as zero from here on."""

    def weighted_sum(self, weights: Tensor) -> list[Tensor]:
        """Return per parameter the sum over rows b of weights[b] x gradient[b], (B,) float32."""

    def per_sample(self, rows: slice) -> list[Tensor]:
        """Return per parameter the (b, *shape) gradients of ``rows``, b = their number."""

    def clear(self) -> None:
        """Forget the pass: nothing of a batch outlives its step."""


class Rule(Gradients, Protocol):
    """A layer that keeps book. The first axis of what it takes is the batch; a recurrent layer
    knows where its batch axis is.
    """

    def __init__(self, module: nn.Module) -> None:
        """Take the layer of the private copy; its ``.data`` is rebound before each batch, so that
        a rule reads the parameters at each call and never keeps tensors of them.

        Raises:
            UncoveredError: this configuration of the layer has no rule.
        """

    @property
    def forward(self) -> Callable[..., Any]:
        """A method with the signature of the layer's own.

        Its outputs require grad, also where no input does (the first layer), and nothing is
        computed for the parameters in the backward pass. It notes the versions of what it keeps: a
        value overwritten before it was used is an error, as in autograd.
        """
