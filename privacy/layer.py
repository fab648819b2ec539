"""How one trained layer is watched, and its per-sample gradients as long as they are held.

It knows no layer kind: ``privacy.dense``, ``privacy.convolution`` and ``privacy.norms`` do.
Source: Bu et al. 2023, arXiv:2210.00038 (one backward pass, input gradients only).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from privacy.errors import PrivacyError

Saved = tuple[Tensor, ...]
Kind = TypeVar("Kind", bound=nn.Module)

CHUNK = 1 << 22  # values that are made in passing and never held
_WIDENED = 4  # float32 values that a norm makes of one that it reads: copies in float64, products


@dataclass(slots=True)
class Call:
    """One call of a layer: what it read, and the gradient of what it gave.

    Attributes:
        saved: (B, ...) tensors that the gradient is computed from; the first is the input.
        versions: how often each had been written to when it was read.
        gradient: (B, ...) gradient of the layer's output; None until the backward pass brings it.
    """

    saved: Saved
    versions: tuple[int, ...]
    gradient: Tensor | None = None

    def read(self) -> Saved:
        """Return ``saved``; raises when one was overwritten since, as autograd would."""
        for tensor, version in zip(self.saved, self.versions, strict=True):
            if tensor._version != version:
                raise PrivacyError(
                    "expected a layer's input to stay as it was read, got one that was changed in "
                    "place; nothing was released"
                )
        return self.saved


class LayerRule(ABC, Generic[Kind]):
    """A rule (``privacy.rule``) of a layer with one output; kinds say how gradients come of it.

    Where the gradients of a layer that is called once are small, they are computed as soon as its
    output gradient arrives, and its input is let go. A layer called several times, which shares
    its weights with itself, has the sum of its calls' gradients.
    """

    def __init__(self, module: Kind) -> None:
        """Watch ``module``, a layer of the private copy."""
        self._module = module
        self._calls: list[Call] = []
        self._held: list[Tensor] | None = None

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        """Run the layer, and record what its gradient needs."""
        output, saved = self._run(*inputs, **options)
        if not torch.is_grad_enabled():
            return output
        kept = tuple([tensor.detach() for tensor in saved])
        call = Call(kept, tuple([tensor._version for tensor in saved]))
        self._calls.append(call)
        return watched(output, lambda gradient: self._arrived(call, gradient))

    @property
    def rows(self) -> int:
        """B of the recorded pass; 0 without a gradient; negative when calls differ in it."""
        if self._held is not None:
            return self._held[0].shape[0]
        found = {call.saved[0].shape[0] for call in self._calls if call.gradient is not None}
        return found.pop() if len(found) == 1 else -len(found)

    def norms_squared(self) -> Tensor:
        """Return (B,) float64 squared norms."""
        if self._held is not None:
            return held_norms(self._held)
        arrivals = self._arrivals()
        if len(arrivals) > 1:
            size = sum(p.numel() for p in self._module.parameters(recurse=False))
            return torch.cat([held_norms(self.per_sample(s)) for s in chunks(self.rows, size)])
        saved, gradient = arrivals[0]
        rows = gradient.shape[0]
        size = _WIDENED * (sum([s.numel() for s in saved]) + gradient.numel())
        if size <= CHUNK:
            return self._norms(saved, gradient)
        parts = chunks(rows, size // rows)
        return torch.cat([self._norms(tuple(s[p] for s in saved), gradient[p]) for p in parts])

    def drop(self, broken: Tensor) -> None:
        """Let the (B,) bool rows ``broken`` be zero in all that is kept."""
        if self._held is not None:
            self._held = [without(gradient, broken) for gradient in self._held]
        for call in self._calls:
            if call.gradient is not None:
                call.saved = tuple(without(s, broken) for s in call.read())
                call.versions = tuple(s._version for s in call.saved)
                call.gradient = without(call.gradient, broken)

    def weighted_sum(self, weights: Tensor) -> list[Tensor]:
        """Return per parameter the sum of the rows' gradients under (B,) ``weights``."""
        if self._held is not None:
            return held_sum(self._held, weights)
        return added([self._sum(saved, grad, weights) for saved, grad in self._arrivals()])

    def per_sample(self, rows: slice) -> list[Tensor]:
        """Return per parameter the (b, *shape) gradients of ``rows``."""
        if self._held is not None:
            return [gradient[rows] for gradient in self._held]
        return added(
            [
                self._gradients(tuple(s[rows] for s in saved), grad[rows])
                for saved, grad in self._arrivals()
            ]
        )

    def clear(self) -> None:
        """Forget the pass."""
        self._calls.clear()
        self._held = None

    def _arrived(self, call: Call, gradient: Tensor) -> None:
        if len(self._calls) == 1 and self._small(call.saved, gradient):
            self._held = self._gradients(call.read(), gradient)
            self._calls.clear()
            call.saved = call.versions = ()  # the graph keeps the call until it ends
        else:
            call.gradient = gradient

    def _arrivals(self) -> list[tuple[Saved, Tensor]]:
        return [(call.read(), call.gradient) for call in self._calls if call.gradient is not None]

    @abstractmethod
    def _run(self, *inputs: Any, **options: Any) -> tuple[Tensor, Saved]:
        """Return the layer's output, and the (B, ...) tensors that its gradient is made of."""

    @abstractmethod
    def _small(self, saved: Saved, gradient: Tensor) -> bool:
        """Say whether to hold per-sample gradients instead of what they are made of."""

    @abstractmethod
    def _gradients(self, saved: Saved, gradient: Tensor) -> list[Tensor]:
        """Return per parameter the (b, *shape) gradients of b rows."""

    @abstractmethod
    def _norms(self, saved: Saved, gradient: Tensor) -> Tensor:
        """Return (b,) float64 squared norms of b rows without holding the gradients."""

    @abstractmethod
    def _sum(self, saved: Saved, gradient: Tensor, weights: Tensor) -> list[Tensor]:
        """Return per parameter the (B,)-weighted sum without holding the gradients."""


