"""Sketch-RNN: exact masks, the contract, drawing, temperature, beginnings."""

from __future__ import annotations

import pyro
import pytest
import torch
from sketch_helpers import (
    some_drawings,
    tiny_class_rnn,
    tiny_decoder,
    tiny_sketch_rnn,
)
from torch import nn

from inference.drawing import Sharpened
from inference.elbo.handlers import FixedValues
from inference.sampling import decode, sample
from inference.testing import check_program
from inference.weights import log_weights, site_densities
from ppl_models import PplError, ProgramError
from ppl_models.distributions import Drawings, FinishedDrawings, StrokeMixture, num_movements
from ppl_models.nets.recurrent import LayerNormLSTM, StrokeEncoder

LABELS = torch.tensor([0, 2, 1, 1])
PROGRAMS = {
    "code": tiny_sketch_rnn,
    "layer norm": lambda: tiny_sketch_rnn(layer_norm=True),
    "flow": lambda: tiny_sketch_rnn(posterior="flow"),
    "beta": lambda: tiny_sketch_rnn(beta=0.5),
    "class": tiny_class_rnn,
    "decoder": tiny_decoder,
}


@pytest.mark.parametrize("make", PROGRAMS.values(), ids=PROGRAMS)
def test_it_keeps_the_contract(make):
    check_program(make(), {"x": some_drawings(), "y": LABELS})


def padded(x, rows):
    more = torch.zeros(len(x), rows, 5, dtype=x.dtype)
    more[..., 4] = 1
    return torch.cat([x, more], 1)


@pytest.mark.parametrize("name", ["code", "layer norm", "class", "decoder"])
def test_a_longer_padding_changes_no_log_weight(name):
    """Drawings alone, without padding, in a batch of longer ones, and with more padding."""
    program, x = PROGRAMS[name](), some_drawings()

    def weights(batch, labels):
        torch.manual_seed(1)  # one draw of z, the same for all
        z = {} if name == "decoder" else {"z": torch.randn(4).expand(len(batch), 4)}
        with FixedValues(z):
            return log_weights(program, {"x": batch, "y": labels})[0]

    together = weights(x, LABELS)
    torch.testing.assert_close(weights(padded(x, 30), LABELS), together, atol=1e-5, rtol=1e-6)
    for i, n in enumerate(num_movements(x)):
        alone = weights(x[i : i + 1, : n + 1], LABELS[i : i + 1])
        torch.testing.assert_close(alone, together[i : i + 1], atol=1e-5, rtol=1e-6)


def test_the_density_is_the_product_of_the_factors():
    program = tiny_decoder()
    (x,) = some_drawings((4,))
    rows = torch.cat([torch.tensor([[0.0, 0, 1, 0, 0]]), x[:4]])
    outputs = program.decoder(rows[None])[0]
    expected = StrokeMixture.from_outputs(outputs).log_prob(x[:5]).sum()  # with the first end
    torch.testing.assert_close(program.drawings(9).log_prob(x), expected)


def test_the_encoder_reads_backwards_from_each_drawings_own_end():
    """Against torch's bidirectional LSTM on packed sequences."""
    encoder, x = StrokeEncoder(5, 6), some_drawings()
    both = nn.LSTM(5, 6, bidirectional=True, batch_first=True)
    state = {k: v for k, v in encoder.forwards.state_dict().items()}
    state |= {f"{k}_reverse": v for k, v in encoder.backwards.state_dict().items()}
    both.load_state_dict(state)
    lengths = num_movements(x)
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    _, (last, _) = both(packed)
    torch.testing.assert_close(encoder(x, lengths), torch.cat([last[0], last[1]], -1))


