"""File formats for exported parts: how each is written, loaded and called. A new one is one class in ``BACK_ENDS``."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from wm_gym.errors import ExportError
from wm_gym.export.parts import Part, Tensors
from wm_gym.files import write_bytes_atomically
from wm_gym.precision import without_tf32
from wm_gym.provenance import version_of

_EXAMPLE_SIZE = 3
"""Batch size that parts are exported with: exporters take 1 for a constant."""


class LoadedFile(ABC):
    """A part that can be called: from a file, or as it is.

    Inputs are prepared once and called many times, so that a measurement has the call alone in it.
    """

    @abstractmethod
    def prepare(self, inputs: Tensors) -> Any:
        """Inputs as the back end wants them."""

    @abstractmethod
    def call(self, prepared: Any) -> Any:
        """Compute; returns when the outputs are there."""

    def tensors(self, outputs: Any) -> Tensors:
        """Outputs as tensors on the CPU."""
        return tuple(torch.as_tensor(output).cpu() for output in outputs)

    def __call__(self, inputs: Tensors) -> Tensors:
        """Outputs, on the CPU, for tensors on any device."""
        return self.tensors(self.call(self.prepare(inputs)))


class BackEnd(ABC):
    """A file format and what runs it."""

    suffix: str
    """Of its files."""
    packages: tuple[str, ...]
    """What it needs beyond torch, as distributions and modules; their versions go into the records."""

    @abstractmethod
    def check_available(self, device: torch.device) -> None:
        """Check, before anything is written, that parts on ``device`` can be exported here.

        Raises:
            ExportError: A package or a device is missing.
        """

    @abstractmethod
    def write(self, part: Part, file: Path) -> None:
        """Write a part's file.

        Raises:
            ExportError: The part uses what the format does not have.
        """

    @abstractmethod
    def load(self, part: Part, file: Path, device: torch.device) -> LoadedFile:
        """Load a file that :meth:`write` made, to run on ``device`` with as many threads as torch has."""

    def runs_on(self, device: torch.device) -> str:
        """The device that a loaded file computes on."""
        return str(device)


class LoadedModule(LoadedFile):
    """A module of torch, eager or TorchScript.

    Args:
        module: Takes the inputs in their order and returns a tuple.
        device: Where it is.
    """

    def __init__(self, module: Callable[..., Tensors], device: torch.device) -> None:
        self.module = module
        self.device = device

    def prepare(self, inputs: Tensors) -> Tensors:
        """On the module's device."""
        return tuple(tensor.to(self.device) for tensor in inputs)

    @torch.inference_mode()
    def call(self, prepared: Tensors) -> Tensors:
        """The module's outputs, computed to the end."""
        outputs = self.module(*prepared)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return outputs


class TorchScript(BackEnd):
    """Traced and frozen: parameters become constants. The file computes on the device that it was exported on."""

    suffix = ".pt"
    packages = ()

    def check_available(self, device: torch.device) -> None:
        """It is a part of torch."""

    def write(self, part: Part, file: Path) -> None:
        """Trace, freeze and save."""
        # No random number and no branch depends on the inputs, which is all that a trace would miss.
        with _quiet(), torch.no_grad(), without_tf32():
            traced = torch.jit.trace(part.module, _example(part), check_trace=False)
            # By way of memory: on a full disk torch ends the process.
            content = io.BytesIO()
            torch.jit.save(torch.jit.freeze(traced), content)
        write_bytes_atomically(file, content.getbuffer())

    def load(self, part: Part, file: Path, device: torch.device) -> LoadedFile:
        """Read the file."""
        with _quiet():
            return LoadedModule(torch.jit.load(str(file), map_location=device), device)


