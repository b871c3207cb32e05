"""Laws for every engine in a session, on a simulated GPU in memory or on a real one.

A subclass whose name begins with `Test` checks these laws for the sessions that its fixture `engine` opens.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from convnextpose.errors import GeometryError, RuntimeUnavailableError
from engines.pose import PoseModel, Predictions


@dataclass(frozen=True)
class EngineUnderTest:
    """An engine for 1 to 8 crops and its expected results.

    Attributes:
        open: opens a session with it, as a pose model with its session's additional methods.
        crops: uint8 [N, 256, 256, 3], at least 20.
        alone: its results for each of them alone.
        px, mm, score: tolerances for the same crop in another batch: other kernels may sum in another order.
        free_bytes: the GPU's free memory.
    """

    open: Callable[[], PoseModel]
    crops: NDArray[np.uint8]
    alone: Predictions
    px: float
    mm: float
    score: float
    free_bytes: Callable[[], int]

    def check(self, found: Predictions, first: int, count: int) -> None:
        """Check that these are the poses of `count` crops from `first` on."""
        assert found.joints.shape == (count, *self.alone.joints.shape[1:])
        strays = np.abs(found.joints - self.alone.joints[first : first + count])
        assert strays[..., :2].max(initial=0) <= self.px
        assert strays[..., 2].max(initial=0) <= self.mm
        assert np.abs(found.scores - self.alone.scores[first : first + count]).max(initial=0) <= self.score


class TensorRTContract:
    """The laws."""

    @pytest.mark.parametrize("counts", [(1, 2, 3, 8, 9, 17, 20), (20, 1, 8, 8, 1, 20), (0, 1, 0)])
    def test_any_number_of_crops_gives_what_each_crop_gives(self, engine, counts):
        with engine.open() as model:
            for first, count in enumerate(counts):
                first = min(first, len(engine.crops) - count)
                engine.check(model.run(engine.crops[first : first + count]), first, count)

    def test_what_recurs_gives_the_same_by_a_graph(self, engine):
        with engine.open() as model:
            for count in (1, 8):
                for _ in range(4):
                    engine.check(model.run(engine.crops[:count]), 0, count)
                assert model.times.replayed == (1 if model.has_graphs else 0)

    def test_results_are_the_callers_own(self, engine):
        with engine.open() as model:
            first = model.run(engine.crops[:3])
            model.run(engine.crops[5:8])
            engine.check(first, 0, 3)
            first.joints[...] = 0
            engine.check(model.run(engine.crops[:3]), 0, 3)

    def test_threads_share_a_session_and_have_their_own(self, engine):
        def work(index, model):
            for turn in range(10):
                count = 1 + (index * 3 + turn) % 10
                engine.check(model.run(engine.crops[index : index + count]), index, count)

        with engine.open() as one, engine.open() as other, ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4), [(one, other)[index % 2] for index in range(4)]))

    def test_other_arrays_are_refused_and_the_next_crops_run(self, engine):
        with engine.open() as model:
            for wrong in (engine.crops[0], engine.crops[:1].astype(np.float32), engine.crops[:1, :128]):
                with pytest.raises(GeometryError, match="expected crops"):
                    model.run(wrong)
            engine.check(model.run(engine.crops[:2]), 0, 2)

    def test_a_closed_session_runs_nothing(self, engine):
        model = engine.open()
        model.close()
        model.close()
        with pytest.raises(RuntimeUnavailableError, match="closed"):
            model.run(engine.crops[:1])

    def test_any_thread_may_close(self, engine):
        model = engine.open()
        closer = threading.Thread(target=model.close)
        closer.start()
        closer.join()
        with pytest.raises(RuntimeUnavailableError, match="closed"):
            model.run(engine.crops[:1])

    def test_opened_and_closed_leave_the_memory_as_it_was(self, engine):
        for turn in range(30):
            with engine.open() as model:
                model.run(engine.crops[: 1 + turn % 3])
            if turn == 5:
                before = engine.free_bytes()
        assert before - engine.free_bytes() < 16 << 20

    def test_it_tells_what_it_runs(self, engine):
        with engine.open() as model:
            described = model.describe()
            assert described.name == model.manifest.library
            assert described.precision == model.info.precision
            assert model.layers()
            memory = model.memory()
            assert memory.activations > 0
            assert memory.held > 0
            assert memory.free > 0
