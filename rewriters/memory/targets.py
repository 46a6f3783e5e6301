"""The engines that memory is predicted for: one record each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property

from rewriters.memory.executed import VIEWS, Allocator, Target
from rewriters.memory.lowering.cleanup import decompose, eliminate_copies
from rewriters.memory.lowering.compiler import inline_pointwise, make_in_place
from rewriters.memory.lowering.folding import fold_into_convolutions, fold_into_products
from rewriters.memory.lowering.fusion import fuse_activations, fuse_swish_and_gelu
from rewriters.memory.lowering.nchwc import to_nchwc
from rewriters.memory.lowering.node import POINTWISE, Lowering
from rewriters.memory.lowering.slices import merge_slices, slice_pieces, split_at_once
from rewriters.memory.processor import channel_block

__all__ = ["ENGINES", "Engine", "sharing"]


@dataclass(frozen=True, eq=False)
class Engine:
    """What an engine makes of a graph, and how it holds the tensors."""

    target: Target
    lowering: Lowering

    @cached_property
    def inner(self) -> Engine:
        """The same for bodies."""
        return replace(
            self, target=replace(self.target, allocator=Allocator.SUM, counts_outputs=True)
        )

    @property
    def in_place(self) -> frozenset[str]:
        """Operators whose result, as a rule, needs no bytes beside those of their first input."""
        return self.target.views | self.target.overwrites.keys() | self.lowering.activations


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
    widened={16: 32},
)


def _onnxruntime(name: str, *, reuse: bool, pattern: bool) -> Engine:
    target = Target(
        name,
        depth_first=True,
        overwrites=_OVERWRITES,
        reuse=reuse,
        pattern=pattern,
        allocator=Allocator.ARENA,
        granule=256,
        counts_inputs=False,
    )
    return Engine(target, _ORT)


ENGINES: Mapping[str, Engine] = {
    "onnxruntime": _onnxruntime("onnxruntime", reuse=True, pattern=True),
    "onnxruntime-tuned": _onnxruntime("onnxruntime-tuned", reuse=False, pattern=False),
    "onnxruntime-server": _onnxruntime("onnxruntime-server", reuse=True, pattern=False),
    "tensorrt": Engine(
        Target(
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