class Onnx(BackEnd):
    """ONNX with a dynamic batch size, for ONNX Runtime and whatever else reads ONNX."""

    suffix = ".onnx"
    packages = ("onnx", "onnxscript", "onnxruntime")

    def check_available(self, device: torch.device) -> None:
        """Look for exporter and runtime."""
        _require(self.packages, "onnx", "export")

    def write(self, part: Part, file: Path) -> None:
        """Export by way of ``torch.export``, with the weights inside the file."""
        program = self._program(part)
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # where the exporter's source lay, line by line
        program.model.metadata_props["wm_gym.part"] = part.name
        write_bytes_atomically(file, program.model_proto.SerializeToString())

    def load(self, part: Part, file: Path, device: torch.device) -> LoadedFile:
        """Open an inference session."""
        return _LoadedOnnx(part, _onnx_session(file, self._providers(device)))

    def runs_on(self, device: torch.device) -> str:
        """The processor, unless ONNX Runtime has been built for CUDA."""
        return "cpu" if self._providers(device) == ["CPUExecutionProvider"] else str(device)

    def _providers(self, device: torch.device) -> list[Any]:
        import onnxruntime

        if device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            options = {"device_id": device.index or 0, "use_tf32": 0}
            return [("CUDAExecutionProvider", options), "CPUExecutionProvider"]
        return ["CPUExecutionProvider"]

    def _program(self, part: Part) -> Any:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        batch = torch.export.Dim("batch")
        try:
            # Other kernels of the attention leave their outputs in a memory layout that its decomposition has not.
            with _quiet(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
                return torch.onnx.export(
                    part.module,
                    _example(part),
                    dynamo=True,
                    input_names=[spec.name for spec in part.inputs],
                    output_names=[spec.name for spec in part.outputs],
                    dynamic_shapes=tuple({0: batch} for _ in part.inputs),
                    external_data=False,
                    verbose=False,
                )
        except torch.onnx.OnnxExporterError as error:
            reason = " ".join(str(error.__cause__ or error).split())
            raise ExportError(
                f"{part.name} cannot be written as ONNX with torch {torch.__version__}: {reason[:200]}; use another "
                "version of torch, or --format torchscript."
            ) from error


class _LoadedOnnx(LoadedFile):
    def __init__(self, part: Part, session: Any) -> None:
        self._names = [spec.name for spec in part.inputs]
        self._outputs = [spec.name for spec in part.outputs]
        self._session = session

    def prepare(self, inputs: Tensors) -> dict[str, Any]:
        return {name: tensor.cpu().numpy() for name, tensor in zip(self._names, inputs, strict=True)}

    def call(self, prepared: dict[str, Any]) -> list[Any]:
        outputs: list[Any] = self._session.run(self._outputs, prepared)
        return outputs


def _onnx_session(file: Path, providers: list[Any]) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Threads that spin between calls take the cores from whatever else drives.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(file), options, providers=providers)


class TensorRT(BackEnd):
    """An engine that TensorRT builds from the ONNX file, in float32; for one kind of GPU and one version of TensorRT.

    Args:
        largest_batch: The engine takes batches from 1 to this size, and is tuned for 1.
    """

    suffix = ".engine"
    packages = ("tensorrt", *Onnx.packages)

    def __init__(self, largest_batch: int = 64) -> None:
        self.largest_batch = largest_batch

    def check_available(self, device: torch.device) -> None:
        """Look for a GPU first: the packages are large."""
        if device.type != "cuda":
            raise ExportError(
                f"--format tensorrt needs a CUDA GPU, but the device is {str(device)!r}; export with --device cuda on "
                "a machine that has one, or leave the format out."
            )
        _require(self.packages, "tensorrt", "tensorrt")

    def write(self, part: Part, file: Path) -> None:
        """Build the engine and write it serialised."""
        import tensorrt

        logger = tensorrt.Logger(tensorrt.Logger.ERROR)
        onnx_file = file.with_name(f"{file.name}.onnx")
        try:
            Onnx().write(part, onnx_file)
            content = onnx_file.read_bytes()
        finally:
            onnx_file.unlink(missing_ok=True)
        with torch.cuda.device(next(part.module.parameters()).device):
            builder = tensorrt.Builder(logger)
            network = builder.create_network(0)
            parser = tensorrt.OnnxParser(network, logger)
            if not parser.parse(content):
                reasons = [str(parser.get_error(index)) for index in range(parser.num_errors)]
                raise self._refusal(part, reasons[0] if reasons else "the ONNX file could not be read")
            config = builder.create_builder_config()
            config.clear_flag(tensorrt.BuilderFlag.TF32)  # it would round inputs to 10 bits
            profile = builder.create_optimization_profile()
            for spec in part.inputs:
                smallest, largest = (1, *spec.shape), (self.largest_batch, *spec.shape)
                profile.set_shape(spec.name, smallest, smallest, largest)
            config.add_optimization_profile(profile)
            plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise self._refusal(part, "the engine could not be built")
        file.write_bytes(bytes(plan))

    def load(self, part: Part, file: Path, device: torch.device) -> LoadedFile:
        """Deserialise the engine on the GPU."""
        return _LoadedEngine(part, file, device)

    def _refusal(self, part: Part, reason: str) -> ExportError:
        return ExportError(
            f"TensorRT {version_of('tensorrt')} cannot take {part.name}: {' '.join(reason.split())[:200]}; use "
            "another version of it, or --format onnx."
        )


