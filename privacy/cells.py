"""Recurrent cells walked through time and back: LSTM, GRU, RNN with tanh or relu.

It knows nothing of layers, samples or clipping. The walk back leaves the gradient of every gate at
every step, from which the gradients of all weights follow as products that need no order of time.

Rows are packed as in torch.nn.utils.rnn: step after step, step t holding the first sizes[t]
samples, sizes falling; N is their sum, B = sizes[0]. What time orders is one product with W_hh and
about ten elementwise calls a step; everything else is done for all steps at once.
Sources: Hochreiter and Schmidhuber 1997 (LSTM), Cho et al. 2014, arXiv:1406.1078 (GRU), in the
variants that torch.nn documents; Werbos 1990 (backpropagation through time).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Kernels of autograd's own, which write where they are told: f'(x) * gradient, given f(x).
_sigmoid_back = torch.ops.aten.sigmoid_backward.grad_input
_tanh_back = torch.ops.aten.tanh_backward.grad_input
_relu_back = torch.ops.aten.threshold_backward.grad_input


@dataclass(frozen=True)
class Walk:
    """The tensors of one walk of B samples through all steps, and back.

    Attributes:
        sizes: rows of each step, falling.
        gates: (N, blocks H). Before the walk x W_ih^T and biases; after it the gates; after the
            walk back the gradients of what went into them.
        recurrent: (g H, H) W_hh.
        h0, c0: (B, H) states before the first step; c0 is read by the LSTM alone.
        out: (N, H) outputs.
        cells: (N, H) cell states of an LSTM; (0, H) of others.
    """

    sizes: Sequence[int]
    gates: Tensor
    recurrent: Tensor
    h0: Tensor
    c0: Tensor
    out: Tensor
    cells: Tensor

    def steps(self, rows: Tensor) -> Sequence[Tensor]:
        """Split (N, ...) ``rows`` into one view a step."""
        return torch.split(rows, list(self.sizes))

    def columns(self, first: int, count: int = 1) -> Sequence[Tensor]:
        """Return for each step (n, count H), ``count`` blocks of gates from block ``first``."""
        width = self.out.shape[1]
        return self.steps(self.gates[:, first * width : (first + count) * width])

    def before(self, rows: Tensor, start: Tensor) -> list[Tensor]:
        """Return for each step what ``rows`` (N, H) held one step earlier; ``start`` (B, H)."""
        steps = self.steps(rows)
        return [start, *(step[:n] for step, n in zip(steps, self.sizes[1:], strict=False))]

    def last(self, rows: Tensor) -> Tensor:
        """Return each sample's row at its own last step: (N, H) -> (B, H)."""
        after = [*self.sizes[1:], 0]
        ends = zip(self.steps(rows), self.sizes, after, strict=True)
        return torch.cat([step[later:] for step, n, later in ends if n > later or not n][::-1])


