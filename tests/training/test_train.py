"""A run goes on exactly after any interruption, its state is small and whole, and it learns."""

from __future__ import annotations

import json
import math
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from convnextpose.checkpoint import verify  # noqa: E402
from convnextpose.metrics import mpjpe  # noqa: E402
from convnextpose.network import PoseNetwork  # noqa: E402
from convnextpose.skeleton import HUMAN36M  # noqa: E402
from convnextpose.variants import Variant  # noqa: E402
from convnextpose.weights import load  # noqa: E402
from training import state, train  # noqa: E402
from training.evaluate import SETS, evaluate, held_out, score  # noqa: E402
from training.initial import load_grown  # noqa: E402
from training.plan import Plan  # noqa: E402
from training.stream import Stream  # noqa: E402
from training.train import Trainer, fitted, main, run  # noqa: E402

CPU = torch.device("cpu")
PLAN = Plan(size=64, steps=6, batch=4, chunk=4, kept=3, filled=2, reuse=1.5, warmup=2)


def same(a, b):
    pairs = [(a.network, b.network), (a.average, b.average)]
    return all(
        torch.equal(x, y) for p, q in pairs for x, y in zip(p.state_dict().values(), q.state_dict().values(), strict=True)
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run made in one slice: its folder and its trainer."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder, PLAN, CPU, held_out_count=0)


def test_two_slices_are_one(whole, tmp_path):
    run(tmp_path, PLAN, CPU, steps=2, held_out_count=0)
    resumed = run(tmp_path, PLAN, CPU, steps=4, held_out_count=0)
    assert resumed.step == 6 and same(resumed, whole[1])


@pytest.mark.slow
def test_another_seed_is_another_run(whole, tmp_path):
    assert not same(run(tmp_path, replace(PLAN, seed=2), CPU, held_out_count=0), whole[1])


def test_state_is_in_small_files_and_the_weights_verify(whole):
    folder, trainer = whole
    parts = list(folder.glob("state-*"))
    assert len(parts) > 1 and all(path.stat().st_size <= 16 * 2**20 for path in folder.iterdir())
    checkpoint = verify(folder / "last.safetensors")
    assert checkpoint.variant.name == "XS" and len(checkpoint.joint_set) == 18
    bias = torch.tensor(checkpoint.state["head.final_layer.bias"])
    torch.testing.assert_close(bias.float(), trainer.average.head.final_layer.bias, atol=1e-3, rtol=1e-3)


def test_a_save_that_fails_leaves_the_last_state(tmp_path, monkeypatch):
    tensors = {str(k): torch.full((2**20,), float(k)) for k in range(9)}
    state.save(tmp_path, tensors, {"step": 1}, "1")
    calls = []

    def disk_full(part, path):
        calls.append(path)
        if len(calls) == 2:
            raise OSError("no space left on device")
        path.write_bytes(b"half")

    monkeypatch.setattr(state, "save_file", disk_full)
    with pytest.raises(OSError, match="no space"):
        state.save(tmp_path, {name: -tensor for name, tensor in tensors.items()}, {"step": 2}, "2")
    assert state.load_facts(tmp_path) == {"step": 1}
    loaded = state.load_tensors(tmp_path, CPU)
    assert set(loaded) == set(tensors) and all(torch.equal(loaded[k], tensors[k]) for k in tensors)
    monkeypatch.undo()
    state.save(tmp_path, tensors, {"step": 3}, "3")
    assert all("-3-" in path.name for path in tmp_path.glob("state-*"))


def test_a_tensor_too_large_for_a_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="large"):
        state.save(tmp_path, {"large": torch.zeros(2**22)}, {}, "1")
    assert state.load_facts(tmp_path) is None


def test_the_log_forgets_what_was_lost(whole, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "run")
    lines = [json.dumps({"step": step}) for step in (0, 6, 7, 12)]
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
    run(folder, PLAN, CPU, steps=0, held_out_count=0)
    kept = [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert kept == [0, 6]


@pytest.mark.slow
def test_every_evaluation_draws_the_log(tmp_path, monkeypatch):
    monkeypatch.setattr("training.evaluate.LOT", 4)
    run(tmp_path, replace(PLAN, size=128), CPU, steps=1, held_out_count=4)
    picture = (tmp_path / "plot.svg").read_text()
    assert all(f"{name}, mpjpe (mm)" in picture for name in SETS) and "4 images" in picture


def test_a_stop_is_answered_and_saved(tmp_path):
    asked = iter([False, False, True])
    assert run(tmp_path, PLAN, CPU, held_out_count=0, stop=lambda: next(asked)).step == 2
    assert state.load_facts(tmp_path)["step"] == 2


@given(seconds=st.floats(10, 3600), step_s=st.floats(0.001, 0.5), first_s=st.floats(0.001, 1))
def test_a_fitted_run_ends_within_its_slice_and_uses_most_of_it(seconds, step_s, first_s):
    """With a clock that only steps advance."""
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)

    class Timed:
        plan, step = PLAN, 0

        def update(self, stream):
            clock.now += step_s if self.step else first_s
            self.step += 1
            return torch.zeros(2).unbind()

    trainer = Timed()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "time", clock)
        plan = fitted(trainer, None, clock.now, seconds)
    assert plan == replace(PLAN, steps=plan.steps)
    spent = clock.now - 100 + (plan.steps - trainer.step) * step_s
    assert 0.85 * seconds - first_s - 2 * step_s <= spent <= seconds


