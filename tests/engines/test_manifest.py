"""A manifest is what was written, or an error; an engine runs if its manifest fits, and is refused with a reason elsewhere."""

import hashlib
import json
import shlex
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convnextpose.errors import EngineError, ModelError
from convnextpose.skeleton import JOINT_SETS
from convnextpose.variants import Variant
from engines import manifest
from engines.manifest import BatchRange, EngineDraft, EngineManifest, Machine
from engines.parity import LIMITS, DetectorParity, Differences, JointParity, LayerSensitivity, ParityReport
from engines.people import DetectorInfo
from engines.pose import ModelInfo
from engines.session import SessionDescription

ENGINE = bytes(range(256)) * 40


def parity(name="m"):
    small = Differences(0.01, 0.02, 0.03)
    described = SessionDescription("torch", "2.13.0", "CPU", "fp32", 2)
    joints = tuple(JointParity(joint, small, small) for joint in ("Pelvis", "R_Hip"))
    return ParityReport(name, "ab" * 32, described, described, 8, LIMITS["fp16"], small, small, 0.001, joints)


def make(**changes):
    known = {
        "model": ModelInfo("m", Variant.S, JOINT_SETS["human36m"], "ab" * 32, False, "int8", "cd" * 32),
        "onnx_sha256": "ef" * 32,
        "target": "rtx40",
        "batch": BatchRange(1, 2, 8),
        "options": {"workspace_mib": 512, "version_compatible": False, "hardware_compatible": None},
        "excluded_layers": (LayerSensitivity("head.final_layer", 0.5, 3.0),),
        "graph_parity": parity(),
        "command": "convnextpose build m.tar --out d --precision int8 --target rtx40",
        "engine_sha256": hashlib.sha256(ENGINE).hexdigest(),
        "engine_bytes": len(ENGINE),
        "library": "tensorrt",
        "library_version": "10.13.3.9",
        "compute_capabilities": ("8.9",),
        "gpu_name": "NVIDIA GeForce RTX 4090",
        "driver": "CUDA 13.0",
        "engine_parity": parity(),
    }
    return EngineManifest(**{**known, **changes})


HERE = Machine("tensorrt", "10.13.3.9", "8.9", "NVIDIA GeForce RTX 4090", "CUDA 13.1")


@pytest.fixture
def engine(tmp_path):
    path = tmp_path / "m-int8-rtx40.engine"
    path.write_bytes(ENGINE)
    manifest.path_of(path).write_text(make().to_json())
    return path


names = st.text(st.characters(codec="utf-8"), max_size=30)


@settings(deadline=None)
@given(
    name=names,
    command=names.map(lambda name: shlex.join(["convnextpose", "build", name])),
    random=st.booleans(),
    variant=st.sampled_from(Variant),
    joint_set=st.sampled_from(sorted(JOINT_SETS)),
    capabilities=st.lists(names, max_size=3),
    gpu=st.none() | names,
    options=st.dictionaries(names, st.none() | st.booleans() | st.integers() | names, max_size=4),
    sensitivities=st.lists(st.builds(LayerSensitivity, names, st.floats(0, 1e6), st.floats(0, 1e6)), max_size=3),
    batch=st.lists(st.integers(1, 64), min_size=3, max_size=3).map(lambda sizes: BatchRange(*sorted(sizes))),
    proven=st.booleans(),
)
def test_round_trip(name, command, random, variant, joint_set, capabilities, gpu, options, sensitivities, batch, proven):
    one = make(
        model=ModelInfo(name, variant, JOINT_SETS[joint_set], "00", random, "fp16", None),
        command=command,
        compute_capabilities=tuple(capabilities),
        gpu_name=gpu,
        options=options,
        excluded_layers=tuple(sensitivities),
        batch=batch,
        engine_parity=parity() if proven else None,
    )
    assert EngineManifest.from_json(one.to_json()) == one


