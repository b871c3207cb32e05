"""Triton's model repositories and served models, tested with our own small server that speaks its protocol."""

import json
import re

import numpy as np
import pytest

from convnextpose import weights
from convnextpose.errors import EngineError, GeometryError, ModelError, OutputExistsError, RuntimeUnavailableError, SinkError
from convnextpose.skeleton import HUMAN36M
from engines import manifest as manifests
from engines.manifest import BatchRange
from engines.opening import open_pose_model, open_served_model
from engines.parity import noise_crops
from engines.triton import SERVERS, config_text, fitting_server, read_parameters, write_repository
from pipeline.run import RunConfig, open_pipeline
from tests.engines.test_manifest import ENGINE, make
from tests.engines.triton_server import Server, read_config


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return write_repository(weights.load("xs").onnx, tmp_path_factory.mktemp("triton") / "models")


def stand_in(arrays):
    """A pose network whose results identify the crop: the first joint's x is the crop's first pixel."""
    crops = arrays["crops"]
    joints = np.zeros((len(crops), len(HUMAN36M), 3), np.float32)
    joints[:, 0, 0] = crops[:, 0, 0, 0]
    return {"joints": joints, "scores": np.full(joints.shape[:2], 0.5)}


# Repositories


def test_a_repository_of_an_exported_model(repository):
    assert (repository.folder / "1" / "model.onnx").read_bytes() == weights.load("xs").onnx.read_bytes()
    config = read_config((repository.folder / "config.pbtxt").read_text())
    assert config["name"] == ["xs"] and config["platform"] == ["onnxruntime_onnx"] and config["max_batch_size"] == [16]
    assert config["input"] == [{"name": ["crops"], "data_type": ["TYPE_UINT8"], "dims": [256, 256, 3]}]
    assert [(o["name"], o["dims"]) for o in config["output"]] == [(["joints"], [18, 3]), (["scores"], [18])]
    assert config["version_policy"] == [{"latest": [{"num_versions": [1]}]}]
    assert config["dynamic_batching"] == [{"max_queue_delay_microseconds": [0]}]
    assert [warm["batch_size"] for warm in config["model_warmup"]] == [[1], [16]]
    assert repository.tensorrt is None and repository.server is None


