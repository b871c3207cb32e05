"""What takes seconds and depends only on what goes in is made once in a run of the tests, whichever process asks for it."""

from __future__ import annotations

import fcntl
import hashlib
from pathlib import Path


def network_key(network, inputs, outputs):
    """A digest of all that a graph is made of: the modules, their plain attributes, their numbers, and the names and shapes."""
    digest = hashlib.sha256(repr((inputs, outputs)).encode())
    for name, module in network.named_modules():
        plain = {k: v for k, v in vars(module).items() if isinstance(v, (bool, int, float, str, tuple, type(None)))}
        digest.update(repr((name, type(module).__qualname__, sorted(plain.items()))).encode())
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def crops_key(model, crops):
    """A digest of a model in memory and an array."""
    return hashlib.sha256(
        hashlib.sha256(model).digest() + repr((crops.shape, crops.dtype)).encode() + crops.tobytes()
    ).hexdigest()


def once(make, key_of, folder: Path):
    """`make` (its arguments to bytes), but of each key only once: the bytes are kept in a folder that processes share."""

    def made(*arguments):
        kept = folder / f"{make.__name__.strip('_')}-{key_of(*arguments)}"
        with kept.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another process that makes the same is waited for
            if not kept.exists():
                kept.with_suffix(".part").write_bytes(make(*arguments))
                kept.with_suffix(".part").rename(kept)
            return kept.read_bytes()

    return made
