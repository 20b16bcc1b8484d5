"""``ppl explore``: pictures of every kind, animations, and what it refuses."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data_helpers import save_images
from PIL import Image

from inference.cli import main
from inference.commands import sample_run
from inference.data import DataInfo, MemorySplit, load_data
from inference.explore import KINDS, explore
from inference.explore.choice import (
    by_class,
    fit_to,
    pick,
    pictures,
    property_of,
    some_places,
    with_and_without,
)
from inference.explore.codebook import surroundings
from inference.explore.command import explore_run
from inference.plotting import (
    animated,
    codebook_figure,
    labelled_grid,
    labelled_grids,
    posterior_against_prior,
)
from inference.runs import build_for, load_run
from ppl_models import CATALOG
from ppl_models.errors import PplError, UnknownNameError

CONDITIONAL = """
import pyro
import pyro.distributions as dist
import torch
from torch import nn


class Conditional(nn.Module):
    def __init__(self, x_shape=(1, 8, 8), num_classes: int = 10):
        super().__init__()
        self.decoder, self.encoder = nn.Linear(12, 64), nn.Linear(74, 4)

    def one_hot(self, y):
        return torch.nn.functional.one_hot(y, 10).float()

    def model(self, x=None, y=None, *, size=1):
        y = torch.arange(size) % 10 if y is None else y
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = self.decoder(torch.cat([z, self.one_hot(y)], -1)).unflatten(-1, (1, 8, 8))
            return pyro.sample("x", dist.Normal(loc, 0.3).to_event(3), obs=x)

    def guide(self, x, y):
        with pyro.plate("data", len(x), dim=-1):
            loc, raw = self.encoder(torch.cat([x.flatten(1), self.one_hot(y)], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))
