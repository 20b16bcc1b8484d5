"""Checkpoints are written whole or not at all, and loading one runs nothing."""

from __future__ import annotations

import json
import math
import os
import pickle
import random
import subprocess
import sys

import pytest
import torch
from programs import tiny_vae

from inference.checkpoint import (
    FORMAT,
    load_checkpoint,
    load_parameters,
    save_checkpoint,
    to_json,
    write_atomically,
)
from ppl_models.errors import PplError

LIMITED_WRITE = """
import resource, signal, sys
from pathlib import Path
from inference.checkpoint import write_atomically

signal.signal(signal.SIGXFSZ, getattr(signal, sys.argv[2]))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_atomically(Path(sys.argv[1]), b"n" * 400_000)
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "last.pt"


def write_beyond_the_limit(path, on_signal: str) -> subprocess.CompletedProcess[str]:
    """Write 400 kB in a process whose files may have 100 kB, as on a disk that fills up."""
    command = [sys.executable, "-c", LIMITED_WRITE, str(path), on_signal]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_state_comes_back_as_it_went(path):
    vae = tiny_vae()
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.01)
    vae.decoder(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {
        "program": vae.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "settings": {"lr": 0.1, "hidden": [8, 8], "name": "é", "none": None, "big": 2**40},
    }
    save_checkpoint(path, state)
    found = load_checkpoint(path)
    assert found.pop("format") == FORMAT
    assert found.keys() == state.keys()
    assert found["settings"] == state["settings"]
    assert found["half"].dtype == torch.bfloat16
    for key in ("rng", "half"):
        assert torch.equal(found[key], state[key])
    for name, value in vae.state_dict().items():
        assert torch.equal(found["program"][name], value)
    again = torch.optim.Adam(tiny_vae().parameters(), lr=0.5)
    again.load_state_dict(found["optimizer"])
    assert again.param_groups[0]["lr"] == 0.01
    moments = [s["exp_avg"] for s in optimizer.state.values()]
    assert moments
    for old, new in zip(moments, again.state.values(), strict=True):
        assert torch.equal(old, new["exp_avg"])


def test_the_random_state_goes_on_where_it_was(path):
    save_checkpoint(path, {"rng": torch.get_rng_state()})
    expected = torch.rand(5)
    torch.rand(17)
    torch.set_rng_state(load_checkpoint(path)["rng"])
    assert torch.equal(torch.rand(5), expected)


def test_a_checkpoint_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "new" / "folder" / "last.pt"
    save_checkpoint(path, {"epoch": 1})
    save_checkpoint(path, {"epoch": 2})
    assert load_checkpoint(path)["epoch"] == 2
    assert [p.name for p in path.parent.iterdir()] == ["last.pt"]


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
def test_a_write_that_fails_midway_keeps_the_old_file_and_leaves_no_other(path):
    write_atomically(path, b"old")
    done = write_beyond_the_limit(path, "SIG_IGN")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"PplError cannot write {path}: File too large"), done.stdout
    assert "the last good one is kept" in done.stdout
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["last.pt"]


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
def test_a_process_killed_midway_leaves_the_old_file_and_the_next_write_clears_up(path):
    write_atomically(path, b"old")
    done = write_beyond_the_limit(path, "SIG_DFL")
    assert done.returncode < 0, "the process should have been killed by SIGXFSZ"
    assert path.read_bytes() == b"old"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in path.parent.iterdir()] == ["last.pt"]


def test_a_first_write_that_fails_does_not_say_that_one_is_kept(tmp_path):
    file = tmp_path / "file"
    file.write_text("regular")
    with pytest.raises(PplError, match="cannot write") as it:
        save_checkpoint(file / "sub" / "last.pt", {})
    assert "kept" not in str(it.value)


def test_a_place_below_a_regular_file_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("regular")
    with pytest.raises(PplError, match=r"cannot write .*last\.pt: "):
        save_checkpoint(file / "last.pt", {})
    assert file.read_text() == "regular"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_in_the_place_of_the_file_is_refused(path):
    path.mkdir()
    with pytest.raises(PplError, match=r"cannot write .*last\.pt: "):
        save_checkpoint(path, {})
    assert os.listdir(path.parent) == ["last.pt"]


def test_a_missing_checkpoint_is_named(path):
    with pytest.raises(PplError, match=r"there is no checkpoint .*last\.pt"):
        load_checkpoint(path)


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused(path, part):
    save_checkpoint(path, {"program": tiny_vae().state_dict()})
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(PplError, match=r"last\.pt is damaged or truncated"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "content",
    [
        b"import torch\n",
        b"\x89PNG\r\n\x1a\n" + bytes(40),
        b"hello world\n" * 50,
        b"epoch: 3\n",
        b"GIF89a" + bytes(2),
        b"\x80\xfe8\x9b_\x86\x80",
    ],
)
def test_a_foreign_file_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(PplError, match=r"last\.pt"):
        load_checkpoint(path)


def test_random_bytes_are_refused(path):

    draw = random.Random(0)
    raw = []
    for _ in range(400):
        content = draw.randbytes(draw.randint(1, 200))
        path.write_bytes(content)
        try:
            load_checkpoint(path)
        except PplError:
            continue
        except Exception as error:
            raw.append(f"{type(error).__name__}: {content[:20]!r}")
        else:
            raw.append(f"loaded: {content[:20]!r}")
    assert not raw


@pytest.mark.parametrize(
    ("other", "found"),
    [
        (torch.zeros(3), "Tensor"),
        ([1, 2], "list"),
        ({"weight": torch.zeros(2)}, "None"),
        ({"format": "another package 7"}, "another package 7"),
    ],
)
def test_another_torch_file_is_refused_and_said_what_it_is(path, other, found):
    torch.save(other, path)
    with pytest.raises(PplError, match=f"no checkpoint of this package.*{found}"):
        load_checkpoint(path)


class Attack:
    """Makes a folder when it is unpickled."""

    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (str(self.victim),)


@pytest.mark.parametrize("way", ["torch", "old_torch", "pickle"])
def test_a_malicious_file_is_refused_and_not_run(path, tmp_path, way):
    victim = tmp_path / "attacked"
    state = {"format": FORMAT, "program": Attack(victim)}
    if way == "pickle":
        path.write_bytes(pickle.dumps(state, protocol=2))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=way == "torch")
    with pytest.raises(PplError, match=r"is refused.*pickled objects, which could run code"):
        load_checkpoint(path)
    assert not victim.exists()
    if way != "pickle":  # the attack is a real one
        torch.load(path, weights_only=False)
        assert victim.exists()


def test_parameters_go_into_the_same_program(path):
    source, target = tiny_vae(), tiny_vae()
    save_checkpoint(path, {"program": source.state_dict()})
    x = torch.rand(2, 3)
    assert not torch.equal(source.decoder(x), target.decoder(x))
    load_parameters(target, load_checkpoint(path), path)
    assert torch.equal(source.decoder(x), target.decoder(x))


@pytest.mark.parametrize(
    "other",
    [tiny_vae(latent_dim=5).state_dict(), torch.nn.Linear(2, 2).state_dict(), {}],
    ids=["another size", "another program", "none"],
)
def test_another_programs_parameters_are_refused(path, other):
    save_checkpoint(path, {"program": other})
    with pytest.raises(PplError, match=r"(?s)last\.pt holds another program's.*decoder"):
        load_parameters(tiny_vae(), load_checkpoint(path), path)


def test_a_checkpoint_without_parameters_is_refused(path):
    save_checkpoint(path, {"epoch": 3})
    with pytest.raises(PplError, match="another program's parameters"):
        load_parameters(tiny_vae(), load_checkpoint(path), path)


def test_json_has_no_infinity():
    values = {"psnr": math.inf, "list": [1.0, math.nan, (-math.inf,)], "text": "inf", "ok": 2}
    assert json.loads(to_json(values)) == {
        "psnr": None,
        "list": [1.0, None, [None]],
        "text": "inf",
        "ok": 2,
    }