BOXES = SessionDescription("onnxruntime", "1.20", "CPU", "fp32", 2)
DETECTOR = {
    "model": DetectorInfo("yolox_s", "12" * 32, 640, 384, "YOLOX", 0, {"names": "{0: 'person'}"}, 12),
    "graph_parity": DetectorParity(BOXES, BOXES, 4, 30, 1e-6, 1e-4),
    "engine_parity": DetectorParity(BOXES, replace(BOXES, name="tensorrt"), 4, 30, 2e-5, 0.01),
    "excluded_layers": (),
    "command": "convnextpose build yolox_s.onnx --out d --precision fp32 --target rtx40 --frame 640,384",
}


@given(
    name=names,
    sides=st.tuples(st.integers(), st.integers()),
    person=st.none() | st.integers(),
    metadata=st.dictionaries(names, names, max_size=3),
    stem=st.none() | st.integers(),
    proven=st.booleans(),
)
def test_round_trip_of_a_detector_s(name, sides, person, metadata, stem, proven):
    info = DetectorInfo(name, "12" * 32, *sides, "YOLOX", person, metadata, stem)
    one = make(**{**DETECTOR, "model": info, **({} if proven else {"engine_parity": None})})
    again = EngineManifest.from_json(one.to_json())
    assert again == one
    assert again.model_of(DetectorInfo) == info


def test_an_engine_of_the_other_kind_is_refused_with_the_option_that_takes_it():
    with pytest.raises(
        EngineError, match="an engine of a people detector, received one of a pose model, m, which --model takes"
    ):
        make().model_of(DetectorInfo)
    with pytest.raises(EngineError, match=r"an engine of a pose model, .* a people detector, yolox_s, which --detector takes"):
        make(**DETECTOR).model_of(ModelInfo)


def test_a_proof_is_of_the_model_s_kind():
    for changes in ({"graph_parity": parity()}, {"engine_parity": parity()}):
        with pytest.raises(EngineError, match="proof"):
            make(**{**DETECTOR, **changes})
    with pytest.raises(EngineError, match="proof of a pose model"):
        make(graph_parity=DETECTOR["graph_parity"])


def test_a_detector_has_one_precision():
    sealed_again = json.loads(make(**DETECTOR).to_json())
    sealed_again["model"]["precision"] = "../../fp16"
    with pytest.raises(EngineError, match="expected precision fp32 of a people detector"):
        EngineManifest.from_json(sealed(sealed_again))


def test_a_manifest_of_version_1_is_read():
    """The hash is the one that version 1 wrote for these fields."""
    old = {**json.loads(make().to_json()), "version": 1}
    assert old["sha256"] == "9c004510bebb39e984ff9893e06c7f2656fa19cc4399685d032217f29c8d9698"
    assert EngineManifest.from_json(json.dumps(old)) == make()


def test_a_draft_is_no_manifest():
    one = make()
    draft = EngineDraft(**{field: getattr(one, field) for field in (f.name for f in fields(EngineDraft))})
    assert EngineDraft.from_json(draft.to_json()) == draft
    with pytest.raises(EngineError, match="another format"):
        EngineManifest.from_json(draft.to_json())
    with pytest.raises(EngineError, match="another format"):
        EngineDraft.from_json(one.to_json())


@given(data=st.data())
def test_every_edit_is_found(data):
    """The hash detects a change of any field at any depth."""
    found = json.loads(make(**data.draw(st.sampled_from([{}, DETECTOR]))).to_json())
    place, key = found, data.draw(st.sampled_from([key for key in found if key not in ("format", "version", "sha256")]))
    while isinstance(place[key], (dict, list)) and place[key]:
        place = place[key]
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    place[key] = data.draw((st.integers() | st.text() | st.none()).filter(lambda value: value != place[key]))
    with pytest.raises(EngineError, match="edited"):
        EngineManifest.from_json(json.dumps(found))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(data=st.data())
