"""`convnextpose build` from checkpoints to engines, with a table at the end and an exit code that says if all are built."""

import io
import json
import shlex
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("tensorrt_rtx")
pytest.importorskip("onnx", reason="exporting needs onnx")
pytest.importorskip("torch", reason="exporting needs torch")

from convnextpose import weights
from convnextpose.errors import ExportError
from convnextpose.network import random_state
from convnextpose.variants import Variant
from engines import manifest
from engines.build_request import BuildRequest
from engines.calibration import CalibrationSet
from engines.manifest import BatchRange
from engines.pose import PRECISIONS
from engines.precision import INT8_SCHEMES
from engines.targets import TARGETS
from engines.tensorrt.builder import BuildOptions
from tests.cases import fast_first
from tools.main import main

pytestmark = pytest.mark.usefixtures("engines_once")


@pytest.fixture
def cli(cli):
    return lambda *arguments: cli("build", *arguments)


@pytest.fixture(scope="module")
def folder(published, tmp_path_factory):
    """A folder with a checkpoint, a file that only looks like one, a note, and a small calibration set."""
    folder = tmp_path_factory.mktemp("checkpoints")
    published(folder / "ConvNeXtPose_XS.tar", random_state(Variant.XS), optimizer=False)
    (folder / "broken.tar").write_text("no checkpoint")
    (folder / "notes.txt").write_text("not looked at")
    CalibrationSet(CalibrationSet.load(weights.CALIBRATION).crops[:12], ("some",)).save(folder / "few.npz")
    return folder


