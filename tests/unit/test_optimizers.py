"""Muon for the matrices of a program, Adam for the rest, with one learning rate and one state."""

from __future__ import annotations

import copy

import pytest
import torch
from programs import tiny_images, tiny_vae
from torch import nn

from inference.optimizers import Muon
from inference.settings import optimizers
from inference.svi import fit


def network(bias=True):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3, bias=bias), nn.Flatten(), nn.Linear(8, 3, bias=bias))


def take(net, optimizer, steps, start=0):
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        net.zero_grad()
        net(torch.randn(5, 1, 4, 4, generator=generator)).square().sum().backward()
        optimizer.step()


def test_matrices_take_muons_steps_and_the_rest_adams():
    net, other = network(), network()
    take(net, Muon(net.parameters(), lr=0.01), 3)
    matrices = [p for p in other.parameters() if p.dim() == 2]
    rest = [p for p in other.parameters() if p.dim() != 2]
    scaled = {"weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"}
    muon, adam = torch.optim.Muon(matrices, lr=0.01, **scaled), torch.optim.Adam(rest, lr=0.01)
    for step in range(3):
        take(other, muon, 1, step)
        adam.step()
    assert len(matrices) == 1
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_a_kernel_is_a_matrix_of_its_windows_and_a_single_channels_filters_are_none():
    torch.manual_seed(0)
    weights = [torch.randn(4, 3, 2, 2), torch.randn(4, 1, 3, 3)]
    kernel, filters = (nn.Parameter(w.clone()) for w in weights)
    matrix, same = nn.Parameter(weights[0].flatten(1)), nn.Parameter(weights[1].clone())
    ours = Muon([kernel, filters], lr=0.01)
    theirs = torch.optim.Muon([matrix], 0.01, 0.0, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.Adam([same], 0.01)
    for _ in range(3):
        gradients = [torch.randn_like(w) for w in weights]
        kernel.grad, filters.grad = (g.clone() for g in gradients)
        matrix.grad, same.grad = gradients[0].flatten(1), gradients[1]
        for optimizer in (ours, theirs, adam):
            optimizer.step()
    torch.testing.assert_close(kernel.flatten(1), matrix, rtol=0, atol=0)
    torch.testing.assert_close(filters, same, rtol=0, atol=0)


@pytest.mark.parametrize("bias", [True, False])
def test_its_state_is_whole_and_a_schedule_reaches_both(bias):
    net, again = network(bias), network(bias)
    one, two = Muon(net.parameters(), lr=0.01), Muon(again.parameters(), lr=0.5)
    take(net, one, 2)
    again.load_state_dict(net.state_dict())
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    assert {group["lr"] for group in two.param_groups} == {0.01}
    for trained, optimizer in ((net, one), (again, two)):
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1)
        take(trained, optimizer, 1, 2)
        schedule.step()
        rates = [part.param_groups[0]["lr"] for part in optimizer.parts]
        assert rates == pytest.approx([1e-3] * 2)
        take(trained, optimizer, 2, 3)
    for left, right in zip(net.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


def test_a_program_is_trained_by_its_name_and_a_resumed_run_ends_the_same(tmp_path):
    assert optimizers()["Muon"] is Muon
    whole, parts = (train(tmp_path / name, (4,) if name == "whole" else (2, 4)) for name in NAMES)
    assert whole.history[-1]["valid_elbo"] > whole.history[0]["valid_elbo"]
    ends = parts.program.state_dict()
    for name, value in whole.program.state_dict().items():
        torch.testing.assert_close(value, ends[name], rtol=0, atol=0)


NAMES = ("whole", "parts")


def train(folder, until):
    for epochs in until:
        torch.manual_seed(0)
        fitted = fit(
            tiny_vae(),
            tiny_images(200),
            optimizer="Muon",
            learning_rate=5e-3,
            batch_size=20,
            epochs=epochs,
            keep="last",
            run_dir=folder,
            resume=True,
            progress=False,
        )
    return fitted
