"""Verified checkpoints: which variant the tensors belong to, and the proof that none is missing, unknown or broken.

The shapes decide what a checkpoint is, never its file name. Canonical tensor names are those of `network.PoseNetwork`: without
a prefix, head layers as `head.deconv_layers_1.dwconv.weight`. Published files use either these names ("named", XS and S) or
`head.deconv_layers_1.0.weight` ("numbered", M and L).
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convnextpose.containers import read_container, require_torch
from convnextpose.errors import CheckpointError
from convnextpose.files import show
from convnextpose.pickles import OddTensor, StoredTensor
from convnextpose.skeleton import JOINT_SETS, JointSet, joint_set_of_size
from convnextpose.variants import Variant

if TYPE_CHECKING:
    from torch import Tensor

    from convnextpose.network import PoseNetwork

Shapes = Mapping[str, tuple[int, ...]]

STATE_KEYS = (
    "network", "state_dict", "model", "model_state_dict", "module", "net", "params", "model_ema", "state_dict_ema",
    "ema_state_dict", "ema", "params_ema",
)  # fmt: skip
"""Keys of a checkpoint's dictionary that may hold the state dict, tried in this order; the published files have the first.
Those with `ema` hold a moving average of the weights, which is used if there are no others."""

MAX_NESTING = 4
"""Largest number of dictionaries that a state dict may be nested in."""

FINAL_WEIGHT = "head.final_layer.weight"
"""The tensor whose number of outputs is joints times depth bins."""

LISTED = 3
"""Largest number of tensors that a message names; the rest are only counted."""

_COMPILED = "_orig_mod."
"""The prefix that torch.compile adds to the names in a module that it compiled, at any level."""

_PREFIX = re.compile(r"(?:[^.]+\.)*?(?=(?:backbone|head)\.)")
"""Prefixes that wrappers add to names: DataParallel adds `module.`, torch.compile `_orig_mod.`, others `model.`."""

_NUMBERED = re.compile(r"(head\.deconv_layers_\d+)\.([012])\.(.+)")
_NAMED = re.compile(r"head\.deconv_layers_\d+\.(dwconv|norm|pwconv)\..+")
_PARTS = {"0": "dwconv", "1": "norm", "2": "pwconv"}
_CLAIM = re.compile(r"(?:^|[ _.(-]|convnextpose)(XS|S|M|L)(?=$|[ _.()-])", re.IGNORECASE)
_TOKEN = object()


@dataclass(frozen=True, eq=False)
class VerifiedCheckpoint:
    """A checkpoint that passed every check. Only `verify` and `verify_state` create one.

    Attributes:
        variant: XS, S, M or L, determined by the shapes.
        joint_set: order and names of its joints, determined by their number.
        state: every tensor of the variant under its canonical name, read-only: float32, and int64 for
            `num_batches_tracked`.
        sha256: hash, hexadecimal: of the file's bytes; for a folder see `containers.Contents`; for a state in memory, of each
            tensor's canonical name, type, shape and bytes in the order of the names.
        source: the name that was given.
        name_claims: the variant in the source's name, if it differs from `variant`; otherwise None.
        head_format: `named` or `numbered`, see the module's docstring.
        key_prefix: the prefix of every name in the source, such as `module.`; empty without one.
    """

    variant: Variant
    joint_set: JointSet
    state: Mapping[str, NDArray[Any]]
    sha256: str
    source: str
    name_claims: Variant | None
    head_format: str
    key_prefix: str
    token: InitVar[object] = None

    def __post_init__(self, token: object) -> None:
        """Allow only this module to create instances."""
        if token is not _TOKEN:
            raise CheckpointError("expected a VerifiedCheckpoint to come from verify(), received one made by hand")


def verify(path: Path, variant: Variant | None = None) -> VerifiedCheckpoint:
    """Read a checkpoint in any container and prove which variant it is.

    Args:
        path: a file or an unpacked folder; `containers` lists the formats.
        variant: the variant that it must be; None to determine it from the shapes.

    Raises:
        CheckpointError: it cannot be read, or `verify_state` refuses its tensors.
        RuntimeUnavailableError: PyTorch or safetensors is missing.
    """
    path = Path(path)
    contents = read_container(path)
    return verify_state(_find_state(contents.tree, str(path)), source=str(path), sha256=contents.sha256, variant=variant)


def verify_state(
    state: Mapping[str, Tensor | NDArray[Any]], *, source: str, sha256: str | None = None, variant: Variant | None = None
) -> VerifiedCheckpoint:
    """Prove which variant a state dict is; its tensors are copied.

    Refused are: missing and extra tensors, wrong shapes (kernels, channels, joint counts), NaN, infinity and numbers beyond
    float32, weights or running variances that are all zero, and negative running variances. Zero biases and means are accepted,
    and so is a single variance of zero, as of a channel that is never active.

    Args:
        state: tensors by name, with or without a prefix such as `module.`, in either head format, of any floating type.
        source: its name in messages.
        sha256: hash of the file that it came from; None to hash the tensors.
        variant: the variant that it must be; None to determine it from the shapes.

    Raises:
        CheckpointError: names the first tensors that differ, with what was expected and received.
        RuntimeUnavailableError: PyTorch is missing.
    """
    require_torch()
    tensors, head_format, key_prefix = _canonical(state, source)
    odd = [f"{show(name)} ({tensor.kind})" for name, tensor in tensors.items() if isinstance(tensor, OddTensor)]
    if odd:
        raise CheckpointError(f"{source}: expected dense tensors, received others for {_listing(odd)}: save them as dense ones")
    shapes = {name: _shape_of(name, tensor, source) for name, tensor in tensors.items()}
    found, joint_set = _identify(shapes, source, variant)
    # Values are read after the shapes are checked: a tensor of the right shape is small, whatever the file says.
    arrays = {name: _freeze(name, tensors[name], source) for name in _expected(found, len(joint_set))}
    _check_values(arrays, source)
    claim = claimed_variant(Path(source).name)
    return VerifiedCheckpoint(
        variant=found,
        joint_set=joint_set,
        state=MappingProxyType(arrays),
        sha256=sha256 or _hash(arrays),
        source=source,
        name_claims=None if claim is found else claim,
        head_format=head_format,
        key_prefix=key_prefix,
        token=_TOKEN,
    )


def build_network(checkpoint: VerifiedCheckpoint) -> PoseNetwork:
    """The verified model as a PyTorch module in evaluation mode, FP32 on the CPU."""
    torch = require_torch()
    from convnextpose.network import PoseNetwork

    network = PoseNetwork(checkpoint.variant, len(checkpoint.joint_set))
    network.load_state_dict({name: torch.tensor(array) for name, array in checkpoint.state.items()})
    return network.eval().requires_grad_(False)


def claimed_variant(name: str) -> Variant | None:
    """The variant in a file's name, e.g. M for `ConvNeXtPose_M (1).tar`; None if it has none, or several."""
    claims = {match.upper() for match in _CLAIM.findall(name)}
    return Variant[claims.pop()] if len(claims) == 1 else None


