"""``ppl denoise`` and ``ppl train_prior``: files in and out, numbers, refusals."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from data_helpers import save_images
from patch_helpers import random_prior, smooth_images

from inference.cli import main
from inference.data.patches import PatchStream, image_paths, photograph_paths
from inference.images import Photo, read_photo, write_photo
from ppl_models.errors import PplError
from ppl_models.patch_prior import PatchPrior


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    write_photo(path, Photo(smooth_images(3, 40, 50), smooth_images(1, 40, 50)[0], "uint16"))
    return path


def run(capsys, *words) -> dict:
    assert main([*map(str, words), "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def refusal(capsys, *words) -> str:
    assert main(list(map(str, words))) == 2
    return capsys.readouterr().err


def test_denoise_with_added_noise(photo, tmp_path, capsys):
    before = photo.read_bytes()
    out = tmp_path / "results" / "clean.tif"
    numbers = run(capsys, "denoise", photo, "--sigma", 25, "--add_noise", "--out", out)
    assert numbers["psnr"] > numbers["psnr_noisy"] + 5
    assert numbers["ssim"] > numbers["ssim_noisy"]
    assert numbers["sigma"] == pytest.approx(25)
    assert numbers["picture"] == str(tmp_path / "results" / "clean_comparison.png")
    assert read_photo(numbers["picture"]).pixels.shape[0] == 3
    found, source = read_photo(out), read_photo(photo)
    assert found.depth == "uint16"
    assert torch.equal(found.alpha, source.alpha)
    assert photo.read_bytes() == before


def test_denoise_a_noisy_photo_with_estimated_noise_and_a_reference(photo, tmp_path, capsys):
    source = read_photo(photo)
    noisy = tmp_path / "noisy.png"
    write_photo(noisy, source.with_pixels(source.pixels + 0.08 * torch.randn(source.pixels.shape)))
    options = ("--out", tmp_path / "clean.png", "--picture", tmp_path / "sheet.png")
    numbers = run(capsys, "denoise", noisy, "--reference", photo, *options)
    assert numbers["sigma_estimated"]
    assert numbers["sigma"] == pytest.approx(0.08 * 255, rel=0.2)
    assert numbers["psnr"] > numbers["psnr_noisy"] + 3
    alone = run(capsys, "denoise", noisy, *options)
    assert "psnr" not in alone


def test_methods_priors_and_colours(photo, tmp_path, capsys):
    prior = tmp_path / "prior.safetensors"
    random_prior().save(prior)
    common = ("denoise", photo, "--sigma", 15, "--add_noise", "--out", tmp_path / "clean.png")
    scores = [
        run(capsys, *common, *extra.split())["psnr"]
        for extra in (
            f"--prior {prior} --method gradient --stride 2",
            f"--prior {prior} --stride 2 --num_pairs null",
            f"--prior {prior} --stride 1 --colour channels",
        )
    ]
    assert len(set(scores)) == 3


def test_refusals(photo, tmp_path, capsys):
    out = tmp_path / "clean.png"
    cases = {
        "there is no image": ("denoise", tmp_path / "none.png", "--out", out),
        "is an input, which is never overwritten": ("denoise", photo, "--out", photo),
        "above 0 and at most 255; got -3": ("denoise", photo, "--sigma", -3, "--out", out),
        "above 0 and at most 255; got 256": ("denoise", photo, "--sigma", 256, "--out", out),
        "num_pairs must be at least 1": ("denoise", photo, "--num_pairs", 0, "--out", out),
        "got 9\n": ("denoise", photo, "--method", "gradient", "--stride", 9, "--out", out),
        "adding noise needs its scale": ("denoise", photo, "--add_noise", "--out", out),
        "must end in one of": ("denoise", photo, "--sigma", 5, "--out", tmp_path / "clean.xyz"),
        "holds 8 bits without alpha": ("denoise", photo, "--out", tmp_path / "clean.jpg"),
        "is to hold two images": ("denoise", photo, "--picture", out, "--out", out),
        "there is no prior": ("denoise", photo, "--prior", tmp_path / "none", "--out", out),
        "unknown method": ("denoise", photo, "--sigma", 5, "--method", "magic", "--out", out),
        "is no folder": ("denoise", photo, "--out", photo / "clean.png"),
        "File name too long": ("denoise", photo, "--out", tmp_path / f"{300 * 'n'}.png"),
        "arguments are required": ("denoise",),
        "no images": ("train_prior", tmp_path / "nothing", "--out", tmp_path / "p.safetensors"),
    }
    there = sorted(tmp_path.rglob("*"))
    for message, words in cases.items():
        assert message in refusal(capsys, *words)
        assert sorted(tmp_path.rglob("*")) == there


def test_nothing_is_made_before_the_work_is_done(photo, tmp_path, capsys):
    deep = tmp_path / "new" / "folder" / "clean.png"
    refusal(capsys, "denoise", photo, "--sigma", 10, "--stride", 9, "--out", deep)
    assert not (tmp_path / "new").exists()
    run(capsys, "denoise", photo, "--sigma", 10, "--out", deep)
    assert deep.is_file()


def test_a_photo_without_noise_says_so(tmp_path, capsys):
    flat = tmp_path / "flat.png"
    write_photo(flat, Photo(torch.full((1, 20, 20), 0.4), None, "uint8"))
    assert "no noise is found" in refusal(capsys, "denoise", flat, "--out", tmp_path / "o.png")


def test_added_noise_is_compared_with_the_reference(photo, tmp_path, capsys):
    """Of a photograph that had noise already, the better one is the reference."""
    source, noisy = read_photo(photo), tmp_path / "noisy.png"
    write_photo(noisy, source.with_pixels(source.pixels + 0.05 * torch.randn(source.pixels.shape)))
    words = ("denoise", noisy, "--sigma", 15, "--add_noise", "--out", tmp_path / "clean.png")
    words += ("--seed", 5)  # other noise than that of the photograph
    alone, compared = run(capsys, *words), run(capsys, *words, "--reference", photo)
    both = -10 * math.log10((15 / 255) ** 2 + 0.05**2)
    assert alone["psnr_noisy"] == pytest.approx(-20 * math.log10(15 / 255), abs=0.3)
    assert compared["psnr_noisy"] == pytest.approx(both, abs=0.3)


def test_warnings_that_are_told(tmp_path, capsys, caplog):
    """Grey levels taken for [0, 1]; floats that will be clipped."""
    path = tmp_path / "float.tif"
    write_photo(path, Photo(0.9 + smooth_images(1, 20, 20), None, "float32"))
    with caplog.at_level("WARNING", logger="inference"):
        run(capsys, "denoise", path, "--sigma", 0.1, "--out", tmp_path / "clean.tif")
    assert "in [0, 1] it would be --sigma 25.5" in caplog.text
    assert "the result is clipped to [0, 1]" in caplog.text


def test_refusals_of_images(photo, tmp_path, capsys):
    small, other = tmp_path / "small.png", tmp_path / "other.png"
    write_photo(small, Photo(torch.rand(1, 5, 30), None, "uint8"))
    write_photo(other, Photo(torch.rand(1, 40, 50), None, "uint8"))
    (tmp_path / "text.png").write_text("no image")
    out = ("--out", tmp_path / "clean.png", "--sigma", 10)
    assert "a patch has 8" in refusal(capsys, "denoise", small, *out)
    assert "as an image" in refusal(capsys, "denoise", tmp_path / "text.png", *out)
    words = ("denoise", photo, "--reference", other, *out)
    assert "the reference is grey, 50×40 pixels, but the image in colour" in refusal(capsys, *words)
    words = ("denoise", other, "--reference", photo, *out)
    assert "the reference is in colour" in refusal(capsys, *words)
    link = tmp_path / "link.png"
    link.symlink_to(photo)
    assert "never overwritten" in refusal(capsys, "denoise", photo, "--out", link)


def textures(folder, count: int = 4):
    draw = np.random.default_rng(0)
    noise = draw.normal(size=(count, 40, 60)).cumsum(1).cumsum(2)
    scaled = 255 * (noise - noise.min()) / np.ptp(noise)
    save_images(folder, {f"{i}.png": image.astype(np.uint8) for i, image in enumerate(scaled)})
    return folder


def test_train_prior_goes_on_where_it_was(tmp_path, capsys):
    """Stopped after half and resumed: the numbers of a run that was not stopped."""
    folder = textures(tmp_path / "textures")
    options = ("--num_components", 3, "--batch_size", 500, "--half_precision")
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    words = ("train_prior", folder, *options)
    numbers = run(capsys, *words, "--num_patches", 4000, "--out", whole)
    assert numbers["steps"] == 8
    run(capsys, *words, "--num_patches", 2000, "--out", parts)
    run(capsys, *words, "--num_patches", 4000, "--out", parts)
    assert whole.read_bytes() == parts.read_bytes()
    assert PatchPrior.load(whole).num_components == 3
    wrong = ("train_prior", folder, "--num_components", 4, "--out", parts)
    assert "go on with the same settings" in refusal(capsys, *wrong)


def test_patches_are_dequantized_and_without_mean(tmp_path):
    stream = PatchStream(image_paths([textures(tmp_path)]), images_per_batch=3, mirrored=True)
    patches = stream.batch(4, 1000)
    assert patches.shape == (1000, 64)
    assert float(patches.mean(-1).abs().max()) < 1e-6
    assert torch.equal(patches, stream.batch(4, 1000))
    assert not torch.equal(patches, stream.batch(5, 1000))
    once = (path for path in stream.paths)
    same = PatchStream(once, images_per_batch=3, mirrored=True)
    assert torch.equal(patches, same.batch(4, 1000))
    assert bool((patches.var(-1) > 1e-7).all())


def test_image_sizes_may_differ_and_small_images_are_passed_over(tmp_path, caplog):
    save_images(
        tmp_path,
        {f"{n}.png": np.full((n, 2 * n), 9, np.uint8) for n in (7, 12, 30)},
    )
    stream = PatchStream(image_paths([tmp_path]), scales=(1.0, 0.5))
    assert [path.name for path in stream.paths] == ["30.png"]
    assert "2 of 3 images are smaller than a patch of 8 and are passed over (12.png" in caplog.text
    with pytest.raises(PplError, match="none of 1 images is as large as a patch"):
        PatchStream([tmp_path / "7.png"])
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(PplError, match="cannot read the image"):
        PatchStream(image_paths([tmp_path]))


def test_the_photographs_are_there():
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    assert {"camera.png", "china.jpg"} <= {path.name for path in photograph_paths()}


def test_photographs_that_are_missing_are_told(tmp_path, monkeypatch, caplog):
    for name in ("skimage", "sklearn"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "skimage" / "data").mkdir()
    (tmp_path / "skimage" / "data" / "camera.png").touch()
    spec = type("Spec", (), {})
    found = {name: spec() for name in ("skimage", "sklearn")}
    for name, one in found.items():
        one.origin = str(tmp_path / name / "__init__.py")
    monkeypatch.setattr("importlib.util.find_spec", found.get)
    assert [path.name for path in photograph_paths()] == ["camera.png"]
    assert "lacks 9 of 10 photographs (astronaut.png, " in caplog.text


def test_a_prior_is_never_overwritten(photo, tmp_path, capsys):
    prior = tmp_path / "prior.safetensors"
    random_prior().save(prior)
    before = prior.read_bytes()
    words = ("denoise", photo, "--sigma", 10, "--out", tmp_path / "out.png", "--prior", prior)
    assert "never overwritten" in refusal(capsys, *words, "--picture", prior)
    assert "is a PNG" in refusal(capsys, *words, "--picture", tmp_path / "picture.jpg")
    assert prior.read_bytes() == before
