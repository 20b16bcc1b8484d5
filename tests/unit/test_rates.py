"""The rate of every latent site: in the metrics, the report, and the words for a collapsed one."""

from __future__ import annotations

import csv
import json

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import GlobalMean, tiny_images, tiny_vae
from torch import nn

from inference import evaluate, fit
from inference.cli import main
from inference.collapse import collapse_note, collapsed_sites
from inference.runs import read_metrics

TWO = '''
import pyro, torch
import pyro.distributions as dist
from torch import nn


class Two(nn.Module):
    """x ~ N(decoder(z_1), 1); z_2 is not used, and its guide is its prior."""

    def __init__(self):
        super().__init__()
        self.decoder, self.encoder = nn.Linear(2, 64), nn.Linear(64, 2)

    def model(self, x=None, *, size=1):
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            z = pyro.sample("z_1", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("z_2", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            loc = self.decoder(z).unflatten(-1, (1, 8, 8))
            return pyro.sample("x", dist.Normal(loc, 0.3).to_event(3), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z_1", dist.Normal(self.encoder(x.flatten(1)), 0.1).to_event(1))
            pyro.sample("z_2", dist.Normal(torch.zeros(3), 1.0).to_event(1))
'''


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rates")
    (folder / "two.py").write_text(TWO)
    words = ["train", f"{folder / 'two.py'}:Two", "--data", "digits", "--epochs", "2"]
    options = ["--average_decay", "0.9", "--max_skipped", "1", "--kl_warmup", "1"]
    assert main([*words, *options, "--kl_balance", "true", "--out", str(folder / "run")]) == 0
    return folder / "run"


def test_each_row_has_the_rate_of_every_site(run):
    rows = read_metrics(run)
    assert len(rows) == 2
    for row in rows:
        assert row["valid_rate"] == pytest.approx(row["valid_rate_z_1"] + row["valid_rate_z_2"])
        assert row["valid_rate_z_2"] == 0.0
        assert row["skipped"] == 0
    with open(run / "metrics.csv") as file:
        table = list(csv.DictReader(file))
    assert float(table[1]["valid_rate_z_1"]) == rows[1]["valid_rate_z_1"] > 1.0


def test_the_report_draws_them_and_names_the_collapsed_one(run):
    assert (run / "rates.png").read_bytes().startswith(b"\x89PNG")
    page = (run / "report.html").read_text()
    assert 'alt="rates"' in page
    assert "<p>Collapsed: z_2 (0.000). Its rate is below 0.1 nats per datum" in page


def test_evaluate_names_the_collapsed_one(run, capsys):
    assert main(["evaluate", str(run), "--num_particles", "5"]) == 0
    said = capsys.readouterr().out
    assert "note" in said
    assert "Collapsed: z_2 (0.000)" in said
    numbers = json.loads((run / "evaluation.json").read_text())
    assert numbers["collapsed"] == {"z_2": 0.0}
    assert numbers["kl"]["z_1"] > 1.0


def test_what_counts_as_collapsed():
    assert collapsed_sites({"a": 0.0999, "b": 0.1, "c": -0.01}) == {"a": 0.0999, "c": -0.01}
    assert collapse_note({}) is None
    said = collapse_note({"a": 0.0999, "c": -0.01})
    assert said is not None
    assert said.startswith("Collapsed: a (0.100), c (-0.010). Their rates are below 0.1 nats")


def test_a_global_latents_share_is_no_collapse():
    """Its rate is small per datum for it is shared by all."""
    found = evaluate(GlobalMean(), {"x": torch.randn(10)}, num_data=100_000)
    assert found.kl["mu"] < 0.1
    assert found.collapsed == {}
    assert found.note is None


def test_one_site_has_no_column_of_its_own():
    fitted = fit(tiny_vae(), tiny_images(), epochs=1, progress=False)
    assert not [name for name in fitted.history[0] if name.startswith("valid_rate_")]


class Shared(nn.Module):
    """As wide a guide as its prior, and as far from it as a closed form tells: m² / 2."""

    def __init__(self):
        super().__init__()
        self.m = nn.Parameter(torch.tensor(0.6))

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(a + b.sum(-1), 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("a", dist.Normal(self.m, 1.0))
            pyro.sample("b", dist.Normal(self.m.expand(2) / 2, 1.0).to_event(1))


def test_rates_are_the_closed_form():
    options = {"learning_rate": 1e-12, "epochs": 1, "valid_particles": 2000, "progress": False}
    row = fit(Shared(), torch.randn(200), **options).history[0]
    # Of 2,000 · 20 draws: standard errors 0.003 and 0.0021; five of them, chance below 1e-6.
    assert row["valid_rate_a"] == pytest.approx(0.6**2 / 2, abs=0.015)
    assert row["valid_rate_b"] == pytest.approx(2 * 0.3**2 / 2, abs=0.011)
