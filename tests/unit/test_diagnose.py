"""The report of a diagnosis."""

from __future__ import annotations

import json

import pyro
import pyro.distributions as dist
import pytest
import torch
from posterior_programs import Conjugate, SharedMean, TwoCodes, normal_data
from programs import GlobalMean, WithoutLatents, tiny_images, tiny_vae

from inference import diagnose, fit, from_tensors
from inference.diagnostics.check import Check
from inference.diagnostics.diagnose import REGISTRY, Diagnostic
from inference.diagnostics.diagnosis import Diagnosis
from ppl_models import PplError, UnknownNameError

pytestmark = pytest.mark.arviz1
X = normal_data(40)
FEW = {"predictive": {"num_samples": 40}}


def names(found: Diagnosis) -> set[str]:
    return {check.name.partition("[")[0] for check in found.checks}


def test_what_applies_to_local_latents_is_asked():
    found = diagnose(Conjugate(), {"x": X}, num_samples=50, **FEW)
    assert {"pareto_k", "evidence_gap", "ess", "posterior_collapse", "predictive"} <= names(found)
    assert "loo" not in names(found)
    assert found["pareto_k"].verdict == "ok"
    assert found.findings["evidence"].elbo.shape == (40,)
    assert found.settings["num_data"] == 40


def test_what_applies_to_global_latents_is_asked():
    found = diagnose(SharedMean(X), {"x": X}, num_samples=60, **FEW)
    assert names(found) == {"pareto_k", "evidence_gap", "ess", "predictive", "loo"}
    assert found.findings["importance"].joint


def test_the_report_is_a_table_and_json_and_a_page(tmp_path):
    found = diagnose(TwoCodes(), {"x": X}, num_samples=50, **FEW)
    assert found.verdict == "bad"
    lines = str(found).splitlines()
    assert lines[0].startswith("TwoCodes: bad (")
    assert any(line.startswith("posterior_collapse[w]") and "bad" in line for line in lines)
    assert max(map(len, lines)) <= 100
    told = json.loads(found.to_json())
    assert told["verdict"] == "bad"
    assert {c["name"] for c in told["checks"]} == {c.name for c in found.checks}
    assert "<td>posterior_collapse[w]</td>" in found._repr_html_()
    files = found.save(tmp_path / "new")
    assert {p.name for p in (tmp_path / "new").iterdir()} == set(files)
    assert {"diagnosis.json", "diagnosis.html", "latent_dimensions.png"} <= set(files)
    assert (tmp_path / "new" / "latent_dimensions.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "new" / "diagnosis.html").read_text()
    assert page.count("data:image/png;base64,") == len(files) - 2
    with pytest.raises(KeyError, match="pareto_k"):
        found["pareto"]


def test_a_diagnostic_without_an_answer_says_why():
    found = diagnose(Conjugate(), {"x": X}, checks=["loo", "importance"], num_samples=20)
    assert [c.verdict for c in found.checks] == ["cannot tell", "cannot tell"]
    assert "20 draws are too few" in found.checks[1].message
    assert found.verdict == "cannot tell"
    assert found.figures() == {}


def test_one_that_fails_does_not_take_the_others_with_it(monkeypatch):
    def odd(program, batch, *, factor=1):
        raise RuntimeError("something odd")

    monkeypatch.setitem(REGISTRY, "odd", Diagnostic(odd, costly=True))
    found = diagnose(Conjugate(), {"x": X}, checks=["odd", "evidence"], num_samples=20)
    assert found["odd"].verdict == "cannot tell"
    assert "RuntimeError: something odd" in found["odd"].message
    assert found["ess"].verdict == "ok"
    usual = diagnose(Conjugate(), {"x": X}, num_samples=30, **FEW)
    assert "odd" not in names(usual)
    assert "odd" in names(diagnose(Conjugate(), {"x": X}, num_samples=30, odd={}, **FEW))
    assert "odd" in names(diagnose(Conjugate(), {"x": X}, num_samples=30, thorough=True, **FEW))


def test_options_go_to_their_diagnostic():
    found = diagnose(
        Conjugate(),
        {"x": X},
        checks="predictive",
        predictive={"statistics": {"top": lambda x: x.max()}, "num_samples": 40},
    )
    assert [c.name for c in found.checks] == ["predictive[top]"]
    own = diagnose(Conjugate(), {"x": X}, checks="importance", importance={"num_samples": 77})
    assert own.findings["importance"].num_samples == 77
    wrong = diagnose(Conjugate(), {"x": X}, checks="evidence", evidence={"samples": 3})
    assert "Did you mean 'num_samples'" in wrong.checks[0].message


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((WithoutLatents(), {"x": X}), {}, "no latent sites"),
        ((Conjugate(),), {}, "diagnose needs data"),
        ((Conjugate(), "x.npz"), {}, "data must be a batch"),
        ((Conjugate(), {}), {}, "data must be fields of one length, one or more; got none"),
        ((Conjugate(), {"x": X, "y": X[:3]}), {}, "of one length"),
        ((Conjugate(), {"x": X}), {"num_samples": 1}, "num_samples must be"),
        ((Conjugate(), {"x": X}), {"checks": []}, "checks is empty"),
        ((Conjugate(), {"x": X}), {"checks": "loo", "evidence": {}}, "options of 'evidence'"),
    ],
)
def test_what_a_user_can_get_wrong(arguments, options, message):
    with pytest.raises(PplError, match=message):
        diagnose(*arguments, **options)