def test_layer_normalization_keeps_a_state():
    net, x = LayerNormLSTM(3, 5), torch.randn(2, 6, 3)
    whole, _ = net(x)
    first, state = net(x[:, :4])
    second, _ = net(x[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)


@pytest.mark.parametrize("name", ["code", "class", "decoder"])
def test_draws_are_drawings(name):
    drawn = sample(PROGRAMS[name](), 20)["x"]
    assert drawn.shape == (20, 9, 5)
    assert bool(FinishedDrawings().check(drawn).all())
    assert len(num_movements(drawn).unique()) > 1


def test_lengths_of_draws_match_the_density():
    """P(no movement) = p(end) of the first row; 2,000 draws, five deviations."""
    program = tiny_decoder()
    with torch.no_grad():
        ending = program.drawings(9).log_prob(some_drawings((0,))).exp()
    drawn = sample(program, 2000)["x"]
    share = (num_movements(drawn) == 0).float().mean()
    assert float(share) == pytest.approx(float(ending), abs=5 * 0.5 / 2000**0.5)


def test_a_low_temperature_draws_the_same_again_and_again():
    program = tiny_sketch_rnn()
    z = torch.zeros(5, 4)
    with Sharpened(1e-6, progress=False):
        drawn = decode(program, {"z": z})
    torch.testing.assert_close(drawn, drawn[:1].expand_as(drawn), atol=0.05, rtol=0.0)
    hot = decode(program, {"z": z})
    assert float((hot - hot[:1]).abs().max()) > 0.1


def test_a_beginning_is_drawn_on_from():
    program, start = tiny_decoder(), some_drawings((3,))[:, :3]
    drawn = sample(program, 6, given={"beginning": start.expand(6, 3, 5)})["x"]
    assert torch.equal(drawn[:, :3], start.expand(6, 3, 5))
    assert float(drawn[:, 3:].std(0).max()) > 0
    whole, rest = program.drawings(9), program.drawings(9, start)
    prefix = StrokeMixture.from_outputs(
        program.decoder(torch.cat([torch.tensor([[[0.0, 0, 1, 0, 0]]]), start[:, :2]], 1))
    ).log_prob(start)
    expected = whole.log_prob(drawn) - prefix.sum()
    torch.testing.assert_close(rest.log_prob(drawn), expected)


@pytest.mark.parametrize(
    ("beginning", "message"),
    [
        (torch.zeros(1, 9, 5), "leaves nothing to draw"),
        (some_drawings((3,))[:, :5], "must not end"),
        (torch.zeros(1, 3, 5), "rows .* of stroke-5"),
    ],
    ids=["long", "ended", "rows"],
)
def test_beginnings_that_are_none(beginning, message):
    with pytest.raises(PplError, match=message):
        tiny_decoder().drawings(9, beginning)


def test_input_dropout_is_of_training_alone():
    program, batch = tiny_sketch_rnn(input_dropout=0.5), {"x": some_drawings()}
    program.eval()
    with FixedValues({"z": torch.zeros(4, 4)}):
        still = [site_densities(program, batch).distortion for _ in range(2)]
        program.train()
        moving = [site_densities(program, batch).distortion for _ in range(2)]
    assert torch.equal(*still)
    assert not torch.equal(*moving)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tiny_sketch_rnn(beta=0.0), "beta must be positive"),
        (lambda: tiny_sketch_rnn(input_dropout=1.0), "input_dropout"),
        (lambda: tiny_decoder(num_components=0), "num_components"),
    ],
)
def test_options_that_are_none(make, message):
    with pytest.raises(PplError, match=message):
        make()


def test_data_that_are_no_drawings():
    with pytest.raises(ProgramError, match="take drawings in stroke-5"):
        type(tiny_decoder())((1, 28, 28))
    with pytest.raises(ProgramError, match="drawings without labels"):
        tiny_class_rnn().model(some_drawings())
    with pyro.validation_enabled(True), pytest.raises(PplError, match="expected drawings"):
        tiny_decoder().drawings(9).log_prob(torch.zeros(2, 9, 5))


def test_top_k_is_refused():
    with pytest.raises(PplError, match="top_k is of categories"):
        sample(tiny_decoder(), 2, sharpened=Sharpened(1.0, 3, progress=False))


def test_more_rows_are_drawn_for_more_particles():
    drawings = tiny_sketch_rnn().decode(torch.randn(2, 3, 4))
    assert isinstance(drawings, Drawings)
    assert drawings.sample((5,)).shape == (5, 2, 3, 9, 5)
    assert drawings.log_prob(some_drawings((1, 2, 3))).shape == (2, 3)
