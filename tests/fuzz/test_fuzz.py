"""Randomly spoilt inputs of every kind: each is read, or refused in one sentence; nothing else may happen.

pytest tests/fuzz --fuzz-cases 1000 --fuzz-seed 7     more cases of each kind, and other ones than by default
"""

from __future__ import annotations

import sys
from collections import Counter

import pytest

from tests.fuzz.zygote import MEMORY, Zygote

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the children's limits are those of Linux")

CASES = 300
"""Cases of each kind in `make test`; `make test-all` runs `MORE_CASES`."""

MORE_CASES = 1000

KINDS = (
    "video", "picture", "folder", "checkpoint", "onnx", "engine", "bundle", "calibration", "boxes", "ndjson", "npz", "sources",
    "uri", "arguments",
)  # fmt: skip

ENDS = ("accepted", "refused", "speechless", "traceback", "exit code", "crash", "hang", "memory")

IN_COMPANY = ("faults: among others", "faults: after another")


@pytest.fixture(scope="module")
def zygote():
    for library in ("av", "cv2", "onnxruntime"):
        pytest.importorskip(library)
    with Zygote() as one:
        yield one


def run(zygote, kind, cases, seed):
    if zygote.lacks[kind]:
        pytest.skip(zygote.lacks[kind])
    outcomes = zygote.run(kind, seed, cases=cases)
    ends = Counter(outcome.end for outcome in outcomes)
    cpu_ms, memory = 1e3 * sum(o.cpu_s for o in outcomes) / cases, max(o.memory for o in outcomes)
    print(f"{kind}, seed {seed}: {dict(ends)}, {cpu_ms:.0f} ms of processor time each, at most {memory / 1e6:.0f} MB")
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
    assert set(zygote.lacks) == {*KINDS, *IN_COMPANY, *(f"fault: {end}" for end in ENDS)}


@pytest.mark.parametrize("end", ENDS)
def test_every_fault_is_seen(zygote, end):
    """Inputs with effects that are forbidden for the project."""
    (seen,) = zygote.run(f"fault: {end}", 0)
    assert seen.end == end, seen
    assert seen.is_fault == (end not in ("accepted", "refused"))
    assert seen.memory < 1.2 * MEMORY


def test_the_same_case_is_the_same_input(zygote):
    alone, (*_, in_company) = zygote.run("boxes", 3, 5), zygote.run("boxes", 3, 2, 4)
    assert [(one.end, one.told) for one in alone] == [(in_company.end, in_company.told)]


def test_a_child_of_many_cases_tells_of_each_what_a_child_of_its_own_does(zygote):
    """Whatever the outcomes of the cases before it."""
    kind = IN_COMPANY[0]
    alone, together = [zygote.run(kind, 8, case)[0] for case in range(14)], zygote.run(kind, 8, cases=14)
    assert [one.case for one in together] == list(range(14))
    assert [one.end for one in together] == [one.end for one in alone]
    assert {one.end for one in together} == {"accepted", "refused", "traceback", "crash"}


def test_a_fault_that_needs_the_cases_before_it_says_so(zygote):
    first, second = zygote.run(IN_COMPANY[1], 1, 7, 2)
    assert first.end == "accepted"
    assert second.end == "traceback" and "not alone, but after the cases from 7 on" in str(second)