def test_a_hash_that_fits_makes_no_other_types_right(data):
    """Anybody can edit a manifest and update its hash: any value anywhere gives a manifest, or a one-sentence error."""
    found = json.loads(make(**data.draw(st.sampled_from([{}, DETECTOR]))).to_json())
    place, key = found, data.draw(st.sampled_from([key for key in found if key not in ("format", "version", "sha256")]))
    while isinstance(place[key], (dict, list)) and place[key] and data.draw(st.booleans()):
        place = place[key]
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    place[key] = data.draw(json_values)
    try:
        again = EngineManifest.from_json(sealed(found))
    except EngineError as error:
        assert str(error).isprintable()
    else:
        again.misfit(HERE)
        assert EngineManifest.from_json(again.to_json()) == again


def sealed(fields):
    rest = {key: value for key, value in fields.items() if key not in ("format", "version", "sha256")}
    return json.dumps({**fields, "sha256": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()})


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("options", ["a"], "expected options to be .*Mapping.*, received a list"),
        ("engine_bytes", "many", "expected engine_bytes to be int, received 'many'"),
        ("model", {"name": 1}, "expected a field variant in model"),
        ("batch", {"min": 1, "typical": 1, "max": 10**12}, "max <= 1024 crops, received 1, 1, 1000000000000"),
        (
            "excluded_layers",
            [{"layer": "a", "mean_px": True, "mean_mm": 1}],
            r"excluded_layers\[0\]\.mean_px to be float, .* true",
        ),
        ("compute_capabilities", "8.9", "expected compute_capabilities to be .*tuple"),
        ("command", "rm -rf ~", "expected a command of `convnextpose build`"),
        ("command", "convnextpose build a; rm -rf ~", "expected a command of `convnextpose build`"),
        ("command", "convnextpose build $(rm -rf ~)", "expected a command of `convnextpose build`"),
    ],
)
def test_a_sealed_field_that_is_wrong_is_named(field, value, sentence):
    with pytest.raises(EngineError, match=sentence):
        EngineManifest.from_json(sealed({**json.loads(make().to_json()), field: value}))


@pytest.mark.parametrize("text", ["[" * 3000 + "]" * 3000, '{"format":' * 100_000, '{"format": NaN}', "1" * 5000, "[]" * 10**6])
def test_json_that_breaks_parsers_is_refused(text):
    with pytest.raises(EngineError, match="expected an engine's manifest in JSON, received something else"):
        EngineManifest.from_json(text)


@pytest.mark.parametrize("path", [".", "", "/", ".."])
def test_a_folder_is_no_engine(path):
    for look in (manifest.read, manifest.load):
        with pytest.raises(EngineError, match=r"expected an engine.*, received the folder"):
            look(Path(path))


def test_a_device_is_no_engine(tmp_path):
    (tmp_path / "x.engine").symlink_to("/dev/zero")
    (tmp_path / "x.engine.json").symlink_to("/dev/zero")
    for look in (manifest.read, manifest.load):
        with pytest.raises(EngineError, match="a device, a pipe or a socket"):
            look(tmp_path / "x.engine")


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"format": "convnextpose.engine"}', "\x00"])
def test_something_else_is_refused(text):
    with pytest.raises(EngineError, match="expected an engine's manifest"):
        EngineManifest.from_json(text)


def test_a_newer_manifest_is_refused():
    newer = json.dumps({**json.loads(make().to_json()), "version": 99})
    with pytest.raises(EngineError, match=r"version 1 or 2, received 99; build the engine again"):
        EngineManifest.from_json(newer)


def test_an_engine_and_its_manifest(engine):
    assert manifest.path_of(engine).name == "m-int8-rtx40.engine.json"
    assert manifest.load(engine) == make()