def test_nothing_is_replaced_without_leave_and_versions_stand_side_by_side(repository, tmp_path):
    model, out = weights.load("xs").onnx, tmp_path / "models"
    write_repository(model, out, name='a b"ö', queue_us=100)  # a valid folder name
    config = read_config((out / 'a b"ö' / "config.pbtxt").read_text())
    assert config["name"] == ['a b"ö'] and config["dynamic_batching"] == [{"max_queue_delay_microseconds": [100]}]
    with pytest.raises(OutputExistsError):
        write_repository(model, out, name='a b"ö')
    write_repository(model, out, name='a b"ö', version=2, overwrite=True)
    assert {path.name for path in (out / 'a b"ö').iterdir()} == {"1", "2", "config.pbtxt"}
    with pytest.raises(SinkError, match="cannot hold"):
        write_repository(model, out, name="../elsewhere")
    (tmp_path / "none.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError):
        write_repository(tmp_path / "none.onnx", out)


def manifest_of(**changes):
    return make(**{"library_version": "10.7.0.23", **changes})


def write_engine(path, **changes):
    path.write_bytes(ENGINE)
    manifests.path_of(path).write_text(manifest_of(**changes).to_json())
    return path


def test_the_server_that_fits_has_the_engine_s_very_tensorrt():
    manifest = manifest_of()
    assert fitting_server(manifest).image == "nvcr.io/nvidia/tritonserver:24.12-py3"
    assert fitting_server(manifest_of(library_version="10.7.0.23.post1")).release == "24.12"
    assert fitting_server(manifest_of(library_version="10.7.0")) is None
    wide = {**manifest.options, "version_compatible": True}
    assert fitting_server(manifest_of(library_version="10.7.1", options=wide)).tensorrt == "10.8.0.43"
    assert fitting_server(manifest_of(library_version="9.3.0.1", options=wide)) is None
    releases = [server.release for server in SERVERS]
    assert releases == sorted(set(releases)) and len({server.tensorrt for server in SERVERS}) == len(SERVERS)


def test_the_configuration_of_an_engine():
    manifest = manifest_of(batch=BatchRange(1, 4, 8))
    config = read_config(config_text("poses", manifest.model, manifest))
    assert config["platform"] == ["tensorrt_plan"] and config["backend"] == ["tensorrt"] and config["max_batch_size"] == [8]
    assert config["dynamic_batching"][0]["preferred_batch_size"] == [4]
    assert config["instance_group"] == [{"count": [1], "kind": ["KIND_GPU"]}]
    told = {p["key"][0]: p["value"][0]["string_value"][0] for p in config["parameters"]}
    assert told["tensorrt_version"] == "10.7.0.23" and told["tritonserver_image"].endswith(":24.12-py3")
    assert read_parameters(told, "it") == manifest.model


def test_a_repository_of_an_engine(tmp_path):
    written = write_repository(write_engine(tmp_path / "m.int8.engine"), tmp_path / "models")
    assert (written.folder / "1" / "model.plan").read_bytes() == ENGINE and written.name == "m"
    assert written.tensorrt == "10.7.0.23" and written.server.release == "24.12"


def test_engines_that_triton_cannot_run_are_refused(tmp_path):
    for changes, told in (({"library": "tensorrt_rtx"}, "no backend"), ({"batch": BatchRange(2, 2, 8)}, "single crops")):
        path = write_engine(tmp_path / "other.engine", **changes)
        with pytest.raises(EngineError, match=told):
            write_repository(path, tmp_path / "models")
        assert not (tmp_path / "models").exists()


def test_tritonclient_s_own_parser_takes_the_configuration(repository):
    config = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    from google.protobuf import text_format

    manifest = manifest_of(batch=BatchRange(1, 4, 8))
    texts = [(repository.folder / "config.pbtxt").read_text(), config_text('a"\\ö\n', manifest.model, manifest)]
    first, second = (text_format.Parse(text, config.ModelConfig()) for text in texts)
    assert first.name == "xs" and list(first.input[0].dims) == [256, 256, 3] and len(first.model_warmup) == 2
    assert second.name == 'a"\\ö\n' and second.instance_group[0].kind == config.ModelInstanceGroup.KIND_GPU
    assert second.dynamic_batching.preferred_batch_size == [4]


# Served models


def test_a_served_model_gives_what_the_same_model_gives_here(repository):
    with open_pose_model(weights.load("xs").onnx, precision="fp32", threads=1) as local:

        def infer(arrays):
            found = local.run(arrays["crops"])
            return {"joints": found.joints, "scores": found.scores}

        with Server(repository.folder, infer) as server, open_served_model(server.address) as served:
            assert served.info == local.info
            assert str(served.describe()).startswith("triton 2.51.0 (fp32 on 127.0.0.1:")
            crops = noise_crops(3)
            assert np.array_equal(served.run(crops).joints, local.run(crops).joints)
            assert np.array_equal(served.run(crops).scores, local.run(crops).scores)


def test_more_crops_than_the_server_takes_go_in_parts_over_one_connection(repository):
    with Server(repository.folder, stand_in) as server, open_served_model(server.address) as served:
        server.batches.clear()
        crops = np.zeros((37, 256, 256, 3), np.uint8)
        crops[:, 0, 0, 0] = np.arange(37)
        found = served.run(crops)
        assert server.batches == [16, 16, 5] and server.connections == 1
        assert found.joints[:, 0, 0].tolist() == list(range(37))
        found.joints[:] = 0  # its own memory
        with pytest.raises(GeometryError):
            served.run(crops.astype(np.float32))
    with pytest.raises(RuntimeUnavailableError, match="is closed"):
        served.run(crops[:1])


def test_several_callers_share_batches(repository):
    with Server(repository.folder, stand_in) as server, open_served_model(server.address, max_batch=8) as served:
        assert served.run(np.full((1, 256, 256, 3), 7, np.uint8)).joints[0, 0, 0] == 7


def test_a_run_takes_its_poses_from_a_server(repository, tmp_path):
    with Server(repository.folder, stand_in) as server:
        config = RunConfig(weights.DEMO_CLIP, model="what is not there", runtime=server.address, threads=1)
        with open_pipeline(config) as pipeline:
            posed = next(iter(pipeline))
            assert pipeline.header.model.name == "xs" and pipeline.header.runtime.name == "triton"
            pipeline.stop()
    assert posed.frame.index == 0 and server.batches


def test_a_connection_that_the_server_closed_is_opened_again(repository):
    closing = []

    def close(path, body, headers):
        return body, headers | ({"Connection": "close"} if closing else {})

    with Server(repository.folder, stand_in, close) as server, open_served_model(server.address) as served:
        crop = np.full((1, 256, 256, 3), 9, np.uint8)
        for _ in range(3):
            closing.append(1)
            assert served.run(crop).joints[0, 0, 0] == 9
    with pytest.raises(RuntimeUnavailableError, match="is closed"):
        served.run(crop)


def test_a_server_that_goes_away_is_told(repository):
    gone = []

    def vanish(path, body, headers):
        return (None, headers) if gone else (body, headers)

    with Server(repository.folder, stand_in, vanish) as server, open_served_model(server.address) as served:
        gone.append(1)
        with pytest.raises(RuntimeUnavailableError, match="cannot be reached"):
            served.run(np.zeros((1, 256, 256, 3), np.uint8))


ANSWERS = {
    "no JSON": lambda head, data: (b"{", data),
    "no outputs": lambda head, data: (b"{}", data),
    "another count": lambda head, data: (head.replace(b"[1, 18, 3]", b"[2, 18, 3]"), data),
    "another type": lambda head, data: (head.replace(b"FP32", b"INT64"), data),
    "a wrong size": lambda head, data: (re.sub(rb'size": \d+', b'size": 8', head), data),
    "a negative size": lambda head, data: (re.sub(rb'size": \d+', b'size": -8', head), data),
    "too few bytes": lambda head, data: (head, data[:-1]),
    "a missing output": lambda head, data: (head.replace(b'"scores"', b'"other"'), data),
    "too many bytes": lambda head, data: (head, data + bytes(2 << 20)),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_that_are_not_the_protocol_s_are_refused(repository, name):
    def damage(path, body, headers):
        if not path.endswith("/infer"):
            return body, headers
        length = int(headers["Inference-Header-Content-Length"])
        head, data = ANSWERS[name](body[:length], body[length:])
        return head + data, {"Inference-Header-Content-Length": str(len(head))}

    with (
        Server(repository.folder, stand_in, damage) as server,
        pytest.raises(ModelError, match="does not follow Triton's protocol"),
    ):
        open_served_model(server.address)


def test_other_servers_and_models_are_refused(repository):
    for address in (
        "triton://",
        "triton://host/xs",
        "triton://host:0/xs",
        "triton://user:word@host:1/xs",
        "triton://h:8000/a/b",
    ):
        with pytest.raises(RuntimeUnavailableError, match="expected a served model as"):
            open_served_model(address)
    with pytest.raises(RuntimeUnavailableError, match="cannot be reached"):
        open_served_model("triton://127.0.0.1:9/xs")
    with Server(repository.folder, stand_in) as server:
        with pytest.raises(RuntimeUnavailableError, match="unknown model: 'none'"):
            open_served_model(server.address.replace("/xs", "/none"))
        with pytest.raises(RuntimeUnavailableError, match="precision auto or fp32"):
            open_served_model(server.address, precision="fp16")
        with pytest.raises(RuntimeUnavailableError, match="open_served_model"):
            open_pose_model(weights.load("xs").onnx, server.address)

    def foreign(path, body, headers):
        return (json.dumps({"max_batch_size": 4}).encode() if path.endswith("/config") else body), headers

    with Server(repository.folder, stand_in, foreign) as server, pytest.raises(ModelError, match="convnextpose triton"):
        open_served_model(server.address)


def test_the_command_tells_what_to_do_next(tmp_path, cli):
    code, out, _ = cli("triton", weights.load("xs").onnx, "--out", tmp_path / "models", "--name", "poses")
    assert code == 0 and "--runtime triton://127.0.0.1:8000/poses" in out
    assert (tmp_path / "models" / "poses" / "1" / "model.onnx").is_file()
    code, _, err = cli("triton", weights.load("xs").onnx, "--out", tmp_path / "models", "--name", "poses")
    assert code == 1 and err.count("\n") == 1 and "--overwrite" in err
