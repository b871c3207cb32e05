"""Cases of a law: some for every `make test`, all for `make test-all`."""

import pytest


def fast_first(cases, fast=1):
    """Cases for `parametrize`: the first `fast` as they are, the others marked slow."""
    cases = list(cases)
    others = [case if isinstance(case, tuple) else (case,) for case in cases[fast:]]
    return [*cases[:fast], *(pytest.param(*case, marks=pytest.mark.slow) for case in others)]