def _find_state(tree: object, source: str) -> Mapping[str, Any]:
    """The state dict in a container's contents: under one of `STATE_KEYS`, possibly nested, or the contents themselves."""
    found = tree
    for _ in range(MAX_NESTING):
        inner = [found[key] for key in STATE_KEYS if isinstance(found.get(key), Mapping)] if isinstance(found, Mapping) else []
        if not inner:
            break
        found = inner[0]
    if isinstance(found, Mapping) and (found is not tree or any(_is_tensor(value) for value in found.values())):
        return found
    if isinstance(tree, Mapping):
        received = "a dictionary of " + (", ".join(show(key) for key in list(tree)[:5]) or "nothing")
    else:
        received = f"a {type(tree).__name__}"
    raise CheckpointError(f"{source}: expected a dictionary with `network`, or a state dict of tensors, received {received}")


def _is_tensor(value: object) -> bool:
    return isinstance(value, (StoredTensor, OddTensor, np.ndarray, np.generic, require_torch().Tensor))


def _canonical(state: Mapping[str, Any], source: str) -> tuple[dict[str, Any], str, str]:
    """The tensors under their canonical names, the head's format, and the prefix that all names have."""
    # Wrappers have their own counters beside the network, such as AveragedModel's `n_averaged`.
    named = {name: value for name, value in state.items() if not _is_counter(name, value)}
    for name, value in named.items():
        if not isinstance(name, str) or not _is_tensor(value):
            raise CheckpointError(f"{source}: expected tensors by name, received {show(name)}, a {_kind(value)}")
    prefixes = Counter(match[0] for match in map(_PREFIX.match, named) if match)
    if len(prefixes) > 1:
        told = " and ".join(f"{f'`{show(prefix)}`' if prefix else 'none'} before {n}" for prefix, n in prefixes.most_common(3))
        raise CheckpointError(
            f"{source}: expected one network, with one prefix before every name or none, received {told} of {len(named)} "
            "names: save the tensors of one network"
        )
    prefix = next(iter(prefixes), "")
    tensors: dict[str, Any] = {}
    formats = set()
    for name, value in named.items():
        canonical = name.removeprefix(prefix).replace(_COMPILED, "")
        numbered = _NUMBERED.fullmatch(canonical)
        if numbered:
            formats.add("numbered")
            canonical = f"{numbered[1]}.{_PARTS[numbered[2]]}.{numbered[3]}"
        elif _NAMED.fullmatch(canonical):
            formats.add("named")
        if canonical in tensors and len(formats) < 2:
            raise CheckpointError(f"{source}: expected each tensor once, received {show(canonical)} under two names")
        tensors[canonical] = value
    if len(formats) > 1:
        raise CheckpointError(
            f"{source}: expected head layers as `dwconv`, `norm`, `pwconv` or as `0`, `1`, `2`, received both in one file"
        )
    return tensors, "".join(formats), prefix


