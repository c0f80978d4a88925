"""Recurrent layers of b clients at once: one product for the inputs of all time steps, one cell for all clients.

A recurrence is an ``autograd.Function``. Its forward pass takes four to eight operations a time step, for all clients;
its backward pass three to five, since what does not depend on the step before is computed for all steps at once, the
gradient of the weights among it. Values lie in memory as [b, t, m, h], so that a step is a slice of them and all steps
are one matrix. Gates are in the order of torch: reset, update, new for a GRU; input, forget, cell, output for an LSTM.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedsim.kernels.precision import written_out
from fedsim.kernels.stacked_ops import Act, Params, Unstackable, plain
from fedsim.kernels.stacked_products import rows_times
from fedsim.kernels.stacked_values import by_client

GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


def project(params: Params, x: Act, weight: Any, *biases: Any) -> Act:
    """The inputs of all gates at all time steps, [t, m, f] -> [t, m, g h], biases added up."""
    if x.dim != 3:
        raise Unstackable(f"a recurrent layer on values of {x.dim} dimensions, need sequences of 3")
    b, t, m, f = (data := plain(x)).shape
    shift = sum((by_client(bias, b) for bias in biases[1:]), start=by_client(biases[0], b)) if biases else None
    gates = rows_times(data.reshape(b, t * m, f), by_client(weight, b), shift)
    return Act(gates.view(b, t, m, -1), b)


def recurrence(
    params: Params, gates: Act, weight: Any, bias: Any, kind: str, backwards: bool, state: Any, cells: Any
) -> tuple[Act, Act]:
    """One layer in one direction, from ``project``'s gates.

    Args:
        params: not used; weights arrive as values.
        gates: [t, m, g h].
        weight: [g h, h] of the state.
        bias: [g h] of the state, for a GRU; other kinds have it among the gates already.
        kind: a key of ``GATES``.
        backwards: from the last step to the first.
        state: [m, h] before the first step; None: zeros.
        cells: likewise the cells of an LSTM.

    Returns:
        States [t, m, h], and the last cells [m, h] of an LSTM.
    """
    data, b = plain(gates), gates.b
    h = data.shape[-1] // GATES[kind]
    first, inner = (
        data.new_zeros(b, data.shape[2], h) if value is None else by_client(value, b).contiguous()
        for value in (state, cells)
    )
    if backwards:
        data = data.flip(1)
    w = by_client(weight, b)
    last = first
    if kind == "LSTM":
        states, last = written_out(_LSTM, data, w, first, inner)
    elif kind == "GRU":
        shift = None if bias is None else by_client(bias, b)
        states = written_out(_GRU, data, w, shift, first)
    else:
        states = written_out(_RNN, data, w, first, kind == "RNN_RELU")
    return Act(states.flip(1) if backwards else states, b), Act(last, b)


def before_each(states: Tensor, first: Tensor) -> Tensor:
    """The state before each step, [b, t, m, h]."""
    return torch.cat([first.unsqueeze(1), states[:, :-1]], 1)


def _weight_gradient(deltas: Tensor, before: Tensor) -> Tensor:
    """Of all steps at once: [b, t, m, g h], [b, t, m, h] -> [b, g h, h]."""
    return torch.bmm(deltas.flatten(1, 2).transpose(1, 2), before.flatten(1, 2))


class _GRU(torch.autograd.Function):
    """n = tanh(x_n + r (W_n h + b_n)), h' = n + z (h - n)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
        """[b, t, m, 3h], [b, 3h, h], [b, 3h], [b, m, h] -> [b, t, m, h]."""
        b, t, m, h = *x.shape[:3], weight.shape[2]
        inner = x.new_empty(t, b, m, 3 * h)  # W h + b; products of many clients want results without gaps
        gates, new, states = x.new_empty(b, t, m, 2 * h), x.new_empty(b, t, m, h), x.new_empty(b, t, m, h)
        columns, shift, state = weight.transpose(1, 2), None if bias is None else bias.unsqueeze(1), first
        for k in range(t):
            if shift is None:
                torch.bmm(state, columns, out=inner[k])
            else:
                torch.baddbmm(shift, state, columns, out=inner[k])
            both = torch.add(x[:, k, :, : 2 * h], inner[k, :, :, : 2 * h], out=gates[:, k]).sigmoid_()
            n = torch.addcmul(x[:, k, :, 2 * h :], both[..., :h], inner[k, :, :, 2 * h :], out=new[:, k]).tanh_()
            state = torch.lerp(n, state, both[..., h:], out=states[:, k])
        ctx.save_for_backward(weight, first, inner, gates, new, states)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """What a step's gradient is multiplied with is known for all steps before the loop."""
        weight, first, inner, gates, new, states = ctx.saved_tensors
        b, t, m, h = states.shape
        r, z, before = gates[..., :h], gates[..., h:], before_each(states, first)
        slope = (1 - z) * (1 - new * new)
        factors = inner.new_empty(b, t, m, 3, h)
        torch.mul(slope * r * (1 - r), inner[..., 2 * h :].transpose(0, 1), out=factors[..., 0, :])
        torch.mul((before - new) * z, 1 - z, out=factors[..., 1, :])
        torch.mul(slope, r, out=factors[..., 2, :])
        deltas, sums = torch.empty_like(factors), inner.new_empty(t + 1, b, m, h)
        sums[t] = g[:, t - 1]
        for k in reversed(range(t)):
            here = torch.mul(sums[k + 1].unsqueeze(2), factors[:, k], out=deltas[:, k])
            carried = (
                torch.mul(sums[k + 1], z[:, 0], out=sums[0])
                if k == 0
                else torch.addcmul(g[:, k - 1], sums[k + 1], z[:, k], out=sums[k])
            )
            carried.baddbmm_(here.flatten(2), weight)
        flat = deltas.flatten(3)
        at_weight = _weight_gradient(flat, before)
        at_bias = flat.sum((1, 2)) if ctx.needs_input_grad[2] else None
        torch.mul(sums[1:].transpose(0, 1), slope, out=deltas[..., 2, :])  # by x_n, which r does not touch
        return flat, at_weight, at_bias, sums[0]


