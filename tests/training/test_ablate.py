"""Each choice changes what it says it changes, and the runs are comparable."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
from tests.cases import fast_first  # noqa: E402
from tests.training import test_real  # noqa: E402
from training import ablate  # noqa: E402
from training.ablate import BASE, CHOICES, PEOPLE, Base, Choice, KeptChunks, PlainBranches, measure, table  # noqa: E402
from training.dataset import Renderer  # noqa: E402
from training.evaluate import SETS, held_out  # noqa: E402
from training.mixed import computes_bfloat16  # noqa: E402
from training.plan import FROM_DATA, Plan  # noqa: E402
from training.real_crops import read_crops  # noqa: E402
from training.state import write_tensors  # noqa: E402
from training.stream import PoseChunks  # noqa: E402

CPU = torch.device("cpu")
PLAN = Plan(size=64, steps=2, batch=4, chunk=4, filled=1, kept=1, warmup=1)


@pytest.fixture(scope="module")
def sets():
    renderer = Renderer(CPU, 64)
    return {name: held_out(name, 4, renderer)[:4] for name in SETS}


@pytest.fixture(scope="module")
def base(sets):
    """The figures of the base."""
    return measure(CHOICES[BASE], PLAN, CPU, sets)


def test_the_same_choice_gives_the_same_figures(sets, base):
    assert measure(CHOICES[BASE], PLAN, CPU, sets) == base


@pytest.mark.parametrize("name", fast_first(name for name, choice in CHOICES.items() if choice.trainer is not Base))
def test_another_trainer_is_another_run(sets, base, name):
    if name == "FP32" and not computes_bfloat16("cpu"):
        pytest.skip("this CPU has no BF16, so the base is in FP32, too")
    assert measure(CHOICES[name], PLAN, CPU, sets) != base


@pytest.mark.parametrize("begun", [Plan(), Plan(first_difficulty=Plan.last_difficulty)])
def test_choices_change_the_plan(begun):
    for choice in CHOICES.values():
        trained = begun != Plan()
        if choice.plan and not (trained and choice.from_random):
            used = replace(begun, real=0.5, **FROM_DATA) if choice.of_data else begun
            assert replace(used, **choice.plan) != used
    assert len({(c.trainer, *c.plan.items()) for c in CHOICES.values()}) == len(CHOICES)


def test_what_the_data_folder_gives_is_a_choice(sets, tmp_path):
    data = test_real.write(tmp_path)
    plan = replace(PLAN, real=0.5)
    people = read_crops(data, plan.size)[1]
    with_them, without = (measure(CHOICES[c], plan, CPU, sets, None, data, people) for c in (BASE, "no real people"))
    assert with_them["average"] != without["average"] and 0 <= with_them["average"][PEOPLE] <= 100
    assert table({"1": {BASE: with_them, "no real people": without}}).splitlines()[0].endswith("| people |")


def test_kept_crops_are_those_of_the_plan():
    kept, fresh = KeptChunks(CPU, 64), PoseChunks(CPU, 64)
    for changes in ({}, {"far": 1.0}, {"first_difficulty": 0.9}):
        plan = Plan(**{"size": 64, "chunk": 4, **changes})
        for _ in range(2):
            assert all(torch.equal(a, b) for a, b in zip(kept.render(plan, 0), fresh.render(plan, 0), strict=True))


def test_a_batch_of_another_size_sees_as_many_images(monkeypatch, sets):
    steps = []
    monkeypatch.setattr(
        Base, "update", lambda self, stream: steps.append(self.plan.batch) or setattr(self, "step", self.step + 1)
    )
    measure(Choice(plan={"batch": 2}), PLAN, CPU, sets)
    assert sum(steps) == PLAN.steps * PLAN.batch


def test_an_interrupted_call_goes_on(tmp_path, monkeypatch, capsys):
    results, made = tmp_path / "results.json", []

    def figures(choice, *_):
        made.append(choice)
        return {which: dict.fromkeys(SETS, 100.0 + len(made)) for which in ("average", "last")}

    monkeypatch.setattr(ablate, "measure", figures)
    monkeypatch.setattr(ablate, "held_out", lambda *_: None)
    for only in (["FP32"], ["FP32", "batch 8"]):
        monkeypatch.setattr(sys, "argv", ["ablate", str(results), "--only", *only])
        ablate.main()
    assert made == [CHOICES[BASE], CHOICES["FP32"], CHOICES["batch 8"]]
    assert list(json.loads(results.read_text())["results"]["1"]) == [BASE, "FP32", "batch 8"]
    assert "| batch 8 | +2.0 | +2.0 | +2.0 | +2.0 |" in capsys.readouterr().out
    (tmp_path / "weights").write_bytes(b"others")
    for other in (["--images", "320"], ["--init", str(tmp_path / "weights")]):
        monkeypatch.setattr(sys, "argv", ["ablate", str(results), *other])
        with pytest.raises(SystemExit):
            ablate.main()
        assert "name another file" in capsys.readouterr().err


def test_weights_to_begin_with_count(sets, base, tmp_path):
    write_tensors(tmp_path / "w.safetensors", PlainBranches(Plan(size=64, seed=7), CPU).weights())
    assert measure(CHOICES[BASE], PLAN, CPU, sets, tmp_path / "w.safetensors") != base


def test_the_table_tells_what_a_change_adds():
    base = {"average": dict.fromkeys(SETS, 200.0), "last": dict.fromkeys(SETS, 203.0)}
    lines = table({"1": {BASE: base, "worse": {"average": dict.fromkeys(SETS, 210.5)}}}).splitlines()
    assert lines[2:] == [
        "| base | 200.0 | 200.0 | 200.0 | 200.0 |",
        "| base, last weights in place of their average | +3.0 | +3.0 | +3.0 | +3.0 |",
        "| worse | +10.5 | +10.5 | +10.5 | +10.5 |",
    ]


def test_a_change_is_compared_with_the_base_of_its_seed():
    figures = {"1": (200.0, 210.0), "2": (220.0, 224.0), "3": (210.0, 211.0)}
    results = {
        seed: {
            name: {"average": dict.fromkeys(SETS, value), "last": dict.fromkeys(SETS, value)}
            for name, value in zip((BASE, "worse"), values, strict=True)
        }
        for seed, values in figures.items()
    }
    lines = table(results).splitlines()
    assert lines[2].startswith("| base | 210.0 ± 10.0 |") and lines[4].startswith("| worse | +5.0 ± 5.0 |")
