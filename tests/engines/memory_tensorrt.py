"""A TensorRT on a simulated GPU in the host's memory, in several families, for tests of code that runs engines."""

import enum
import hashlib
import json
import sys
import types
import weakref

import numpy as np

from tests.engines.memory_gpu import DTYPES


class _Kind(enum.Enum):
    INPUT, OUTPUT, UINT8, FLOAT, HALF, INT64 = range(6)


FAMILIES = ("8", "10", "rtx")
"""TensorRT 8.6, 10 and RTX 1, with the members that each has for running an engine."""


def predict(crops, joint_count=18):
    """The computation of the engines below: every value of a crop counts, and every joint and axis differs."""
    weights = np.arange(1, 65, dtype=np.int64)
    sums = (crops.reshape(len(crops), -1, 64).sum(1, dtype=np.int64) * weights).sum(1) % 997
    joints = sums[:, None, None] * np.arange(1, joint_count + 1)[None, :, None] + np.array([0.25, 0.5, 0.75])
    scores = (sums[:, None] + np.arange(joint_count)) / (997 + joint_count)
    return joints.astype(np.float32), scores.astype(np.float32)


def engine_bytes(
    *,
    fewest=1,
    most=8,
    joint_count=18,
    activations=1000,
    crops_type="UINT8",
    profiles=(),
    padding=0,
    network=None,
    logits=None,
    inputs=None,
    outputs=None,
    fixed=None,
):
    """An engine file for the TensorRT below; it needs `activations` bytes for each crop, three times that for an odd number.

    Its optimisation profiles are those given, as (fewest, most), or one from `fewest` to `most`; none with a `fixed` batch.
    It computes `predict`, or one of the module's networks by name. With a shape of logits it returns FP16 logits instead of
    joints and scores. Other inputs and outputs are given by name, as (type, shape of one item).
    """
    spec = dict(joint_count=joint_count, activations=activations, network=network, fixed=fixed)
    spec["profiles"] = [(fixed, fixed)] if fixed else profiles or [(fewest, most)]
    spec["inputs"] = inputs or {"crops": (crops_type, (256, 256, 3))}
    spec["outputs"] = outputs or {"joints": ("FLOAT", (joint_count, 3)), "scores": ("FLOAT", (joint_count,))}
    if logits is not None:
        spec["outputs"] = {"logits": ("HALF", logits)}
    return json.dumps({**spec, "padding": "x" * padding}).encode()


