"""Killed, interrupted, out of disk: what was trained is not lost, and goes on bit by bit."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import tiny_images, tiny_vae

from inference import fit, from_tensors
from inference.data import binarize_data
from inference.elbo import AnalyticKL
from inference.progress import Progress
from inference.runs import read_metrics
from inference.signals import TrainingInterrupted
from inference.validation import Validator
from ppl_models import PplError

FORK = multiprocessing.get_context("forkserver")  # this process may have threads of autograd's
# What training imports, once instead of in every child.
FORK.set_forkserver_preload(["inference", "lightning_fabric", "torch._dynamo", "pytest"])


def train(folder: Path, *, epochs: int = 6, **options) -> None:
    """A run that uses all that must survive: dynamic noise, Adam, a schedule, warm-up, averages."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = binarize_data(from_tensors(tiny_images(200, binary=False)), "dynamic")  # 16 steps
    settings = {
        "epochs": epochs,
        "batch_size": 10,
        "lr_schedule": "cosine",
        "kl_warmup": 2.0,
        "average_decay": 0.9,
        "checkpoint_every": 0.0,  # after every step
        "progress": False,
        "seed": 4,
        "resume": True,
    }
    fit(tiny_vae(), data, run_dir=folder, **(settings | options))


def final_state(folder: Path) -> dict[str, torch.Tensor]:
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    adam = state["optimizer"]["state"]
    moments = {f"adam{i}.{k}": v for i, entry in adam.items() for k, v in entry.items()}
    raw = {f"raw{i}": value for i, value in enumerate(state["average"]["raw"])}
    return {**state["program"], **raw, **moments, "rng": state["rng"]["torch"]}


def assert_same_run(folder: Path, reference: Path) -> None:
    ours, theirs = final_state(folder), final_state(reference)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    rows, expected = read_metrics(folder), read_metrics(reference)
    for row in rows + expected:
        row.pop("seconds")
    assert rows == expected


def run_in_child(folder: Path, kill_after: float | None) -> bool:
    """Train in a forked process; whether it came to its end before it was killed."""
    child = FORK.Process(target=train, args=(folder,))
    child.start()
    child.join(kill_after)
    finished = child.exitcode == 0
    if child.is_alive():
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    assert child.exitcode in (0, -signal.SIGKILL)
    return finished


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> tuple[Path, float]:
    """The run that was never killed, and the seconds it took."""
    folder = tmp_path_factory.mktemp("reference")
    server = FORK.Process(target=os.getpid)  # the first child waits for the server's imports
    server.start()
    server.join()
    started = time.monotonic()
    assert run_in_child(folder, None)
    return folder, time.monotonic() - started


def test_killed_at_twenty_random_moments_it_ends_bit_identical(tmp_path, reference):
    """SIGKILL at twenty moments, uniform over the run, each in a run of its own; then resumed."""
    path, seconds = reference
    rng = np.random.default_rng(0)
    kills = 0
    for attempt in range(100):  # a run that was quicker than its moment was not killed
        folder = tmp_path / str(attempt)
        started = time.monotonic()
        if run_in_child(folder, rng.uniform(0.02, 0.95) * seconds):
            seconds = min(seconds, time.monotonic() - started)
            continue
        kills += 1
        assert run_in_child(folder, None)
        assert_same_run(folder, path)
        assert not list(folder.rglob("*.tmp"))
        if kills == 20:
            break
    assert kills == 20


def test_killed_again_and_again_it_ends_bit_identical(tmp_path, reference):
    path, seconds = reference
    rng = np.random.default_rng(1)
    folder, times = tmp_path / "run", 0
    for attempt in range(50):
        if not run_in_child(folder, seconds * rng.uniform(0.25, 0.5)):
            times += 1
        elif times:
            break
        else:  # it was quicker than its first moment
            folder, seconds = tmp_path / str(attempt), seconds / 2
    else:
        pytest.fail("it never came to its end")
    assert_same_run(folder, path)


def test_an_older_checkpoint_resumes_to_the_same_end(tmp_path, reference):
    """The kill of a machine may lose the newest file: any checkpoint must do."""
    train(tmp_path, epochs=6, checkpoint_every=1e9)
    shutil.copy(tmp_path / "checkpoints" / "best.ckpt", tmp_path / "checkpoints" / "last.ckpt")
    train(tmp_path, epochs=6, checkpoint_every=1e9)
    assert_same_run(tmp_path, reference[0])


def interrupted(folder: Path, monkeypatch, last_step: int, number=signal.SIGINT, **options):
    """What is raised when a signal comes in the step of this number, from 0."""
    steps, show = iter(range(10_000)), Progress.advance

    def advance(self, count, loss):
        show(self, count, loss)
        if next(steps) == last_step:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patched:
        patched.setattr(Progress, "advance", advance)
        with pytest.raises(TrainingInterrupted, match=r"ppl train --resume") as stopped:
            train(folder, **({"checkpoint_every": 1e9} | options))
    return stopped.value


@pytest.mark.slow
@pytest.mark.parametrize("last_step", [0, 25])
def test_a_compiled_run_resumes_to_the_same_end(tmp_path, monkeypatch, last_step):
    """The step after the resume is by the graph, as it would have been."""
    options = {"epochs": 2, "compile": True, "clip_grad_norm": 1.0, "max_skipped": 1}
    train(tmp_path / "once", **options)
    interrupted(tmp_path / "twice", monkeypatch, last_step, **options)
    train(tmp_path / "twice", **options)
    assert_same_run(tmp_path / "twice", tmp_path / "once")


