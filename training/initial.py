"""The weights that a run begins with: random ones, or those of a smaller variant."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from convnextpose.checkpoint import verify
from convnextpose.network import PoseNetwork


def initialise(network: nn.Module, last: nn.Conv2d, seed: int) -> None:
    """Kaiming initialisation, with each residual branch at zero and the last layer near zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            nonlinearity = "linear" if module.groups > 1 else "relu"
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity=nonlinearity, generator=generator)
            nn.init.zeros_(module.bias)
            if name.endswith("pwconv2"):
                nn.init.zeros_(module.weight)
    nn.init.normal_(last.weight, std=0.01, generator=generator)


def load_grown(network: PoseNetwork, path: Path, seed: int) -> None:
    """Load a weights file into its own variant, or into a larger one that then begins as the same function.

    Each new channel is a copy of an old one. The next layer's weights of the old channel are split between the two at random,
    so that they can diverge. Blocks that are not in the file keep their zero branch. The last layer is not loaded if its
    heat-map has another size. Source: Chen, Goodfellow, Shlens, "Net2Net: Accelerating Learning via Knowledge Transfer",
    ICLR 2016.
    """
    generator = torch.Generator().manual_seed(seed)
    given, own = verify(path).state, network.state_dict()
    grown = {}
    for name, array in given.items():
        tensor, shape = torch.tensor(array), own[name].shape
        if name.startswith("head.final_layer") and shape[0] != len(tensor):
            continue
        if tensor.ndim > 1 and shape[1] != tensor.shape[1]:
            source = torch.arange(shape[1]) % tensor.shape[1]
            share = 0.5 + torch.rand(len(tensor), shape[1], generator=generator)
            whole = torch.zeros(tensor.shape[:2]).index_add_(1, source, share)
            tensor = tensor[:, source] * (share / whole[:, source])[..., None, None]
        grown[name] = tensor[torch.arange(shape[0]) % len(tensor)] if tensor.ndim else tensor
    network.load_state_dict(grown, strict=False)
