"""torch's exporter converts each network once in a run of the tests, whichever process asks for it."""

from __future__ import annotations

import fcntl
import hashlib
from pathlib import Path


def key_of(network, inputs, outputs):
    """A digest of all that a graph is made of: the modules, their plain attributes, their numbers, and the names and shapes."""
    digest = hashlib.sha256(repr((inputs, outputs)).encode())
    for name, module in network.named_modules():
        plain = {k: v for k, v in vars(module).items() if isinstance(v, (bool, int, float, str, tuple, type(None)))}
        digest.update(repr((name, type(module).__qualname__, sorted(plain.items()))).encode())
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def once(convert, folder: Path):
    """A function in the place of `engines.graph._convert` that keeps what that one gave in a folder that processes share."""

    def converted(network, inputs, outputs):
        kept = folder / f"{key_of(network, inputs, outputs)}.onnx"
        with kept.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another process that converts the same network is waited for
            if not kept.exists():
                data = convert(network, inputs, outputs)
                kept.with_suffix(".part").write_bytes(data)
                kept.with_suffix(".part").rename(kept)
            return kept.read_bytes()

    return converted
