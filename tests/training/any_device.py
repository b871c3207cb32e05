"""Rendering and training on a device that is not the CPU, where there is none: tensors that claim another device and compute on
the CPU, but refuse, as CUDA's do, to be mixed with the CPU's or to be read without a copy.

`test_any_device.py` runs these tests in a process of their own: PyTorch counts its devices at the first gradient, so this one
must be there before.

What that cannot show: operators that CUDA lacks for a type, BF16 (autocast falls through), and speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402
from torch.utils import _python_dispatch, _pytree, backend_registration  # noqa: E402

from tests.training import test_avatars, test_fabric, test_mocap, test_real  # noqa: E402
from training.dataset import Renderer, seeded  # noqa: E402
from training.detector import DetectorTrainer  # noqa: E402
from training.frames import FrameRenderer  # noqa: E402
from training.plan import Plan  # noqa: E402
from training.train import Trainer, run  # noqa: E402

aten = torch.ops.aten

NAME = "other"

MIXING = {aten.copy_.default, aten._to_copy.default, aten.index.Tensor}
"""What takes tensors of both devices (an index on the CPU into a tensor elsewhere)."""


class Backend(backend_registration._DummyBackendModule):
    """What PyTorch asks of a device's module."""

    def get_amp_supported_dtype(self) -> list:
        return [torch.bfloat16]


class Elsewhere(torch.Tensor):
    """A tensor on the other device, held by one on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), held.stride(), held.storage_offset(), dtype=held.dtype, device=torch.device(NAME, 0)
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return dispatch(func, args, kwargs or {})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.held!r})"

    def tolist(self) -> list:
        return self.held.tolist()

    def numpy(self, **_: object) -> Any:
        raise TypeError("a tensor on the other device must be copied first")

    __array__ = numpy


class Placed(torch.Generator):
    """A generator that claims the device it was made for."""

    elsewhere: dict[int, Placed] = {}  # noqa: RUF012
    """Those of the other device, by the address under which PyTorch hands them on."""

    def __new__(cls, device: Any = "cpu") -> Placed:
        return super().__new__(cls, "cpu")

    def __init__(self, device: Any = "cpu") -> None:
        self.place = torch.device(device)
        if self.place.type == NAME:
            self.elsewhere[self._cdata] = self

    @property
    def device(self) -> Any:
        return self.place


def dispatch(func: Any, args: tuple, kwargs: dict) -> Any:
    """Compute an operator on the CPU, after a look at where its tensors claim to be."""
    tensors = [t for t in _pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    there = any(isinstance(t, Elsewhere) for t in tensors)
    here = [t for t in tensors if not isinstance(t, Elsewhere)]
    if there and func not in MIXING and any(t.ndim for t in here):
        raise RuntimeError(f"{func}: tensors of two devices, {[tuple(t.shape) for t in here]} on the CPU")
    if func is aten.index.Tensor and there and not isinstance(args[0], Elsewhere):
        raise RuntimeError(f"{func}: an index elsewhere into a tensor on the CPU")
    asked = kwargs.get("device")
    into = there if asked is None else torch.device(asked).type == NAME
    generator = kwargs.get("generator")
    if generator is not None and (generator._cdata in Placed.elsewhere) != into:
        raise RuntimeError(f"{func}: a generator of another device")
    on_cpu = {} if asked is None else {"device": "cpu"}
    args_held, kwargs_held = _pytree.tree_map_only(Elsewhere, lambda t: t.held, (args, kwargs | on_cpu))
    result = func(*args_held, **kwargs_held)
    if func is aten.copy_.default:
        return args[0]
    if not into or result is None or func._schema.name in ("aten::_local_scalar_dense", "aten::_fused_adamw_"):
        return result
    wrapped = _pytree.tree_map_only(Tensor, Elsewhere, result)
    return _python_dispatch.return_and_correct_aliasing(func, args, kwargs, wrapped)


class Dispatch(_python_dispatch.TorchDispatchMode):
    """Sends what makes tensors, too, through `dispatch`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return dispatch(func, args, kwargs or {})


