"""Drawings from the command line: train, evaluate, sample, reconstruct, explore, draw on."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from programs import GaussianToy
from sketch_helpers import some_drawings, tiny_decoder, tiny_sketch_rnn, write_sketches
from torch.distributions import kl_divergence

from inference import evaluate, fit, load_data
from inference.cli import main
from inference.data.sketches.svg import read_svg
from inference.devices import make_fabric
from inference.elbo import make_estimator
from inference.explore import explore
from inference.handlers import FreeBits, KLAnnealing
from inference.runs import load_run
from inference.schedules import exponential
from inference.sketches import read_beginning, redrawn, sketch_numbers
from inference.step import SVIStep
from ppl_models import PplError, as_program

SIZES = ["--model.decoder_dim", "8", "--model.num_components", "2", "--progress", "false"]
CODE = ["--model.latent_dim", "3", "--model.encoder_dim", "4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of a recurrent VAE of two classes, and of a decoder, on a few drawings."""
    folder = tmp_path_factory.mktemp("sketches")
    (folder / "data").mkdir()
    write_sketches(folder / "data" / "cat.npz")
    write_sketches(folder / "data" / "dog.npz", seed=1)
    cat = ["--data", str(folder / "data" / "cat.npz"), "--epochs", "1"]
    options = ["--kl_decay", "0.9", "--free_bits", "0.6", "--augment", "true"]
    for name, data in {"sketch_rnn": cat, "sketch_rnn_decoder": cat}.items():
        own = [*CODE, *options] if name == "sketch_rnn" else []
        assert main(["train", name, *data, *SIZES, *own, "--out", str(folder / name)]) == 0
    both = ["--data", str(folder / "data"), "--epochs", "1"]
    run = str(folder / "classes")
    assert main(["train", "class_sketch_rnn", *both, *SIZES, *CODE, "--out", run]) == 0
    return folder


def ppl(capsys, *words):
    capsys.readouterr()
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_run_says_what_the_paper_says(folder, capsys):
    found = ppl(capsys, "evaluate", folder / "sketch_rnn", "--num_particles", "2")
    info = load_data(str(folder / "data" / "cat.npz")).info
    assert found["paper_reconstruction"] == pytest.approx(
        found["distortion"] / (info.x_shape[0] - 1)
    )
    assert found["paper_kl"] == pytest.approx(found["rate"] / 3)
    assert found["distortion_per_movement"] == pytest.approx(
        found["distortion"] / found["movements"]
    )
    exact = ppl(capsys, "evaluate", folder / "sketch_rnn_decoder")
    assert exact["paper_kl"] is None
    assert exact["rate"] == 0
    assert (folder / "sketch_rnn" / "samples.png").is_file()
    assert (folder / "sketch_rnn" / "report.html").is_file()


def test_the_scale_is_saved_with_the_model(folder):
    run = load_run(folder / "sketch_rnn")
    assert float(run.program.owner.offset_scale) == pytest.approx(run.data.info.offset_scale)
    assert float(run.program.owner.offset_scale) != 1.0


def test_the_numbers_of_other_data_are_none():
    program, data = tiny_decoder(), load_data("digits")
    result = evaluate(program, {"x": some_drawings()})
    assert sketch_numbers(as_program(program), data, "test", result) == {}


def test_samples(folder, capsys, tmp_path):
    found = ppl(capsys, "sample", folder / "sketch_rnn", "--num", 4, "--temperature", 0.5)
    assert [f.rpartition(".")[2] for f in found["file"].split(", ")] == ["png", "svg", "gif"]
    out = tmp_path / "a.svg"
    ppl(capsys, "sample", folder / "classes", "--num", 4, "--y", "[0,1]", "--out", out)
    assert out.is_file()
    assert main(["sample", str(folder / "classes"), "--out", str(tmp_path / "a.bmp")]) == 2


@pytest.mark.parametrize("name", ["sketch_rnn", "classes"])
def test_reconstructions(folder, capsys, tmp_path, name):
    run = folder / name
    found = ppl(capsys, "reconstruct", run, "--num", 3, "--temperature", 0.1)
    assert found["reconstructions"] == 3
    assert read_svg(run / "reconstructions.svg")
    with Image.open(run / "reconstructions.gif") as image:
        assert image.n_frames > 1
    only = ppl(capsys, "reconstruct", run, "--num", 3, "--out", tmp_path / "r.png")
    assert only["file"] == str(tmp_path / "r.png")


def test_a_decoder_reconstructs_nothing(folder, capsys):
    assert main(["reconstruct", str(folder / "sketch_rnn_decoder")]) == 2
    assert "--beginning FILE draws on from one" in capsys.readouterr().err


def test_explorations(folder, capsys):
    run = folder / "sketch_rnn"
    walk = ppl(capsys, "explore", run, "--kind", "interpolate", "--num", 3, "--steps", 3)
    assert set(walk) >= {"file", "lines", "animation"}
    found = ppl(capsys, "explore", run, "--kind", "temperature", "--num", 2)
    assert found["images"] == 10
    assert read_svg(run / "temperature.svg")


def test_walks_of_a_class(folder):
    run = load_run(folder / "classes")
    walk = explore(run, "interpolation", images=[0, 1], steps=3)
    assert walk.frames.shape == (3, 1, 1, 96, 96)
    found = explore(run, "traversal", steps=3, dims=[1], label=1)
    assert found.frames.shape == (3, 1, 1, 96, 96)
    assert found.svg.count(b"<g") == 3