Forward = Callable[[Walk], None]
# (walk, (N, H) gradients of its outputs or None, dh, dc) -> (B, blocks H) sums of the gates'
# gradients over time; dh and dc (B, H) come as the gradients of the last states and leave as those
# of h0 and c0.
Backward = Callable[[Walk, Tensor | None, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Cell:
    """One kind of cell: which blocks of the gates' buffer belong to which weights, and its walks.

    Attributes:
        blocks: H-wide blocks of the buffer.
        inputs: first block and number of blocks that x W_ih^T goes to; their gradients are W_ih's.
        hidden: the same of h W_hh^T.
        turn: blocks by which the rows of W_ih are rolled to stand in the order of the buffer.
        remembers: whether it has cell states beside its outputs.
    """

    blocks: int
    inputs: tuple[int, int]
    hidden: tuple[int, int]
    turn: int
    remembers: bool
    forward: Forward
    backward: Backward

    def columns(self, hidden_size: int) -> tuple[slice, slice]:
        """Return the columns of the buffer that belong to W_ih and to W_hh."""
        h = hidden_size
        (a, n), (b, m) = self.inputs, self.hidden
        return slice(a * h, (a + n) * h), slice(b * h, (b + m) * h)

    def project(
        self,
        rows: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Tensor:
        """Return (N, blocks H) x W_ih^T and both biases, for all steps at once."""
        hidden_size = w_hh.shape[1]
        inputs, hidden = self.columns(hidden_size)
        gates = rows.new_empty(len(rows), self.blocks * hidden_size)
        bias = rows.new_zeros(self.blocks * hidden_size)
        if b_ih is not None and b_hh is not None:
            bias[inputs] += b_ih.roll(self.turn * hidden_size)
            bias[hidden] += b_hh
        weight = self._turned(w_ih, hidden_size)
        # (N, d) x (d, g H) -> (N, g H)
        torch.addmm(bias[inputs], rows, weight.t(), out=gates[:, inputs])
        gates[:, inputs.stop :] = bias[inputs.stop :]  # what h alone goes to
        return gates

    def unproject(self, gates: Tensor, w_ih: Tensor) -> Tensor:
        """Return (N, d) gradients of the rows from (N, blocks H) gradients of the gates."""
        hidden_size = gates.shape[1] // self.blocks
        return gates[:, self.columns(hidden_size)[0]] @ self._turned(w_ih, hidden_size)

    def _turned(self, w_ih: Tensor, hidden_size: int) -> Tensor:
        return w_ih.roll(self.turn * hidden_size, 0) if self.turn else w_ih


def _lstm_forward(walk: Walk) -> None:
    """c' = f c + i g, h' = o tanh(c'). Blocks: i, f, g, o."""
    gates, pair, g, o = walk.columns(0, 4), walk.columns(0, 2), walk.columns(2), walk.columns(3)
    i, f = walk.columns(0), walk.columns(1)
    cells, out = walk.steps(walk.cells), walk.steps(walk.out)
    weight, h, c, squashed = walk.recurrent.t(), walk.h0, walk.c0, torch.empty_like(walk.h0)
    for t, n in enumerate(walk.sizes):
        gates[t].addmm_(h[:n], weight)  # (n, H) x (H, 4H) -> (n, 4H)
        pair[t].sigmoid_()
        g[t].tanh_()
        o[t].sigmoid_()
        c = torch.mul(f[t], c[:n], out=cells[t]).addcmul_(i[t], g[t])
        h = torch.mul(o[t], torch.tanh(c, out=squashed[:n]), out=out[t])


def _lstm_backward(walk: Walk, dout: Tensor | None, dh: Tensor, dc: Tensor) -> Tensor:
    """dc += dh o tanh'(c'); gradients of i, f, g, o by dc g, dc c, dc i, dh tanh(c'); dc *= f."""
    gates, pair, g, o = walk.columns(0, 4), walk.columns(0, 2), walk.columns(2), walk.columns(3)
    i, f, cells = walk.columns(0), walk.columns(1), walk.steps(walk.cells)
    before, douts = walk.before(walk.cells, walk.c0), dout if dout is None else walk.steps(dout)
    both, spare = dh.new_empty(len(dh), 2 * dh.shape[1]), torch.empty_like(dh)
    sums = dh.new_zeros(len(dh), walk.gates.shape[1])
    width = -1
    for t, n in reversed(list(enumerate(walk.sizes))):
        if n != width:  # samples join, seldom; slices cost as much as arithmetic
            width, di_df, u, h, c, total = n, both[:n], spare[:n], dh[:n], dc[:n], sums[:n]
            di, df = di_df.chunk(2, 1)
        if douts is not None:
            h += douts[t]
        torch.mul(h, o[t], out=di)
        torch.tanh(cells[t], out=u)
        c += _tanh_back(di, u, grad_input=di)
        _sigmoid_back(h.mul_(u), o[t], grad_input=o[t])
        torch.mul(c, g[t], out=di)
        torch.mul(c, before[t], out=df)
        _tanh_back(torch.mul(c, i[t], out=u), g[t], grad_input=g[t])
        c *= f[t]
        _sigmoid_back(di_df, pair[t], grad_input=pair[t])
        total += gates[t]
        torch.mm(gates[t], walk.recurrent, out=h)  # (n, 4H) x (4H, H) -> (n, H)
    return sums


def _gru_forward(walk: Walk) -> None:
    """n = tanh(n_x + r q), h' = n + z (h - n), q = W_hn h + b_hn. Blocks: n, r, z, q."""
    hidden, pair, new, q = walk.columns(1, 3), walk.columns(1, 2), walk.columns(0), walk.columns(3)
    r, z, out = walk.columns(1), walk.columns(2), walk.steps(walk.out)
    weight, h, spare = walk.recurrent.t(), walk.h0, torch.empty_like(walk.h0)
    for t, n in enumerate(walk.sizes):
        hidden[t].addmm_(h[:n], weight)  # (n, H) x (H, 3H) -> (n, 3H)
        pair[t].sigmoid_()
        new[t].addcmul_(r[t], q[t]).tanh_()
        torch.sub(h[:n], new[t], out=spare[:n])
        h = torch.addcmul(new[t], z[t], spare[:n], out=out[t])


def _gru_backward(walk: Walk, dout: Tensor | None, dh: Tensor, _: Tensor) -> Tensor:
    """Gradients of z, n, r, q by dh (h - n), dh (1 - z), dn q, dn r; dh *= z."""
    hidden, pair, new, q = walk.columns(1, 3), walk.columns(1, 2), walk.columns(0), walk.columns(3)
    r, z, before = walk.columns(1), walk.columns(2), walk.before(walk.out, walk.h0)
    douts = dout if dout is None else walk.steps(dout)
    both, kept = dh.new_empty(len(dh), 2 * dh.shape[1]), torch.empty_like(dh)
    gates, sums = walk.columns(0, 4), dh.new_zeros(len(dh), walk.gates.shape[1])
    width = -1
    for t, n in reversed(list(enumerate(walk.sizes))):
        if n != width:
            width, dr_dz, by_z, h, total = n, both[:n], kept[:n], dh[:n], sums[:n]
            dr, dz = dr_dz.chunk(2, 1)
        if douts is not None:
            h += douts[t]
        torch.sub(before[t], new[t], out=dz).mul_(h)
        torch.mul(h, z[t], out=by_z)
        _tanh_back(h.sub_(by_z), new[t], grad_input=new[t])
        torch.mul(new[t], q[t], out=dr)
        torch.mul(new[t], r[t], out=q[t])
        _sigmoid_back(dr_dz, pair[t], grad_input=pair[t])
        total += gates[t]
        torch.addmm(by_z, hidden[t], walk.recurrent, out=h)  # (n, 3H) x (3H, H) -> (n, H)
    return sums


def _rnn_forward(walk: Walk, squash: Callable[[Tensor], Tensor]) -> None:
    """h' = tanh(x W_ih^T + h W_hh^T + biases), or relu of it. The block holds no gates."""
    gates, out, weight, h = walk.columns(0), walk.steps(walk.out), walk.recurrent.t(), walk.h0
    for t, n in enumerate(walk.sizes):
        h = squash(torch.addmm(gates[t], h[:n], weight, out=out[t]))  # (n, H) x (H, H) -> (n, H)


def _rnn_backward(
    walk: Walk,
    dout: Tensor | None,
    dh: Tensor,
    squash_back: Callable[[Tensor, Tensor, Tensor], None],
) -> Tensor:
    gates, out = walk.columns(0), walk.steps(walk.out)
    douts = dout if dout is None else walk.steps(dout)
    sums = torch.zeros_like(dh)
    for t, n in reversed(list(enumerate(walk.sizes))):
        h = dh[:n]
        if douts is not None:
            h += douts[t]
        squash_back(h, out[t], gates[t])
        sums[:n] += gates[t]
        torch.mm(gates[t], walk.recurrent, out=h)  # (n, H) x (H, H) -> (n, H)
    return sums


def _rnn(
    squash: Callable[[Tensor], Tensor], back: Callable[[Tensor, Tensor, Tensor], None]
) -> Cell:
    return Cell(
        1,
        inputs=(0, 1),
        hidden=(0, 1),
        turn=0,
        remembers=False,
        forward=lambda walk: _rnn_forward(walk, squash),
        backward=lambda walk, dout, dh, _: _rnn_backward(walk, dout, dh, back),
    )


# By the name that nn.RNNBase.mode gives each.
CELLS = {
    "LSTM": Cell(4, (0, 4), (0, 4), 0, True, _lstm_forward, _lstm_backward),
    # W_ih's rows are r, z, n: a block on, they stand as n, r, z, and beside W_hh's r, z, n as q.
    "GRU": Cell(4, (0, 3), (1, 3), 1, False, _gru_forward, _gru_backward),
    "RNN_TANH": _rnn(torch.tanh_, lambda dh, h, to: _tanh_back(dh, h, grad_input=to)),
    "RNN_RELU": _rnn(torch.relu_, lambda dh, h, to: _relu_back(dh, h, 0, grad_input=to)),
}
