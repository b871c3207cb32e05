"""Every member of TensorRT that the code calls exists in the real library: in TensorRT for RTX, and in the full TensorRT 11, of
which PyPI has the lean runtime (`tensorrt-lean-cu13`, without a builder)."""

import ast
import importlib
from pathlib import Path

import pytest

TENSORRT = Path(__file__).parent.parent.parent / "engines" / "tensorrt"

RUNTIME = {
    "context": "IExecutionContext",
    "prepared.context": "IExecutionContext",
    "engine": "ICudaEngine",
    "self._engine": "ICudaEngine",
    "config": "IRuntimeConfig",
    "self._runtime": "Runtime",
    "self._compiled": "IRuntimeCache",
    "module": None,
    "self._module": None,
    "self.module": None,
}
BUILD = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "parser": "OnnxParser",
    "module": None,
    "library.module": None,
}
FILES = {"engine.py": RUNTIME, "slot.py": RUNTIME, "module.py": RUNTIME, "builder.py": BUILD}
"""By file, the classes of the names in it, to look up members; None stands for the module itself."""

OURS = {"slot.py": {"engine", "self._engine"}}
"""Names that are the project's own objects there."""

BEFORE_10 = {"create_execution_context_without_device_memory", "device_memory_size"}
"""Members that only TensorRT 8 has; the code uses them if newer ones are missing."""

RTX_ONLY = {
    "create_runtime_config",
    "create_runtime_cache",
    "set_runtime_cache",
    "set_compute_capability",
    "num_compute_capabilities",
    "ComputeCapability",
    "is_stream_capturable",
    "DynamicShapesKernelSpecializationStrategy",
    "serialize",
    "deserialize",
    "dynamic_shapes_kernel_specialization_strategy",
    "set_execution_context_allocation_strategy",
}


def members(name):
    """(class or None, member) for each member that a file calls, from its syntax tree."""
    owners = {owner: kind for owner, kind in FILES[name].items() if owner not in OURS.get(name, ())}
    tree = ast.parse((TENSORRT / name).read_text(encoding="utf-8"))
    return {
        (owners[owner], node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and (owner := ast.unparse(node.value)) in owners
    }


def missing(module, files):
    found = set()
    for file in files:
        for kind, member in members(file):
            owner = module if kind is None else getattr(module, kind, None)
            if owner is None or not hasattr(owner, member):
                found.add(member)
    return found


def test_the_code_calls_what_this_test_looks_for():
    called = {member for file in FILES for _, member in members(file)}
    expected = """execute_async_v3 set_tensor_address set_input_shape set_optimization_profile_async deserialize_cuda_engine
    get_tensor_profile_shape add_optimization_profile builder_optimization_level Logger deserialize"""
    assert set(expected.split()) <= called


def test_tensorrt_for_rtx_has_every_member():
    module = pytest.importorskip("tensorrt_rtx")
    assert missing(module, FILES) <= BEFORE_10


def test_the_full_tensorrt_has_every_member_of_the_runtime():
    module = pytest.importorskip("tensorrt_lean", reason="pip install tensorrt-lean-cu13")
    lean = {"IBuilderConfig", "ILogger", "NetworkDefinitionCreationFlag", "__version__"}
    assert missing(module, ["engine.py", "slot.py"]) <= BEFORE_10 | RTX_ONLY
    assert missing(module, ["module.py"]) <= RTX_ONLY | lean


@pytest.mark.parametrize("library", ["tensorrt_rtx", "tensorrt_lean"])
def test_the_names_that_are_asked_for_by_value_exist(library):
    module = pytest.importorskip(library)
    assert module.ExecutionContextAllocationStrategy.USER_MANAGED is not None
    assert module.LayerInformationFormat.JSON is not None
    assert module.TensorIOMode.INPUT.name == "INPUT"
    assert module.Logger(module.Logger.WARNING).min_severity == module.Logger.WARNING
    assert {"FLOAT", "HALF", "INT8", "UINT8", "INT32", "INT64", "BOOL"} <= set(module.DataType.__members__)
    assert importlib.import_module(library) is module