def tensorrt_module(driver, family="10", *, refusals=0, networks=None):
    """A TensorRT module of a family on a simulated GPU.

    Args:
        driver: the GPU.
        family: one of FAMILIES.
        refusals: number of times that its engines' work cannot be captured in a graph, before it can.
        networks: functions that engines may compute, by name: from the inputs, in order, to the outputs by name.

    Attributes:
        refusals: number of refusals that are left.
        failures: number of next inferences that fail.
        compilations: RTX: number of shapes that kernels were compiled for.
    """
    module = types.ModuleType("tensorrt_rtx" if family == "rtx" else "tensorrt")
    module.__version__ = {"8": "8.6.2", "10": "10.3.0", "rtx": "1.7.1.116"}[family]
    contexts = weakref.WeakSet()
    module.refusals, module.failures, module.compilations = refusals, 0, 0

    class ILogger:
        def __init__(self):
            pass

    class Logger(ILogger):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        def __init__(self, min_severity=WARNING):
            assert min_severity == self.WARNING

        def log(self, severity, message):
            print(f"[TRT] [{severity.name[0]}] {message}", file=sys.stderr)

    def complain(logger, message):
        logger.log(types.SimpleNamespace(name="ERROR"), message)

    class Context:
        def __init__(self, engine):
            self.engine, self.version, self.runs = engine, 0, 0
            self.batch = self.memory = None
            self.active_optimization_profile = -1 if any(other.engine is engine for other in contexts) else 0
            self.addresses = {}
            contexts.add(self)

        def _change(self):
            self.version += 1

        def set_input_shape(self, name, shape):
            profiles = self.engine.spec["profiles"]
            fewest, most = profiles[self.active_optimization_profile] if self.active_optimization_profile >= 0 else (0, -1)
            item = self.engine.spec["inputs"].get(name, ("", None))[1]
            if tuple(shape[1:]) != tuple(item or ()) or not fewest <= shape[0] <= most:
                complain(self.engine.logger, f"shape {shape} is not in the profile")
                return False
            self._change()
            self.batch, self.runs = shape[0], 0
            return True

        def set_optimization_profile_async(self, index, stream):
            def switch():
                self.active_optimization_profile = index

            self._change()
            self.batch = None
            self.active_optimization_profile = index
            driver.give(stream, switch)
            return 0 <= index < len(self.engine.spec["profiles"])

        def set_tensor_address(self, name, address):
            if address % 256:
                driver.violations.append("an address is not a multiple of 256")
            self._change()
            self.addresses[name] = address
            return True

        def execute_async_v3(self, stream):
            needed = self.engine.needed(self.batch if family != "8" else self.engine.most)
            if self.memory is None or self.memory[1] < needed:
                driver.violations.append("activations have too little memory")
            if driver.records(stream):
                if self.runs < 2:
                    driver.violations.append("work was recorded that had not run twice")
                if module.refusals:
                    module.refusals -= 1
                    complain(self.engine.logger, "operation not permitted when stream is capturing")
                    return False
            if module.failures:
                module.failures -= 1
                complain(self.engine.logger, "1: [defaultAllocator.cpp] Error Code 1: Cuda Runtime (invalid resource handle)")
                return False
            self.runs += 1
            if family == "rtx" and self.batch not in self.engine.compiled.shapes:
                module.compilations += 1
                self.engine.compiled.shapes.add(self.batch)
            batch, places, memory, version = self.batch, dict(self.addresses), self.memory, self.version
            recorded, itself, spec = driver.records(stream), weakref.ref(self), self.engine.spec

            def work():
                if recorded and (itself() is None or itself().version != version):
                    driver.violations.append("a context changed while its work was in a graph")
                driver.write(memory[0], bytes([driver.random.randrange(256)]) * memory[1])
                given = []
                for name, (kind, shape) in spec["inputs"].items():
                    room = np.empty((batch, *shape), DTYPES[kind])
                    given.append(np.frombuffer(driver.read(places[name], room.nbytes), room.dtype).reshape(room.shape))
                if spec["network"] is None:
                    results = dict(zip(("joints", "scores"), predict(*given, spec["joint_count"]), strict=True))
                else:
                    results = networks[spec["network"]](*given)
                for name, array in results.items():
                    driver.write(places[name], array.tobytes())

            driver.give(stream, work)
            return True

    def take_memory(self, address, size):
        self._change()
        self.memory = address, size

    if family == "8":
        Context.device_memory = property(fset=lambda self, address: take_memory(self, address, driver._blocks[address][1]))
    else:
        Context.set_device_memory = take_memory
        Context.update_device_memory_size_for_shapes = lambda self: self.engine.needed(self.batch)

    class Engine:
        def __init__(self, spec, logger):
            self.spec, self.logger = spec, logger
            self.names = (*spec["inputs"], *spec["outputs"])
            self.num_io_tensors = len(self.names)
            self.num_optimization_profiles = len(spec["profiles"])
            self.compiled = None

        @property
        def most(self):
            return max(most for _, most in self.spec["profiles"])

        def needed(self, batch):
            return self.spec["activations"] * batch * (3 if batch % 2 else 1)

        def get_tensor_name(self, index):
            return self.names[index]

        def get_tensor_mode(self, name):
            return _Kind.INPUT if name in self.spec["inputs"] else _Kind.OUTPUT

        def get_tensor_dtype(self, name):
            return _Kind[{**self.spec["inputs"], **self.spec["outputs"]}[name][0]]

        def get_tensor_shape(self, name):
            return (self.spec["fixed"] or -1, *{**self.spec["inputs"], **self.spec["outputs"]}[name][1])

        def get_tensor_profile_shape(self, name, profile):
            if self.spec["fixed"]:
                driver.violations.append("an engine with a fixed batch was asked for its profile")
            fewest, most = self.spec["profiles"][profile]
            return [(count, *self.spec["inputs"][name][1]) for count in (fewest, most, most)]

        def create_engine_inspector(self):
            tensors = {"Inputs": [{"Format/Datatype": "Half"}], "Outputs": [{"Datatype": "Float"}]}
            layers = [{"Name": "stem", "LayerType": "Convolution", **tensors}, "tail"]
            return types.SimpleNamespace(get_engine_information=lambda form: json.dumps({"Layers": layers}))

    size_name = "device_memory_size" if family == "8" else "device_memory_size_v2"
    setattr(Engine, size_name, property(lambda self: self.needed(self.most)))

    def new_context(self, wanted=None):
        if family == "8" and any(other.engine is self for other in contexts):
            complain(self.logger, "Profile 0 has been chosen by another IExecutionContext")
            return None
        if family == "10" and wanted is not Strategy.USER_MANAGED:
            driver.violations.append("a context has memory of its own")
        if family == "rtx":
            if wanted.strategy is not Strategy.USER_MANAGED:
                driver.violations.append("a context has memory of its own")
            self.compiled = wanted.cache
        return Context(self)

    class Strategy(enum.Enum):
        STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)

    class Specialization(enum.Enum):
        LAZY, EAGER, NONE = range(3)

    class Config:
        strategy = Strategy.STATIC
        dynamic_shapes_kernel_specialization_strategy = Specialization.LAZY

        def set_execution_context_allocation_strategy(self, strategy):
            self.strategy = strategy

        def create_runtime_cache(self):
            return RuntimeCache()

        def set_runtime_cache(self, cache):
            self.cache = cache
            return True

    class RuntimeCache:
        def __init__(self):
            self.shapes = set()

        def serialize(self):
            return json.dumps({"version": module.__version__, "shapes": sorted(self.shapes)}).encode()

        def deserialize(self, blob):
            found = json.loads(blob)
            if found["version"] != module.__version__:
                return False
            self.shapes |= set(found["shapes"])
            return True

    if family == "8":
        Engine.create_execution_context_without_device_memory = new_context
    else:
        module.ExecutionContextAllocationStrategy = Strategy
        Engine.create_execution_context = new_context
    if family == "rtx":
        module.DynamicShapesKernelSpecializationStrategy = Specialization
        Engine.create_runtime_config = lambda self: Config()

    class Runtime:
        def __init__(self, logger):
            if not isinstance(logger, Logger):
                driver.violations.append("a logger in Python at run time")
            self.logger = logger

        def deserialize_cuda_engine(self, data):
            try:
                engine = Engine(json.loads(data), self.logger)
            except ValueError:
                complain(self.logger, "Magic tag does not match")
                return None
            module.engine = weakref.ref(engine)
            driver.engines.add(engine)
            return engine

    module.ILogger, module.Logger, module.Runtime = ILogger, Logger, Runtime
    module.LayerInformationFormat = enum.Enum("LayerInformationFormat", ["ONELINE", "JSON"])
    return module


def sha256(data):
    return hashlib.sha256(data).hexdigest()
