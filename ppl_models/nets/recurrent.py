"""Recurrent networks over rows of pen strokes; they know nothing of Pyro.

Shapes: B batch, T rows, F features, H units.

References:
    Ha, Eck: A Neural Representation of Sketch Drawings, 2018, arXiv:1704.03477, section 3.2.
    Ba, Kiros, Hinton: Layer Normalization, 2016, arXiv:1607.06450, eq. 20-22.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

State = tuple[Tensor, Tensor]
"""Hidden state and cell of an LSTM, (1, B, H) each."""


class LayerNormLSTM(nn.Module):
    """An LSTM with layer normalization, in the manner of ``nn.LSTM`` with the batch first.

    Its rows are gone through in Python, which takes several times as long as ``nn.LSTM``.

    Args:
        in_dim: F.
        hidden_dim: H.
    """

    def __init__(self, in_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        self.from_input = nn.Linear(in_dim, 4 * hidden_dim, bias=False)
        self.from_hidden = nn.Linear(hidden_dim, 4 * hidden_dim, bias=False)
        self.norm_input = nn.LayerNorm(4 * hidden_dim)
        self.norm_hidden = nn.LayerNorm(4 * hidden_dim, bias=False)
        self.norm_cell = nn.LayerNorm(hidden_dim)
        with torch.no_grad():
            self.norm_input.bias.narrow(0, hidden_dim, hidden_dim).fill_(
                1.0
            )  # remember, to begin with

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Outputs (B, T, H) of inputs (B, T, F), and the last state."""
        zeros = x.new_zeros(len(x), self.hidden_dim)
        hidden, cell = (zeros, zeros) if state is None else (part[0] for part in state)
        outputs = []
        for row in self.norm_input(self.from_input(x)).unbind(1):
            gates = row + self.norm_hidden(self.from_hidden(hidden))
            enter, keep, candidate, leave = gates.chunk(4, dim=-1)
            cell = keep.sigmoid() * cell + enter.sigmoid() * candidate.tanh()
            hidden = leave.sigmoid() * self.norm_cell(cell).tanh()
            outputs.append(hidden)
        return torch.stack(outputs, 1), (hidden.unsqueeze(0), cell.unsqueeze(0))


def lstm(in_dim: int, hidden_dim: int, layer_norm: bool = False) -> nn.Module:
    """One layer, from (B, T, F) to (B, T, H); its forget gates start open.

    Args:
        in_dim: F.
        hidden_dim: H.
        layer_norm: a :class:`LayerNormLSTM`, else torch's own.
    """
    if layer_norm:
        return LayerNormLSTM(in_dim, hidden_dim)
    made = nn.LSTM(in_dim, hidden_dim, batch_first=True)
    with torch.no_grad():
        made.get_parameter("bias_ih_l0").narrow(0, hidden_dim, hidden_dim).fill_(1.0)
    return made


class StrokeEncoder(nn.Module):
    """Both ends of a bidirectional LSTM over sequences of different lengths.

    The backward one begins at each sequence's own last row, so rows after it change nothing.

    Args:
        in_dim: F.
        hidden_dim: H.
        layer_norm: see :func:`lstm`.
    """

    def __init__(self, in_dim: int, hidden_dim: int, layer_norm: bool = False) -> None:
        super().__init__()
        self.forwards = lstm(in_dim, hidden_dim, layer_norm)
        self.backwards = lstm(in_dim, hidden_dim, layer_norm)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The last outputs of both, (B, 2 H), of x (B, T, F) with so many rows each, (B,)."""
        last = (lengths - 1).clamp_min(0)
        longest = int(last.max()) + 1
        x = x[:, :longest]  # the network need not run on padding
        rows = torch.arange(longest, device=x.device)
        turned = (last.unsqueeze(-1) - rows).clamp_min(0)  # (B, T): from the last row to the first
        reverse = x.gather(1, turned.unsqueeze(-1).expand_as(x))
        ends = [_at(self.forwards(x)[0], last), _at(self.backwards(reverse)[0], last)]
        return torch.cat(ends, -1)


def _at(outputs: Tensor, last: Tensor) -> Tensor:
    """The output (B, H) of each sequence at a row of its own, of (B, T, H)."""
    place = last.reshape(-1, 1, 1).expand(-1, 1, outputs.shape[-1])
    return outputs.gather(1, place).squeeze(1)


class StrokeDecoder(nn.Module):
    """An LSTM that says, after every row of a drawing, what the next one may be.

    Args:
        num_outputs: of a row.
        hidden_dim: H.
        context_dim: of a vector that it is conditioned on: it makes the first state, and stands
            beside every row; 0 for none.
        layer_norm: see :func:`lstm`.
        input_dropout: share of the inputs from the drawing so far that are zeroed in training, so
            that more has to come from the context.
    """

    def __init__(
        self,
        num_outputs: int,
        hidden_dim: int,
        context_dim: int = 0,
        layer_norm: bool = False,
        input_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.first = nn.Linear(context_dim, 2 * hidden_dim) if context_dim else None
        self.lstm = lstm(5 + context_dim, hidden_dim, layer_norm)
        self.output = nn.Linear(hidden_dim, num_outputs)
        self.dropout = nn.Dropout(input_dropout)

    def start(self, context: Tensor | None) -> State | None:
        """The state before the first row; None: zeros."""
        if self.first is None or context is None:
            return None
        hidden, cell = self.first(context).tanh().chunk(2, dim=-1)
        return hidden.unsqueeze(0).contiguous(), cell.unsqueeze(0).contiguous()

    def forward(self, before: Tensor, context: Tensor | None = None) -> Tensor:
        """Outputs (B, T, O) for rows of which these (B, T, 5) stand before, given (B, F)."""
        return self.proceed(before, context, self.start(context))[0]

    def proceed(
        self, before: Tensor, context: Tensor | None, state: State | None
    ) -> tuple[Tensor, State]:
        """The same from a state on, and the state after it."""
        rows = self.dropout(before)
        if context is not None:
            beside = context.unsqueeze(1).expand(-1, rows.shape[1], -1)
            rows = torch.cat([rows, beside], -1)
        hidden, state = self.lstm(rows, state)
        return self.output(hidden), state

    def pen(self, batch: int, context: Tensor | None) -> StrokePen:
        """The outputs row by row, for so many drawings."""
        return StrokePen(self, context)


class StrokePen:
    """A decoder's outputs one row after the other.

    Args:
        decoder: of the rows.
        context: (B, F), or None.
    """

    def __init__(self, decoder: StrokeDecoder, context: Tensor | None) -> None:
        self.decoder = decoder
        self.context = context
        self.state = decoder.start(context)

    def outputs(self, rows: Tensor) -> Tensor:
        """Of the row after these (B, 5)."""
        found, self.state = self.decoder.proceed(rows.unsqueeze(1), self.context, self.state)
        return found.squeeze(1)