"""


def train(folder: Path, *words: str) -> Path:
    line = ["train", *words, "--data", "digits", "--epochs", "1", "--out", str(folder)]
    assert main(line) == 0
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    words = ("vae", "--model.latent_dim", "2", "--model.hidden_dims", "[16]")
    return train(tmp_path_factory.mktemp("explore") / "run", *words)


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditional")
    (folder / "model.py").write_text(CONDITIONAL)
    return train(folder / "run", f"{folder}/model.py:Conditional")


OPTIONS = {
    "manifold": {"steps": 3},
    "interpolation": {"num": 3, "steps": 4},
    "traversal": {"steps": 3},
    "attribute": {"value": 1, "against": 7, "steps": 3, "num": 2},
    "analogy": {"num": 2},
    "resynthesis": {"num": 3},
    "nearest": {"num": 3},
    "classes": {"num": 2},
}
SHEETS = {
    "manifold": (3, 3),
    "interpolation": (2, 6),
    "traversal": (2, 3),
    "attribute": (2, 4),
    "analogy": (2, 4),
    "resynthesis": (3, 3),
    "nearest": (4, 3),
    "classes": (10, 2),
}
"""Rows and columns of images."""
UNDER_A_LABEL = ("manifold", "traversal")


def shown(figure) -> tuple[int, int]:
    height, width = np.asarray(figure.axes[0].images[0].get_array()).shape
    return (height - 1) // 9, (width - 1) // 9  # 8 × 8 and a line between


def test_every_kind_is_tested():
    assert set(OPTIONS) == set(SHEETS) <= set(KINDS)


@pytest.mark.parametrize("kind", OPTIONS)
def test_every_kind_draws(kind, run, conditional):
    folder = conditional if kind == "classes" else run
    found = explore(load_run(folder), kind, **OPTIONS[kind])
    assert shown(found.figure) == SHEETS[kind]
    moving = kind in ("interpolation", "traversal", "attribute")
    assert (found.frames is not None) == moving
    assert all(np.isfinite(value) for value in found.numbers.values())


@pytest.mark.parametrize("kind", OPTIONS)
def test_every_kind_draws_of_a_conditional_program(kind, conditional):
    label = {"label": 3} if kind in UNDER_A_LABEL else {}
    found = explore(load_run(conditional), kind, **OPTIONS[kind], **label)
    assert shown(found.figure) == SHEETS[kind]


def test_a_walk_from_label_to_label_or_under_one(conditional):
    opened = load_run(conditional)
    changed, held = (
        explore(opened, "interpolation", images=[0, 1], steps=3, **label)
        for label in ({}, {"label": 3})
    )
    assert "label changed half-way" in changed.figure.axes[0].get_title()
    assert "all decoded as 3" in held.figure.axes[0].get_title()
    assert not np.allclose(changed.frames[0], held.frames[0])


NOTHING_TO_WALK = {"gmm", "categorical_vae", "pixelcnn", "code_transformer", "vqvae_prior"}
SKETCHES = {name for name in CATALOG if "sketch" in name}
"""Of drawings, not of images: test_sketch_commands.py walks through them."""


@pytest.mark.parametrize("name", sorted(set(CATALOG) - NOTHING_TO_WALK - SKETCHES))
def test_every_program_of_the_catalog_can_be_walked_through(name):
    data = load_data("digits", binarize="threshold")
    likelihood = {} if name == "conv_grid_vae" else {"likelihood": "bernoulli"}
    run = SimpleNamespace(program=build_for(name, likelihood, data.info), data=data)
    assert shown(explore(run, "interpolation", **OPTIONS["interpolation"]).figure) == (2, 6)
    label = {"label": 3} if "y" in run.program.fields else {}
    found = explore(run, "traversal", steps=3, dims=[1], **label)
    assert shown(found.figure) == (1, 3)


def test_a_completing_program_is_shown_images_in_every_kind(tmp_path):
    words = ("cvae_completion", "--binarize", "threshold", "--model.hidden_dims", "[8]")
    opened = load_run(train(tmp_path / "run", *words, "--model.latent_dim", "2"))
    assert sample_run(str(tmp_path / "run"), num=3, out=str(tmp_path / "x.npz"))["samples"] == 3
    first = opened.data.test.tensors["x"][:3]
    seen = ~opened.program.owner.hidden.expand(3, 1, 8, 8)
    drawn = torch.as_tensor(np.load(tmp_path / "x.npz")["x"])
    assert torch.equal(drawn[seen], first[seen])
    for kind in ("manifold", "traversal", "nearest", "resynthesis"):
        figure = explore(opened, kind, **OPTIONS[kind]).figure
        sheet = np.asarray(figure.axes[0].images[0].get_array())
        corner = sheet[1:9, 1:9] if kind != "resynthesis" else sheet[10:18, 1:9]
        np.testing.assert_array_equal(corner[4:, :4], first[0, 0, 4:, :4])


@pytest.mark.parametrize(
    ("name", "options"), [("gmm", {"num_components": 2}), ("categorical_vae", {})]
)
def test_a_program_of_discrete_latents_says_why_it_cannot(name, options):
    data = load_data("digits")
    program = build_for(name, options, data.info)
    with pytest.raises(PplError, match=r"not real-valued.*reconstructions"):
        explore(SimpleNamespace(program=program, data=data), "interpolation")


def test_the_command_writes_png_and_gif_and_says_where(run, capsys, tmp_path):
    words = ["explore", str(run), "--kind", "interpolation", "--num", "3", "--json"]
    assert main(words) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["images"] == 3
    assert Path(numbers["file"]).read_bytes().startswith(b"\x89PNG")
    with Image.open(numbers["animation"]) as gif:
        assert gif.n_frames == 16  # nine steps, and back
    alone = tmp_path / "walk.gif"
    assert main([*words[:-1], "--out", str(alone)]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["walk.gif"]


@pytest.mark.parametrize("which", ["run", "conditional"])
def test_the_codes_of_data_are_shown_against_the_prior(which, request):
    opened = load_run(request.getfixturevalue(which))
    found = explore(opened, "posterior")
    above, below = found.figure.axes
    assert len(above.collections[0].get_offsets()) == 180
    assert [t.get_text() for t in below.get_legend().get_texts()] == ["prior", "codes"]
    assert found.numbers["data"] == 180
    assert found.numbers["gaussian_kl"] > 0
    assert found.numbers["marginal_kl"] > 0


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_codes_over_a_prior_of_any_dimension(dim):
    draw = np.random.default_rng(0)
    codes = draw.normal(size=(100, dim)) * (1 + np.arange(dim)) + 4
    figure = posterior_against_prior({"a": codes, "b": codes / 2}, draw.normal(size=(300, dim)))
    above, _, below, _ = figure.axes
    widest = codes[:, [max(0, dim - 2), dim - 1]] if dim > 1 else codes * [[1, 0]]
    np.testing.assert_allclose(np.asarray(above.collections[0].get_offsets()), widest)
    prior, shown = below.containers
    np.testing.assert_allclose(shown.lines[0].get_ydata(), codes.mean(0))
    ends = np.array([segment[:, 1] for segment in shown.lines[2][0].get_segments()])
    np.testing.assert_allclose(ends[:, 1] - ends[:, 0], 4 * codes.std(0))
    assert len(prior.lines[0].get_ydata()) == dim
    figure.savefig(io.BytesIO())


def test_help_tells_the_kinds(capsys):
    with pytest.raises(SystemExit):
        main(["explore", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for kind in KINDS:
        assert kind in text
    for option in ("--steps", "--images", "--against", "slerp or lerp"):
        assert option in text


def test_images_from_outside_are_fitted_and_resynthesized(run, tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255  # the middle square
    save_images(tmp_path / "photos", {"a.png": wide, "b.png": wide[:, :20]})
    found = explore(load_run(run), "resynthesis", files=str(tmp_path / "photos"))
    sheet = np.asarray(found.figure.axes[0].images[0].get_array())
    assert sheet[1:9, 1:9].min() > 0.99  # white: the middle alone
    assert sheet[1:9, 10:18].max() < 0.01
    assert found.numbers["images"] == 2


def test_a_conditional_program_is_asked_for_outside_images_under_a_label(conditional, tmp_path):
    save_images(tmp_path, {"a.png": np.zeros((9, 9), np.uint8)})
    opened = load_run(conditional)
    options = {"files": str(tmp_path / "a.png")}
    with pytest.raises(PplError, match="takes labels: say which, --label 0"):
        explore(opened, "resynthesis", **options)
    assert explore(opened, "resynthesis", **options, label=2).numbers["images"] == 1


ERRORS = [
    ("--kind manifoldd", "unknown kind of exploration 'manifoldd'. Did you mean 'manifold'"),
    ("--kind nearest --method lerp", "takes no --method; its options are --num, --seed"),
    ("--kind interpolation --images [3]", "at least two images and two steps, got 1 image"),
    ("--kind interpolation --images [3,4000]", "there is no image 4000; the split has 180"),
    ("--kind interpolation --method slrp", "Did you mean 'slerp'"),
    ("--kind traversal --dims [2]", "0 to 1; there is no component 2"),
    ("--kind traversal --steps 0", "a traversal needs at least two steps, got 0"),
    ("--kind attribute --value 1 --steps 0", "in at least one strength"),
    ("--kind attribute --value 3 --against 3", "y = 3 cannot be told from itself"),
    ("--kind traversal --site w", "unknown latent site 'w'.*There are: z"),
    ("--kind traversal --label 3", "takes no labels; leave --label out"),
    ("--kind interpolation --label 3", "takes no labels; leave --label out"),
    ("--kind analogy --images [1,2,3,4]", "in threes .a, b, c., got 4"),
    ("--kind attribute", "y has 10 values without an order: say which, --value 1"),
    ("--kind attribute --against 1", "y = 1 against what. Say it too, --value 1"),
    ("--kind attribute --value 12", "no datum has y = 12; the values are 0, 1"),
    ("--kind attribute --by colour", "unknown property 'colour'.*There are: y"),
    ("--kind classes", "VAE is not conditional.*attribute vector"),
    ("--kind classes --out p.jpg", "is not conditional"),
    ("--kind manifold --out p.jpg", "cannot write '.jpg': give --out FILE.png, or FILE.gif"),
    ("--kind manifold --out p.gif", "this kind does not move"),
    ("--kind resynthesis --label 3", "--label is of images from outside, --files"),
    ("--kind nearest --num 0", "num must be at least 1"),
    ("--kind resynthesis --files nowhere.png", "there is no image 'nowhere.png'"),
]


@pytest.mark.parametrize(("words", "message"), ERRORS, ids=[words for words, _ in ERRORS])
def test_what_cannot_be_explored_is_told(words, message, run, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["explore", str(run), *words.split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.search(message, captured.err), captured.err
    assert list(tmp_path.iterdir()) == []


def test_a_manifold_of_many_dimensions_says_what_else_there_is(tmp_path, capsys):
    folder = train(tmp_path / "run", "vae", "--model.latent_dim", "4", "--model.hidden_dims", "[8]")
    assert main(["explore", str(folder), "--kind", "manifold"]) == 2
    assert re.search(r"has 4\. Name two .*traversal.*latent_dim 2", capsys.readouterr().err)
    numbers = explore_run(str(folder), kind="manifold", dims=[1, 3], steps=3)
    assert Path(numbers["file"]).is_file()


def test_a_conditional_program_needs_a_class_that_exists(conditional):
    opened = load_run(conditional)
    with pytest.raises(PplError, match="there is no class 10; expected 0 to 9"):
        explore(opened, "manifold", label=10)
    with pytest.raises(PplError, match="takes labels: say which"):
        explore(opened, "traversal")


# The choice of data.


def some_split():
    y = torch.tensor([2, 0, 2, 1, 0, 1])
    return MemorySplit({"x": torch.arange(6.0), "y": y})


def test_one_image_a_class_in_turn():
    split = some_split()
    assert by_class(split) == {0: [1, 3, 0], 1: [4, 5, 2]}
    assert some_places(split, 4) == [1, 3, 0, 4]
    assert some_places(MemorySplit({"x": torch.zeros(3)}), 9) == [0, 1, 2]
    assert pick(split, [5, 2])["x"].tolist() == [5.0, 2.0]


INFO = DataInfo("toy", (1,), (0, 1), (), "", columns={"factors": ("shape", "scale")})


def test_properties_are_fields_and_named_columns():
    fields = {"y": torch.arange(3), "factors": torch.tensor([[0, 5.0], [1, 6.0], [2, 7.0]])}
    assert property_of(fields, INFO, "y").tolist() == [0, 1, 2]
    assert property_of(fields, INFO, "scale").tolist() == [5, 6, 7]
    with pytest.raises(UnknownNameError, match="Did you mean 'scale'"):
        property_of(fields, INFO, "scales")
    with pytest.raises(PplError, match=r"have no labels beside 'x'.*a subfolder a class"):
        property_of({}, INFO, "y")


def test_who_has_a_property():
    values = torch.tensor([1.0, 2.0, 3.0, 3.0])
    has, used = with_and_without(values, "v", 3, 1, True)
    assert (has.tolist(), used.tolist()) == ([0, 0, 1, 1], [1, 0, 1, 1])
    has, used = with_and_without(values, "v", None, None, False)  # above the mean
    assert (has.tolist(), bool(used.all())) == ([0, 0, 1, 1], True)
    has, _ = with_and_without(torch.tensor([0.0, 1.0, 1.0]), "bald", None, None, True)
    assert has.tolist() == [0, 1, 1]


def test_fitting_cuts_the_middle_in_the_proportions_of_the_data():
    image = torch.arange(12.0).reshape(1, 2, 6) / 12
    assert torch.equal(fit_to(image, (1, 2, 2)), image[..., 2:4])
    assert fit_to(image, (1, 8, 4)).shape == (1, 8, 4)


def test_data_that_are_no_images_are_refused():
    with pytest.raises(PplError, match="is no image of one or three channels"):
        pictures(torch.zeros(4, 7))
    with pytest.raises(PplError, match="nothing to draw"):
        pictures(torch.zeros(4, 2, 5, 5, 5))
    assert pictures(torch.zeros(2, 3, 1, 5, 4)).shape == (2, 3, 1, 5, 4)


# The pictures.


def test_a_labelled_grid_has_its_names_at_the_middle_of_its_images():
    images = np.arange(6).reshape(2, 3, 1, 1, 1) / 10 * np.ones((1, 1, 1, 4, 6))
    figure = labelled_grid(images, ["a", "b"], ["one", "two", "three"], "T", row_title="rows")
    axes = figure.axes[0]
    sheet = np.asarray(axes.images[0].get_array())
    assert [label.get_text() for label in axes.get_xticklabels()] == ["one", "two", "three"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    for row, y in enumerate(axes.get_yticks()):
        for column, x in enumerate(axes.get_xticks()):
            assert sheet[int(y), int(x)] == pytest.approx(images[row, column, 0, 0, 0])
    assert (axes.get_title(), axes.get_ylabel()) == ("T", "rows")


def test_grids_stand_beside_each_other():
    grid = np.zeros((2, 3, 3, 4, 4))
    figure = labelled_grids([(grid, [], ["1", "2", "3"], "left"), (grid, ["a", "b"], [], "right")])
    assert [axes.get_title() for axes in figure.axes] == ["left", "right"]
    buffer = io.BytesIO()
    figure.savefig(buffer)
    assert buffer.tell() > 1000


@pytest.mark.parametrize("channels", [1, 3])
def test_an_animation_goes_there_and_back(channels):
    frames = np.linspace(0, 1, 3).reshape(3, 1, 1, 1, 1) * np.ones((1, 2, channels, 4, 4))
    with Image.open(io.BytesIO(animated(frames, width=100))) as gif:
        assert (gif.n_frames, gif.info["loop"], gif.info["duration"]) == (4, 0, 120)
        assert gif.size == (110, 60)  # 11 × 6 pixels, ten times
        greys = []
        for frame in range(4):
            gif.seek(frame)
            greys.append(np.asarray(gif.convert("L"))[30, 30])
    assert greys == pytest.approx([0, 128, 255, 128], abs=2)


CODED = ("vqvae", "--model.num_codes", "6", "--model.hidden_channels", "8", "--model.grid", "[4,4]")


def test_a_codebook_is_drawn_with_the_use_of_its_codes(tmp_path, capsys):
    """Counts and pictures against those by hand, over the whole split."""
    folder = train(tmp_path / "run", *CODED)
    capsys.readouterr()
    assert main(["explore", str(folder), "--kind", "codebook", "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    run = load_run(folder)
    batch = next(iter(run.data.test.batches(len(run.data.test))))
    codes = run.program.owner.encode_codes(batch["x"])["codes"]
    counts = codes.flatten().bincount(minlength=6).double()
    share = counts[counts > 0] / counts.sum()
    assert numbers["perplexity"] == pytest.approx(float((-(share * share.log()).sum()).exp()))
    assert numbers["dead_codes"] == int((counts == 0).sum())
    assert (numbers["site"], numbers["data"]) == ("codes", len(batch["x"]))
    figure = explore(run, "codebook", site="codes").figure
    captions = [text.get_text() for text in figure.axes[0].texts]
    most = int(counts.argmax())
    assert captions[0] == f"{most}: {100 * float(counts[most] / counts.sum()):.3g} %"
    assert len(captions) == 6
    heights = [bar.get_height() for bar in figure.axes[1].patches]
    assert heights[0] == pytest.approx(float(counts.max() / counts.mean()))
    with pytest.raises(UnknownNameError, match="grid of codes 'code'"):
        explore(run, "codebook", site="code")


def test_the_surroundings_of_places():
    """Each place's own 2 × 2 pixels in the middle of 6 × 6; outside, the edge goes on."""
    x = torch.arange(64.0).reshape(1, 1, 8, 8)
    around = surroundings(x, torch.Size((4, 4)))
    assert around.shape == (1, 4, 4, 1, 6, 6)
    assert torch.equal(around[0, 1, 2, 0, 2:4, 2:4], x[0, 0, 2:4, 4:6])
    assert torch.equal(around[0, 1, 2, 0], x[0, 0, 0:6, 2:8])
    assert around[0, 0, 0, 0, 0].tolist() == [0.0, 0.0, 0.0, 1.0, 2.0, 3.0]


def test_unused_codes_are_crossed_out():
    figure = codebook_figure(np.zeros((300, 1, 2, 2)), np.r_[np.arange(299.0, 0, -1), 0.0])
    assert len(figure.axes[0].texts) == 256  # the most used
    figure = codebook_figure(np.zeros((3, 3, 4, 4)), np.array([0.0, 5.0, 0.0]))
    assert [t.get_text() for t in figure.axes[0].texts] == ["1: 100 %", "0: 0 %", "2: 0 %"]
    assert len(figure.axes[0].lines) == 2
    told = next(t for t in figure.axes[1].texts if t.get_text() == "2 unused")
    lowest, highest = figure.axes[1].get_ylim()
    assert lowest < told.get_position()[1] < highest  # in sight, where few codes have all the use


def test_a_program_without_codes_has_no_codebook(run):
    with pytest.raises(PplError, match="no grid of codes: no latent whose values are integers"):
        explore(load_run(run), "codebook")
