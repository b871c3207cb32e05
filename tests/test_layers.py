"""Imports point left, and importing a package needs no extra, reads no environment and opens no device."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = ("convnextpose", "engines", "pipeline", "tools")
TOP_LEVEL = {
    "convnextpose": {"numpy"},
    "engines": {"numpy"},
    "pipeline": {"numpy", "av", "cv2"},
    "tools": {"numpy", "typer", "rich"},
}
NETWORK_FILES = {"convnextpose/network.py", "convnextpose/detector.py"}
"""The files with the network, which import torch at the top."""


def modules():
    return [p for package in ORDER for p in sorted((ROOT / package).rglob("*.py"))]


def imported(tree, *, top_only):
    nodes = tree.body if top_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_left(path):
    package = path.relative_to(ROOT).parts[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    ours = set(imported(tree, top_only=False)) & set(ORDER)
    assert ours <= set(ORDER[: ORDER.index(package) + 1])
    allowed = TOP_LEVEL[package] | set(ORDER) | set(sys.stdlib_module_names)
    if str(path.relative_to(ROOT)) in NETWORK_FILES:
        allowed |= {"torch"}
    assert set(imported(tree, top_only=True)) <= allowed


def test_no_circle_of_files():
    """Imports within functions and imports only for types count, too."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in modules()}

    def needs(node):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ImportFrom):
                full = [f"{child.module}.{alias.name}" for alias in child.names]
                yield from (name if name in names else child.module for name in full)
            elif isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            yield from needs(child)

    graph = {name: set(needs(ast.parse(path.read_text(encoding="utf-8")))) & names.keys() for name, path in names.items()}
    assert any(graph.values())
    TopologicalSorter(graph).prepare()  # raises CycleError with the cycle


@pytest.mark.parametrize("package", ORDER)
def test_packages_open_with_a_docstring(package):
    assert "mport" in (ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text())) or "")


@pytest.mark.parametrize(
    "module",
    ["convnextpose", "convnextpose.weights", "convnextpose.checkpoint", "engines", "engines.opening", "engines.parity",
     "pipeline", "pipeline.run", "tools", "tools.main"],
)  # fmt: skip
def test_importing_needs_no_extra(module):
    code = (
        "import sys\n"
        "blocked = ['torch', 'onnx', 'onnxscript', 'onnxruntime', 'openvino', 'tensorrt', 'tensorrt_rtx', 'pycuda', 'cuda',"
        " 'safetensors']\n"
        "for name in blocked: sys.modules[name] = None\n"
        f"import {module}\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr


def test_the_public_names_are_imported_when_they_are_asked_for():
    code = (
        "import sys, convnextpose\n"
        "assert not {'numpy', 'cv2', 'av', 'engines', 'pipeline'} & set(sys.modules)\n"
        "assert convnextpose.Box and 'pipeline' not in sys.modules\n"
        "assert all(getattr(convnextpose, name) for name in convnextpose.__all__)\n"
        "assert 'torch' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr


def test_our_code_reads_no_environment():
    readers = {"environ", "getenv", "environb"}
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                assert node.attr not in readers, f"{path}:{node.lineno} reads the environment"
