"""The second part of the agent: the runtimes, each the same on this machine as on a device.

In the syntax of Python 3.8, without annotations. Only the runtime that is asked for is imported.
"""

import os
import sys
from contextlib import contextmanager

from htas.timing.remote.kernel import versions

SPINS = (1, 26)
"""The first ONNX Runtime whose threads spin for a time that can be set; those of older ones do not spin at all."""


class Refused(Exception):
    """What cannot be done: its kind, which the host knows, and words."""

    def __init__(self, kind, words):
        Exception.__init__(self, words)
        self.kind, self.words = kind, words


class Engine:
    """An open program, made of its bytes, threads, microseconds of spinning and whether it computes in fp16."""

    def __init__(self, content, threads, spin, half):
        raise NotImplementedError

    @staticmethod
    def load():
        """Import the runtime: its version, and how its threads spin where it is not as asked. Raises Refused for one
        that is too old."""
        raise NotImplementedError

    def kinds(self):
        """The shape and numpy's type of each input."""
        raise NotImplementedError

    def put(self, arrays):
        """Set the inputs."""
        raise NotImplementedError

    def run(self):
        """Compute one batch."""
        raise NotImplementedError

    def outputs(self, arrays):
        """Arrays for other inputs, which may then stay."""
        raise NotImplementedError


class OnnxRuntime(Engine):
    """A session of ONNX Runtime."""

    def __init__(self, content, threads, spin, half):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        if spins(onnxruntime):
            options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin))
        else:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.use_env_allocators", "1")
        self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.binding = self.session.io_binding()
        self.values = []

    @staticmethod
    def load():
        """Sessions share an arena, which halves the memory."""
        import onnxruntime as ort

        try:
            place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
            ort.create_and_register_allocator(place, ort.OrtArenaCfg({}))
        except Exception:  # it was offered before, or this version cannot
            pass
        return ort.__version__, "" if spins(ort) else "none"

    def kinds(self):
        kinds = []
        for argument in self.session.get_inputs():
            name = argument.type[len("tensor(") : -1]
            kinds.append((argument.shape, {"float": "float32", "double": "float64"}.get(name, name)))
            if not all(isinstance(size, int) for size in argument.shape):
                raise Refused("run", "its input %s has sizes that are open: %s" % (argument.name, argument.shape))
        return kinds

    def put(self, arrays):
        import onnxruntime

        for argument, array in zip(self.session.get_inputs(), arrays):
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array, "cpu", 0)
            self.binding.bind_ortvalue_input(argument.name, value)
            self.values.append(value)
        for output in self.session.get_outputs():
            self.binding.bind_output(output.name, "cpu")

    def run(self):
        self.session.run_with_iobinding(self.binding)

    def outputs(self, arrays):
        names = [argument.name for argument in self.session.get_inputs()]
        return self.session.run(None, dict(zip(names, arrays)))


def spins(package):
    """Whether the time that threads spin can be set in this ONNX Runtime."""
    return tuple(int(part) for part in package.__version__.split(".")[:2]) >= SPINS


class Ncnn(Engine):
    """A network of ncnn: the length of its text in four bytes, the text and the weights."""

    def __init__(self, content, threads, spin, half):
        self.package = ncnn = import_ncnn()
        text = content[4 : 4 + int.from_bytes(content[:4], "big")].decode("utf-8")
        steps = [line.split() for line in text.splitlines()[2:] if line.strip()]
        unknown = sorted({step[0] for step in steps if ncnn.layer_to_index(step[0]) < 0})
        if unknown:
            raise Refused("run", "ncnn %s has no step %s" % (ncnn.__version__, ", ".join(unknown)))
        names = {name for step in steps for name in step[4:] if name.startswith("out") and name[3:].isdigit()}
        self.inputs = [step[4] for step in steps if step[0] == "Input"]
        self.results = sorted(names, key=lambda name: int(name[3:]))
        self.network, self.values = ncnn.Net(), []
        options = self.network.opt
        options.num_threads = threads
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = half
        failed = self.network.load_param_mem(text)
        with in_memory(memoryview(content)[4 + len(text.encode()) :]) as path:
            failed = failed or self.network.load_model(path)  # load_model_mem keeps pointers into memory that is freed
        if failed:
            raise Refused("run", "ncnn %s cannot load what was written for it" % ncnn.__version__)

    @staticmethod
    def load():
        """Batches are new."""
        ncnn = import_ncnn()
        if not hasattr(ncnn.Mat, "batch"):
            raise Refused("old", ncnn.__version__)
        return ncnn.__version__, ""

    def put(self, arrays):
        self.values = [self.package.Mat(array, batch_index=0).clone() for array in arrays]

    def run(self):
        extractor = self.network.create_extractor()
        for name, value in zip(self.inputs, self.values):
            extractor.input(name, value)
        pairs = [extractor.extract(name) for name in self.results]
        if any(failed for failed, _ in pairs):
            raise Refused("run", "ncnn cannot compute a step for inputs of these sizes")
        return [value for _, value in pairs]

    def outputs(self, arrays):
        import numpy

        self.put(arrays)
        return [numpy.stack([numpy.array(value.batch(at)) for at in range(value.n)]) for value in self.run()]


