"""A long run with four cameras and a fault every ten seconds: does every camera reconnect, and is every ledger exact?

    python -m benchmarks.soak [--minutes 30] [--seed 0] [--json FILE]

Runs `convnextpose run` on four cameras of this machine: H.264 and MJPEG over RTSP (GStreamer's server), MJPEG over HTTP and a
transport stream over UDP. It records in segments of a minute and serves its status. Every ten seconds one camera has a fault:
it is killed, frozen, mute, restarted with another size, answers 404, 401 or 503, is cut off in the middle of a picture, sends
garbage, or sends ten times too much. Faults last 1 to 15 s, chosen by the seed, and overlap.

It prints for each camera its frames, its outages, and how long after the end of a fault it was live again; the memory, the
open files and the threads of the run at its start and end; and what is wrong. The exit code is 1 after any of these:

- a ledger that is not exact, checked every second: received = posed + dropped + failed + in flight;
- a camera that is not live 40 s after the end of a fault (the longest wait between two attempts is 30 s, varied by a fifth);
- memory that grows by more than 64 MiB, or a growing number of files or threads, after the first tenth of the time;
- results that do not contain as many frames as were posed, or cannot be read.

docs/live.md lists Debian's packages for the RTSP server.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.bad_cameras import Camera, Outage, cameras
from pipeline.formats.records import read_poses
from tests.pipeline.live.servers import free_port, rtsp_missing

EVERY_S = 10.0
LONGEST_S = 15.0
BACK_WITHIN_S = 40.0
MOST_GROWTH_MIB = 64
MOST_MORE = 8
"""Largest growth of the number of files and threads, as connections come and go."""


def process_numbers(pid: int) -> dict[str, float]:
    """Memory in MiB, open files and threads of a process."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return {
        "memory_mib": int(lines["VmRSS"].split()[0]) / 1024,
        "files": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "threads": int(lines["Threads"]),
    }


def unix_s(utc: str) -> float:
    """Convert a time of `summary.json` to s since 1970."""
    return datetime.fromisoformat(utc.replace("Z", "+00:00")).timestamp()


class Soak:
    """A run, its cameras, and the findings about them."""

    def __init__(self, made: list[Camera], process: subprocess.Popen[bytes], port: int, minutes: float, seed: int) -> None:
        self.cameras = {camera.name: camera for camera in made}
        self.process = process
        self.outages: list[Outage] = []
        self.wrong: list[str] = []
        self.numbers: list[dict[str, float]] = []
        self.status: dict[str, Any] = {}
        self._url = f"http://127.0.0.1:{port}/status"
        self._seconds = minutes * 60
        self._dice = random.Random(seed)
        self._due: list[tuple[float, Camera, Callable[[], None]]] = []

    def go(self) -> None:
        """Run until the time is over; the last minute has no faults, so that all cameras can reconnect."""
        start = time.monotonic()
        next_fault = start + 2 * EVERY_S
        last_fault = start + self._seconds - max(60.0, BACK_WITHIN_S)
        while (now := time.monotonic()) < start + self._seconds and self.process.poll() is None:
            for due in [due for due in self._due if due[0] <= now]:
                self._due.remove(due)
                self._end(due[1], due[2])
            if next_fault <= now < last_fault:
                next_fault += EVERY_S
                self._begin(now)
            self._look()
            time.sleep(max(0.0, 1.0 - (time.monotonic() - now)))
        for _, camera, end in self._due:
            self._end(camera, end)

    def _begin(self, now: float) -> None:
        well = [camera for camera in self.cameras.values() if camera.outage is None]
        if not well:
            return
        camera = self._dice.choice(well)
        fault = self._dice.choice(sorted(camera.faults))
        camera.outage = Outage(camera.name, fault, time.time())
        self.outages.append(camera.outage)
        self._due.append((now + self._dice.uniform(1.0, LONGEST_S), camera, camera.faults[fault]()))

    def _end(self, camera: Camera, end: Callable[[], None]) -> None:
        end()
        assert camera.outage is not None
        camera.outage.ended = time.time()

    def _look(self) -> None:
        try:
            with urllib.request.urlopen(self._url, timeout=5) as answer:
                self.status = json.load(answer)
        except OSError as error:
            if self.status:
                self.wrong.append(f"the status cannot be read: {error}")
            return
        self.numbers.append(process_numbers(self.process.pid))
        for source in self.status["sources"]:
            ledger = source["ledger"]
            told = ledger["posed"] + ledger["dropped"] + ledger["failed"] + source["now"]["in_flight"]
            if ledger["received"] != told:
                self.wrong.append(f"{source['name']}: {ledger['received']} received, {told} accounted for")
            self._follow(self.cameras[source["name"]], source)

    def _follow(self, camera: Camera, source: dict[str, Any]) -> None:
        """Check whether a camera is live again after its fault."""
        outage = camera.outage
        if outage is None:
            return
        states = [(unix_s(state["utc"]), state["state"]) for state in source["states"]]
        outage.lost = any(at >= outage.began and state in ("lost", "stalled") for at, state in states)
        if not outage.ended:
            return
        if source["now"]["state"] == "live" and time.time() - outage.ended > 3:
            if outage.lost:
                outage.back_s = max(0.0, states[-1][0] - outage.ended)
            camera.outage = None
        elif time.time() - outage.ended > BACK_WITHIN_S:
            self.wrong.append(f"{camera.name} is not back {BACK_WITHIN_S:g} s after `{outage.fault}`: {source['now']}")
            camera.outage = None

    def judge(self, out: Path) -> None:
        """Check memory, files, threads and results."""
        if self.process.returncode != 0:
            self.wrong.append(f"exit code {self.process.returncode}")
        if len(self.numbers) < 20:
            self.wrong.append("the run was too short to tell about its memory")
            return
        first, last = self.first_and_last()
        if last["memory_mib"] - first["memory_mib"] > MOST_GROWTH_MIB:
            self.wrong.append(f"memory grew from {first['memory_mib']:.0f} to {last['memory_mib']:.0f} MiB")
        self.wrong += [
            f"{first[name]:g} {name} became {last[name]:g}"
            for name in ("files", "threads")
            if last[name] > first[name] + MOST_MORE
        ]
        for source in json.loads((out / "summary.json").read_text())["sources"]:
            posed = source["ledger"]["posed"]
            written = sum(len(read_poses(path).frames) for path in (out / source["name"]).glob("*/poses.ndjson"))
            if written + source["missed"].get("ndjson", 0) != posed:
                self.wrong.append(f"{source['name']}: {posed} frames posed, {written} in its files")

    def first_and_last(self) -> tuple[dict[str, float], dict[str, float]]:
        """Means over a tenth of the time: after the first tenth, and at the end."""
        tenth = max(1, len(self.numbers) // 10)

        def mean(rows: list[dict[str, float]]) -> dict[str, float]:
            return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}

        return mean(self.numbers[tenth : 2 * tenth]), mean(self.numbers[-tenth:])


