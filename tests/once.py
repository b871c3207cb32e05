"""Results that take seconds and depend only on their inputs are made once in a test run, whichever process needs them."""

from __future__ import annotations

import fcntl
import hashlib
from pathlib import Path


def _numbers(network):
    tensors = (*network.named_parameters(), *network.named_buffers())
    return {name: tensor.detach().contiguous().numpy() for name, tensor in tensors}


def network_key(network, inputs, outputs):
    """A digest of everything in a graph except its weights: modules, their plain attributes, names, types and shapes."""
    digest = hashlib.sha256(repr((inputs, outputs)).encode())
    for name, module in network.named_modules():
        plain = {k: v for k, v in vars(module).items() if isinstance(v, (bool, int, float, str, tuple, type(None)))}
        digest.update(repr((name, type(module).__qualname__, sorted(plain.items()))).encode())
    for name, numbers in _numbers(network).items():
        digest.update(repr((name, numbers.dtype, numbers.shape)).encode())
    return digest.hexdigest()


def graph_once(convert, folder: Path):
    """`engines.graph._convert`, but once for each kind of network: the graph of others gets their own weights.

    tests/engines/test_export.py compares such graphs byte by byte with the exporter's graphs of the same networks.
    """

    def graph(network, inputs, outputs):
        """The graph without its weights, which must be in it exactly as in the network."""
        import onnx

        model, numbers = onnx.load_from_string(convert(network, inputs, outputs)), _numbers(network)
        assert {tensor.name for tensor in model.graph.initializer} >= numbers.keys()
        for tensor in model.graph.initializer:
            if tensor.name in numbers:
                assert tensor.raw_data == numbers[tensor.name].tobytes()
                tensor.raw_data = b""
        return model.SerializeToString()

    kept = once(graph, network_key, folder)

    def made(network, inputs, outputs):
        import onnx

        model, numbers = onnx.load_from_string(kept(network, inputs, outputs)), _numbers(network)
        for tensor in model.graph.initializer:
            if tensor.name in numbers:
                tensor.raw_data = numbers[tensor.name].tobytes()
        return model.SerializeToString(deterministic=True)

    return made


def crops_key(model, crops):
    """A digest of a model in memory and an array."""
    return hashlib.sha256(
        hashlib.sha256(model).digest() + repr((crops.shape, crops.dtype)).encode() + crops.tobytes()
    ).hexdigest()


def once(make, key_of, folder: Path):
    """`make` (from its arguments to bytes), but only once for each key: processes share the bytes in a folder."""

    def made(*arguments):
        kept = folder / f"{make.__name__.strip('_')}-{key_of(*arguments)}"
        with kept.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # wait for another process that makes the same
            if not kept.exists():
                kept.with_suffix(".part").write_bytes(make(*arguments))
                kept.with_suffix(".part").rename(kept)
            return kept.read_bytes()

    return made
