"""Targets are found by name and by compute capability, and none is ambiguous."""

import pytest

from convnextpose.errors import EngineError
from engines.targets import TARGETS, find_target


def test_every_target_is_found_by_its_name_and_its_compute_capabilities():
    for target in TARGETS:
        assert find_target(target.name) is target
        assert find_target(target.name.upper()) is target
        for capability in target.compute_capabilities:
            assert find_target(capability) is target


def test_names_and_compute_capabilities_are_unique():
    names = [name for target in TARGETS for name in (target.name, *target.compute_capabilities)]
    assert len(names) == len(set(names))
    assert [target.name for target in TARGETS if target.is_at_hand] == ["this"]


@pytest.mark.parametrize("name", ["", "rtx", "rtx60", "9.9", "8"])
def test_unknown_targets_are_refused_with_the_known_ones(name):
    with pytest.raises(EngineError, match=r"rtx40 \(8\.9\)") as caught:
        find_target(name)
    assert repr(name) in str(caught.value)


def test_jetpacks_tell_which_way_they_are_built():
    ways = {(target.name, jetpack.version): jetpack.strongly_typed for target in TARGETS for jetpack in target.jetpacks}
    assert not ways["orin", "5.1"]
    assert not ways["orin", "6.0"]
    assert ways["orin", "6.1"]
    assert ways["orin", "7.2"]
    assert all(typed for (name, _), typed in ways.items() if name == "thor")
    assert [target.name for target in TARGETS if target.dla] == ["orin"]


def test_the_desktop_is_what_tensorrt_rtx_builds_for():
    pytest.importorskip("tensorrt_rtx")
    from engines.tensorrt.module import load_library

    known = load_library("tensorrt_rtx").compute_capabilities
    for target in TARGETS:
        if target.libraries[0] == "tensorrt_rtx":
            assert set(target.compute_capabilities) <= set(known)
        if target.jetpacks:
            assert not set(target.compute_capabilities) & set(known)