def test_an_unknown_diagnostic_is_told_with_the_near_misses():
    with pytest.raises(UnknownNameError, match="Did you mean 'evidence'"):
        diagnose(Conjugate(), {"x": X}, checks="evidnece")
    with pytest.raises(UnknownNameError, match="Did you mean 'max_data'"):
        diagnose(Conjugate(), {"x": X}, max_dat={})


def test_arrays_are_data_as_for_a_fit():
    few = {"num_samples": 30, "checks": ["evidence"]}
    expected = diagnose(Conjugate(), {"x": X[:9]}, **few).checks[0].value
    for data in (X[:9], X[:9].numpy(), {"x": X[:9].numpy()}):
        assert diagnose(Conjugate(), data, **few).checks[0].value == expected


def test_a_part_of_what_a_fit_was_trained_on_is_no_whole_for_global_latents():
    data = from_tensors({"x": X})
    fitted = fit(GlobalMean(), data, epochs=1, progress=False)
    for part in (data.test, {"x": X[:20]}):
        (check,) = diagnose(fitted, part, num_samples=30, checks=["importance"]).checks
        assert check.verdict == "cannot tell"
        assert "Give all of the data" in check.message


def test_a_fit_brings_its_data_test_data_for_local_latents():
    fitted = fit(tiny_vae(), tiny_images(60), epochs=1, progress=False)
    found = diagnose(fitted, num_samples=30, max_data=4, **FEW)
    assert (found.settings["data"], found.settings["num_data"]) == ("test", 4)


def test_training_data_for_global_ones():
    data = from_tensors(X.unsqueeze(-1))
    x = data.train.tensors["x"]

    class OnRows(SharedMean):
        def model(self, x=None, *, size=1, num_data=None):
            return super().model(None if x is None else x[:, 0], size=size)

        def guide(self, x):
            super().guide(x[:, 0])

    found = diagnose(OnRows(x), data, checks="loo", num_samples=40, max_data=2)
    assert (found.settings["data"], found.settings["num_data"]) == ("train", len(x))
    assert found.findings["loo"].elpd_of_data.shape == (len(x),)


def test_the_worst_verdict_counts():
    checks = [Check("a", "ok", ""), Check("b", "cannot tell", ""), Check("c", "warning", "")]
    assert Diagnosis("P", checks, {}, {}).verdict == "warning"
    assert Diagnosis("P", checks[1:2], {}, {}).verdict == "cannot tell"
    assert Diagnosis("P", checks[:2], {}, {}).verdict == "cannot tell"  # half is no answer
    assert Diagnosis("P", [checks[0], *checks[:2]], {}, {}).verdict == "ok"


def test_nothing_is_left_behind():
    program = tiny_vae()
    state = torch.get_rng_state()
    one, two = (
        diagnose(program, {"x": tiny_images(10)}, num_samples=40, seed=3, **FEW).to_json()
        for _ in range(2)
    )
    assert one == two
    assert torch.equal(torch.get_rng_state(), state)
    assert program.training
    assert all(p.grad is None for p in program.parameters())


def test_draws_that_the_prior_makes_impossible_are_bad_and_the_rest_is_drawn(tmp_path):
    free = {"validate_args": False}

    class Uniform(torch.nn.Module):
        def model(self, x=None, *, size=1):
            with pyro.plate("data", size if x is None else len(x), dim=-1):
                z = pyro.sample("z", dist.Uniform(0.0, 3.0, **free))
                return pyro.sample("x", dist.Normal(z, 1.0, **free), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(x / 2, 1.0))

    asked = ["evidence", "surgery"]
    found = diagnose(Uniform(), {"x": X[:20].abs()}, num_samples=50, checks=asked)
    verdicts = {check.name: check.verdict for check in found.checks}
    assert verdicts["evidence_gap"] == verdicts["posterior_collapse[z]"] == "bad"
    found.save(tmp_path)
    assert (tmp_path / "diagnosis.json").is_file()


def test_an_earlier_diagnosis_leaves_no_pictures(tmp_path):
    (tmp_path / "mine.png").touch()
    program, few = TwoCodes(), {"num_samples": 30}
    diagnose(program, {"x": X}, checks="surgery", **few).save(tmp_path)
    assert (tmp_path / "latent_dimensions.png").is_file()
    files = diagnose(program, {"x": X}, checks="evidence", **few).save(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"mine.png", *files}
