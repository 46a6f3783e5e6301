"""What ONNX Runtime does while it loads a model, as far as the memory model counts with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import pytest

from patchconv_deploy.rewriters.graph.inference import infer
from patchconv_deploy.rewriters.memory.executed import ExecutedNode
from patchconv_deploy.rewriters.memory.peak import Weights, peak
from patchconv_deploy.rewriters.memory.reader import read
from patchconv_deploy.rewriters.memory.targets import ENGINES
from tests.support.oracle import ort_session
from tests.support.small_models import model, node, noise

MIB = 1 << 20

TUNED = ENGINES["onnxruntime-tuned"]

# Loads a model and prints the bytes of every region that its arena takes from the system.
REGIONS = """
import sys
import onnxruntime
onnxruntime.set_default_logger_severity(0)
options = onnxruntime.SessionOptions()
options.log_severity_level = 0
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""


def folded(op_type: str, constant: tuple[int, ...], *, first: bool, axes: int) -> tuple[bool, bool]:
    """Tell whether a constant behind a Conv is folded: by ONNX Runtime, and by the memory model."""
    reads = "k c" if first else "c k"
    made = model(
        [
            node("Conv", "x w", "c", name="conv", pads=[1, 1] * axes),
            node(op_type, reads, "m", name="affine"),
            node("Sin", "m", "y", name="sin"),
        ],
        {"x": (1, 4, *(8,) * axes)},
        {"y": (1, 8, *(8,) * axes)},
        {"w": noise(8, 4, *(3,) * axes), "k": np.full(constant, 1.5, np.float32)},
    )
    run = read(made.graph, infer(made)).lowered(TUNED)
    # What is not folded may become a Conv of its own in the blocked layout.
    real = optimised(made)
    return (
        op_type not in real and real.count("Conv") == 1,
        op_type not in {each.op_type.rpartition(":")[2] for each in run.nodes},
    )


def optimised(made: onnx.ModelProto) -> list[str]:
    """Return the operators that ONNX Runtime is left with."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        ort_session(made, optimised_path=str(path))
        return [each.op_type for each in onnx.load(path).graph.node]


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("op_type", ["Mul", "Add"])
def test_what_is_folded_into_a_conv(op_type: str, axes: int) -> None:
    """Whole channels as second operand; one number has no dimension. Both kinds are seen here."""
    ones = (1,) * axes
    found = set()
    for constant in ((), (1,), (1, *ones), (1, 1, *ones), (8, *ones), (1, 8, *ones)):
        for first in (False, True):
            real, ours = folded(op_type, constant, first=first, axes=axes)
            assert real == ours, (constant, first)
            found.add(real)
    assert found == {True, False}


def up(copies: int) -> onnx.ModelProto:
    """Make ConvTransposes of one weight of 1 MiB."""
    nodes = []
    for number in range(copies):
        nodes += [
            node("Mul", f"x k{number}", f"m{number}", name=f"mul{number}"),
            node("ConvTranspose", f"m{number} w", f"y{number}", name=f"up{number}"),
        ]
    weights = {f"k{number}": np.array(number + 2, np.float32) for number in range(copies)}
    return model(
        nodes,
        {"x": (1, 256, 8, 8)},
        {f"y{number}": (1, 64, 18, 18) for number in range(copies)},
        {"w": noise(256, 64, 4, 4), **weights},
    )


def product() -> onnx.ModelProto:
    """Make a MatMul by 1 MiB."""
    nodes = [node("MatMul", "x w", "y", name="product")]
    return model(nodes, {"x": (8, 512)}, {"y": (8, 512)}, {"w": noise(512, 512)})


@pytest.mark.parametrize(
    ("made", "regions"), [(up(1), [MIB]), (up(2), [MIB, 2 * MIB]), (product(), [])]
)
def test_what_is_packed_in_the_arena(
    made: onnx.ModelProto, regions: list[int], tmp_path: Path
) -> None:
    """Kernels of ConvTranspose are packed in it, once for each node; those of MatMul beside it."""
    onnx.save(made, tmp_path / "m.onnx")
    run = subprocess.run(
        [sys.executable, "-c", REGIONS, tmp_path / "m.onnx"],
        capture_output=True,
        text=True,
        check=True,
    )
    words = (run.stdout + run.stderr).split("Extended allocation by ")[1:]
    assert [int(each.split()[0]) for each in words] == regions
    weights = read(made.graph, infer(made)).lowered(TUNED).weights
    assert [size for _, size in weights.from_arena] == [MIB] * len(regions)
    assert weights.packed == MIB
    assert weights.beside == (0 if regions else MIB)


def test_small_tensors_lie_in_the_first_region() -> None:
    """A small one that is held splits what a large one needs, unless loading left room for it."""
    nodes = [
        ExecutedNode("a", "Conv", ("x",), ("a",)),
        ExecutedNode("small", "Conv", ("a",), ("s",)),
        ExecutedNode("b", "Conv", ("s",), ("b",)),
        ExecutedNode("end", "Conv", ("b", "s"), ("y",)),
    ]
    sizes = {"x": 0, "a": 8 * MIB, "s": 1024, "b": 8 * MIB, "y": 1024}
    plain, packed = (
        peak(
            nodes,
            sizes,
            inputs=["x"],
            outputs=["y"],
            target=TUNED.holding,
            weights=Weights(packed=size, from_arena=(("w", size),) if size else ()),
        )
        for size in (0, 2048)
    )
    assert plain.touched >= 16 * MIB
    assert packed.touched == 8 * MIB + 2048 + 2 * 1024
    assert packed.bytes == plain.bytes + 2048


def test_a_session_keeps_something_for_every_node() -> None:
    """Twice the nodes take as much more as they are, and no weight of it."""
    few, many = (read(made.graph, infer(made)).peak(TUNED).weights for made in (up(1), up(9)))
    assert many.held == few.held + 8 * 4
    assert many.session - few.session == 16 * 4096
    assert few.session > 6 * MIB