SPIN_COUNT = "20000"
"""Looks of a thread of ncnn's for work before it sleeps, less than a millisecond: it is awake from one step of a
network to the next, which takes as long as by OpenMP's own 300,000; with 500 a network took a fifth longer, and after a
pause five times as long."""


def import_ncnn():
    """The package, whose threads sleep soon while they have no work.

    ncnn brings an OpenMP of its own, whose idle threads by default spin for milliseconds and take their cores from
    others; if they slept at once, waking them would take many times as long as a small network. It reads its
    environment when it is loaded, and never again. Without RTLD_DEEPBIND ncnn would take PyTorch's OpenMP instead,
    where that is loaded.
    """
    before, flags = os.environ.get("GOMP_SPINCOUNT"), sys.getdlopenflags()
    os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
    sys.setdlopenflags(flags | getattr(os, "RTLD_DEEPBIND", 0))
    try:
        import ncnn
    finally:
        sys.setdlopenflags(flags)
        del os.environ["GOMP_SPINCOUNT"]
        if before is not None:
            os.environ["GOMP_SPINCOUNT"] = before
    return ncnn


@contextmanager
def in_memory(content):
    """The path of a file with this content until the end: one that lies in memory only, where the system has those."""
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("htas"), "wb") as file:
            file.write(content)
            file.flush()
            yield "/proc/self/fd/%d" % file.fileno()
    else:
        import tempfile

        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            yield file.name


class LiteRT(Engine):
    """An interpreter of LiteRT."""

    def __init__(self, content, threads, spin, half):
        import ai_edge_litert.interpreter

        self.interpreter = ai_edge_litert.interpreter.Interpreter(model_content=content, num_threads=threads)

    @staticmethod
    def load():
        __import__("ai_edge_litert.interpreter")
        return versions()["ai-edge-litert"], ""

    def put(self, arrays):
        places = self.interpreter.get_input_details()
        for place, array in zip(places, arrays):
            if tuple(place["shape"]) != array.shape:
                self.interpreter.resize_tensor_input(place["index"], array.shape)
        self.interpreter.allocate_tensors()
        for place, array in zip(places, arrays):
            self.interpreter.set_tensor(place["index"], array)

    def run(self):
        self.interpreter.invoke()

    def outputs(self, arrays):
        self.put(arrays)
        self.run()
        return [self.interpreter.get_tensor(place["index"]) for place in self.interpreter.get_output_details()]


class ExecuTorch(Engine):
    """A method of ExecuTorch. Its package is linked against PyTorch, whose tensors it takes."""

    def __init__(self, content, threads, spin, half):
        import executorch.extension.pybindings.portable_lib as library
        import executorch.runtime
        import torch

        if library._threadpool_get_thread_count() != threads:
            library._unsafe_reset_threadpool(threads)
        self.program = executorch.runtime.Runtime.get().load_program(content)  # it holds the bytes
        self.method, self.tensor, self.values = self.program.load_method("forward"), torch.from_numpy, []

    @staticmethod
    def load():
        __import__("executorch.runtime")
        return versions()["executorch"], ""

    def put(self, arrays):
        self.values = [self.tensor(array.copy()) for array in arrays]

    def run(self):
        return self.method.execute(self.values)

    def outputs(self, arrays):
        self.put(arrays)
        return [output.numpy() for output in self.run()]


ENGINES = {"onnxruntime": OnnxRuntime, "ncnn": Ncnn, "litert": LiteRT, "executorch": ExecuTorch}
