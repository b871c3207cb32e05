"""Checks this project on a GPU in under four minutes, without `av`, OpenVINO or a package registry: `make gpu-check`.

    python -m tests.gpu.check [--out FOLDER] [--device auto|cuda|cpu] [--minutes 4] [--only NAME,NAME]

Each part runs in its own process with its own time limit, so that one that hangs or breaks CUDA does not affect the others.
FOLDER gets two files, which at any moment contain what is known so far: `gpu-check.json`, the figures, and `gpu-check.log`, the
output of all parts. With `--device cpu` every part runs as far as it can without a GPU: that proves the script, not the GPU.
The exit code is 1 if a part failed.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

LIMITS_S = {
    "machine": 20,
    "device": 30,
    "kernels": 60,
    "runtime": 40,
    "frames": 45,
    "torch": 70,
    "typed": 45,
    "training": 45,
    "roofline": 30,
    "tensorrt": 150,
    "compiled": 100,
}
"""The parts in `parts_cuda.py` and `parts_torch.py`, in the order in which they run, the most important first, with the time
limit of each, s. `--minutes` limits the total: if it is too short, the last parts are cut short or left out."""

LEAST_S = 5
"""A part starts only if this much time is left, s."""

CPU_TIMEOUT_FACTOR = 4
"""Factor by which the limits are longer on a CPU, whose speed does not matter here."""


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-check"))
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--minutes", type=float, default=4.0, help="for all parts together")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(LIMITS_S), metavar="NAME,NAME")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if unknown := set(given.only) - LIMITS_S.keys():
        parser.error(f"expected parts among {', '.join(LIMITS_S)}, received {', '.join(sorted(unknown))}")
    if given.part is not None:
        return run_part(given.part, given.device, given.out)
    return run_all(given)


def run_all(given):
    """Run the parts one after another; returns the exit code."""
    begun = time.monotonic()
    given.out.mkdir(parents=True, exist_ok=True)
    log, summary = given.out / "gpu-check.log", given.out / "gpu-check.json"
    log.write_text("")
    factor = CPU_TIMEOUT_FACTOR if given.device == "cpu" else 1
    result = {"device": given.device, "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "parts": {}}
    for name, limit in LIMITS_S.items():
        if name not in given.only:
            continue
        left = given.minutes * 60 - (time.monotonic() - begun)
        if left < LEAST_S:
            part = {"state": "left out", "error": "no time was left", "figures": {}}
        else:
            part = supervise(name, given.device, min(limit * factor, left), given.out, log)
        result["parts"][name] = part
        summary.write_text(json.dumps(result, indent=2) + "\n")
        told = part["error"] or part["figures"].get("gpu", "")  # whether it ran on a GPU or in memory
        print(f"{name:<9} {part['state']:<10} {part.get('seconds', 0):6.1f} s  {told}", flush=True)
    result["seconds"] = round(time.monotonic() - begun, 1)
    summary.write_text(json.dumps(result, indent=2) + "\n")
    print(f"figures in {summary}, what the parts said in {log}")
    return int(any(part["state"] in ("failed", "timed out") for part in result["parts"].values()))


def supervise(name, device, limit_s, out, log):
    """Run a part in its own process; returns its result."""
    figures = out / f"{name}.part.json"
    figures.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.gpu.check", "--part", name, "--device", device, "--out", str(figures.resolve())]
    begun = time.monotonic()
    with log.open("a") as file:
        file.write(f"\n=== {name}\n")
        file.flush()
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):  # its child processes end with it: a compiler, a renderer
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    found = json.loads(figures.read_text()) if figures.exists() else {"figures": {}, "error": None, "left_out": None}
    figures.unlink(missing_ok=True)
    part = {"seconds": round(time.monotonic() - begun, 1), "figures": found["figures"], "error": found["error"]}
    if code is None:
        return {"state": "timed out", **part, "error": f"it took longer than {limit_s:.0f} s"}
    if found["left_out"]:
        return {"state": "left out", **part, "error": found["left_out"]}
    if code == 0:
        return {"state": "passed", **part}
    return {"state": "failed", **part, "error": found["error"] or f"it ended with code {code}: see the log"}


def run_part(name, device, out):
    """The work of the child process; returns the exit code."""
    from tests.gpu import parts_cuda, parts_torch
    from tests.gpu.parts import Figures, LeftOutError, choose_device

    figures = Figures(out)
    try:
        (parts_cuda.PARTS | parts_torch.PARTS)[name](choose_device(device), figures)
    except LeftOutError as reason:
        figures.left_out = str(reason)
    except Exception as error:  # noqa: BLE001 - any error belongs in the figures, and in full in the log
        import traceback

        traceback.print_exc()
        figures.error = f"{type(error).__name__}: {error}"
    figures.save()
    return 1 if figures.error else 0


if __name__ == "__main__":
    sys.exit(main())
