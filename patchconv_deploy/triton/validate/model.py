"""What a server would refuse in a model beside its configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from patchconv_deploy.engines.ort.signature import Runtime
from patchconv_deploy.errors import UsageError
from patchconv_deploy.rewriters.errors import RewriterError
from patchconv_deploy.triton.schema import schema
from patchconv_deploy.triton.signature import Signature, Tensor, read_signature
from patchconv_deploy.triton.validate.config import parameter_problems, warmup_problems
from patchconv_deploy.triton.validate.finding import text

__all__ = ["onnx_problems"]


def onnx_problems(config: Any, file: Path, opener: Runtime) -> Iterator[str]:
    """Yield what ONNX Runtime's view of a file and its configuration disagree on."""
    try:
        signature = read_signature(file, opener)
    except (RewriterError, UsageError) as error:
        yield str(error).removeprefix(f"{file}: ")
        return
    yield from model_problems(config, signature)


def model_problems(config: Any, signature: Signature) -> Iterator[str]:
    """Yield what the ONNX Runtime backend refuses in a configuration for a model."""
    required = [entry for entry in config.input if not entry.optional]
    fed = {name for entry in config.batch_input for name in entry.target_name}
    fed |= {control.name for control in config.sequence_batching.control_input}
    fed |= {state.input_name for state in config.sequence_batching.state}
    taken = {tensor.name for tensor in signature.inputs} - fed
    if len(required) != len(taken):
        missing = sorted(taken - {entry.name for entry in required})
        extra = sorted({entry.name for entry in required} - taken)
        if missing:
            yield f"the model also takes {', '.join(map(repr, missing))}; add it to input"
        elif extra:
            yield (
                f"{', '.join(map(repr, extra))} is no required input of the model; take it out of "
                "input"
            )
        else:
            names = [entry.name for entry in required]
            twice = next((name for name in names if names.count(name) > 1), "")
            yield f"input {twice!r} is listed twice; list it once"
    inputs = {tensor.name: tensor for tensor in (*signature.inputs, *signature.overridable)}
    outputs = {tensor.name: tensor for tensor in signature.outputs}
    for entry in config.input:
        if entry.optional and config.max_batch_size:
            yield (
                f"input {entry.name!r}: optional inputs need max_batch_size 0; leave the input "
                "out, or batching"
            )
        yield from _tensor_problems("input", entry, inputs, config, exact=False)
    scattered = {name for entry in config.batch_output for name in entry.target_name}
    for entry in config.output:
        exact = signature.from_runtime
        yield from _tensor_problems(
            "output", entry, outputs, config, exact=exact, shaped=entry.name not in scattered
        )
    if not config.output:
        yield "no output is listed; list those of the model to serve"
    yield from parameter_problems(config)
    yield from warmup_problems(config, signature)


def _tensor_problems(
    kind: str,
    entry: Any,
    known: Mapping[str, Tensor],
    config: Any,
    *,
    exact: bool,
    shaped: bool = True,
) -> Iterator[str]:
    what = f"{kind} {entry.name!r}"
    tensor = known.get(entry.name)
    if tensor is None:
        names = ", ".join(map(repr, sorted(known))) or "none"
        yield f"{what} is not in the model; its {kind}s are {names}"
        return
    given = schema().DataType.Name(entry.data_type)
    if given != tensor.data_type:
        yield f"{what} is {given}, in the model {tensor.data_type}; change data_type"
    if not shaped:
        return
    dims = list(entry.reshape.shape if entry.HasField("reshape") else entry.dims)
    ragged = kind == "input" and entry.allow_ragged_batch
    if ragged:
        if tensor.dims != (-1,):
            yield f"{what}: allow_ragged_batch needs shape [-1] in the model, it is {text(tensor)}"
        return
    if not tensor.dims:
        if any(size != 1 for size in dims):
            yield f"{what} is a scalar in the model; its dims must be [ 1 ], not {dims}"
        return
    if config.max_batch_size and tensor.dims[0] != -1:
        yield (
            f"{what}: max_batch_size is {config.max_batch_size}, but the first dimension of the "
            f"model's shape {text(tensor)} is fixed; set max_batch_size: 0 and give all dims, or "
            "export the model with a free batch"
        )
        return
    full = [-1, *dims] if config.max_batch_size else dims
    same = len(full) == len(tensor.dims) and all(
        have == want or (want == -1 and not exact)
        for have, want in zip(full, tensor.dims, strict=True)
    )
    if not same:
        right = list(tensor.dims[1:] if config.max_batch_size else tensor.dims)
        batch = "the batch and " if config.max_batch_size else ""
        yield (
            f"{what}: the model's shape is {text(tensor)}, the configuration says {batch}{dims}; "
            f"set dims: {right}" + ("" if right else " by dims: [ 1 ] and reshape: { shape: [ ] }")
        )
