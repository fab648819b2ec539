"""The rule for nn.LSTM, nn.GRU and nn.RNN: every layer and direction walked, padded or packed.

It clips nothing and adds no noise: the step does. The user's layer is read, never changed; what it
would give, up to rounding and with the same dropout, is what ``RecurrentRule.forward`` gives.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from privacy.cells import CELLS, Walk
from privacy.rule import UncoveredError
from privacy.trace import Packing, Trace

Sequences = Tensor | PackedSequence
States = Tensor | tuple[Tensor, Tensor]


class RecurrentRule:
    """Norms and weighted sums of the per-sample gradients of one plain recurrent layer.

    A ``privacy.rule.Rule``. Covered: any number of layers, both directions, with and without bias,
    batch first or not, packed sequences sorted or not (samples are counted in the order of the
    batch before it was packed), given first states, dropout between layers.

    Cost: the walk back gives the gradients of all gates, and then each weight's per-sample
    gradients are one batched product; where they would be larger than what they are made of, norms
    come from Gram matrices over time instead (``privacy.trace``).
    """

    def __init__(self, module: nn.Module) -> None:
        """Take a layer as torch.nn makes it.

        Raises:
            UncoveredError: a class derived from torch's, a projection (``proj_size``), or weights
                that are tied, replaced or reparametrised.
        """
        kind = type(module).__name__
        if type(module) not in (nn.LSTM, nn.GRU, nn.RNN):
            raise UncoveredError(f"expected nn.LSTM, nn.GRU or nn.RNN, got {kind}")
        layer = cast(nn.RNNBase, module)
        if layer.proj_size:
            raise UncoveredError(f"expected an {kind} without projection, got proj_size")
        parts = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if layer.bias else 2]
        ends = ("", "_reverse") if layer.bidirectional else ("",)
        self._layer = layer
        self._cell = CELLS[layer.mode]
        self._names = [
            [f"{part}_l{depth}{end}" for part in parts]
            for depth in range(layer.num_layers)
            for end in ends
        ]
        if [n for n, _ in layer.named_parameters()] != [n for names in self._names for n in names]:
            raise UncoveredError(f"expected weights as {kind} makes them, got tied or other ones")
        self._traces: list[Trace] = []

    def forward(
        self,
        input: Sequences,  # noqa: A002 (the layer's own name, which callers may use)
        hx: States | None = None,
    ) -> tuple[Sequences, States]:
        """Return outputs and last states, as the layer itself would.

        Args:
            input: (T, B, F), (B, T, F) batch first, or packed.
            hx: (layers x directions, B, H) first states, of an LSTM a pair; zeros if not given.

        Raises:
            UncoveredError: a sequence without a batch axis, or a second call in one pass.
            ValueError, RuntimeError: wrong shapes, in the layer's own words.
        """
        layer = self._layer
        if self._traces:
            raise UncoveredError(f"expected one call of {type(layer).__name__} a pass, got two")
        if isinstance(input, PackedSequence):
            packing = Packing(
                input.batch_sizes.tolist(), input.sorted_indices, input.unsorted_indices
            )
            layer.check_input(input.data, input.batch_sizes)
            rows, h, c = self._walk(input.data, self._first(hx, input.data, packing), packing)
            output: Sequences = PackedSequence(
                rows, input.batch_sizes, input.sorted_indices, input.unsorted_indices
            )
        else:
            if input.dim() != 3:
                raise UncoveredError(
                    f"expected sequences with a batch axis, got {input.dim()} axes"
                )
            layer.check_input(input, None)
            by_time = input.transpose(0, 1) if layer.batch_first else input  # (T, B, F)
            if not len(by_time):
                raise ValueError("expected sequences of at least one step, got none")
            packing = Packing([by_time.shape[1]] * len(by_time))
            rows = by_time.flatten(0, 1)  # (T, B, F) -> (N, F)
            rows, h, c = self._walk(rows, self._first(hx, rows, packing), packing)
            by_time = rows.view(*by_time.shape[:2], rows.shape[1])  # (N, D H) -> (T, B, D H)
            output = by_time.transpose(0, 1) if layer.batch_first else by_time
        if not isinstance(layer, nn.LSTM):
            return output, h if packing.back is None else h[:, packing.back]
        return output, (h, c) if packing.back is None else (h[:, packing.back], c[:, packing.back])

    def _first(self, hx: States | None, rows: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
        """Return (layers x directions, B, H) first states by column, and an LSTM's of its cells."""
        layer = self._layer
        shape = (len(self._names), packing.sizes[0], layer.hidden_size)
        if hx is None:
            zeros = rows.new_zeros(shape)
            return zeros, zeros if isinstance(layer, nn.LSTM) else zeros[:, :0]
        if isinstance(hx, Tensor) == isinstance(layer, nn.LSTM):
            raise ValueError("expected a pair of first states for nn.LSTM, for others a tensor")
        pair = (hx, hx) if isinstance(hx, Tensor) else hx
        for state in pair:
            layer.check_hidden_size(state, shape)
        h, c = pair if packing.order is None else (state[:, packing.order] for state in pair)
        return h, c if isinstance(layer, nn.LSTM) else c[:, :0].detach()

    def _walk(
        self, rows: Tensor, first: tuple[Tensor, Tensor], packing: Packing
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Walk all layers: (N, F) rows to (N, D H) outputs and last states as ``first``."""
        layer = self._layer
        directions = 2 if layer.bidirectional else 1
        reversal = packing.reversal(rows.device) if layer.bidirectional else None
        anchor = torch.empty(0, device=rows.device, requires_grad=True)
        states = []
        for depth in range(layer.num_layers):
            outputs = []
            for index in range(depth * directions, (depth + 1) * directions):
                trace = Trace(self._cell, layer.hidden_size, layer.bias, packing)
                if torch.is_grad_enabled():
                    self._traces.append(trace)
                weights = [getattr(layer, name) for name in self._names[index]]
                turned = reversal if index % directions else None
                output, h, c = _Walked.apply(  # type: ignore[no-untyped-call]
                    anchor, rows, first[0][index], first[1][index], trace, turned, *weights
                )
                outputs.append(output)
                states.append((h, c))
            rows = outputs[0] if directions == 1 else torch.cat(outputs, 1)  # (N, D H)
            if layer.dropout and depth + 1 < layer.num_layers:
                rows = functional.dropout(rows, layer.dropout, layer.training)
        return rows, torch.stack([h for h, _ in states]), torch.stack([c for _, c in states])

    @property
    def rows(self) -> int:
        """B of the recorded pass; 0 when the layer was not called or got no gradient."""
        recorded = any(trace.recorded for trace in self._traces)  # one is, all are
        return self._traces[0].packing.sizes[0] if recorded else 0

    def norms_squared(self) -> Tensor:
        """Return (B,) float64 squared norms of the samples' gradients of all parameters."""
        return torch.stack([trace.norms_squared() for trace in self._traces]).sum(0)

    def drop(self, broken: Tensor) -> None:
        """Let the (B,) bool samples ``broken`` count as zero from here on."""
        for trace in self._traces:
            trace.drop(broken)

    def weighted_sum(self, weights: Tensor) -> list[Tensor]:
        """Return per parameter the sum over samples b of weights[b] x gradient[b]; (B,) weights."""
        return [part for trace in self._traces for part in trace.weighted_sum(weights)]

    def per_sample(self, rows: slice) -> list[Tensor]:
        """Return per parameter the (b, *shape) gradients of the samples ``rows``."""
        return [part for trace in self._traces for part in trace.per_sample(rows)]

    def clear(self) -> None:
        """Forget the pass."""
        self._traces = []


class _Context(FunctionCtx):
    """What torch keeps of a walk for the walk back."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]
    trace: Trace
    reversal: Tensor | None


class _Walked(torch.autograd.Function):
    """One layer and direction: (N, d) rows to (N, H) outputs, and last states (B, H).

    The walk back writes the gradients of the gates over the gates, so that there is one; it hands
    them to the trace, and returns those of the rows and the first states. The weights get none.
    """

    @staticmethod
    def forward(
        ctx: _Context,
        _: Tensor,  # requires a gradient, so that the walk back comes by where no row does
        rows: Tensor,
        h0: Tensor,
        c0: Tensor,
        trace: Trace,
        reversal: Tensor | None,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if reversal is not None:
            rows = rows[reversal]
        cell = trace.cell
        w_hh = weights[1]
        gates = cell.project(rows, *weights)
        out = rows.new_empty(len(rows), w_hh.shape[1])
        cells = torch.empty_like(out if cell.remembers else c0)
        walk = Walk(trace.packing.sizes, gates, w_hh, h0, c0, out, cells)
        cell.forward(walk)
        ctx.trace, ctx.reversal = trace, reversal
        ctx.save_for_backward(rows, h0, c0, gates, out, cells, *weights[:2])
        ctx.set_materialize_grads(False)  # what no loss reads needs no zeros
        last = walk.last(cells) if cell.remembers else torch.empty_like(c0)
        return out if reversal is None else out[reversal], walk.last(out), last

    @staticmethod
    @once_differentiable
    def backward(
        ctx: _Context, dout: Tensor | None, dh: Tensor | None, dc: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        rows, h0, c0, gates, out, cells, w_ih, w_hh = ctx.saved_tensors
        cell, reversal = ctx.trace.cell, ctx.reversal
        walk = Walk(ctx.trace.packing.sizes, gates, w_hh, h0, c0, out, cells)
        if dout is not None and reversal is not None:
            dout = dout[reversal]
        dh = torch.zeros_like(h0) if dh is None else dh.clone()
        dc = torch.zeros_like(c0) if dc is None else dc.clone()
        sums = cell.backward(walk, dout, dh, dc)
        drows = None
        if ctx.needs_input_grad[1]:
            drows = cell.unproject(gates, w_ih)
            drows = drows if reversal is None else drows[reversal]
        ctx.trace.record(gates, sums, rows.detach(), torch.cat(walk.before(out, h0)))
        return None, drows, dh, dc, *[None] * (len(ctx.needs_input_grad) - 4)