def test_a_run_is_fitted_only_into_minutes_that_are_given(tmp_path, monkeypatch, capsys):
    for words in (["--fit"], ["--fit", "--minutes", "9", "--steps", "5"], ["--fit", "--minutes", "0"]):
        monkeypatch.setattr(sys, "argv", ["train", str(tmp_path), *words])
        with pytest.raises(SystemExit):
            main()
        assert "--fit" in capsys.readouterr().err


@pytest.mark.slow
def test_a_fitted_run_completes_its_plan(tmp_path, monkeypatch, capsys):
    """With a clock that only steps advance."""
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)

    class Timed(Trainer):
        def update(self, stream):
            clock.now += 1
            return super().update(stream)

    monkeypatch.setattr(train, "time", clock)
    words = ["--fit", "--minutes", "0.5", "--size", "64", "--batch", "4", "--chunk", "4", "--kept", "3", "--filled", "2"]
    monkeypatch.setattr(sys, "argv", ["train", str(tmp_path), *words, "--held-out", "0", "--device", "cpu"])
    main(Timed)
    facts, told = state.load_facts(tmp_path), capsys.readouterr().out
    assert f"{facts['plan']['steps']} steps fit into 0.5 minutes" in told
    assert 20 < facts["step"] == facts["plan"]["steps"] < 30
    monkeypatch.setattr(sys, "argv", ["train", str(tmp_path), *words, "--held-out", "0", "--device", "cpu"])
    main(Timed)  # complete: nothing is measured or trained again
    assert state.load_facts(tmp_path) == facts and "fit into" not in capsys.readouterr().out


def test_choosing_a_memory_format_changes_nothing_else(tmp_path):
    first = run(tmp_path, PLAN, CPU, steps=2, held_out_count=0)
    before = [
        {name: tensor.clone() for name, tensor in network.state_dict().items()} for network in (first.network, first.average)
    ]
    with train.Stream(PLAN, CPU) as stream:
        first.choose_format(stream)
    assert first.memory_format in (torch.channels_last, torch.contiguous_format)
    for network, known in zip((first.network, first.average), before, strict=True):
        assert all(torch.equal(tensor, known[name]) for name, tensor in network.state_dict().items())
        assert all(t.is_contiguous(memory_format=first.memory_format) for t in network.parameters() if t.ndim == 4)
    for parameter, moments in first.optimiser.state.items():
        assert parameter.grad is None and all(moments[name].stride() == parameter.stride() for name in train.MOMENTS)


def test_the_stream_resumes_with_the_same_crops():
    with Stream(PLAN, CPU) as steady, Stream(PLAN, CPU) as resumed:
        for chunks in (1, 3, 5):
            steady.advance(chunks)
        resumed.advance(5)
        assert len(steady) == len(resumed) == 12
        assert torch.equal(steady.images, resumed.images) and torch.equal(steady.labels, resumed.labels)


def test_worker_processes_render_the_same_crops():
    with Stream(PLAN, CPU) as here, Stream(PLAN, CPU, workers=1) as there:
        here.advance(2)
        there.advance(2)
        assert torch.equal(here.images[:8], there.images[:8]) and torch.equal(here.labels[:8], there.labels[:8])


def test_the_schedule_rises_then_falls():
    plan = Plan(steps=1000, warmup=10)
    rates = [plan.rate_at(step) for step in range(1001)]
    assert rates[0] < rates[5] < rates[9] and rates[20] > rates[500] > rates[1000] > 0
    assert max(rates) <= plan.rate and math.isclose(rates[1000], plan.rate * plan.last_rate)
    assert plan.hardest(0) == plan.first_difficulty and plan.hardest(10**9) == plan.last_difficulty
    with pytest.raises(ValueError, match="filled"):
        Plan(filled=65)


def batches(trainer, count):
    with Stream(trainer.plan, CPU, kind=trainer.chunks) as stream:
        stream.advance(2)
        for trainer.step in range(count):
            yield trainer._batch(stream)


