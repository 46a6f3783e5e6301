"""Another opset, with what the converter gets wrong put right or refused."""

from __future__ import annotations

import onnx

from patchconv_deploy.rewriters.errors import OptionError
from patchconv_deploy.rewriters.graph.converted import put_right
from patchconv_deploy.rewriters.graph.guarded import Refused, convert_version
from patchconv_deploy.rewriters.graph.model import opset_of

__all__ = ["upgrade"]


def upgrade(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """Convert the default domain's opset; what the converter drops or mistakes is put right.

    Raises:
        OptionError: It cannot be converted, or not so that it computes the same.
    """
    old = opset_of(model)
    if not 1 <= version <= onnx.defs.onnx_opset_version():
        raise OptionError(
            f"upgrade_opset={version}: onnx knows opsets 1 to {onnx.defs.onnx_opset_version()}"
        )
    if model.functions or model.training_info:
        raise OptionError(
            f"upgrade_opset={version}: onnx's converter drops model-local functions and training "
            "information; inline the functions first (onnx.inliner)"
        )
    if version < old:
        raise OptionError(f"upgrade_opset={version}: the model is at {old} already")
    try:
        converted = convert_version(model, version)
    except Refused as error:
        raise OptionError(
            f"upgrade_opset={version}: onnx cannot convert the model from {old}: "
            + " ".join(str(error).split())[:200]
        ) from error
    put_right(converted, model)
    origin = {name: node for node in model.graph.node for name in node.output if name}
    for node in converted.graph.node:
        source = origin.get(node.output[0]) if node.output else None
        if source is not None and source.op_type == node.op_type:
            del node.metadata_props[:]
            node.metadata_props.extend(source.metadata_props)
            node.doc_string = source.doc_string
    del converted.metadata_props[:]
    converted.metadata_props.extend(model.metadata_props)
    return converted
