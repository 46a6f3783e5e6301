"""What memory is predicted for: the engines, and the targets that a user names. One record each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property

from patchconv_deploy.rewriters.memory.executed import VIEWS, Allocator, Holding
from patchconv_deploy.rewriters.memory.lowering.cleanup import decompose, eliminate_copies
from patchconv_deploy.rewriters.memory.lowering.compiler import inline_pointwise, make_in_place
from patchconv_deploy.rewriters.memory.lowering.folding import (
    fold_into_convolutions,
    fold_into_products,
)
from patchconv_deploy.rewriters.memory.lowering.fusion import fuse_activations, fuse_swish_and_gelu
from patchconv_deploy.rewriters.memory.lowering.nchwc import to_nchwc
from patchconv_deploy.rewriters.memory.lowering.node import POINTWISE, Lowering
from patchconv_deploy.rewriters.memory.lowering.slices import (
    merge_slices,
    slice_pieces,
    split_at_once,
)
from patchconv_deploy.rewriters.memory.processor import channel_block

__all__ = ["ENGINES", "TARGETS", "Engine", "Target", "sharing"]


@dataclass(frozen=True, eq=False)
class Engine:
    """What an engine makes of a graph, and how it holds the tensors."""

    holding: Holding
    lowering: Lowering

    @cached_property
    def inner(self) -> Engine:
        """The same for bodies."""
        return replace(
            self, holding=replace(self.holding, allocator=Allocator.SUM, counts_outputs=True)
        )

    @property
    def in_place(self) -> frozenset[str]:
        """Operators whose result, as a rule, needs no bytes beside those of their first input."""
        return self.holding.views | self.holding.overwrites.keys() | self.lowering.activations


# Kernels that may write over their first input (ONNX Runtime's MayInplace), and the Convs that add
# their fourth input to the result in place. Add, Mul and most others are not among them.
_OVERWRITES: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("Relu", "LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu"), (0,)),
    **dict.fromkeys(("Sigmoid", "HardSigmoid", "Tanh", "Softplus", "Softsign", "Clip"), (0,)),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Cast"), (0,)),
    **dict.fromkeys(("nchwc:Conv", "FusedConv"), (3,)),
}

_ORT = Lowering(
    passes=(
        eliminate_copies,
        decompose,
        split_at_once,
        fold_into_convolutions,
        fold_into_products,
        fuse_swish_and_gelu,
        fuse_activations,
        to_nchwc,
    ),
    activations=frozenset(
        {"Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Clip"}
    ),
    block=channel_block(),
    packed={"MatMul": 1, "Gemm": 1, "ConvTranspose": 1},
    arena_packed=frozenset({"ConvTranspose"}),
    widened={16: 32},
)


def _onnxruntime(name: str, *, reuse: bool, pattern: bool) -> Engine:
    holding = Holding(
        name,
        depth_first=True,
        overwrites=_OVERWRITES,
        reuse=reuse,
        pattern=pattern,
        allocator=Allocator.ARENA,
        granule=256,
        counts_inputs=False,
    )
    return Engine(holding, _ORT)


ENGINES: Mapping[str, Engine] = {
    "onnxruntime": _onnxruntime("onnxruntime", reuse=True, pattern=True),
    "onnxruntime-tuned": _onnxruntime("onnxruntime-tuned", reuse=False, pattern=False),
    "onnxruntime-server": _onnxruntime("onnxruntime-server", reuse=True, pattern=False),
    "tensorrt": Engine(
        Holding(
            "tensorrt",
            granule=512,
            views=VIEWS | {"Split"},
            overwrites=dict.fromkeys(POINTWISE, tuple(range(8))),
            counts_inputs=False,
            counts_outputs=False,
        ),
        Lowering(
            passes=(
                eliminate_copies,
                fold_into_convolutions,
                inline_pointwise,
                slice_pieces,
                merge_slices,
                make_in_place,
            ),
            compiler=True,
            workspaces=dict.fromkeys(("Conv", "ConvTranspose"), 8192000),
            shares=True,
        ),
    ),
}

# The same where clones of a Conv are folded once beforehand (`emission.conv_folding`).
_ORT_SHARING = replace(_ORT, shares=True)


@cache
def sharing(engine: Engine) -> Engine:
    """Return an engine for files in which clones of a Conv are folded once beforehand."""
    return replace(engine, lowering=_ORT_SHARING) if engine.lowering is _ORT else engine


@dataclass(frozen=True, slots=True)
class Target:
    """What a plan is made for, as a user names it.

    Attributes:
        engine: The engine that memory is predicted for, a key of `ENGINES`.
        beside: Another one whose figures are shown beside it, empty for none.
        session_options: What a rewritten model recommends to be run under; none where it runs as
            it does anyway.
        most_elements: Most elements of a tensor that its convolutions take, None for any number.
    """

    engine: str
    beside: str = ""
    session_options: Mapping[str, bool] = field(default_factory=dict)
    most_elements: int | None = None


TARGETS: Mapping[str, Target] = {
    # At the session options that are recommended; the usual ones are shown beside.
    "onnxruntime": Target(
        "onnxruntime-tuned",
        beside="onnxruntime",
        session_options={"enable_mem_reuse": False, "enable_mem_pattern": False},
    ),
    "onnxruntime-default": Target("onnxruntime"),
    # Triton's backend reads enable_mem_arena and enable_mem_pattern, and nothing of reuse.
    "triton": Target(
        "onnxruntime-server",
        session_options={"enable_mem_reuse": True, "enable_mem_pattern": False},
    ),
    # TensorRT's convolutions take no tensor of more elements (NVIDIA/TensorRT#4123).
    "tensorrt": Target("tensorrt", most_elements=2**31 - 1),
}
