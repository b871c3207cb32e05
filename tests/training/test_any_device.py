"""Rendering and training on a device that is not the CPU: `any_device.py`, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cases import fast_first


@pytest.mark.parametrize("chosen", fast_first(["mix or (crops_are_rendered and False)", ""]))
def test_on_any_device(chosen):
    pytest.importorskip("torch")
    tests = Path(__file__).with_name("any_device.py")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tests), "-k", chosen]
    ran = subprocess.run(command, cwd=tests.parents[2], capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
