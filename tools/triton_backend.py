"""ONNX Runtime as a Python-based backend of Triton; `tools/serve.py` installs it for a server.

It stands in for Triton's own ONNX Runtime backend on a machine without a GPU: it refuses what that
one refuses (names, types, ranks and sizes held against the session's), takes the same memory
parameters, runs the requests of an execution as one batch, and serves what the session answers.
Not copied: sequence batching, ragged batches, and execution on a GPU.

Source: the checks of triton-inference-server/onnxruntime_backend; the API of python_backend.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
    "tensor(bfloat16)": "TYPE_BF16",
}
_LEVELS = {
    0: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


def _refuse(message: str) -> Exception:
    refusal: Exception = pb_utils.TritonModelException(message)
    return refusal


def _parameter(config: dict[str, Any], name: str) -> str | None:
    found = config.get("parameters", {}).get(name)
    return None if found is None else found["string_value"]


def _flag(config: dict[str, Any], name: str) -> bool | None:
    text = _parameter(config, name)
    if text is None:
        return None
    if text.lower() not in ("true", "1", "false", "0"):
        raise _refuse(f"failed to convert '{text}' to boolean value (parameter {name})")
    return text.lower() in ("true", "1")


def _number(config: dict[str, Any], name: str, default: int) -> int:
    text = _parameter(config, name)
    try:
        return default if text is None else int(text)
    except ValueError:
        raise _refuse(f"failed to convert '{text}' to integral number (parameter {name})") from None


def session_options(config: dict[str, Any]) -> ort.SessionOptions:
    """Return the session options a configuration asks for."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    options.graph_optimization_level = _LEVELS.get(level, _LEVELS[0])
    mode = _number(config, "execution_mode", 0)
    if mode not in (0, 1):
        raise _refuse(f"Expected values for execution_mode are 0 or 1 but got {mode}")
    options.execution_mode = (
        ort.ExecutionMode.ORT_PARALLEL if mode else ort.ExecutionMode.ORT_SEQUENTIAL
    )
    options.intra_op_num_threads = max(0, _number(config, "intra_op_thread_count", 0))
    options.inter_op_num_threads = max(0, _number(config, "inter_op_thread_count", 0))
    arena, pattern = _flag(config, "enable_mem_arena"), _flag(config, "enable_mem_pattern")
    if arena is not None:
        options.enable_cpu_mem_arena = arena
    if pattern is not None:
        options.enable_mem_pattern = pattern
    return options


def _sizes(shape: Any) -> list[int]:
    return [size if isinstance(size, int) else -1 for size in shape]


def _check_shape(
    name: str, model: list[int], entry: dict[str, Any], batch: int, exact: bool
) -> None:
    """Hold the dims of the configuration against the session's."""
    reshape = entry.get("reshape")
    shape = entry["dims"] if reshape is None else reshape.get("shape", [])
    dims = [int(size) for size in shape]
    if not model:
        if any(size != 1 for size in dims):
            raise _refuse(
                f"scalar tensor '{name}' should only provide 1 in the model configuration"
            )
        return
    if batch > 0:
        if model[0] != -1:
            raise _refuse(
                f"tensor '{name}': for the model to support batching the first dimension must be "
                f"-1; but shape expected by the model is {model}"
            )
        dims = [-1, *dims]
    same = len(model) == len(dims) and all(
        want == have or (want == -1 and not exact) for want, have in zip(model, dims, strict=True)
    )
    if not same:
        raise _refuse(
            f"tensor '{name}': the model expects shape {model} but the model configuration "
            f"specifies {dims}"
        )