def test_the_temperatures_of_an_exploration_are_its_own(folder):
    run = load_run(folder / "sketch_rnn")
    svg = explore(run, "temperature", num=2).svg
    rows = [line for line in svg.decode().splitlines() if line.startswith("<g")]
    assert len({tuple(line.split("<path")[1:]) for line in rows}) > 2


def test_a_beginning_from_a_file(folder, capsys, tmp_path):
    (tmp_path / "start.svg").write_text('<svg><path d="M0 0L30 0L30 40"/></svg>')
    run, out = folder / "sketch_rnn_decoder", tmp_path / "a.npz"
    start = ["--beginning", tmp_path / "start.svg"]
    ppl(capsys, "sample", run, "--num", 3, *start, "--out", out)
    x = np.load(out)["x"]
    scale = load_run(run).data.info.offset_scale
    np.testing.assert_allclose(x[:, :2, :2] * scale, [[[30, 0], [0, 40]]] * 3, rtol=1e-5)
    assert np.array_equal(x[:, :2, 2], np.ones((3, 2)))  # the pen stays down
    assert len({row.tobytes() for row in x}) == 3


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.svg", "<svg/>", "nothing is drawn"),
        ("a.txt", "", r"expected an \.svg, \.ndjson or \.npz file"),
        ("b.svg", None, r"expected an \.svg"),
    ],
)
def test_beginnings_that_are_none(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(PplError, match=message):
        read_beginning(str(tmp_path / name), as_program(tiny_decoder()))
    with pytest.raises(PplError, match="GaussianToy makes none"):
        read_beginning(str(tmp_path / name), as_program(GaussianToy()))


def test_a_temperature_of_images_is_refused(folder, capsys, tmp_path):
    run = str(tmp_path / "vae")
    sizes = ["--model.hidden_dims", "[4]", "--model.latent_dim", "2", "--progress", "false"]
    assert main(["train", "vae", "--data", "digits", "--epochs", "1", *sizes, "--out", run]) == 0
    assert main(["reconstruct", run, "--temperature", "0.5"]) == 2
    assert "temperature is of drawings" in capsys.readouterr().err
    assert main(["explore", run, "--kind", "classes", "--out", "a.svg"]) == 2


def test_the_kl_weight_approaches_one():
    handler = KLAnnealing(0.9)
    for step in (0, 1, 10):
        handler.at(step)
        assert handler.weight == pytest.approx(1 - 0.99 * 0.9**step)
    assert repr(handler) == "KLAnnealing(decay=0.9, start=0.01)"
    assert exponential(0.9)(3) == pytest.approx(1 - 0.99 * 0.9**3)
    with pytest.raises(PplError, match="rate must be between 0 and 1"):
        KLAnnealing(1.5)


def loss_of(program, batch, handlers, step=0):
    """Loss per datum of a step, always of the same draw of z."""
    torch.manual_seed(0)
    optimizer, estimator = torch.optim.SGD(program.parameters(), 0.0), make_estimator("analytic_kl")
    taken = SVIStep(program, estimator, optimizer, make_fabric("cpu"), handlers, 4)
    taken.at(step)
    with program.scope():
        return float(taken.backward(batch))


@pytest.mark.parametrize(("step", "floor"), [(0, 50.0), (1, 50.0), (2, 1e-3)])
def test_the_objective_is_the_papers(step, floor):
    """Distortion + weight · max(rate, floor)."""
    program, x = as_program(tiny_sketch_rnn()).eval(), some_drawings()
    found = loss_of(program, {"x": x}, [KLAnnealing(0.5), FreeBits(floor)], step)
    owner = program.owner
    with torch.no_grad():
        rate = float(kl_divergence(owner.posterior(x), owner.prior().expand([4])).mean())
    distortion = loss_of(program, {"x": x}, []) - rate
    weight = 1 - 0.99 * 0.5**step
    assert found == pytest.approx(distortion + weight * max(rate, floor), rel=1e-4)


def test_training_teaches_and_resumes(folder, tmp_path):
    data = load_data(str(folder / "data" / "cat.npz"))
    torch.manual_seed(0)
    fitted = fit(tiny_decoder(), data, epochs=6, batch_size=10, learning_rate=0.01, progress=False)
    history = [row["valid_elbo"] for row in fitted.history]
    assert history[-1] > history[0] + 1
    torch.manual_seed(0)
    options = {"batch_size": 10, "learning_rate": 0.01, "progress": False, "run_dir": tmp_path}
    fit(tiny_decoder(), data, epochs=3, **options)
    again = fit(tiny_decoder(), data, epochs=6, resume=True, **options)
    assert [row["valid_elbo"] for row in again.history] == history


def test_a_run_that_asks_to_be_compiled_says_why_it_is_not(folder, caplog):
    data = load_data(str(folder / "data" / "cat.npz"))
    with caplog.at_level("INFO", logger="inference"):
        fitted = fit(tiny_sketch_rnn(), data, epochs=1, batch_size=10, compile=True, progress=False)
    assert "goes on without compiling" in caplog.text
    assert "a tensor's value decides what is run" in caplog.text
    assert np.isfinite(fitted.elbo)


def test_redrawn_drawings_are_those_of_their_codes():
    program = as_program(tiny_sketch_rnn())
    batch = {"x": some_drawings()}
    calm = [redrawn(program, batch, temperature=1e-6, seed=0) for _ in range(2)]
    assert torch.equal(*calm)
    assert calm[0].shape == (4, 9, 5)
