"""The contents of a verified checkpoint, as a table for people and as JSON for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from convnextpose.checkpoint import FINAL_WEIGHT, VerifiedCheckpoint
from convnextpose.skeleton import HUMAN36M
from convnextpose.variants import HEAD_LAYERS


@dataclass(frozen=True)
class HeadLayerReport:
    """One of the three head layers.

    Attributes:
        kernel: side of its depthwise kernel.
        channels: number of its output channels.
        active_percent: percentage of its convolutions' weights that are not zero, 0..100.
        upsamples: whether it doubles the map's side; implied by the variant, as upsampling has no weights.
    """

    kernel: int
    channels: int
    active_percent: float
    upsamples: bool


@dataclass(frozen=True)
class VerificationReport:
    """The contents of a verified checkpoint, as a table for people and as JSON for programs.

    Attributes:
        file: the name that was given.
        variant: `XS`, `S`, `M` or `L`.
        name_claims: the variant in the file's name, if it differs from `variant`.
        trainable_parameters: number of trainable parameters.
        state_numbers: number of all values in the state dict, with the batch norms' statistics and counters.
        backbone: the name of its ConvNeXt configuration.
        blocks, channels: residual blocks and channels of each stage.
        backbone_kernel: side of the depthwise kernels in the backbone.
        head: its three layers.
        head_format: the names of the head's tensors in the file, `named` or `numbered`.
        key_prefix: the prefix of every tensor's name in the file, such as `module.`; empty without one.
        heatmap_size: side of the heat-map, bins.
        depth_bins: depth of the heat-map volume, bins.
        joints: number of joints that it estimates.
        joint_set: the name of their order.
        paper_mpjpe_mm: MPJPE of the variant on Human3.6M (protocol 2) in the paper, mm: a claim of the paper, not of this file.
            None for joints other than Human3.6M's, which that table does not cover.
        sha256: see `VerifiedCheckpoint`.
    """

    file: str
    variant: str
    name_claims: str | None
    trainable_parameters: int
    state_numbers: int
    backbone: str
    blocks: tuple[int, ...]
    channels: tuple[int, ...]
    backbone_kernel: int
    head: tuple[HeadLayerReport, ...]
    head_format: str
    key_prefix: str
    heatmap_size: int
    depth_bins: int
    joints: int
    joint_set: str
    paper_mpjpe_mm: float | None
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """The report as JSON's types."""
        return asdict(self)


def describe(checkpoint: VerifiedCheckpoint) -> VerificationReport:
    """The report on a verified checkpoint, from its tensors.

    Only what tensors do not show comes from the variant's table: the backbone's name, the upsampling with the heat-map's size,
    and the paper's score.
    """
    spec, state = checkpoint.variant.spec, checkpoint.state
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    stages = range(len(spec.depths))
    head = []
    for index in range(1, HEAD_LAYERS + 1):
        depthwise = state[f"head.deconv_layers_{index}.dwconv.weight"]
        pointwise = state[f"head.deconv_layers_{index}.pwconv.weight"]
        active = (np.count_nonzero(depthwise) + np.count_nonzero(pointwise)) / (depthwise.size + pointwise.size)
        head.append(
            HeadLayerReport(depthwise.shape[-1], pointwise.shape[0], 100.0 * active, upsamples=index <= spec.upsampling_layers)
        )
    return VerificationReport(
        file=checkpoint.source,
        variant=checkpoint.variant.name,
        name_claims=checkpoint.name_claims.name if checkpoint.name_claims else None,
        trainable_parameters=sum(array.size for name, array in state.items() if not name.endswith(buffers)),
        state_numbers=sum(array.size for array in state.values()),
        backbone=spec.backbone,
        blocks=tuple(
            sum(name.startswith(f"backbone.stages.{i}.") and name.endswith("dwconv.weight") for name in state) for i in stages
        ),
        channels=tuple(state[f"backbone.stages.{i}.0.dwconv.weight"].shape[0] for i in stages),
        backbone_kernel=state["backbone.stages.0.0.dwconv.weight"].shape[-1],
        head=tuple(head),
        head_format=checkpoint.head_format,
        key_prefix=checkpoint.key_prefix,
        heatmap_size=spec.heatmap_size,
        depth_bins=state[FINAL_WEIGHT].shape[0] // len(checkpoint.joint_set),
        joints=len(checkpoint.joint_set),
        joint_set=checkpoint.joint_set.name,
        paper_mpjpe_mm=spec.paper_mpjpe_mm if checkpoint.joint_set is HUMAN36M else None,
        sha256=checkpoint.sha256,
    )