class _LSTM(torch.autograd.Function):
    """c' = f c + i g, h' = o tanh(c')."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, first: Tensor, first_cells: Tensor) -> tuple[Tensor, Tensor]:
        """[b, t, m, 4h], [b, 4h, h], [b, m, h], [b, m, h] -> [b, t, m, h], [b, m, h]."""
        b, t, m, h = *x.shape[:3], weight.shape[2]
        gates = x.new_empty(t, b, m, 4 * h)
        cells, bent = x.new_empty(t, b, m, h), x.new_empty(t, b, m, h)
        states, columns, state, cell = x.new_empty(b, t, m, h), weight.transpose(1, 2), first, first_cells
        for k in range(t):
            here = torch.baddbmm(x[:, k], state, columns, out=gates[k])
            here[..., : 2 * h].sigmoid_()
            here[..., 2 * h : 3 * h].tanh_()
            here[..., 3 * h :].sigmoid_()
            i, f, g, o = here.chunk(4, -1)
            cell = torch.mul(f, cell, out=cells[k]).addcmul_(i, g)
            state = torch.mul(o, torch.tanh(cell, out=bent[k]), out=states[:, k])
        ctx.save_for_backward(weight, first, first_cells, gates, cells, bent, states)
        return states, cells[t - 1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_state: Tensor, by_cell: Tensor) -> tuple[Tensor, ...]:
        """As for a GRU, with a second sum, of the cells."""
        weight, first, first_cells, gates, cells, bent, states = ctx.saved_tensors
        b, t, m, h = states.shape
        i, f, g, o = gates.chunk(4, -1)
        factors = gates.new_empty(t, b, m, 4, h)
        torch.mul(g * i, 1 - i, out=factors[..., 0, :])
        torch.mul(torch.cat([first_cells.unsqueeze(0), cells[:-1]]) * f, 1 - f, out=factors[..., 1, :])
        torch.mul(i, 1 - g * g, out=factors[..., 2, :])
        torch.mul(bent * o, 1 - o, out=factors[..., 3, :])
        through = o * (1 - bent * bent)
        deltas = gates.new_empty(b, t, m, 4, h)
        at_state, at_cell = by_state[:, t - 1], by_cell
        for k in reversed(range(t)):
            at_cell = torch.addcmul(at_cell, at_state, through[k])
            torch.mul(at_cell.unsqueeze(2), factors[k, :, :, :3], out=deltas[:, k, :, :3])
            torch.mul(at_state, factors[k, :, :, 3], out=deltas[:, k, :, 3])
            at_cell = at_cell.mul_(f[k])
            here = deltas[:, k].flatten(2)
            at_state = torch.bmm(here, weight) if k == 0 else torch.baddbmm(by_state[:, k - 1], here, weight)
        flat = deltas.flatten(3)
        return flat, _weight_gradient(flat, before_each(states, first)), at_state, at_cell


class _RNN(torch.autograd.Function):
    """h' = tanh(x + W h), or the positive part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, first: Tensor, relu: bool) -> Tensor:
        """[b, t, m, h], [b, h, h], [b, m, h] -> [b, t, m, h]."""
        states, columns, state = torch.empty_like(x, memory_format=torch.contiguous_format), weight.mT, first
        for k in range(x.shape[1]):
            sums = torch.baddbmm(x[:, k], state, columns)
            state = states[:, k].copy_(sums.relu_() if relu else sums.tanh_())
        ctx.save_for_backward(weight, first, states)
        ctx.relu = relu
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """As for a GRU."""
        weight, first, states = ctx.saved_tensors
        factors = (states > 0).to(states.dtype) if ctx.relu else 1 - states * states
        deltas, at_state = torch.empty_like(states), g[:, -1]
        for k in reversed(range(states.shape[1])):
            here = torch.mul(at_state, factors[:, k], out=deltas[:, k])
            at_state = torch.bmm(here, weight) if k == 0 else torch.baddbmm(g[:, k - 1], here, weight)
        return deltas, _weight_gradient(deltas, before_each(states, first)), at_state, None