def test_a_finished_run_may_be_given_more_epochs(tmp_path):
    train(tmp_path / "twice", epochs=2, lr_schedule="constant")
    train(tmp_path / "twice", epochs=4, lr_schedule="constant")
    train(tmp_path / "once", epochs=4, lr_schedule="constant")
    assert_same_run(tmp_path / "twice", tmp_path / "once")


@pytest.mark.parametrize("last_step", [38, 47])  # 47 is the last of the third epoch
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_writes_a_checkpoint_and_says_how_to_go_on(
    tmp_path, reference, monkeypatch, number, last_step
):
    assert interrupted(tmp_path, monkeypatch, last_step, number).signum == number
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["position"]["batch"] > 0  # in the midst of an epoch
    train(tmp_path)
    assert_same_run(tmp_path, reference[0])
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 20}, "batch_size=20: it was trained with 10"),
        ({"seed": 5}, "seed=5: it was trained with 4"),
        ({"estimator": "pathwise"}, "estimator='pathwise': it was trained with 'analytic_kl'"),
    ],
)
def test_a_resumed_run_keeps_its_settings(tmp_path, change, message):
    train(tmp_path, epochs=1)
    with pytest.raises(PplError, match=message):
        train(tmp_path, epochs=1, **change)


@pytest.mark.parametrize("vectorized", [False, True])
def test_resuming_is_bit_identical_for_estimators_that_look_at_the_plates_first(
    tmp_path, vectorized
):
    def part(folder, epochs):
        estimator = AnalyticKL(2, vectorize_particles=vectorized)
        train(folder, epochs=epochs, lr_schedule="constant", estimator=estimator)

    part(tmp_path / "twice", 1)
    part(tmp_path / "twice", 2)
    part(tmp_path / "once", 2)
    assert_same_run(tmp_path / "twice", tmp_path / "once")


def test_a_signal_in_the_last_validation_is_heeded(tmp_path, monkeypatch):
    validate = Validator.__call__

    def interrupted(self, program):
        os.kill(os.getpid(), signal.SIGTERM)
        return validate(self, program)

    monkeypatch.setattr(Validator, "__call__", interrupted)
    with pytest.raises(TrainingInterrupted, match="SIGTERM"):
        train(tmp_path, epochs=1)


def test_a_run_whose_learning_rate_falls_keeps_its_length(tmp_path):
    train(tmp_path, epochs=1)
    with pytest.raises(PplError, match="its learning rate falls over 1 epochs"):
        train(tmp_path, epochs=2)


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    train(tmp_path, epochs=1)
    with pytest.raises(PplError, match="holds a run already; give resume=True"):
        train(tmp_path, epochs=1, resume=False)


def fill_the_disk(folder: Path, limit: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        train(folder, epochs=3, lr_schedule="constant")
    except PplError as error:
        (folder / "message").write_text(str(error))
        os._exit(7)


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path):
    """Writes beyond a size fail, as on a full disk; the run then goes on from what there is."""
    train(tmp_path, epochs=1, lr_schedule="constant", checkpoint_every=1e9)
    before = (tmp_path / "checkpoints" / "last.ckpt").read_bytes()
    child = FORK.Process(target=fill_the_disk, args=(tmp_path, 4096))
    child.start()
    child.join()
    assert child.exitcode == 7
    message = (tmp_path / "message").read_text()
    assert message.startswith(f"cannot write {tmp_path}")
    assert "File too large" in message
    assert "the last good one is kept" in message
    assert (tmp_path / "checkpoints" / "last.ckpt").read_bytes() == before
    assert not list(tmp_path.rglob("*.tmp"))
    train(tmp_path, epochs=3, lr_schedule="constant")
    whole = tmp_path / "whole"
    train(whole, epochs=3, lr_schedule="constant")
    assert_same_run(tmp_path, whole)


def test_an_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PplError, match=r"cannot write .*file/run/.*Not a directory"):
        train(tmp_path / "file" / "run", epochs=1)


@pytest.mark.slow
def test_the_command_line_killed_and_resumed(tmp_path):
    """The same through ``ppl train``, in processes of their own."""

    command = [sys.executable, "-m", "inference", "train"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def to_the_end(*words: str) -> None:
        subprocess.run([*command, *words], check=True, capture_output=True, env=environment)

    def until(lines: int, number: signal.Signals, *words: str) -> tuple[int, bytes]:
        """Send the signal when the metrics have so many lines."""
        with subprocess.Popen(
            [*command, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
        ) as process:
            while not metrics.is_file() or metrics.read_text().count("\n") < lines:
                time.sleep(0.01)
                assert process.poll() is None
            process.send_signal(number)
            _, errors = process.communicate()
        return process.returncode, errors

    lengths = ("--epochs", "12", "--checkpoint_every", "0")
    options = ("vae", "--data", "digits", *lengths, "--average_decay", "0.9", "--out")
    whole, killed = str(tmp_path / "whole"), str(tmp_path / "killed")
    metrics = tmp_path / "killed" / "metrics.csv"
    to_the_end(*options, whole)
    until(3, signal.SIGKILL, *options, killed)
    status, errors = until(6, signal.SIGTERM, "--resume", killed)
    assert status == 128 + signal.SIGTERM
    assert b"ppl train --resume" in errors
    assert b"Traceback" not in errors
    to_the_end("--resume", killed)
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
