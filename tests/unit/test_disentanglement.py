"""MIG, DCI and SAP: tables by hand, perfect and rotated codes, programs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from latent_helpers import LinearImages

from inference.data import DataSet, rendered_shapes
from inference.disentanglement import (
    dci,
    dci_scores,
    disentanglement,
    mig,
    normalized_information,
    sap,
)
from inference.explore import explore
from inference.latents import encode_all
from inference.runs import Run
from ppl_models.errors import PplError
from ppl_models.program import as_program
from ppl_models.vae import VAE


def grid(*counts):
    """Every combination of factors with so many values, (N, M)."""
    return np.stack(np.meshgrid(*map(np.arange, counts), indexing="ij"), -1).reshape(
        -1, len(counts)
    )


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


FACTORS = np.repeat(grid(3, 4, 5), 20, axis=0).astype(float)  # 1,200 data


def rotation(dim):
    return np.linalg.qr(noise(dim, dim, seed=3))[0]


# By hand.


def test_mig_of_small_tables():
    v = np.array([[0], [0], [1], [1]])
    same, other = v[:, 0] * 3.0, np.array([0.0, 1.0, 0.0, 1.0])
    assert mig(np.stack([same, other], 1), v) == pytest.approx(1.0)
    assert mig(np.stack([same, other, -same], 1), v) == pytest.approx(0.0)  # two tell it
    assert mig(same[:, None], v) == pytest.approx(1.0)  # a lone component


def test_mig_of_a_noisy_bit():
    """z = v in 6 of 8 data: I = log 2 − h(¼), and H(v) = log 2; the other component is free."""
    v = np.array([0, 0, 0, 0, 1, 1, 1, 1])[:, None]
    z = np.array([0, 0, 0, 1, 1, 1, 1, 0.0])
    free = np.array([0, 1, 0, 1, 1, 0, 1, 0.0])
    h = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    found = normalized_information(np.stack([z, free], 1), v)
    np.testing.assert_allclose(found[:, 0], [1 - h / math.log(2), 0], atol=1e-12)
    assert mig(np.stack([z, free], 1), v) == pytest.approx(1 - h / math.log(2))


def test_mig_of_a_code_that_tells_a_half():
    """z = ⌊v / 2⌋ of four values: I = log 2 of H(v) = log 4; of the free bit it tells nothing."""
    v = grid(4, 2)
    z = np.stack([v[:, 0] // 2, v[:, 1]], 1).astype(float)
    np.testing.assert_allclose(normalized_information(z, v), [[0.5, 0], [0, 1]], atol=1e-12)
    assert mig(z, v) == pytest.approx((0.5 + 1) / 2)


def test_mig_of_an_entangled_code():
    """Sum and difference of two bits tell both together, each half of either: no gap."""
    v = grid(2, 2)
    z = np.stack([v[:, 0] + v[:, 1], v[:, 0] - v[:, 1]], 1).astype(float)
    np.testing.assert_allclose(normalized_information(z, v), np.full((2, 2), 0.5), atol=1e-12)
    assert mig(z, v) == pytest.approx(0)


def test_dci_of_small_tables():
    assert dci_scores(np.eye(3)) == (1.0, 1.0)
    assert dci_scores(np.ones((3, 3))) == pytest.approx((0.0, 0.0))
    # Two components tell the first factor alike, a third the second: every component is of one
    # factor, but the first factor needs two: 1 − log 2 / log 3, weighed ½.
    table = np.array([[0.5, 0.0], [0.5, 0.0], [0.0, 1.0]])
    found = dci_scores(table)
    assert found[0] == pytest.approx(1.0)
    assert found[1] == pytest.approx(0.5 * (1 - math.log(2) / math.log(3)) + 0.5)
    dead = np.vstack([table, np.zeros(2)])
    assert dci_scores(dead)[0] == pytest.approx(1.0)  # what tells nothing does not count


def test_sap_of_a_line_with_noise_is_its_squared_correlation():
    v = np.array([-1.0, 1, -1, 1, -1, 1, -1, 1])[:, None]
    e = np.array([-1.0, -1, 1, 1, -1, -1, 1, 1])
    free = np.array([-1.0, -1, -1, -1, 1, 1, 1, 1])
    z = v[:, 0] + 0.5 * e  # R² = 1 / (1 + ¼)
    assert sap(np.stack([z, free], 1), v) == pytest.approx(0.8)
    assert sap(np.stack([z, 2 * v[:, 0]], 1), v) == pytest.approx(0.2)
    assert sap(np.stack([z, np.ones(8)], 1), v) == pytest.approx(0.8)


def test_sap_of_a_category_counts_thresholds():
    """Three values in the order 0, 2, 1 along z: no line tells them, two thresholds do."""
    v = np.repeat([[0.0], [1.0], [2.0]], 40, axis=0)
    z = np.stack([np.array([0.0, 2.0, 1.0])[v[:, 0].astype(int)], noise(120)], 1)
    assert sap(z, v) < 0.3
    found = sap(z, v, categorical=[0])
    assert 0.4 < found < 0.8  # 1, less about the third that chance gets


# Codes of factors.


def test_a_perfect_code_has_every_score():
    codes = FACTORS[:, [2, 0, 1]] * [1.0, -2.0, 0.5] + 0.01 * noise(len(FACTORS), 3)
    assert mig(codes, FACTORS) == pytest.approx(1.0, abs=0.02)
    found = dci(codes, FACTORS)
    assert found[:3] == pytest.approx((1.0, 1.0, 1.0), abs=0.02)
    assert found.importance.argmax(0).tolist() == [1, 2, 0]
    assert sap(codes, FACTORS) == pytest.approx(1.0, abs=0.02)


def test_a_rotated_code_tells_all_but_is_not_disentangled():
    z = (FACTORS - FACTORS.mean(0)) / FACTORS.std(0) @ rotation(3)
    assert mig(z, FACTORS) < 0.3
    found = dci(z, FACTORS)
    assert found.informativeness > 0.95
    assert found.disentanglement < 0.5
    assert found.completeness < 0.5
    assert sap(z, FACTORS) < 0.4


def test_free_components_change_no_score_and_noise_has_none():
    z = FACTORS + 0.01 * noise(len(FACTORS), 3)
    more = np.hstack([z, noise(len(FACTORS), 2, seed=1)])
    assert mig(more, FACTORS) == pytest.approx(1.0, abs=0.06)  # binning's own information
    assert dci(more, FACTORS)[:2] == pytest.approx((1.0, 1.0), abs=0.02)
    free = noise(len(FACTORS), 3, seed=2)
    assert mig(free, FACTORS) < 0.02
    assert sap(free, FACTORS) < 0.02
    assert dci(free, FACTORS).informativeness < 0.4  # chance: 0.26


def test_a_component_that_never_changes_tells_nothing():
    z = np.hstack([FACTORS, np.full((len(FACTORS), 1), 0.25)])
    assert normalized_information(z, FACTORS)[3].tolist() == pytest.approx([0, 0, 0])
    assert mig(z, FACTORS) == pytest.approx(1.0)


# Programs.


def factored(program, num=400):
    factors = torch.tensor(FACTORS[:: len(FACTORS) // num, :2])
    z = factors.float() @ torch.eye(2, program.latent_dim)
    return {"x": program.mean(z), "factors": factors}


def test_a_programs_means_are_scored():
    program = LinearImages(3)
    batch = factored(program)
    found = disentanglement(program, batch, factors=("shape", "scale"), categorical=("shape",))
    # The third component's means are rounding, in step with the factors; its draws are noise.
    assert found.mig == pytest.approx(1.0, abs=0.15)
    assert mig(encode_all(program, batch)[0].numpy(), batch["factors"].numpy()) < 0.5
    assert found.mig_by_factor.keys() == {"shape", "scale"}
    assert found.disentanglement > 0.98
    assert found.sap > 0.7  # a shape is guessed by chance in a third of the data
    assert found.information.shape == found.importance.shape == (3, 2)
    assert found.num_data == len(batch["x"])
    assert set(found.to_dict()) >= {"mig", "sap", "completeness", "num_data"}
    again = disentanglement(program, [batch], num=200)
    assert (again.num_data, again.factors) == (200, ("0", "1"))


def test_the_exploration_draws_traversals_beside_the_factors_they_tell(tmp_path):
    data = rendered_shapes(size=8, num_scales=2, num_rotations=1, num_x=4, num_y=4)
    moving = [0, 1, 3, 4]  # there is one rotation
    parts = (data.train, data.valid, data.test)
    for part in parts:
        part.tensors["factors"] = part.tensors["factors"][:, moving]
    info = replace(data.info, columns={"factors": ("shape", "scale", "x", "y")})
    program = as_program(VAE((1, 8, 8), latent_dim=3, hidden_dims=(8,)))
    run = Run(tmp_path, {}, program, DataSet(info, *parts), 1)
    found = explore(run, "disentanglement", steps=5)
    left, right = found.figure.axes
    assert [t.get_text() for t in right.get_xticklabels()] == ["shape", "scale", "x", "y"]
    assert len(right.texts) == 12
    assert found.frames.shape == (5, 3, 1, 8, 8)
    assert "MIG" in left.get_title()
    assert set(found.numbers["mig_by_factor"]) == {"shape", "scale", "x", "y"}


def test_what_cannot_be_scored_is_told():
    program = LinearImages(3)
    batch = factored(program)
    with pytest.raises(PplError, match=r"no field 'factors' \(they have: y\).*shapes"):
        disentanglement(program, {"x": batch["x"], "y": batch["factors"][:, 0]})
    with pytest.raises(PplError, match="unknown factor 'colour'"):
        disentanglement(program, batch, factors=("a", "b"), categorical=("colour",))
    with pytest.raises(PplError, match="unknown factor '1 names'"):
        disentanglement(program, batch, factors=("a",))
    still = {**batch, "factors": torch.ones(len(batch["x"]), 2)}
    with pytest.raises(PplError, match="factor 0 has one value in all"):
        disentanglement(program, still)
    with pytest.raises(PplError, match=r"codes \(N, D\) and factors"):
        mig(np.zeros((5, 2)), np.zeros((4, 1)))