@given(data=st.data())
def test_an_engine_that_was_changed_is_refused(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("changed") / "m.engine"
    manifest.path_of(path).write_text(make().to_json())
    place = data.draw(st.integers(0, len(ENGINE) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(ENGINE[:place])
        expected = f"{len(ENGINE)} bytes, received {place}: the file was cut short"
    else:
        changed = bytearray(ENGINE)
        changed[place] ^= data.draw(st.integers(1, 255))
        path.write_bytes(changed)
        expected = "SHA-256"
    with pytest.raises(EngineError, match=expected) as caught:
        manifest.load(path)
    assert str(path) in str(caught.value)
    assert make().command in str(caught.value)


def test_one_of_the_two_is_missing(engine):
    manifest.path_of(engine).rename(engine.with_name("elsewhere"))
    with pytest.raises(EngineError, match=r"expected the manifest of engine .*m-int8-rtx40\.engine.*convnextpose build"):
        manifest.load(engine)
    manifest.path_of(engine).write_text(make().to_json())
    engine.unlink()
    with pytest.raises(EngineError, match="expected an engine at"):
        manifest.load(engine)
    engine.write_bytes(ENGINE)
    manifest.path_of(engine).write_bytes(b"\xff\xfe")
    with pytest.raises(EngineError, match=r"m-int8-rtx40\.engine\.json: expected an engine's manifest in JSON"):
        manifest.load(engine)


def test_engine_errors_are_model_errors(engine):
    engine.unlink()
    with pytest.raises(ModelError):
        manifest.load(engine)


def test_it_fits_where_it_was_built_whatever_the_driver():
    assert make().misfit(HERE) == []
    make().check(HERE)


@pytest.mark.parametrize(
    ("engine", "machine", "fields"),
    [
        ({}, {"library": "tensorrt_rtx"}, ["library"]),
        ({}, {"library_version": "10.13.3.10"}, ["library_version"]),
        ({}, {"compute_capability": "8.6"}, ["compute_capability"]),
        ({}, {"gpu_name": "NVIDIA GeForce RTX 4070"}, ["gpu_name"]),
        ({}, {"library_version": "11.0", "compute_capability": "12.0"}, ["library_version", "compute_capability"]),
        # Later versions of the same major run a version-compatible engine, earlier ones and other majors do not.
        ({"options": {"version_compatible": True}}, {"library_version": "10.14.1.48"}, []),
        ({"options": {"version_compatible": True}}, {"library_version": "10.13.3"}, ["library_version"]),
        ({"options": {"version_compatible": True}}, {"library_version": "10.9.1"}, ["library_version"]),
        ({"options": {"version_compatible": True}}, {"library_version": "11.0.0"}, ["library_version"]),
        # Hardware-compatible engines.
        ({"options": {"hardware_compatible": "ampere_plus"}}, {"compute_capability": "12.0", "gpu_name": "another"}, []),
        ({"options": {"hardware_compatible": "ampere_plus"}}, {"compute_capability": "7.5"}, ["compute_capability"]),
        ({"options": {"hardware_compatible": "same_compute_capability"}}, {"gpu_name": "another"}, []),
        (
            {"options": {"hardware_compatible": "same_compute_capability"}},
            {"compute_capability": "8.6", "gpu_name": "another"},
            ["compute_capability"],
        ),
        # RTX engines name no GPU.
        ({"library": "tensorrt_rtx", "gpu_name": None}, {"library": "tensorrt_rtx", "gpu_name": "another"}, []),
        ({"library": "tensorrt_rtx"}, {"library": "tensorrt_rtx", "gpu_name": "another"}, []),
        ({"library": "tensorrt_rtx"}, {"library": "tensorrt_rtx", "library_version": "10.13.3.8"}, ["library_version"]),
        ({"compute_capabilities": ("8.6", "12.0")}, {"compute_capability": "12.0"}, []),
    ],
)
def test_what_fits(engine, machine, fields):
    one, here = make(**engine), replace(HERE, **machine)
    reasons = one.misfit(here)
    assert [reason.partition(":")[0] for reason in reasons] == fields
    for field, reason in zip(fields, reasons, strict=True):
        assert str(asdict(here)[field]) in reason
    if fields:
        with pytest.raises(EngineError) as caught:
            one.check(here)
        message = str(caught.value)
        assert all(reason in message for reason in reasons)
        assert "`convnextpose build m.tar --out d --precision int8 --target this`" in message


@pytest.mark.parametrize("sizes", [(0, 1, 2), (2, 1, 4), (1, 5, 4), (-1, -1, -1)])
def test_a_batch_is_in_order(sizes):
    with pytest.raises(EngineError, match="1 <= min <= typical <= max"):
        BatchRange(*sizes)
