"""The service and the container of docs/deploy run commands that this program understands."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.main import main

DEPLOY = Path(__file__).parent.parent / "docs" / "deploy"


def service_command():
    text = (DEPLOY / "convnextpose.service").read_text().replace("\\\n", " ")
    return shlex.split(re.search(r"^ExecStart=(.*)$", text, re.M)[1])[1:]


def compose_command():
    text = (DEPLOY / "compose.yaml").read_text()
    return shlex.split(re.search(r"^    command: >-\n      (.*)$", text, re.M)[1])


@pytest.mark.parametrize("command", [service_command, compose_command])
def test_the_command_is_understood_and_misses_only_its_file_of_sources(command, tmp_path, monkeypatch, capsys):
    arguments = command()
    assert arguments[0] == "--verbose", "otherwise the journal would not have the cameras' events"
    where = arguments.index("--sources") + 1
    assert arguments[where] == "/etc/convnextpose/cameras.txt"
    arguments[where] = str(tmp_path / "absent.txt")
    arguments[arguments.index("--out") + 1] = str(tmp_path / "results")
    monkeypatch.setattr(sys, "argv", ["convnextpose", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1 and "expected a file of sources" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_unit_is_one_that_systemd_takes(tmp_path):
    text = (DEPLOY / "convnextpose.service").read_text().replace("/opt/convnextpose/bin/convnextpose", "/bin/true")
    unit = tmp_path / "convnextpose.service"
    unit.write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert "convnextpose.service" not in done.stderr, done.stderr
