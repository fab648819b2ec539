"""Per-sample gradients of parameters that belong to no layer: positions, tokens, scales.

Each record reads a copy of its own, whose gradient torch computes as any other. It knows what is
done with such parameters by name, a few operations; anything else has no rule.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from privacy.layer import HeldRule
from privacy.rule import UncoveredError

# Operations that work element by element, so that a record's copy meets the record alone.
_BINARY = {
    torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__, torch.Tensor.add_,
    torch.Tensor.__iadd__, torch.sub, torch.Tensor.sub, torch.Tensor.__sub__,
    torch.Tensor.__rsub__, torch.mul, torch.Tensor.mul, torch.Tensor.__mul__,
    torch.Tensor.__rmul__, torch.Tensor.mul_, torch.Tensor.__imul__, torch.div, torch.Tensor.div,
    torch.Tensor.__truediv__, torch.Tensor.__rtruediv__,
}  # fmt: skip
_UNARY = {torch.exp, torch.sigmoid, torch.tanh, torch.relu, torch.square, functional.softplus}


class BareRule(HeldRule):
    """The parameters of a module that is no layer of torch's: copies for each row."""

    def __init__(self, name: str, module: nn.Module) -> None:
        """Take a module of the private copy, and its name there."""
        super().__init__()
        self._module = module
        self._label = f"{type(module).__name__} '{name or 'model'}'"
        self._own = dict(module.named_parameters(recurse=False))
        self._copies: list[Tensor] = []

    def spread(self, rows: int) -> None:
        """Let the module read ``rows`` copies of its parameters, until the next time."""
        self._copies = [
            p.detach().expand(rows, *p.shape).requires_grad_() for p in self._own.values()
        ]
        for (name, _), copies in zip(self._own.items(), self._copies, strict=True):
            # Not a Parameter: read by attribute like one, it takes part in a few operations.
            self._module._parameters[name] = Spread(copies, f"{self._label}.{name}")  # type: ignore[assignment]

    @property
    def rows(self) -> int:
        """B of the pass; 0 when no gradient reached a copy."""
        return self._copies[0].shape[0] if any(c.grad is not None for c in self._copies) else 0

    def clear(self) -> None:
        """Forget the pass."""
        super().clear()
        self._copies = []

    def _gradients(self) -> list[Tensor]:
        if self._held is None:
            self._held = [torch.zeros_like(c) if c.grad is None else c.grad for c in self._copies]
        return self._held


class Spread:
    """A parameter with a copy for each row; to the network it has the shape of one."""

    def __init__(self, copies: Tensor, label: str) -> None:
        """Take (B, *shape) copies; ``label`` names the parameter in an error."""
        self._copies = copies
        self._label = label

    @property
    def shape(self) -> torch.Size:
        """The parameter's own shape."""
        return self._copies.shape[1:]

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self._copies.device

    @property
    def dtype(self) -> torch.dtype:
        """Of what it is."""
        return self._copies.dtype

    def dim(self) -> int:
        """Return the number of axes."""
        return self._copies.dim() - 1

    def size(self, axis: int | None = None) -> Any:
        """Return the shape, or one of its lengths."""
        return self.shape if axis is None else self.shape[axis]

    def unsqueeze(self, axis: int) -> "Spread":
        """Return it with a further axis."""
        return self._again(self._copies.unsqueeze(axis if axis < 0 else axis + 1))

    def view(self, *sizes: Any) -> "Spread":
        """Return it in another shape."""
        return self._again(self._copies.reshape(self._copies.shape[0], *_flat(sizes)))

    reshape = view

    def expand(self, *sizes: Any) -> Tensor:
        """Return (B, ...), each row its own: the first length must be the batch's."""
        wanted = _flat(sizes)
        return self._of_rows(wanted, "expand").expand(-1, *wanted[1:])

    def repeat(self, *times: Any) -> Tensor:
        """Return (B, ...), each row its own: repeated once a row along the first axis."""
        wanted = _flat(times)
        return self._of_rows(wanted, "repeat").repeat(1, *wanted[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> "Spread":
        parts = index if isinstance(index, tuple) else (index,)
        if not all(part is None or part is ... or isinstance(part, int | slice) for part in parts):
            raise self._uncovered("an index")
        return self._again(self._copies[(slice(None), *parts)])

    def __neg__(self) -> "Spread":
        return self._again(-self._copies)

    def __add__(self, other: Any) -> Any:
        return _apply(operator.add, (self, other), {})

    def __radd__(self, other: Any) -> Any:
        return _apply(operator.add, (other, self), {})

    def __sub__(self, other: Any) -> Any:
        return _apply(operator.sub, (self, other), {})

    def __rsub__(self, other: Any) -> Any:
        return _apply(operator.sub, (other, self), {})

    def __mul__(self, other: Any) -> Any:
        return _apply(operator.mul, (self, other), {})

    def __rmul__(self, other: Any) -> Any:
        return _apply(operator.mul, (other, self), {})

    def __truediv__(self, other: Any) -> Any:
        return _apply(operator.truediv, (self, other), {})

    def __rtruediv__(self, other: Any) -> Any:
        return _apply(operator.truediv, (other, self), {})

    def __getattr__(self, name: str) -> Any:
        for function in _UNARY:
            if function.__name__ == name:
                return lambda: self._again(function(self._copies))
        raise self._uncovered(name)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Do what torch's ``func`` does with one of these among its arguments."""
        if func in _BINARY or func in _UNARY:
            return _apply(func, args, kwargs or {})
        flat = (a for arg in args for a in (arg if isinstance(arg, list | tuple) else (arg,)))
        spread = next((a for a in flat if isinstance(a, cls)), None)
        name = getattr(func, "__name__", "an operation")
        raise spread._uncovered(name) if spread else UncoveredError(f"{name} has no rule")

    def _of_rows(self, wanted: Sequence[int], name: str) -> Tensor:
        """Return the copies as (B, ...) for a result whose first axis has the length ``wanted``."""
        rows = self._copies.shape[0]
        if wanted[0] != rows or len(wanted) not in (self.dim(), self.dim() + 1):
            raise self._uncovered(name)
        if len(wanted) > self.dim():
            return self._copies
        if self.shape[0] != 1:
            raise self._uncovered(name)
        return self._copies[:, 0]

    def _beside(self, other: Tensor) -> Tensor:
        """Return the copies in a shape that meets (B, ...) ``other`` row by row."""
        rows, axes = self._copies.shape[0], other.dim()
        if axes == 0 or other.shape[0] != rows or self.dim() > axes:
            raise self._uncovered("an operation without the records' axis")
        if self.dim() < axes:
            return self._copies.view(rows, *[1] * (axes - 1 - self.dim()), *self.shape)
        if self.shape[0] != 1:
            raise self._uncovered("an operation along the records' axis")
        return self._copies[:, 0]

    def _again(self, copies: Tensor) -> "Spread":
        return Spread(copies, self._label)

    def _uncovered(self, name: str) -> UncoveredError:
        return UncoveredError(f"{self._label}, a parameter of no layer, meets {name}: no rule")


def _apply(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Apply an operation that works element by element."""
    spread = [a for a in args if isinstance(a, Spread)]
    plain = [a for a in args if isinstance(a, Tensor) and a.dim()]
    if plain:
        met = (a._beside(plain[0]) if isinstance(a, Spread) else a for a in args)
        return func(*met, **kwargs)
    if any(a.dim() != spread[0].dim() for a in spread):
        raise spread[0]._uncovered("another of another shape")
    return spread[0]._again(func(*(getattr(a, "_copies", a) for a in args), **kwargs))


def _flat(sizes: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
