"""A private copy of a network whose trained layers keep book: per-sample gradients in one pass.

It decides which layers have rules, and runs forward and backward; it clips nothing. Networks with a
layer that has no rule are left to ``privacy.persample``.
Source: book-keeping, Bu et al. 2023, arXiv:2210.00038.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from privacy.bare import BareRule
from privacy.convolution import ConvolutionRule, TransposedConvolutionRule
from privacy.dense import EmbeddingRule, LinearRule
from privacy.errors import PrivacyError
from privacy.layer import chunks, held_norms
from privacy.norms import ChannelNormRule, LayerNormRule, RMSNormRule
from privacy.recurrent import RecurrentRule
from privacy.rule import Gradients, Rule, UncoveredError

Objective = Callable[[Tensor], Tensor]  # the network's outputs -> the scalar to differentiate

RULES: dict[type[nn.Module], Callable[[Any], Rule]] = {
    nn.Linear: LinearRule,
    nn.Embedding: EmbeddingRule,
    nn.Conv1d: ConvolutionRule,
    nn.Conv2d: ConvolutionRule,
    nn.Conv3d: ConvolutionRule,
    nn.ConvTranspose1d: TransposedConvolutionRule,
    nn.ConvTranspose2d: TransposedConvolutionRule,
    nn.ConvTranspose3d: TransposedConvolutionRule,
    nn.GroupNorm: ChannelNormRule,
    nn.InstanceNorm1d: ChannelNormRule,
    nn.InstanceNorm2d: ChannelNormRule,
    nn.InstanceNorm3d: ChannelNormRule,
    nn.LayerNorm: LayerNormRule,
    nn.RMSNorm: RMSNormRule,
    nn.LSTM: RecurrentRule,
    nn.GRU: RecurrentRule,
    nn.RNN: RecurrentRule,
}


@dataclass(frozen=True)
class Layer:
    """The per-sample gradients of one layer after a pass.

    Attributes:
        positions: where its parameters are in ``model.parameters()``.
        rule: gives their gradients, in that order; to be cleared after use.
    """

    positions: tuple[int, ...]
    rule: Gradients


class GradientCopy(Protocol):
    """A private copy of a network that gives per-sample gradients, layer by layer."""

    @property
    def layers(self) -> Sequence[Layer]:
        """All trained layers; those that share a parameter are one."""

    def run(self, x: Tensor, objective: Objective) -> list[Layer]:
        """Run forward and backward at the weights that the model holds now.

        Args:
            x: (B, ...) inputs, B > 0.
            objective: what to differentiate; its gradient is a sum over the rows.

        Returns:
            The layers that a gradient reached, each with B rows. The caller clears their rules.

        Raises:
            PrivacyError: a layer regroups the rows, so that they have no gradients of their own.
        """


class BookkeepingCopy:
    """Per-sample gradients by rules: input gradients in the backward pass, and nothing twice."""

    def __init__(self, model: nn.Module) -> None:
        """Copy ``model``, sharing the storage of its weights.

        Raises:
            UncoveredError: a layer has no rule; it is named.
        """
        self._model = model
        self._theirs = list(model.parameters())
        shared: dict[int, Any] = {
            id(p): nn.Parameter(p.detach(), requires_grad=False) for p in self._theirs
        }
        self._copy = copy.deepcopy(model, shared).train()
        self._parameters = list(self._copy.parameters())
        self._buffers = dict(self._copy.named_buffers())
        place = {id(parameter): index for index, parameter in enumerate(self._parameters)}
        self._bare: list[BareRule] = []
        single: dict[int, Layer] = {}
        for name, module in self._copy.named_modules():
            positions = tuple(place[id(p)] for p in module.parameters(recurse=False))
            if not positions:
                continue
            holders = (nn.ParameterList, nn.ParameterDict)
            if type(module).__module__.startswith("torch.") and not isinstance(module, holders):
                rule = _rule(name, module)
                vars(module)["forward"] = rule.forward  # stands before the method of the class
                single[id(module)] = Layer(positions, rule)
            else:
                self._bare.append(BareRule(name, module))
                single[id(module)] = Layer(positions, self._bare[-1])
        self.layers = [
            _joined([single[id(module)] for module in modules], self._parameters)
            for modules in owner_groups(self._copy)
        ]

    def run(self, x: Tensor, objective: Objective) -> list[Layer]:
        """Run forward and backward; as ``GradientCopy.run``."""
        rows = x.shape[0]
        for mine, theirs in zip(self._parameters, self._theirs, strict=True):
            mine.data = theirs.data  # a view: nothing is copied, and nothing here writes to it
        if self._buffers:
            for name, buffer in self._model.named_buffers():
                self._buffers[name].copy_(buffer)
        for bare in self._bare:
            bare.spread(rows)
        try:
            value = objective(self._copy(x))
            if value.requires_grad:
                value.backward()  # type: ignore[no-untyped-call]
            found = [layer for layer in self.layers if layer.rule.rows]
            for layer in found:
                _expect_rows(layer.rule.rows, rows)
        except BaseException:
            clear(self.layers)
            raise
        return found


def clear(layers: Sequence[Layer]) -> None:
    """Forget a pass."""
    for layer in layers:
        layer.rule.clear()


def owner_groups(model: nn.Module) -> list[list[nn.Module]]:
    """Return the modules that have parameters of their own; those that share one, together."""
    groups: list[tuple[set[int], list[nn.Module]]] = []
    for module in model.modules():
        owned = {id(p) for p in module.parameters(recurse=False)}
        if not owned:
            continue
        touching = [group for group in groups if group[0] & owned]
        groups = [group for group in groups if not group[0] & owned]
        members = [member for _, group in touching for member in group]
        groups.append((owned.union(*(ids for ids, _ in touching)), [*members, module]))
    return [members for _, members in groups]


def _rule(name: str, module: nn.Module) -> Rule:
    """Return the rule of a layer, or raise UncoveredError naming it."""
    expected = getattr(module, "_flat_weights_names", ("weight", "bias"))
    own = {key for key, _ in module.named_parameters(recurse=False)}
    if type(module) not in RULES or not own <= set(expected):
        raise UncoveredError(f"{type(module).__name__} '{name or 'model'}' has no rule of its own")
    return RULES[type(module)](module)


def _expect_rows(got: int, rows: int) -> None:
    if got != rows:
        raise PrivacyError(
            f"expected a gradient for each of {rows} rows, got {abs(got)}: a layer regroups the "
            "rows; nothing was released"
        )


def _joined(parts: Sequence[Layer], parameters: Sequence[nn.Parameter]) -> Layer:
    if len(parts) == 1:
        return parts[0]
    positions = sorted({position for part in parts for position in part.positions})
    return Layer(tuple(positions), TiedRule(parts, {p: parameters[p] for p in positions}))


class TiedRule:
    """Layers that share parameters, as one: gradients are summed before their norm is taken."""

    def __init__(self, parts: Sequence[Layer], parameters: dict[int, nn.Parameter]) -> None:
        """Take the layers, and the parameters of all of them by position, ascending."""
        self._parts = parts
        self._parameters = parameters

    @property
    def rows(self) -> int:
        """B of the recorded pass; 0 without a gradient; negative when layers differ in it."""
        found = {part.rule.rows for part in self._active()}
        return found.pop() if len(found) == 1 else -len(found)

    def norms_squared(self) -> Tensor:
        """Return (B,) squared norms, from per-sample gradients that are made in passing."""
        size = 2 * sum(p.numel() for p in self._parameters.values())
        return torch.cat([held_norms(self.per_sample(s)) for s in chunks(self.rows, size)])

    def drop(self, broken: Tensor) -> None:
        """Let the (B,) bool rows ``broken`` count as zero."""
        for part in self._active():
            part.rule.drop(broken)

    def weighted_sum(self, weights: Tensor) -> list[Tensor]:
        """Return the weighted sums, added over the layers."""
        return self._merged(lambda rule: rule.weighted_sum(weights), ())

    def per_sample(self, rows: slice) -> list[Tensor]:
        """Return the gradients of ``rows``, added over the layers."""
        count = len(range(*rows.indices(self.rows)))
        return self._merged(lambda rule: rule.per_sample(rows), (count,))

    def clear(self) -> None:
        """Forget the pass."""
        clear(self._parts)

    def _active(self) -> list[Layer]:
        return [part for part in self._parts if part.rule.rows]

    def _merged(
        self, gradients: Callable[[Gradients], list[Tensor]], lead: tuple[int, ...]
    ) -> list[Tensor]:
        totals: dict[int, Tensor] = {}
        for part in self._active():
            for position, gradient in zip(part.positions, gradients(part.rule), strict=True):
                before = totals.get(position)
                totals[position] = gradient if before is None else before + gradient
        return [
            totals[i] if i in totals else p.new_zeros(*lead, *p.shape)
            for i, p in self._parameters.items()
        ]