class TritonPythonModel:
    """One instance of a model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the session and hold the configuration against it."""
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        file = folder / (config.get("default_model_filename") or "model.onnx")
        if file.is_dir():
            file /= "model.onnx"
        if not file.exists():
            raise _refuse(f"unable to find '{file}' for model instance")
        self.batch = int(config.get("max_batch_size", 0))
        try:
            self.session = ort.InferenceSession(
                str(file), session_options(config), providers=["CPUExecutionProvider"]
            )
        except pb_utils.TritonModelException:
            raise
        except Exception as error:
            raise _refuse(f"onnx runtime error: {error}") from error
        self.run_options = ort.RunOptions()
        shrink = _parameter(config, "memory.enable_memory_arena_shrinkage")
        if shrink is not None:
            self.run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", shrink)
        self._check(config)
        self.outputs = [entry["name"] for entry in config["output"]]
        self.strings = {e["name"] for e in config["output"] if e["data_type"] == "TYPE_STRING"}
        self.scalars = {
            o.name: [int(d) for d in e["dims"]]
            for o in self.session.get_outputs()
            for e in config["output"]
            if e["name"] == o.name and not o.shape
        }

    def _check(self, config: dict[str, Any]) -> None:
        inputs = {value.name: value for value in self.session.get_inputs()}
        required = [e for e in config["input"] if not e.get("optional", False)]
        if len(required) != len(inputs):
            raise _refuse(
                f"configuration expects {len(required)} inputs, model provides {len(inputs)}"
            )
        inputs |= {value.name: value for value in self.session.get_overridable_initializers()}
        outputs = {value.name: value for value in self.session.get_outputs()}
        for kind, entries, values in (
            ("input", config["input"], inputs),
            ("output", config["output"], outputs),
        ):
            for entry in entries:
                name = entry["name"]
                if entry.get("optional", False) and self.batch:
                    raise _refuse(
                        f"optional input '{name}' is not supported for models that support batching"
                    )
                if name not in values:
                    allowed = ", ".join(sorted(values))
                    raise _refuse(
                        f"unexpected inference {kind} '{name}', allowed {kind}s are: {allowed}"
                    )
                provided = _TYPES.get(values[name].type, values[name].type)
                if provided != entry["data_type"]:
                    raise _refuse(
                        f"configuration expects datatype {entry['data_type']} for {kind} "
                        f"'{name}', model provides {provided}"
                    )
                shape = _sizes(values[name].shape)
                _check_shape(name, shape, entry, self.batch, exact=kind == "output")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run the requests of one execution: as one batch, or one by one without batching."""
        if not self.batch:
            return [self._run([request])[0] for request in requests]
        return self._run(requests)

    def _run(self, requests: list[Any]) -> list[Any]:
        feeds = [{t.name(): self._array(t) for t in request.inputs()} for request in requests]
        try:
            together = {
                name: np.concatenate([feed[name] for feed in feeds]) if len(feeds) > 1 else array
                for name, array in feeds[0].items()
            }
            arrays = self.session.run(self.outputs, together, self.run_options)
        except Exception as error:  # noqa: BLE001 - whatever fails is the answer to the request
            failed = pb_utils.TritonError(f"onnx runtime error: {error}")
            return [pb_utils.InferenceResponse([], failed) for _ in requests]
        results = []
        at = 0
        for request, feed in zip(requests, feeds, strict=True):
            size = len(next(iter(feed.values()))) if self.batch else 0
            wanted = set(request.requested_output_names())
            tensors = [
                self._tensor(name, array[at : at + size] if self.batch else array)
                for name, array in zip(self.outputs, arrays, strict=True)
                if name in wanted
            ]
            results.append(pb_utils.InferenceResponse(tensors))
            at += size
        return results

    @staticmethod
    def _array(tensor: Any) -> Any:
        array = tensor.as_numpy()
        if array.dtype != np.object_:
            return array
        texts = [text.decode("utf-8") for text in array.ravel()]
        return np.array(texts, dtype=object).reshape(array.shape)

    def _tensor(self, name: str, array: Any) -> Any:
        array = np.asarray(array)
        if name in self.strings:
            texts = [str(text).encode() for text in array.ravel()]
            array = np.array(texts, dtype=object).reshape(array.shape)
        if name in self.scalars and array.ndim == 0:
            array = array.reshape(self.scalars[name])
        return pb_utils.Tensor(name, np.ascontiguousarray(array))
