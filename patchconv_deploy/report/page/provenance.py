"""Whether a rewritten file was made of a model, as far as can be told.

A rewritten file holds its plan. The plan is applied to the model anew, at the sizes and the opset
that the file has; what comes out is compared with the file, node for node and weight for weight.
Where the plan does not even fit, the file is refused. One without a plan may be the model as it
was: what patchconv-rewrite writes where a budget is kept already, or nothing gains.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from patchconv_deploy.errors import UsageError
from patchconv_deploy.rewriters.errors import OptionError
from patchconv_deploy.rewriters.graph.external_data import is_external, tensors
from patchconv_deploy.rewriters.graph.fixed_shapes import fix_shapes, free_inputs
from patchconv_deploy.rewriters.graph.model import Loaded, load, opset_of
from patchconv_deploy.rewriters.graph.shapes import has_shape, known_size, required_inputs
from patchconv_deploy.rewriters.graph.skeleton import skeleton
from patchconv_deploy.rewriters.memory.targets import TARGETS
from patchconv_deploy.rewriters.operators.record import Shape
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.planning.plan_file import METADATA_KEY, read_plan
from patchconv_deploy.rewriters.rewrite import rewrite_model

__all__ = ["Remade", "remake"]


@dataclass(frozen=True)
class Remade:
    """A rewrite that was done again by the plan in its file.

    Attributes:
        outcome: What it does to the model.
        options: What it was asked for.
        sizes: Sizes of inputs that the file has in part alone, None for those that are free.
        doubt: What is different in the file, empty if nothing is.
        left: The file is the model as it was, and has no plan.
    """

    outcome: Outcome
    options: Options
    sizes: Mapping[str, Shape]
    doubt: str
    left: bool = False


def remake(source: Path, patched: Path, given: Options) -> Remade:
    """Do a rewrite again, by the plan that its file holds.

    Args:
        source: The original model's file.
        patched: The rewritten model's file.
        given: Sizes to predict at, where the file leaves any free; the rest is not looked at.

    Raises:
        UsageError: The file holds no plan and is not the model as it was, or was not made of that
            model.
        ModelError: A file is no model.
    """
    made = load(patched)
    text = next((e.value for e in made.model.metadata_props if e.key == METADATA_KEY), None)
    original = load(source)
    if any(entry.key == METADATA_KEY for entry in original.model.metadata_props):
        raise UsageError(f"{source}: was rewritten itself; name the model that it was made of")
    if text is None:
        left = _left_as_it_was(source, original, made, given)
        if left is None:
            raise UsageError(
                f"{patched}: holds no plan, and is not {source} as it was; name a file that "
                "patchconv-rewrite wrote"
            )
        return left
    try:
        plan = read_plan(text)
    except OptionError as error:
        raise UsageError(f"{patched}: the plan it holds cannot be read ({error})") from error
    _check_interface(source, patched, original.model, made.model)
    asked, sizes = _prepared(original.model, made.model, given)
    options = replace(asked, plan=plan, axis=plan["axis"], target=_target(text))
    tries: list[Remade] = []
    for fold in (True, False):
        asked = replace(options, fold=fold)
        outcome = _again(source, patched, sizes, asked)
        different = _difference(Loaded(outcome.model, original.folder), made)
        tries.append(Remade(outcome, asked, sizes, _said(different)))
        if not different:
            return tries[-1]
    return tries[0]


def _prepared(
    original: onnx.ModelProto, made: onnx.ModelProto, given: Options
) -> tuple[Options, dict[str, Shape]]:
    """Return options that bring a model to a file's sizes and opset, and sizes it has in part."""
    opset = opset_of(made)
    whole, sizes = _sizes(original, made)
    if given.shapes or given.ranges:
        whole, sizes = {}, {}
    upgrade = None if opset == opset_of(original) else opset
    return replace(given, shapes={**given.shapes, **whole}, upgrade_opset=upgrade), sizes


