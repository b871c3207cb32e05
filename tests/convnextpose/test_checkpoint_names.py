"""Variants claimed by a checkpoint's name or by the caller are compared with the tensors."""

from __future__ import annotations

import pytest

from convnextpose.checkpoint import claimed_variant, verify, verify_state
from convnextpose.report import describe
from convnextpose.variants import Variant

pytest.importorskip("torch")
from convnextpose.network import random_state
from tests.convnextpose.test_checkpoint import FINAL, refused


@pytest.mark.parametrize(
    ("name", "claim"),
    [
        ("ConvNeXtPose_XS.tar", "XS"),
        ("ConvNeXtPose_S.tar", "S"),
        ("ConvNeXtPose_M (1).tar", "M"),
        ("ConvNeXtPose_L (1).tar", "L"),
        ("convnextpose-l.pth", "L"),
        ("convnextposexs.safetensors", "XS"),
        ("ConvNeXtPose (M).zip", "M"),
        ("m.pth", "M"),
        ("S", "S"),
        ("snapshot_68.pth", None),
        ("ConvNeXtPose.tar", None),
        ("model.pth", None),
        ("Liz's model.pth", None),
        ("small.pth", None),
        ("XXS.pth", None),
        ("M2.pth", None),
        ("compare_M_L.pth", None),
        ("", None),
    ],
)
def test_what_a_name_claims(name, claim):
    assert claimed_variant(name) == (Variant[claim] if claim else None)


def test_a_file_named_as_another_variant_is_reported(xs_state, published, tmp_path):
    path = published(tmp_path / "ConvNeXtPose_L (1).tar", xs_state, optimizer=False)
    checkpoint = verify(path)
    assert (checkpoint.variant, checkpoint.name_claims) == (Variant.XS, Variant.L)
    assert describe(checkpoint).name_claims == "L"


def test_another_variant_than_the_caller_named_is_refused():
    state = random_state(Variant.S)
    assert verify_state(state, source="ConvNeXtPose_L.tar", variant=Variant.S).name_claims is Variant.L
    message = refused(state, variant=Variant.M)
    assert "expected M, as requested, received S with 18 joints" in message
    assert f"{FINAL} (expected [1152, 256, 1, 1], received [576, 256, 1, 1])" in message


def test_a_broken_file_is_held_against_the_variant_that_the_caller_named(xs_state):
    state = {name: tensor for name, tensor in xs_state.items() if name != FINAL}
    assert "expected a ConvNeXtPose L, as requested" in refused(state, variant=Variant.L)
