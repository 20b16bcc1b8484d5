"""The progress bar: what it shows, and that it is quiet when nobody looks."""

from __future__ import annotations

import torch
from programs import tiny_images, tiny_vae

from inference import fit
from inference.progress import Progress


def test_it_shows_loss_elbo_rate_and_time_left(capsys):
    bar = Progress(1000, enabled=True)
    bar.bar.mininterval = bar.bar.miniters = 0
    bar.epoch_done({"epoch": 2, "valid_elbo": -123.456})
    bar.advance(100, torch.tensor(130.5))
    bar.advance(100, torch.tensor(129.25))
    bar.close()
    shown = capsys.readouterr().err
    assert "epoch 2" in shown
    assert "valid ELBO -123.46" in shown
    assert "loss 129.25" in shown or "loss 130.50" in shown
    assert "data/s" in shown
    assert "200/1.00k" in shown


def test_it_is_quiet_when_not_a_terminal(capsys):
    fit(tiny_vae(), tiny_images(), epochs=2)
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""
