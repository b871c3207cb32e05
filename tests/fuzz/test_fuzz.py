"""Inputs of every kind that are spoilt by chance: each is read, or refused in one sentence. In between there is nothing.

pytest tests/fuzz --fuzz-cases 1000 --fuzz-seed 7     more cases of each kind, others than those of every day
"""

from __future__ import annotations

import sys
from collections import Counter

import pytest

from tests.fuzz.zygote import MEMORY, Zygote

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the children's limits are those of Linux")

CASES = 10
"""Cases of each kind in `make test`; `make test-all` runs `MORE_CASES`."""

MORE_CASES = 300

KINDS = (
    "video", "picture", "folder", "checkpoint", "onnx", "engine", "bundle", "calibration", "boxes", "ndjson", "npz", "sources",
    "uri", "arguments",
)  # fmt: skip

ENDS = ("accepted", "refused", "speechless", "traceback", "exit code", "crash", "hang", "memory")


@pytest.fixture(scope="module")
def zygote():
    for library in ("av", "cv2", "onnxruntime"):
        pytest.importorskip(library)
    with Zygote() as one:
        yield one


def run(zygote, kind, cases, seed):
    if zygote.lacks[kind]:
        pytest.skip(zygote.lacks[kind])
    outcomes = [zygote.run(kind, seed, case) for case in range(cases)]
    ends = Counter(outcome.end for outcome in outcomes)
    print(f"{kind}, seed {seed}: {dict(ends)}, at most {max(o.memory for o in outcomes) / 1e6:.0f} MB")
    faults = [o for o in outcomes if o.is_fault]
    assert not faults, f"{len(faults)} of {cases}\n" + "\n".join(map(str, faults[:5]))
    assert ends["refused"], "nothing was spoilt enough to be refused: these cases show nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_a_spoilt_input_is_read_or_refused_in_one_sentence(zygote, kind, pytestconfig):
    run(zygote, kind, pytestconfig.getoption("--fuzz-cases") or CASES, pytestconfig.getoption("--fuzz-seed"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_more_spoilt_inputs(zygote, kind, pytestconfig):
    run(zygote, kind, pytestconfig.getoption("--fuzz-cases") or MORE_CASES, pytestconfig.getoption("--fuzz-seed") + 1)


def test_all_kinds_are_run(zygote):
    assert set(zygote.lacks) == {*KINDS, *(f"fault: {end}" for end in ENDS)}


@pytest.mark.parametrize("end", ENDS)
def test_every_fault_is_seen(zygote, end):
    """Inputs that do what the project must not do."""
    seen = zygote.run(f"fault: {end}", 0, 0)
    assert seen.end == end, seen
    assert seen.is_fault == (end not in ("accepted", "refused"))
    assert seen.memory < 1.2 * MEMORY


def test_the_same_case_is_the_same_input(zygote):
    first, second = (zygote.run("boxes", 3, 5) for _ in range(2))
    assert (first.end, first.told) == (second.end, second.told)
