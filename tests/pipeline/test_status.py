"""The status of a run in progress, and of one that has ended."""

import json
import time

from pipeline import status as status_module
from pipeline.ledger import KEPT_REASONS, OTHER_REASONS, FrameLedger
from pipeline.status import RunStatus
from pipeline.streams import Pipeline
from tests.pipeline.test_streams import Collect, Pictures, stream


def test_the_accounts_of_a_status_are_those_of_the_ledger_at_every_moment():
    streams = [stream(Pictures(30, "a"), [Collect()]), stream(Pictures(30, "b", unreadable={3}, live=True, pause_s=0.002))]
    status = RunStatus(streams)
    for _ in Pipeline(streams):
        for source in status.sources():
            counts = source.counts
            assert counts.received == counts.posed + counts.dropped + counts.failed + counts.in_flight
            assert source.fps_in >= 0 and source.fps_out >= 0
    for source in status.record()["sources"]:
        ledger = source["ledger"]
        assert ledger["received"] == ledger["posed"] + ledger["dropped"] + ledger["failed"] + source["now"]["in_flight"]
    a, b = status.sources()
    assert (a.source, a.live, a.state.state, a.counts.posed, a.age_ms, a.clock) == ("a", False, "ended", 30, None, None)
    assert (b.live, b.counts.failed, b.clock) == (True, 1, "arrival") and b.age_ms >= 0


def test_rates_are_those_of_the_last_seconds(monkeypatch):
    """30 frames a second arrive, then none, by a simulated clock."""
    now = [100.0]
    monkeypatch.setattr(status_module.time, "monotonic", lambda: now[0])
    made = stream(Pictures(0))
    status = RunStatus([made])
    for index in range(300):
        now[0] += 1 / 30
        made.ledger.receive(index)
        if index % 2:
            made.ledger.pose(index)
        else:
            made.ledger.drop(index, "a newer one came")
        (source,) = status.sources()
    assert abs(source.fps_in - 30) < 2 and abs(source.fps_out - 15) < 2
    for _ in range(50):
        now[0] += 0.1
        (source,) = status.sources()
    assert (source.fps_in, source.fps_out) == (0, 0)


def test_the_account_of_a_record_is_of_one_moment(monkeypatch):
    """While frames come and go between two reads of the ledger."""
    made = stream(Pictures(0))
    look = made.ledger.counts

    def counts_while_frames_come():
        made.ledger.receive(made.ledger_index)
        made.ledger_index += 1
        return look()

    made.ledger_index = 0
    monkeypatch.setattr(made.ledger, "counts", counts_while_frames_come)
    (source,) = RunStatus([made]).record()["sources"]
    ledger = source["ledger"]
    assert ledger["received"] == ledger["posed"] + ledger["dropped"] + ledger["failed"] + source["now"]["in_flight"]


def test_a_record_is_plain_json_and_is_not_made_for_every_asker():
    streams = [stream(Pictures(20, live=True, pause_s=0.001))]
    status = RunStatus(streams)
    first = status.record()
    assert status.record() is first
    Pipeline(streams).run()
    time.sleep(status_module.RECORD_LIFE_S)
    record = status.record()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    (source,) = record["sources"]
    assert source["ledger"]["received"] == 20 and source["now"]["state"] == "ended" and source["now"]["live"]
    assert {row["stage"] for row in source["stages"]} >= {"capture", "infer", "lift"}


def test_thousands_of_different_reasons_stay_a_few_and_none_is_lost():
    ledger = FrameLedger()
    for index in range(8000):
        ledger.receive(index)
        ledger.pose(index, problems=[f"box {index}", "too small"])
    problems = dict(ledger.counts().problems)
    assert sum(problems.values()) == 16_000 and problems["too small"] == 8000
    assert len(problems) == KEPT_REASONS + 1 and OTHER_REASONS in problems
