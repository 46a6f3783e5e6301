"""Cases that the onnx package brings for its backends, without making those nobody asks for."""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections.abc import Iterable
from pathlib import Path

from onnx.backend.test.case import node
from onnx.backend.test.case.test_case import TestCase

__all__ = ["node_cases"]


def node_cases(operators: Iterable[str]) -> list[TestCase]:
    """Return the node cases of the files of onnx in which one of the operators is named.

    A file makes all its cases, with their outputs, when it is imported. Those of pooling alone
    compute for ten seconds, which every process that collects tests would wait for.

    Args:
        operators: Names as they stand in a node, "Conv"; "CausalConvWithState" counts as well,
            which is written out in Convs.

    Returns:
        Cases, some of which have none of these operators: others of the same files, and of files
        that were imported before.
    """
    names = tuple(operators)
    for module in pkgutil.iter_modules(node.__path__):
        if module.ispkg:
            continue  # of another domain, "ai.onnx.ml"
        text = Path(node.__path__[0], f"{module.name}.py").read_text(encoding="utf-8")
        if any(name in text for name in names):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # some divide by zero on purpose
                importlib.import_module(f"{node.__name__}.{module.name}")
    return list(node._NodeTestCases)