def _left_as_it_was(source: Path, original: Loaded, made: Loaded, given: Options) -> Remade | None:
    """Return a rewrite that cut nothing, None where the file is not what it gives.

    Why nothing was cut the file does not say.
    """
    asked, sizes = _prepared(original.model, made.model, given)
    loaded = load(source)
    try:
        fix_shapes(loaded.model, sizes)
        outcome = rewrite_model(loaded, replace(asked, splits=1))
    except OptionError:
        return None
    if outcome.rewritten or _difference(Loaded(outcome.model, original.folder), made):
        return None
    refused = tuple(
        replace(each, reason="the file has it as it was") if each.code == "no-gain" else each
        for each in outcome.refused
    )
    return Remade(replace(outcome, refused=refused), asked, sizes, "", left=True)


def _said(different: str) -> str:
    if not different:
        return ""
    return (
        f"the plan in the file fits the model, but {different}: it was written by another version, "
        "or changed since"
    )


def _target(text: str) -> str:
    """Return the target that a plan was made for; plans did not always say."""
    target = json.loads(text).get("target")
    return target if isinstance(target, str) and target in TARGETS else "onnxruntime"


def _again(source: Path, patched: Path, sizes: Mapping[str, Shape], options: Options) -> Outcome:
    loaded = load(source)
    try:
        fix_shapes(loaded.model, sizes)
        return rewrite_model(loaded, options)
    except OptionError as error:
        raise UsageError(f"{patched}: was not made of {source} ({error})") from error


def _sizes(
    original: onnx.ModelProto, made: onnx.ModelProto
) -> tuple[dict[str, tuple[int, ...]], dict[str, Shape]]:
    """Return the sizes that a file has and its original leaves free: of whole inputs, and others.

    None stands for a size that the file leaves free, too.
    """
    free, whole, partly = free_inputs(original), {}, {}
    for value in required_inputs(made):
        if value.name not in free or not has_shape(value):
            continue
        shape = tuple(known_size(dim) for dim in value.type.tensor_type.shape.dim)
        known = tuple(size for size in shape if size is not None)
        if len(known) == len(shape):
            whole[value.name] = known
        elif shape != free[value.name]:
            partly[value.name] = shape
    return whole, partly


def _check_interface(
    source: Path, patched: Path, original: onnx.ModelProto, made: onnx.ModelProto
) -> None:
    """Refuse a file whose inputs or outputs have other names or types than the model's."""
    for what, pair in (
        ("inputs", (required_inputs(original), required_inputs(made))),
        ("outputs", (original.graph.output, made.graph.output)),
    ):
        own, other = ({v.name: v.type.tensor_type.elem_type for v in values} for values in pair)
        if own != other:
            raise UsageError(
                f"{patched}: was not made of {source}: its {what} are {_named(other)}, not "
                f"{_named(own)}"
            )


def _named(values: Mapping[str, int]) -> str:
    return ", ".join(map(repr, values)) or "none"


def _difference(again: Loaded, made: Loaded) -> str:
    """Return what is different in a file and in what a rewrite gives, empty if nothing is."""
    nodes = [
        [node.SerializeToString(deterministic=True) for node in model.graph.node]
        for model in map(skeleton, (again, made))
    ]
    if nodes[0] != nodes[1]:
        return "rewriting the model by it gives other nodes"
    if _input_sizes(again.model) != _input_sizes(made.model):
        return "rewriting the model by it gives inputs of other sizes"
    weights = [_weights(model) for model in (again.model, made.model)]
    if weights[0].keys() != weights[1].keys():
        return "rewriting the model by it gives other weights"
    changed = [name for name, value in weights[0].items() if not _same(value, weights[1][name])]
    return f"{len(changed)} weights are not the model's" if changed else ""


def _input_sizes(model: onnx.ModelProto) -> list[list[int | None]]:
    """Return the sizes of every input, None for a free one."""
    shapes = [value.type.tensor_type.shape for value in required_inputs(model)]
    return [[known_size(dim) for dim in shape.dim] for shape in shapes]


def _weights(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in tensors(model) if tensor.name}


def _same(ours: onnx.TensorProto, theirs: onnx.TensorProto) -> bool:
    """Tell whether two weights are the same; of those in other files types and shapes alone."""
    if (ours.data_type, list(ours.dims)) != (theirs.data_type, list(theirs.dims)):
        return False
    if is_external(ours) or is_external(theirs):
        return True
    return ours.SerializeToString(deterministic=True) == theirs.SerializeToString(
        deterministic=True
    )
