"""Temperature by scale, and what each level of a hierarchy decides."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import images_for, tiny_images, tiny_vae
from unit.test_shared_pass import tiny_hierarchy, tiny_ladder

from inference import latents
from inference.cli import main
from inference.drawing import Sharpened
from inference.sampling import sample
from ppl_models import PplError, build
from ppl_models.hierarchical_vae import HierarchicalVAE


def drawn(program, temperature=1.0):
    return sample(program, 400, draw="sample", sharpened=Sharpened(temperature))


def test_temperature_is_a_factor_of_the_scale_of_the_first_group():
    program = tiny_hierarchy()
    plain, cold = drawn(program)["z_1"], drawn(program, 0.5)["z_1"]
    loc = program.normal(program.groups[0].prior(program.start())).mean.detach()
    torch.testing.assert_close(cold - loc, 0.5 * (plain - loc))


def test_one_temperature_a_scale():
    program = tiny_hierarchy()
    plain, first, second = (drawn(program, t) for t in ([1.0, 1.0], [1.0, 0.5], [0.5, 1.0]))
    assert all(torch.equal(plain[n], drawn(program)[n]) for n in plain)
    assert torch.equal(first["z_2"], plain["z_2"])  # of the first scale
    assert not torch.allclose(first["z_3"], plain["z_3"])
    assert not torch.allclose(second["z_1"], plain["z_1"])


class Partly(HierarchicalVAE):
    """Names a scale for two of its three groups."""

    scales = (("z_1",), ("z_2",))


def test_what_is_of_no_scale_is_drawn_as_it_is():
    torch.manual_seed(0)
    found = drawn(Partly((1, 4, 4), (2, 1), 2, 4, encoder_cells=1), [1e-6, 1.0])
    spread = {name: float(found[name].std(0).mean()) for name in ("z_1", "z_2", "z_3")}
    assert spread["z_1"] < 1e-5
    assert spread["z_2"] > 0.5
    assert spread["z_3"] > 0.5


def test_the_data_keep_their_scale():
    program = build("vae", x_shape=(1, 4, 4), latent_dim=2, likelihood="normal")
    found = sample(program, 400, draw="sample", sharpened=Sharpened(1e-6))
    assert float(found["x"].std(0).mean()) == pytest.approx(1.0, abs=0.1)
    assert float(found["z"].abs().max()) < 1e-4


@pytest.mark.parametrize(
    ("make", "temperature", "message"),
    [
        (tiny_hierarchy, 0.0, "temperature must be positive and finite, got 0.0"),
        (tiny_hierarchy, [0.7, -1.0], "temperature must be positive and finite"),
        (tiny_hierarchy, [], "temperature must be positive"),
        (tiny_hierarchy, [0.7, 0.7, 0.7], "3 temperatures .* has 2 scales: .*'z_3'"),
        (tiny_vae, [0.7, 0.7], "2 temperatures .* has no scales"),
        (lambda: build("gmm", x_shape=(2,)), 0.7, "this program draws none"),
    ],
)
def test_what_is_no_temperature_is_refused(make, temperature, message):
    with pytest.raises(PplError, match=message):
        drawn(make(), temperature)


@pytest.mark.parametrize("make", [tiny_hierarchy, tiny_ladder, tiny_vae])
def test_all_levels_kept_is_a_reconstruction_and_none_a_draw_from_the_prior(make):
    program, batch = make(), {"x": tiny_images(5)}
    names = latents.levels_of(program, batch)
    assert names == (["z"] if make is tiny_vae else [f"z_{i + 1}" for i in range(len(names))])
    found = latents.resample(program, batch, seed=4)
    assert found.shape == (len(names) + 1, 5, 1, 4, 4)
    torch.testing.assert_close(found[-1], sample(program, 5, seed=4)["x"])
    other = latents.resample(program, {"x": 1 - batch["x"]}, seed=4)
    torch.testing.assert_close(other[-1], found[-1])  # nothing of the data is left
    assert not torch.allclose(other[0], found[0])


def test_levels_above_are_kept():
    """x ~ N((z_1, z_2), 1): of a program that shows its latents, what is kept is seen."""

    class Shown(torch.nn.Module):
        def model(self, x=None, *, size=1):
            with pyro.plate("data", size if x is None else len(x), dim=-1):
                z_1 = pyro.sample("z_1", dist.Normal(0.0, 1.0))
                z_2 = pyro.sample("z_2", dist.Normal(z_1, 1.0))
                loc = torch.stack([z_1, z_2], -1).reshape(-1, 1, 1, 2)
                return pyro.sample("x", dist.Normal(loc, 1.0).to_event(3), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z_1", dist.Normal(x[:, 0, 0, 0], 1e-6))
                pyro.sample("z_2", dist.Normal(x[:, 0, 0, 1], 1e-6))

    x = torch.tensor([[1.0, 2.0], [-3.0, 4.0]]).reshape(2, 1, 1, 2)
    both, first, none = latents.resample(Shown(), {"x": x})
    torch.testing.assert_close(both, x, atol=1e-4, rtol=0)
    torch.testing.assert_close(first[..., 0], x[..., 0], atol=1e-4, rtol=0)
    assert float((first[..., 1] - x[..., 1]).abs().min()) > 0.01
    assert float((none[..., 0] - x[..., 0]).abs().min()) > 0.01


@pytest.mark.parametrize("level", [0, 5, -1])
def test_a_level_that_is_not_there_is_refused(level):
    with pytest.raises(PplError, match=f"no level {level};.*z_1, z_2, z_3: levels 1 to 3, and 4"):
        latents.resample(tiny_hierarchy(), {"x": tiny_images(3)}, [level])


def test_no_levels_are_refused():
    with pytest.raises(PplError, match="one level or more, from 1 to 4; got none"):
        latents.resample(tiny_hierarchy(), {"x": tiny_images(3)}, [])


def test_levels_on_the_command_line_stand_in_brackets(capsys):
    assert main(["explore", "run", "--kind", "resample", "--levels", "3"]) == 2
    assert "Write several numbers in brackets: [4,4]." in capsys.readouterr().err


def test_a_program_without_latents_is_refused():
    program = build("pixelcnn", x_shape=(1, 4, 4), grey_levels=2)
    with pytest.raises(PplError, match="nothing to resample"):
        latents.resample(program, {"x": images_for("bernoulli", 3)})