def _kind(value: object) -> str:
    return "tensor" if _is_tensor(value) else type(value).__name__


def _is_counter(name: object, value: object) -> bool:
    """Whether an entry is a number beside the network's tensors: their names all contain dots."""
    if not isinstance(name, str) or "." in name:
        return False
    return isinstance(value, (int, float, str)) or (_is_tensor(value) and math.prod(getattr(value, "shape", (2,))) == 1)


@functools.cache
def _expected(variant: Variant, joint_count: int) -> Shapes:
    from convnextpose.network import expected_shapes

    return MappingProxyType(expected_shapes(variant, joint_count))


def _identify(received: Shapes, source: str, wanted: Variant | None) -> tuple[Variant, JointSet]:
    """The variant and joint set that the tensors belong to, by names and shapes alone."""
    candidates = [(variant, len(joints)) for variant in Variant for joints in JOINT_SETS.values()]
    for variant, joint_count in candidates:
        if received == _expected(variant, joint_count):
            if wanted not in (None, variant):
                raise CheckpointError(
                    f"{source}: expected {wanted.name}, as requested, received {variant.name} with {joint_count} joints: "
                    + _difference(received, _expected(wanted, joint_count))
                )
            return variant, joint_set_of_size(joint_count)

    def distance(candidate: tuple[Variant, int]) -> int:
        return len(_differing(received, _expected(*candidate)) - {FINAL_WEIGHT, "head.final_layer.bias"})

    candidates = [candidate for candidate in candidates if wanted in (None, candidate[0])]
    closest = min(map(distance, candidates))
    nearest = [candidate for candidate in candidates if distance(candidate) == closest]
    outputs = received[FINAL_WEIGHT][0] if received.get(FINAL_WEIGHT) else None
    known = {_expected(*candidate)[FINAL_WEIGHT][0]: candidate for candidate in nearest}
    if closest == 0 and outputs is not None and outputs not in known:
        options = " or ".join(f"{count} ({variant.name}, {joints} joints)" for count, (variant, joints) in known.items())
        raise CheckpointError(
            f"{source}: expected a known number of joints, for which {FINAL_WEIGHT} has {options} outputs, received "
            f"{outputs} outputs ({list(received[FINAL_WEIGHT])})"
        )
    variant, joint_count = known.get(outputs or 0, nearest[0])
    raise CheckpointError(
        f"{source}: expected a ConvNeXtPose{f' {wanted.name}, as requested' if wanted else ''}, received something else. "
        f"Compared with the nearest ({variant.name} with {joint_count} joints) there are "
        + _difference(received, _expected(variant, joint_count))
    )


