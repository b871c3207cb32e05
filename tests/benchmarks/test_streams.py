"""The benchmark of many cameras counts correctly."""

import numpy as np

from benchmarks.streams import RATE, measure


def test_many_cameras_are_counted():
    images = [np.full((120, 160, 3), shade, np.uint8) for shade in (40, 80)]
    result = measure(3, 1.0, images, None)
    assert result.sources == 3 and 0 < result.received <= 3 * RATE * 30
    assert 0 <= result.fairness <= 1 and 0 < result.age_p50_ms <= result.age_p99_ms
    assert result.host_ms > 0 and result.batch >= 1
    in_flight = 3 * 3  # frames that were in flight at its start or end
    assert abs(result.received - result.posed - result.dropped) <= in_flight