class _LoadedEngine(LoadedFile):
    def __init__(self, part: Part, file: Path, device: torch.device) -> None:
        import tensorrt

        self._part = part
        self._device = device
        with torch.cuda.device(device):
            # The runtime has to live as long as its engine.
            self._runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
            self._engine = self._runtime.deserialize_cuda_engine(file.read_bytes())
            if self._engine is None:
                raise ExportError(f"TensorRT cannot load the {part.name} engine that it has just built; see its log.")
            self._context = self._engine.create_execution_context()
            self._stream = torch.cuda.Stream(device)
        # Inputs on which no output depends are no part of an engine.
        self._names = {self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)}

    def prepare(self, inputs: Tensors) -> tuple[Tensors, Tensors]:
        """Inputs and room for the outputs, on the GPU."""
        given = tuple(tensor.to(self._device).contiguous() for tensor in inputs)
        size = given[0].shape[0]
        room = tuple(
            torch.empty((size, *spec.shape), dtype=spec.dtype, device=self._device) for spec in self._part.outputs
        )
        torch.cuda.synchronize(self._device)
        return given, room

    def call(self, prepared: tuple[Tensors, Tensors]) -> Tensors:
        """Run on a stream of its own and wait."""
        given, room = prepared
        for spec, tensor in zip(self._part.inputs, given, strict=True):
            if spec.name in self._names:
                self._context.set_input_shape(spec.name, tuple(tensor.shape))
                self._context.set_tensor_address(spec.name, tensor.data_ptr())
        for spec, tensor in zip(self._part.outputs, room, strict=True):
            self._context.set_tensor_address(spec.name, tensor.data_ptr())
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise ExportError(f"TensorRT failed to run {self._part.name}; see its log.")
        self._stream.synchronize()
        return room


BACK_ENDS: dict[str, BackEnd] = {
    "torchscript": TorchScript(),
    "onnx": Onnx(),
    "tensorrt": TensorRT(),
    "web": Onnx(),
}
"""Name of a ``--format`` to back end; :mod:`web` adds a page to the files of ``web``."""


def versions_of(back_end: BackEnd) -> dict[str, str]:
    """Versions of the packages that a back end needs."""
    versions = {package: version_of(package) for package in back_end.packages}
    return {package: version for package, version in versions.items() if version is not None}


def _require(modules: tuple[str, ...], name: str, extra: str) -> None:
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ExportError(
                f"--format {name} needs {module}, which cannot be imported ({error}); "
                f"pip install 'wm_gym[{extra}]', or leave the format out."
            ) from error


def _example(part: Part) -> Tensors:
    with torch.no_grad():
        return part.draw_inputs(_EXAMPLE_SIZE, torch.Generator().manual_seed(0))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' own warnings: what matters of them, the check finds."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
