"""Rendering and training on a device that is not the CPU: `any_device.py`, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_on_any_device():
    pytest.importorskip("torch")
    tests = Path(__file__).with_name("any_device.py")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tests)]
    ran = subprocess.run(command, cwd=tests.parents[2], capture_output=True, text=True, timeout=900, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
