"""Workers on a Ray cluster of several nodes on one machine; a node is removed during a run. Slow: Ray starts in about 20 s."""

import json
from collections import Counter
from pathlib import Path

import pytest

from convnextpose.errors import RuntimeUnavailableError
from pipeline.archive.ledger import DONE, SAME
from pipeline.archive.on_ray import ray_pool
from pipeline.archive.run import ArchiveRun
from pipeline.formats.records import read_poses
from pipeline.run import RunConfig
from tests.pipeline.archive.test_workers import demo_clip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("ray")
    import ray
    from ray.cluster_utils import Cluster

    gibibyte = 1 << 30
    try:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80 << 20})
        nodes = [cluster.add_node(num_cpus=1, memory=2 * gibibyte, object_store_memory=80 << 20) for _ in range(2)]
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        pytest.skip("this machine is so busy that Ray does not start within the 30 s that it gives itself")
    cluster.wait_for_nodes()
    yield cluster, nodes
    ray.shutdown()
    cluster.shutdown()


def test_a_cluster_without_room_and_one_that_is_not_there_are_told(cluster, tmp_path):
    cluster, _ = cluster
    (tmp_path / "in").mkdir()
    Path(tmp_path / "in" / "a.mp4").write_bytes(b"x")
    config = RunConfig(sources=tmp_path / "in", out=tmp_path / "out", threads=4)
    with pytest.raises(
        RuntimeUnavailableError, match=r"room for a worker .4 CPUs and 1.1 GB on one node., received one with 2"
    ):
        ArchiveRun(config, ray_pool(cluster.address)).run()
    with pytest.raises(RuntimeUnavailableError, match="cannot be joined"):
        ArchiveRun(config, ray_pool("127.0.0.1:1")).run()


def test_a_node_that_is_removed_in_the_middle_loses_nothing(cluster, tmp_path):
    cluster, nodes = cluster
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(6):
        demo_clip(folder / f"{number}.mp4", 100, first=20 * number)  # long enough that a callback sees two at work
    (folder / "copy.mp4").write_bytes((folder / "0.mp4").read_bytes())
    run = ArchiveRun(RunConfig(sources=folder, out=out, threads=1), ray_pool(cluster.address))
    removed = []

    def remove_a_node(progress):
        if progress.in_progress == 2 and progress.counts[DONE] >= 1 and not removed:
            removed.append(nodes[0])
            cluster.remove_node(nodes[0], allow_graceful=False)

    summary = run.run(remove_a_node)
    assert removed, "both nodes had work when one of them was removed"
    assert summary.progress.counts == {DONE: 6, SAME: 1}, summary.problems
    lines = [json.loads(line) for line in (out / "ledger.ndjson").read_text().splitlines()[1:]]
    assert set(Counter(record["file"] for record in lines).values()) == {1}, "each file was settled once"
    frames = {path.parent.name: len(read_poses(path).frames) for path in out.rglob("poses.ndjson")}
    if "copy.mp4" in frames:  # of two equal files, the second is processed if the first was lost with the node
        frames["0.mp4"] = frames.pop("copy.mp4")
    assert frames == {f"{n}.mp4": 100 for n in range(6)}
    assert not (out / ".partial").exists()
    assert (
        ArchiveRun(RunConfig(sources=folder, out=out, threads=1), ray_pool(cluster.address)).run().progress.finished_before == 7
    )