@pytest.fixture(scope="module")
def built(folder, tmp_path_factory):
    """The results for everything in the folder."""
    out, text, errors = tmp_path_factory.mktemp("built"), io.StringIO(), io.StringIO()
    arguments = ["build", "--all", folder, "--out", out, "--precision", "fp16", "--target", "rtx40,orin"]
    arguments += ["--calibration", folder / "few.npz"]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(text), redirect_stderr(errors):
        patch.setattr(sys, "argv", ["convnextpose", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
    return subprocess.CompletedProcess(arguments, stop.value.code, text.getvalue(), errors.getvalue()), out


def test_a_folder_of_checkpoints(built):
    result, out = built
    assert result.returncode == 1
    assert "FAILED" in result.stdout
    assert "broken.tar" in result.stdout
    assert "notes" not in result.stdout
    assert "1 failed" in result.stdout
    assert "Traceback" not in result.stderr
    stem = "ConvNeXtPose_XS-fp16"
    assert {path.name for path in out.iterdir()} == {
        f"{stem}-rtx40.engine", f"{stem}-rtx40.engine.json", f"{stem}-orin.bundle.zip",
    }  # fmt: skip
    found = manifest.load(out / f"{stem}-rtx40.engine")
    (row,) = [line for line in result.stdout.splitlines() if line.startswith(f"{stem}-rtx40.engine ")]
    parity = found.graph_parity
    numbers = (f"{parity.mm.mean:.3f}", f"{parity.mm.max:.3f}", f"{parity.px.max:.3f}")
    assert row.split() == [f"{stem}-rtx40.engine", "built", "fp16", "graph", f"{found.engine_bytes / 2**20:.1f}", *numbers]


@pytest.fixture(scope="module")
def bundle(built):
    return built[1] / "ConvNeXtPose_XS-fp16-orin.bundle.zip"


def test_a_second_time_it_does_nothing(cli, bundle, tmp_path):
    arguments = (
        bundle,
        "--out",
        tmp_path,
        "--target",
        "rtx40",
        "--target",
        "8.6, RTX40",
        "--batch",
        "1,2,4",
        "--workspace",
        512,
    )
    code, text, _ = cli(*arguments)
    assert code == 0
    assert text.count("built by tensorrt_rtx") == 2
    assert text.count("convolutions: 47 in Half") == 2
    code, text, _ = cli(*arguments)
    assert code == 0
    assert text.count("exists already and fits: nothing to do") == 2
    assert "built by" not in text
    found = json.loads((tmp_path / "ConvNeXtPose_XS-fp16-rtx30.engine.json").read_text())
    assert found["batch"] == {"min": 1, "typical": 2, "max": 4}
    assert found["options"]["workspace_mib"] == 512
    code, text, _ = cli(*arguments, "--overwrite")
    assert code == 0
    assert text.count("built by tensorrt_rtx") == 2


@pytest.mark.parametrize(("number", "code"), fast_first([(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)]))
def test_ctrl_c_and_sigterm_leave_whole_engines(bundle, tmp_path, number, code):
    command = [sys.executable, "-u", "-m", "tools.main", "build", str(bundle), "--out", str(tmp_path)]
    command += ["--target", "rtx20,a100,rtx30,rtx40,rtx50"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if "wrote" in line:
                process.send_signal(number)
                break
        _, errors = process.communicate(timeout=240)
    assert process.returncode == code
    assert "Traceback" not in errors
    engines = sorted(tmp_path.glob("*.engine"))
    assert 1 <= len(engines) < 5
    for engine in engines:
        manifest.load(engine)
    assert len(list(tmp_path.iterdir())) == 2 * len(engines)


@pytest.mark.parametrize("goes_on", [True, False])
def test_ctrl_c_of_which_a_library_makes_an_error_still_ends_the_build(cli, monkeypatch, tmp_path, goes_on):
    import tools.build as command
    from engines.build_request import Step

    asked = []

    def exporting(request, progress):
        asked.append(request)
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            if goes_on:
                progress(Step("xs", "building", done=False))
            raise ExportError("torch could not export the network: partially initialized module") from error

    monkeypatch.setattr(command, "build", exporting)
    code, text, _ = cli("xs", "xs", "--out", tmp_path, "--target", "rtx40")
    assert (code, text, len(asked)) == (130, "", 1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_detector_s_row_has_the_boxes_px_and_no_mm(cli, tmp_path):
    code, text, _ = cli("detector", "--out", tmp_path, "--target", "rtx40", "--frame", "384,224")
    assert code == 0
    name = "detector-384x224-fp32-rtx40.engine"
    (row,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    found = manifest.load(tmp_path / name)
    size, px = f"{found.engine_bytes / 2**20:.1f}", f"{found.graph_parity.box_px:.3f}"
    assert row.split() == [name, "built", "fp32", "graph", size, px]


def test_without_a_gpu_the_gpu_at_hand_is_refused(cli, bundle, tmp_path):
    from engines.tensorrt.gpu import find_gpu

    if find_gpu() is not None:
        pytest.skip("there is one")
    code, _, error = cli(bundle, "--out", tmp_path, "--target", "this")
    assert code == 1
    assert "name a target with --target" in error + _
    assert list(tmp_path.iterdir()) == []


def test_the_fastest_is_refused_where_nothing_can_be_timed(cli, tmp_path):
    code, told, error = cli("xs", "--out", tmp_path, "--precision", "fastest", "--target", "rtx40")
    assert code == 1
    assert "times engines on the GPU that they are for, and there is no" in told + error
    assert "name a precision, such as --precision fp16" in told + error
    code, told, error = cli("xs-fp16-orin.bundle.zip", "--out", tmp_path, "--precision", "fastest")
    assert "expected a checkpoint for --precision fastest, received xs-fp16-orin.bundle.zip, a bundle" in told + error
    code, told, error = cli("xs", "--out", tmp_path, "--precision", "fastest,fp16", "--target", "rtx40")
    assert code == 2
    assert list(tmp_path.iterdir()) == []


def test_all_without_a_folder_is_every_default_weight(monkeypatch, tmp_path):
    import tools.build as command
    from engines.build_request import BuildReport

    seen = []
    monkeypatch.setattr(command, "build", lambda request, _: seen.append(request) or BuildReport((), ()))
    monkeypatch.setattr(sys, "argv", ["convnextpose", "build", "--all", "--out", str(tmp_path), "--precision", "fp16, INT8"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert [request.source for request in seen] == weights.names()
    assert seen[0].precisions == ("fp16", "int8")


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
paths = texts.filter(lambda text: not text.startswith("-")).map(Path)


@given(
    source=texts.filter(lambda text: not text.startswith("-")),
    out=paths,
    precision=st.sampled_from(PRECISIONS),
    target=st.sampled_from([target for target in TARGETS if target.dla or target.is_at_hand]),
    batch=st.lists(st.integers(1, 64), min_size=3, max_size=3).map(lambda sizes: BatchRange(*sorted(sizes))),
    workspace=st.none() | st.integers(1, 10_000),
    compatible=st.booleans(),
    level=st.sampled_from([None, "ampere_plus", "same_compute_capability"]),
    core=st.sampled_from([None, 0, 1]),
    calibration=st.none() | paths,
    library=st.sampled_from([None, "tensorrt", "tensorrt_rtx"]),
    via=st.sampled_from([None, "torch2trt"]),
    tail=st.booleans(),
    scheme=st.sampled_from([scheme.key for scheme in INT8_SCHEMES]),
    frame=st.none() | st.tuples(st.integers(0, 5000), st.integers(0, 5000)),
    person=st.none() | texts.filter(lambda text: not text.startswith("-")),
)
def test_the_command_in_a_manifest_asks_for_the_same(
    source,
    out,
    precision,
    target,
    batch,
    workspace,
    compatible,
    level,
    core,
    calibration,
    library,
    via,
    tail,
    scheme,
    frame,
    person,
):
    """For any request, running the manifest's command makes the same request again."""
    import tools.build as command
    from engines.build_request import BuildReport

    if core is not None:  # a DLA supports only FP16 and a fixed number of crops
        precision, batch = "fp16", BatchRange(batch.max, batch.max, batch.max)
    tail = tail and via is None and precision != "fp32"
    options = BuildOptions(batch, workspace, compatible, level, core, tail)
    detector = {"frame": frame, "person": person}
    asked = BuildRequest(source, out, (precision,), (target,), options, calibration, library, via, scheme=scheme, **detector)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "build", lambda request, _: seen.append(request) or BuildReport((), ()))
        patch.setattr(sys, "argv", shlex.split(asked.command(precision, target.name)))
        with pytest.raises(SystemExit) as stop:
            main()
    assert not stop.value.code
    assert seen == [asked]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["xs"], 2),
        (["--out", "d"], 2),
        (["xs", "--out", "d", "--batch", "1"], 2),
        (["xs", "--out", "d", "--batch", "4,2,8"], 2),
        (["xs", "--out", "d", "--batch", "a,b,c"], 2),
        (["xs", "--out", "d", "--workspace", "0"], 2),
        (["detector", "--out", "d", "--frame", "384"], 2),
        (["detector", "--out", "d", "--frame", "384,a"], 2),
        (["detector", "--out", "d", "--frame", "384,100", "--target", "rtx40"], 1),
        (["xs", "--out", "d", "--frame", "384,384", "--target", "rtx40"], 1),
        (["a", "b", "--all", "--out", "d"], 2),
        (["xs", "--out", "d", "--target", "rtx99"], 2),
        (["xs", "--out", "d", "--target", "rtx40", "--precision", "fp8"], 2),
        (["none.tar", "--out", "d", "--target", "rtx40"], 1),
        (["--all", "none", "--out", "d"], 1),
    ],
)
def test_wrong_use(arguments, code, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, out, error = cli(*arguments)
    assert found == code
    assert "Traceback" not in out + error
    assert list(tmp_path.rglob("*")) in ([], [tmp_path / "d"])