@pytest.mark.slow
def test_crops_are_turned_and_recoloured_in_their_shares():
    plain = list(batches(Trainer(replace(PLAN, turned=0, recoloured=0), CPU), 20))
    for name, moved in (("turned", True), ("recoloured", False)):
        some = list(batches(Trainer(replace(PLAN, **{"turned": 0, "recoloured": 0, name: 0.5}), CPU), 20))
        changed = sum((a[0] != b[0]).flatten(1).any(1).sum().item() for a, b in zip(plain, some, strict=True))
        assert changed > 20
        assert moved != all(torch.equal(a[1], b[1]) for a, b in zip(plain, some, strict=True))
    turned = list(batches(Trainer(replace(PLAN, turned=0.5, recoloured=0), CPU), 20))
    kept = sum(torch.equal(x, y) for a, b in zip(plain, turned, strict=True) for x, y in zip(a[1], b[1], strict=True))
    assert 10 < kept < 70


def test_a_run_of_another_version_is_not_gone_on_with(whole, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(whole[0], tmp_path / "run")
    index = json.loads((folder / "state.json").read_text())
    del index["facts"]["plan"]["turned"]
    (folder / "state.json").write_text(json.dumps(index))
    monkeypatch.setattr(sys, "argv", ["train", str(folder), "--minutes", "0"])
    with pytest.raises(SystemExit):
        main()
    assert "without turned" in capsys.readouterr().err


@pytest.mark.slow
def test_a_few_crops_can_be_learnt():
    once = {"kept": 1, "filled": 1, "reuse": 1e9, "turned": 0.0, "recoloured": 0.0}
    plan = Plan(size=64, steps=120, batch=8, chunk=8, warmup=5, average=0.9, seed=3, **once)
    trainer = Trainer(plan, CPU)
    with Stream(plan, CPU) as stream:
        errors = torch.stack([trainer.update(stream)[1] for _ in range(plan.steps)])
    assert errors[-10:].mean() < 0.25 * errors[:3].mean()


@pytest.mark.slow
def test_weights_begin_their_own_variant(whole):
    again = Trainer(PLAN, CPU, init=whole[0] / "last.safetensors")
    torch.testing.assert_close(again.network.state_dict(), whole[1].average.state_dict(), atol=1e-3, rtol=1e-3)


def test_a_larger_variant_begins_with_the_function_of_the_smaller_one_and_its_copies_part():
    small, images = load("xs").safetensors, torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    trainer = Trainer(replace(PLAN, variant="S"), CPU, init=small)
    expected = PoseNetwork(Variant.XS).eval()
    load_grown(expected, small, 0)
    with torch.no_grad():
        torch.testing.assert_close(trainer.network.eval()(images), expected(images), atol=1e-3, rtol=1e-3)
    loss = trainer.network(images).square().sum()
    loss.backward()
    gradient = trainer.network.head.deconv_layers_2.pwconv.weight.grad[:, :, 0, 0]
    old, new = gradient[:128], gradient[128:]
    assert loss > 0 and (old - new).norm() > 0.1 * old.norm()


def test_the_truth_scores_best(crops):
    figures = score(crops.joints, crops)
    assert figures.mpjpe_mm < 0.5 and figures.error_px == 0 and figures.pck == 1 and figures.swaps == 0
    flipped = score(crops.joints[:, list(HUMAN36M.flip_order)], crops)
    assert flipped.swaps > 0.9 and flipped.mpjpe_mm > 50
    shifted = score(crops.joints + torch.tensor([10.0, 0.0, 0.0]), crops)
    assert shifted.error_px == pytest.approx(10, abs=1e-3) and shifted.mpjpe_mm < figures.mpjpe_mm + 40


def test_mpjpe_is_the_metric_s_where_all_joints_count(renderer):
    crops = renderer.batch(16, 0.0, renderer.generator(8))
    crops = crops[((crops.joints[..., :2] >= 0) & (crops.joints[..., :2] < renderer.size)).all((1, 2))]
    predicted = crops.joints + torch.randn(crops.joints.shape, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [2, 2, 40]
    )
    fx, _, cx, cy = crops.intrinsics[:, :, None].unbind(1)
    z = predicted[..., 2] + crops.camera_mm[:, :1, 2]
    place = torch.stack([(predicted[..., 0] - cx) / fx * z, (predicted[..., 1] - cy) / fx * z, z], -1)
    expected = mpjpe(place.numpy(), crops.camera_mm.numpy(), HUMAN36M)
    assert score(predicted, crops).mpjpe_mm == pytest.approx(expected, rel=1e-3)


def test_held_out_sets_are_fixed_and_differ(renderer, monkeypatch):
    monkeypatch.setattr("training.evaluate.LOT", 4)
    sets = {name: held_out(name, 8, renderer) for name in SETS}
    assert torch.equal(sets["hard"].images, held_out("hard", 8, renderer).images)
    assert not torch.equal(sets["hard"].images, sets["never"].images)
    figures = evaluate(Trainer(replace(PLAN, size=128), CPU).average, {"hard": sets["hard"]}, flip=True)
    assert figures["hard"].mpjpe_mm > 100  # nothing learnt yet