@pytest.fixture(scope="module")
def _registered() -> Iterator[None]:
    backend_registration._setup_privateuseone_for_python_backend(NAME, Backend())
    library = torch.library.Library("_", "IMPL")
    library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    yield
    library._destroy()


@pytest.fixture
def device(_registered: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The other device; while it stands, `torch.tensor` makes its tensor on the CPU and copies it over."""
    monkeypatch.setattr(torch, "Generator", Placed)
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    with Dispatch():
        yield torch.device(NAME, 0)
    torch._C._set_only_lift_cpu_tensors(before)
    Placed.elsewhere.clear()


PLAN = Plan(size=64, steps=2, batch=4, chunk=4, kept=2, filled=1, reuse=0.5, first_difficulty=0.9)


def the_same(one: Any, other: Any) -> bool:
    """Whether two of a dataclass of tensors hold the same numbers, the second on the other device."""
    pairs = [(getattr(one, f.name), getattr(other, f.name)) for f in fields(one)]
    assert all(isinstance(there, Elsewhere) for _, there in pairs)
    return all(torch.equal(here, there.cpu()) for here, there in pairs)


def test_devices_do_not_mix(device):
    there, here = torch.ones(3, device=device), torch.ones(3)
    assert (there + there.sum() + torch.tensor(2.0)).tolist() == [6.0] * 3
    for wrong in (lambda: there + here, lambda: here[there.long()], lambda: torch.where(there > 0, here, there)):
        with pytest.raises(RuntimeError):
            wrong()
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, device=device, generator=torch.Generator())
    with pytest.raises(TypeError):
        there.numpy()
    assert here[there.cpu().long() - 1].tolist() == [1.0] * 3


@pytest.mark.parametrize("never", [False, True])
def test_crops_are_rendered_where_asked(device, never):
    here, there = (Renderer(place, 64) for place in ("cpu", device))
    crops = [r.batch(8, 0.9, seeded(r.body.device, 1), never, **PLAN.shares()) for r in (here, there)]
    assert the_same(*crops)


def test_crops_of_others_data_are_rendered_where_asked(device, tmp_path):
    test_mocap.write(tmp_path / "mocap_poses.npz", test_mocap.random_vectors(8, 1))
    test_fabric.write(tmp_path / "fabric_patches_cc0.zip")
    test_avatars.write(tmp_path / "avatars", test_avatars.ALL)
    here, there = (Renderer(place, 64, data=tmp_path) for place in ("cpu", device))
    shares = {**PLAN.shares(), "mocap": 0.5, "cloth": 0.5, "avatars": 0.5}
    assert the_same(*(r.batch(8, 0.9, seeded(r.body.device, 1), **shares) for r in (here, there)))


def test_real_people_are_trained_on_there(device, tmp_path, monkeypatch):
    monkeypatch.setattr("training.evaluate.LOT", 4)
    data = test_real.write(tmp_path / "data")
    plan = replace(PLAN, real=0.5)
    assert run(tmp_path / "run", plan, device, data=data, held_out_count=4).step == 2


def test_frames_are_rendered_where_asked(device):
    here, there = (FrameRenderer(place, 128) for place in ("cpu", device))
    frames = [r.batch(4, 0.9, seeded(r.device, 1), clutter=0.5) for r in (here, there)]
    assert the_same(*frames)


@pytest.mark.parametrize("kind", [Trainer, DetectorTrainer])
def test_a_run_trains_judges_and_goes_on_there(device, tmp_path, kind, monkeypatch):
    for module in ("evaluate", "detector"):  # four pictures of each set are enough here
        monkeypatch.setattr(f"training.{module}.LOT", 4)
    first = run(tmp_path, PLAN, device, steps=1, held_out_count=0, kind=kind)
    assert all(isinstance(t, Elsewhere) for t in (*first.network.state_dict().values(), *first.average.state_dict().values()))
    again = run(tmp_path, PLAN, device, held_out_count=4, kind=kind)
    assert again.step == 2