def report(soak: Soak, out: Path) -> dict[str, Any]:
    """Print the findings; returns them."""
    summary = json.loads((out / "summary.json").read_text())
    print("camera  received  posed  dropped  failed  faults  noticed  back after: median  longest, s")
    rows = []
    for source in summary["sources"]:
        mine = [outage for outage in soak.outages if outage.camera == source["name"]]
        back = sorted(outage.back_s for outage in mine if outage.back_s is not None)
        ledger = source["ledger"]
        row = {
            "camera": source["name"],
            **{name: ledger[name] for name in ("received", "posed", "dropped", "failed")},
            "faults": len(mine),
            "noticed": sum(outage.lost for outage in mine),
            "back_median_s": back[len(back) // 2] if back else None,
            "back_longest_s": back[-1] if back else None,
            **{name: source[name] for name in ("age_ms", "stages", "people")},
        }
        rows.append(row)
        times = "-" if not back else f"{back[len(back) // 2]:18.1f}  {back[-1]:10.1f}"
        print(
            f"{row['camera']:6}  {row['received']:8}  {row['posed']:5}  {row['dropped']:7}  {row['failed']:6}  "
            f"{row['faults']:6}  {row['noticed']:7}  {times}"
        )
    found: dict[str, Any] = {"cameras": rows, "wrong": soak.wrong, "outages": [vars(outage) for outage in soak.outages]}
    if soak.numbers:
        first, last = soak.first_and_last()
        found |= {"first": first, "last": last, "each_minute": soak.numbers[::60]}
        print("at first: " + ", ".join(f"{name} {value:.0f}" for name, value in first.items()))
        print("at last:  " + ", ".join(f"{name} {value:.0f}" for name, value in last.items()))
    for sentence in soak.wrong:
        print(f"wrong: {sentence}")
    print("nothing is wrong" if not soak.wrong else f"{len(soak.wrong)} things are wrong")
    return found


def main() -> int:
    """Run and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if (missing := rtsp_missing()) is not None:
        parser.error(f"no RTSP server can be started here: {missing}")
    with tempfile.TemporaryDirectory() as folder, cameras() as made:
        out, port = Path(folder) / "results", free_port()
        listed = Path(folder) / "cameras.txt"
        listed.write_text("".join(f"{camera.name} {camera.uri}\n" for camera in made))
        command = [sys.executable, "-m", "tools.main", "run", "--sources", str(listed), "--out", str(out)]
        options = ["--segment", "1m", "--view", str(port), "--seconds", str(arguments.minutes * 60 + 10)]
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen([*command, *options], stdout=log, stderr=subprocess.STDOUT)
            soak = Soak(made, process, port, arguments.minutes, arguments.seed)
            try:
                soak.go()
                process.wait(60)
            finally:
                process.kill()
                process.wait()
        if not (out / "summary.json").exists():
            print((Path(folder) / "log").read_text(errors="replace")[-4000:])
            return 1
        soak.judge(out)
        found = report(soak, out)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 1 if soak.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
