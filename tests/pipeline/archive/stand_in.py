"""Workers without models, for tests of the coordinator: in this process, or in a program that a test kills.

    python tests/pipeline/archive/stand_in.py FOLDER OUT

A file's text is the outcome of its job: `done`, `damaged`, `unreadable`, `failed`, `lost` (its worker dies) or `lost once`.
"""

import json
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from pipeline.archive.ledger import DAMAGED, DONE
from pipeline.archive.pool import LostJob
from pipeline.archive.run import ArchiveRun
from pipeline.archive.worker import JOB_NAME, Outcome
from pipeline.run import RunConfig

RESULT = "poses.ndjson"


class StandIn:
    """A pool of `count` workers that take jobs in order. A line is written to `log` for each job that is begun."""

    def __init__(self, count=2, pause_s=0.0, log=None):
        self.count, self.pause_s, self.log = count, pause_s, log
        self.jobs, self.started, self.closed = [], [], False

    def __call__(self, config, most):
        self.closed = False
        return self

    @property
    def free_slots(self):
        return self.count - len(self.jobs)

    @property
    def running(self):
        return {job.number: 0.5 for job in self.jobs}

    def submit(self, job):
        assert self.free_slots > 0 and not job.partial.exists()
        self.jobs.append(job)
        self.started.append(job.path.name)
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{job.path.name}\n")

    def wait(self, timeout_s):
        job = self.jobs.pop(0)
        words = job.path.read_text().split()
        job.partial.mkdir(parents=True)
        with (job.partial / RESULT).open("w") as file:
            for word in words:
                file.write(f"{word}\n")
                file.flush()
                time.sleep(self.pause_s)
        told = " ".join(words)
        if "lost" in told and ("once" not in told or self.started.count(job.path.name) == 1):
            return [LostJob(job, "its worker was killed")]
        status = words[0] if words[0] != "lost" else DONE
        outcome = Outcome(job.number, status, "" if status == DONE else "as it was told", len(words), 1, 1)
        if status in (DONE, DAMAGED):
            record = {"sha256": job.sha256, "status": status, "reason": outcome.reason, "frames": len(words)}
            (job.partial / JOB_NAME).write_text(json.dumps({**record, "frames_with_a_pose": 1, "tracks": 1}))
        return [outcome]

    def close(self):
        self.closed = True


def archive(folder, out, pool=None):
    """One run over a folder; returns the pool and the summary."""
    pool = pool or StandIn()
    run = ArchiveRun(RunConfig(sources=folder, out=out), pool)
    return pool, run.run()


def whole_results(out):
    """The lines of the file in every folder of results, by place."""
    found = {}
    for job in out.rglob(JOB_NAME):
        assert ".partial" not in job.parts, "nothing partial is left"
        found[job.parent.relative_to(out).as_posix()] = (job.parent / RESULT).read_text().split()
    return found


if __name__ == "__main__":
    folder, out = map(Path, sys.argv[1:])
    archive(folder, out, StandIn(pause_s=0.004, log=folder / "begun.txt"))
    shutil.copy(out / "ledger.ndjson", out / "ended")