class HeldRule:
    """Per-sample gradients that are simply there, each (B, *shape)."""

    def __init__(self, gradients: list[Tensor] | None = None) -> None:
        """Take the gradients of a pass, if it has been."""
        self._held = gradients

    @property
    def rows(self) -> int:
        """B of the gradients; 0 without any."""
        return self._held[0].shape[0] if self._held else 0

    def norms_squared(self) -> Tensor:
        """Return (B,) float64 squared norms."""
        return held_norms(self._gradients())

    def drop(self, broken: Tensor) -> None:
        """Let the (B,) bool rows ``broken`` be zero."""
        self._held = [without(gradient, broken) for gradient in self._gradients()]

    def weighted_sum(self, weights: Tensor) -> list[Tensor]:
        """Return per parameter the sum of the rows' gradients under (B,) ``weights``."""
        return held_sum(self._gradients(), weights)

    def per_sample(self, rows: slice) -> list[Tensor]:
        """Return per parameter the (b, *shape) gradients of ``rows``."""
        return [gradient[rows] for gradient in self._gradients()]

    def clear(self) -> None:
        """Forget the pass."""
        self._held = None

    def _gradients(self) -> list[Tensor]:
        return self._held or []


def watched(output: Tensor, sink: Callable[[Tensor], None]) -> Tensor:
    """Return ``output`` such that the backward pass reaches it and gives its gradient to ``sink``.

    Parameters of the private copy need no gradient, so the first layer's output would not either.
    """
    if output.requires_grad:
        output.register_hook(sink)  # type: ignore[no-untyped-call]
        return output
    tapped: Tensor = _Tap.apply(_ANCHOR, output, sink)  # type: ignore[no-untyped-call]
    return tapped


class _Tap(torch.autograd.Function):
    """The identity, for an output that no gradient would reach; it may be written to in place."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,  # noqa: ARG004 - requires a gradient, and so the output does
        output: Tensor,
        sink: Callable[[Tensor], None],
    ) -> Tensor:
        ctx.sink = sink
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        ctx.sink(gradients[0])
        return None, None, None


_ANCHOR = torch.zeros((), requires_grad=True)


def chunks(rows: int, size: int) -> Iterator[slice]:
    """Cut ``rows`` so that ``size`` values a row stay within a few MiB."""
    step = max(1, CHUNK // size)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def added(parts: Sequence[list[Tensor]]) -> list[Tensor]:
    """Return the sums, position by position, of lists of tensors; at least one list."""
    if len(parts) == 1:
        return parts[0]
    return [torch.stack(tensors).sum(0) for tensors in zip(*parts, strict=True)]


def without(tensor: Tensor, broken: Tensor) -> Tensor:
    """Return a copy of (B, ...) ``tensor`` with zeros in the (B,) bool rows ``broken``."""
    return tensor.masked_fill(broken.view(-1, *[1] * (tensor.dim() - 1)), 0)


def held_norms(gradients: Sequence[Tensor]) -> Tensor:
    """Return the (B,) float64 squared norms of rows of (B, *shape) gradients, over all of them."""
    parts = [torch.linalg.vector_norm(flat(g), dim=1).double().square() for g in gradients]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def held_sum(gradients: Sequence[Tensor], weights: Tensor) -> list[Tensor]:
    """Return the (B,)-weighted sums of rows of (B, *shape) gradients."""
    return [(weights @ flat(g)).view(g.shape[1:]) for g in gradients]  # (B) x (B, p) -> (p)


def flat(gradients: Tensor) -> Tensor:
    """Return (B, p) of (B, *shape); a single number has no axis to flatten."""
    return gradients.flatten(1) if gradients.dim() > 1 else gradients[:, None]