def _differing(received: Shapes, expected: Shapes) -> set[str]:
    return {name for name in received.keys() | expected.keys() if received.get(name) != expected.get(name)}


def _difference(received: Shapes, expected: Shapes) -> str:
    """The differences of the tensors by kind; for each kind the first ones with what was expected and received."""
    missing = [name for name in expected if name not in received]
    extra = [name for name in received if name not in expected]
    shared = [name for name in expected if name in received and received[name] != expected[name]]
    kernels = [
        name for name in shared if len(received[name]) == len(expected[name]) == 4 and received[name][:2] == expected[name][:2]
    ]
    shapes = [name for name in shared if name not in kernels]

    def both(name: str) -> str:
        return f"{show(name)} (expected {_shape(expected, name)}, received {_shape(received, name)})"

    kinds = ((kernels, "wrong kernels"), (shapes, "wrong shapes"), (missing, "missing tensors"), (extra, "extra tensors"))
    return "; ".join(f"{kind} ({len(names)}): {_listing(names, both)}" for names, kind in kinds if names)


def _shape(shapes: Shapes, name: str) -> str:
    return str(list(shapes[name])) if name in shapes else "nothing"


def _listing(names: Sequence[str], text: Callable[[str], str] = show) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(map(text, names[:LISTED])) + more


def _shape_of(name: str, tensor: Any, source: str) -> tuple[int, ...]:  # noqa: ANN401 (a tensor of any kind, or an array)
    try:
        return tuple(int(size) for size in tensor.shape)
    except (RuntimeError, TypeError, ValueError) as error:  # nested tensors have no single shape
        raise CheckpointError(f"{source}: expected {show(name)} as a plain tensor, received one without a shape") from error


def _freeze(name: str, tensor: Any, source: str) -> NDArray[Any]:  # noqa: ANN401 (a tensor of any kind, or an array)
    """A read-only copy as float32 (int64 for counters)."""
    counter = name.endswith("num_batches_tracked")
    stored = isinstance(tensor, (StoredTensor, np.ndarray, np.generic))
    if not stored and (tensor.layout != require_torch().strided or tensor.is_nested or tensor.device.type == "meta"):
        raise CheckpointError(f"{source}: expected {name} as a plain tensor, received one that is sparse or has no numbers")
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in (("int64", "int32") if counter else ("float32", "float16", "bfloat16", "float64")):
        raise CheckpointError(
            f"{source}: expected {name} in {'whole' if counter else 'floating-point'} numbers, received {dtype}"
        )
    wanted = np.int64 if counter else np.float32
    if isinstance(tensor, StoredTensor):
        tensor = tensor.numpy()
    elif not stored:
        torch = require_torch()
        tensor = tensor.detach().to("cpu", torch.int64 if counter else torch.float32).numpy()
    with np.errstate(over="ignore"):  # values beyond float32 become infinite, and are refused as such
        array = np.asarray(tensor, dtype=wanted)
    # An array over bytes is read-only for ever: no flag makes it writable.
    return np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape)


def _check_values(arrays: Mapping[str, NDArray[Any]], source: str) -> None:
    broken = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if broken:
        raise CheckpointError(
            f"{source}: expected finite numbers, received NaN or infinity in {len(broken)} tensors: {_listing(broken)}"
        )
    zero = [name for name, array in arrays.items() if name.endswith(("weight", "running_var")) and not array.any()]
    if zero:
        raise CheckpointError(
            f"{source}: expected trained weights, received only zeros in {len(zero)} tensors: {_listing(zero)}"
        )
    negative = [name for name, array in arrays.items() if name.endswith("running_var") and array.min() < 0]
    if negative:
        raise CheckpointError(
            f"{source}: expected no negative variance, received some in {len(negative)} tensors: {_listing(negative)}"
        )


def _hash(arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {list(array.shape)}\n".encode() + array.tobytes())
    return digest.hexdigest()
