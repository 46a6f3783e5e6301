"""What an engine makes of a graph before it runs it: nodes folded, fused and laid out anew.

    drop      nodes that copy nothing (Identity, Dropout, Cast to the same type) and constants
    fold      BatchNormalization, a constant Mul or Add, and zero Pad into the Conv beside them
    fuse      x * Sigmoid(x), Gelu and HardSwish spelled out; an activation into its Conv
    block     ONNX Runtime's blocked channel layout: Convs and what stands between them, with a copy
              where the layout begins and ends

Which operators a pass takes is data: a `Lowering`. The result are the steps of `rewriters.memory`
with the sizes of the tensors in the layouts they really have. Only what changes memory is modelled.

Steps stand in the order in which ONNX Runtime numbers its nodes: those of the file first, made ones
behind, since its execution order goes by that number.

Source: ONNX Runtime's optimised graphs (``optimized_model_filepath``) and their public sources,
version 1.32; measured operator by operator (``tools/calibrate_memory.py``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from math import prod
from typing import Any

from rewriters.memory.executed import VIEWS, Body, Step
from rewriters.memory.order import walk
from rewriters.memory.peak import Weights
from rewriters.operators.record import Record, Shape, read_convolution

__all__ = ["POINTWISE", "Lowered", "Lowering", "Node", "Tensors", "copied", "lower"]


# Where a kernel expands windows segment by segment: bytes, for two threads.
_SEGMENT = 2 * 64 << 10


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a graph, as far as it matters to memory.

    Attributes:
        label: Its name.
        op_type: Its operator, "domain:" in front unless it is of the default domain.
        reads: Inputs by position, "" for one left out; what bodies capture comes last.
        makes: Outputs by position, "" for one left out.
        attributes: Numbers, strings and tuples.
        workspace: Bytes it needs while it runs, if known beforehand.
        body: What a Loop runs, lowered.
    """

    label: str
    op_type: str
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    workspace: int = 0
    body: Body | None = None


@dataclass(frozen=True)
class Tensors:
    """What is known of tensors.

    Attributes:
        dims: Shape of each, None for an unknown size.
        bits: Bits of one element of each.
        constants: Initializers and what is computed from constants alone.
        values: Values of small constants, flat.
        open: Tensors whose shape is assumed: an engine does not know it when it loads the model.
        external: Weights lie in files of their own.
    """

    dims: Mapping[str, Shape]
    bits: Mapping[str, int]
    constants: Collection[str]
    values: Mapping[str, tuple[float, ...]]
    open: Collection[str] = frozenset()
    external: bool = False

    def bytes(self, name: str) -> int | None:
        """Return a tensor's size, None if it is unknown."""
        dims, bits = self.dims.get(name), self.bits.get(name)
        if dims is None or bits is None or None in dims:
            return None
        return (prod(dims) * bits + 7) // 8  # type: ignore[arg-type]


@dataclass(frozen=True)
class Lowering:
    """What an engine folds and fuses.

    Attributes:
        activations: Operators that run inside the Conv before them.
        block: Channels of a block of the blocked layout; 0 if there is none.
        packed: Operators whose constant operand of that position is packed anew and held.
        compiler: Pointwise operators run inside what reads them, all Slices of a tensor run at
            once, and the inputs of a Concat are made where it wants them.
        widened: Bits an element of so many bits is computed in, where there are no such kernels.
        workspaces: Bytes per operator that a kernel takes; given, they replace the formulas of
            ONNX Runtime's kernels.
        shares: Convs of one weight that are folded alike have one weight afterwards.
    """

    activations: frozenset[str] = frozenset()
    block: int = 0
    packed: Mapping[str, int] = field(default_factory=dict)
    compiler: bool = False
    workspaces: Mapping[str, int] | None = None
    widened: Mapping[int, int] = field(default_factory=dict)
    shares: bool = False


@dataclass(frozen=True)
class Lowered:
    """Steps for `memory.peak.peak`, with their tensors.

    Attributes:
        steps: In the order of the engine's node numbers.
        sizes: Bytes of every activation, None where unknown.
        shapes: What must be equal for two tensors to share a buffer.
        weights: What loading costs.
    """

    steps: tuple[Step, ...]
    sizes: Mapping[str, int | None]
    shapes: Mapping[str, Hashable]
    weights: Weights


def copied(label: str) -> str:
    """Return the tensor that a step which an engine adds copies: the step is called after it."""
    return label.rpartition(" (")[0] or label


def lower(
    nodes: Sequence[Node], tensors: Tensors, outputs: Collection[str], lowering: Lowering
) -> Lowered:
    """Return what the engine runs in place of a graph; linear in its nodes.

    Args:
        nodes: The nodes in the file's order.
        tensors: Their tensors.
        outputs: Graph outputs.
        lowering: What the engine does.
    """
    bits = {name: lowering.widened.get(size, size) for name, size in tensors.bits.items()}
    graph = _Graph(nodes, replace(tensors, bits=bits), outputs)
    graph.drop()
    if lowering.compiler:
        graph.fold_into_convolutions(shared=True)
        graph.inline_pointwise()
        graph.slice_pieces()
        graph.slice_at_once()
        graph.make_in_place()
        return graph.lowered(lowering)
    graph.spell_out()
    graph.split_at_once()
    graph.fold_into_convolutions(shared=lowering.shares)
    graph.fold_into_products()
    graph.fuse_gates()
    graph.fuse_activations(lowering.activations)
    if lowering.block:
        graph.lay_out_in_blocks(lowering.block)
    return graph.lowered(lowering)


# Operators that compute each element from the elements at its place.
POINTWISE = frozenset(
    {"Relu", "LeakyRelu", "Elu", "Selu", "Celu", "PRelu", "ThresholdedRelu", "Clip", "Gelu", "Mish"}
    | {"Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Softplus", "Softsign", "Erf", "Sqrt", "Exp"}
    | {"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Neg", "Abs", "Log", "Reciprocal"}
    | {"Floor", "Ceil", "Round", "Sign", "Where", "Cast", "BatchNormalization", "Identity"}
)

# Operators that put elements elsewhere.
_MOVES = frozenset({"DepthToSpace", "SpaceToDepth", "Transpose"})

_CONV_LIKE = ("Conv", "FusedConv")

_NCHWC = "nchwc:"

# Results that are known when shapes are: no run time tensor of any size.
_SHAPES = frozenset({"Shape", "Size", "Constant"})

# Run in the blocked layout as they stand, element by element.
_BLOCKED_ELEMENTWISE = frozenset({"Gelu", "QuickGelu"})

# The same, or inside the blocked Conv before them if its result has no other reader.
_BLOCKED_ACTIVATIONS = frozenset({"Relu", "Sigmoid", "Tanh", "HardSigmoid"})

_POOLS = frozenset({"MaxPool", "AveragePool"})

_GLOBAL_POOLS = frozenset({"GlobalMaxPool", "GlobalAveragePool"})


@dataclass
class _Blocked:
    """A tensor that exists in the blocked layout.

    Attributes:
        name: Its name there.
        maker: Position of the node that makes it.
        channels: Channels before padding to whole blocks.
        only: It has one reader.
        left: Readers that still want the plain layout.
    """

    name: str
    maker: int
    channels: int
    only: bool
    left: int


class _Graph:
    """A graph under change. A position is a node's number: a made one is last, a gone one None."""

    def __init__(self, nodes: Sequence[Node], tensors: Tensors, outputs: Collection[str]) -> None:
        self._nodes: list[Node | None] = list(nodes)
        self._dims = dict(tensors.dims)
        self._bits = dict(tensors.bits)
        self._tensors = tensors
        self._constants = set(tensors.constants)
        self._outputs = set(outputs)
        self._renamed: dict[str, str] = {}
        # What folded weights were made of.
        self._folded: dict[str, str] = {}

    def _index(self) -> None:
        """Find who makes and who reads every tensor; nobody asks who reads a constant."""
        self._maker: dict[str, int] = {}
        self._users: dict[str, list[int]] = {}
        constants, users = self._constants, self._users
        for position, node in self._present():
            for name in node.makes:
                self._maker[name] = position
            for name in node.reads:
                if name not in constants:
                    users.setdefault(name, []).append(position)

    def _present(self) -> Iterator[tuple[int, Node]]:
        return ((position, node) for position, node in enumerate(self._nodes) if node is not None)

    def _uses(self, name: str) -> int:
        return len(self._users.get(name, ())) + (name in self._outputs)

    def _channels(self, name: str) -> int | None:
        dims = self._dims.get(name)
        return dims[1] if dims is not None and len(dims) > 1 else None

    def _single_user(self, name: str) -> tuple[int, Node] | None:
        """Return the one node that reads a tensor, None if there are others or it is an output."""
        users = self._users.get(name, ())
        if len(users) != 1 or name in self._outputs:
            return None
        node = self._nodes[users[0]]
        return None if node is None else (users[0], node)

    def _producer(self, name: str) -> tuple[int, Node] | None:
        position = self._maker.get(name)
        node = None if position is None else self._nodes[position]
        return None if node is None or position is None else (position, node)

    def _put(self, position: int, node: Node) -> None:
        """Write a node in another's place; what it makes and reads is indexed anew."""
        old = self._nodes[position]
        if old is not None:
            self._forget(position, old)
        self._nodes[position] = node
        for name in node.reads:
            if name not in self._constants:
                self._users.setdefault(name, []).append(position)
        for name in node.makes:
            self._maker[name] = position

    def _remove(self, position: int) -> None:
        node = self._nodes[position]
        assert node is not None
        self._forget(position, node)
        self._nodes[position] = None

    def _forget(self, position: int, node: Node) -> None:
        for name in node.reads:
            if name not in self._constants:
                self._users[name].remove(position)

    def _append(self, node: Node) -> int:
        self._nodes.append(None)
        self._put(len(self._nodes) - 1, node)
        return len(self._nodes) - 1

    # --- drop -------------------------------------------------------------------------------------

    def drop(self) -> None:
        """Drop nodes that no engine runs; a result that is a graph output stays."""
        for position, node in list(self._present()):
            made = node.makes[0] if node.makes else ""
            needed = [name for name in node.reads if name]
            if node.op_type in _SHAPES or all(name in self._constants for name in needed):
                self._constants.update(node.makes)
                self._nodes[position] = None
            elif made not in self._outputs and self._is_copy(node):
                source = node.reads[0]
                self._renamed[made] = self._renamed.get(source, source)
                self._nodes[position] = None
        for position, node in list(self._present()):
            if any(name in self._renamed for name in node.reads):
                reads = tuple(self._renamed.get(name, name) for name in node.reads)
                self._nodes[position] = _with(node, reads=reads)
        self._index()

    def _is_copy(self, node: Node) -> bool:
        if not node.reads or not node.reads[0]:
            return False
        source, made = node.reads[0], node.makes[0]
        match node.op_type:
            case "Identity" | "Dropout":
                return True
            case "Cast":
                return source in self._bits and self._bits.get(source) == self._bits.get(made)
            case "Concat":
                return False
            case "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Expand" | "Slice" | "Pad":
                same = self._dims.get(source) == self._dims.get(made)
                return same and None not in (self._dims.get(made) or (None,))
            case _:
                return False

    # --- fold and fuse ----------------------------------------------------------------------------

    def spell_out(self) -> None:
        """Replace operators that the engine runs as several."""
        for position, node in list(self._present()):
            steps = _SPELLED.get(node.op_type)
            if steps is None:
                continue
            self._remove(position)
            inner = node.reads[0]
            for number, op_type in enumerate(steps):
                last = number == len(steps) - 1
                made = node.makes[0] if last else f"{node.makes[0]}/{number}"
                self._like(made, node.makes[0])
                reads = (node.reads[0], inner) if op_type == "Mul" else (inner,)
                attributes = {"alpha": 1 / 6, "beta": 0.5} if op_type == "HardSigmoid" else {}
                self._append(Node(node.label, op_type, reads, (made,), attributes))
                inner = made

    def _like(self, name: str, other: str) -> None:
        if other in self._dims:
            self._dims[name] = self._dims[other]
        if other in self._bits:
            self._bits[name] = self._bits[other]

    def split_at_once(self) -> None:
        """Replace Slices that take a tensor apart by one Split, which makes all parts at once."""
        for name in list(self._users):
            parts = self._parts(name)
            if parts:
                makes = tuple(node.makes[0] for _, node in parts)
                for position, _ in parts:
                    self._remove(position)
                self._append(Node(parts[0][1].label, "Split", (name,), makes))

    def _parts(self, name: str) -> list[tuple[int, Node]]:
        """Return the Slices of a tensor if together they are it, one behind the other."""
        slices = self._slices(name)
        cuts = [(cut, n, node) for n, node in slices if (cut := self._cut(n)) is not None]
        dims = self._dims.get(name)
        if len(cuts) < 2 or len(cuts) < len(slices) or dims is None:
            return []
        cuts.sort(key=lambda item: item[:2])
        axis, reached = cuts[0][0][0], 0
        for cut, _, _ in cuts:
            if cut[:2] != (axis, reached):
                return []
            reached = cut[2]
        return [(n, node) for _, n, node in cuts] if reached == dims[axis] else []

    def _slices(self, name: str) -> list[tuple[int, Node]]:
        """Return the Slices of a tensor, by position."""
        if name in self._constants:
            return []
        found = ((n, self._nodes[n]) for n in dict.fromkeys(self._users.get(name, ())))
        return [
            (n, node)
            for n, node in found
            if node is not None and node.op_type == "Slice" and node.reads[0] == name
        ]

    def _cut(self, position: int) -> tuple[int, int, int] | None:
        """Return (axis, begin, end) of a Slice along one axis, None of any other node."""
        node = self._nodes[position]
        if node is None or node.op_type != "Slice" or len(node.reads) < 3:
            return None
        dims = self._dims.get(node.reads[0])
        values = [self._value(name) for name in node.reads[1:]]
        if dims is None or any(len(value) != 1 for value in values):
            return None
        begin, end = (int(value[0]) for value in values[:2])
        axis = int(values[2][0]) if len(values) > 2 else 0
        size = dims[axis] if -len(dims) <= axis < len(dims) else None
        if size is None or (len(values) > 3 and values[3] != (1.0,)):
            return None
        begin, end = (min(max(e + size if e < 0 else e, 0), size) for e in (begin, end))
        return axis % len(dims), begin, end

    def fold_into_convolutions(self, *, shared: bool = False) -> None:
        """Fold what is a change of weights, and zero padding.

        Args:
            shared: Convs of one weight that are folded alike have one afterwards, too.
        """
        convs = [(at, node) for at, node in self._present() if node.op_type == "Conv"]
        readers = Counter(node.reads[1] for _, node in convs)
        for position, node in convs:
            weight = node.reads[1]
            if weight in self._constants:
                self._fold(position, node, shared=shared and readers[weight] > 1)

    def _fold(self, position: int, node: Node, *, shared: bool) -> None:
        padded = self._producer(node.reads[0])
        if padded is not None and padded[1].op_type == "Pad" and self._uses(node.reads[0]) == 1:
            pad = padded[1]
            zero = len(pad.reads) < 3 or self._value(pad.reads[2]) in ((), (0.0,))
            mode = pad.attributes.get("mode", "constant")
            if mode == "constant" and zero and pad.reads[0] not in self._constants:
                self._remove(padded[0])
                # The window's size does not matter from here on.
                node = _with(node, reads=(pad.reads[0], *node.reads[1:]))
                self._put(position, node)
        while True:
            follower = self._single_user(node.makes[0])
            if follower is None or not self._is_affine(follower[1], node.makes[0]):
                return
            self._remove(follower[0])
            node = _with(node, makes=follower[1].makes)
            if not shared and follower[1].op_type != "Add":
                node = _with(node, reads=(node.reads[0], self._own(node), *node.reads[2:]))
            self._put(position, node)

    def _own(self, conv: Node) -> str:
        """Return a weight of a Conv's own in place of the one that others may read too."""
        weight = conv.reads[1]
        if weight in self._folded:
            return weight
        own = f"{weight}/of/{conv.makes[0]}"
        self._like(own, weight)
        self._constants.add(own)
        self._folded[own] = weight
        return own

    def _is_affine(self, node: Node, name: str) -> bool:
        """Tell whether a node scales or shifts whole channels by constants."""
        if node.op_type not in ("BatchNormalization", "Mul", "Add"):
            return False  # before the reads of a wide Concat are walked, from each that it joins
        others = [read for read in node.reads if read and read != name]
        if not others or any(read not in self._constants for read in others):
            return False
        if node.op_type == "BatchNormalization":
            return node.reads[0] == name and len(node.makes) == 1
        dims = self._dims.get(others[0])
        return dims is not None and all(
            size == 1
            for axis, size in enumerate(reversed(dims))
            if axis != len(self._dims.get(name) or ()) - 2
        )

    def _value(self, name: str) -> tuple[float, ...]:
        return self._tensors.values.get(name, ())

    def fold_into_products(self) -> None:
        """Fold bias, constant factors and transposes into the MatMul beside them."""
        for position in self._in_order():
            node = self._nodes[position]
            if node is None or node.op_type != "MatMul":
                continue
            user = self._single_user(node.makes[0])
            if node.reads[1] in self._constants:
                if user is not None and user[1].op_type == "Add" and self._is_bias(user[1], node):
                    self._make_gemm(position, node, user)
                continue
            reads = tuple(self._unscaled(name) for name in node.reads)
            if reads != node.reads:
                self._remove(position)
                self._append(_with(node, op_type="FusedMatMul", reads=reads))
        for position, node in list(self._present()):
            if node.op_type == "Transpose" and node.attributes.get("perm") == (0, 2, 1):
                self._unflatten(position, node)

    def _unflatten(self, position: int, node: Node) -> None:
        """Move the Reshape behind (N, HW, C) -> (N, C, HW) before it, as attention ends."""
        user = self._single_user(node.makes[0])
        if user is not None and user[1].op_type == "Reshape":
            self._remove(user[0])
            self._put(position, _with(node, makes=user[1].makes))

    def _make_gemm(self, position: int, node: Node, bias: tuple[int, Node]) -> None:
        """Replace MatMul and bias, and a view behind them, which the engine makes anew."""
        self._remove(position)
        self._remove(bias[0])
        self._append(Node(node.label, "Gemm", node.reads, bias[1].makes))
        view = self._single_user(bias[1].makes[0])
        if view is not None and view[1].op_type in VIEWS:
            self._remove(view[0])
            self._append(view[1])

    def _in_order(self) -> list[int]:
        """Return positions in the order the engine would run the graph as it stands."""
        present = list(self._present())
        order = walk([node.reads for _, node in present], [node.makes for _, node in present])
        return [present[at][0] for at in order]

    def _is_bias(self, node: Node, product: Node) -> bool:
        others = [name for name in node.reads if name != product.makes[0]]
        return (
            len(others) == 1
            and others[0] in self._constants
            and len(self._dims.get(others[0]) or ()) == 1
        )

    def _unscaled(self, name: str) -> str:
        """Return what a product reads where constant factors and transposes before it are folded.

        The nodes in between are removed.
        """
        gone = []
        while self._uses(name) == 1 and (found := self._producer(name)) is not None:
            position, node = found
            if node.op_type in ("Mul", "Div"):
                others = [read for read in node.reads if read in self._constants]
                if len(others) != 1 or prod(s or 0 for s in self._dims.get(others[0]) or ()) != 1:
                    break
            elif node.op_type != "Transpose" or not _swaps_last(node.attributes.get("perm", ())):
                break
            gone.append(position)
            name = next(read for read in node.reads if read not in self._constants)
        for position in gone:
            self._remove(position)
        return name

    def fuse_gates(self) -> None:
        """Fuse x * Sigmoid(x) and the spelled out Gelu into one node."""
        for _, node in list(self._present()):
            if node.op_type == "Sigmoid":
                user = self._single_user(node.makes[0])
                if user is not None and user[1].op_type == "Mul" and node.reads[0] in user[1].reads:
                    self._replace((node.makes[0],), user, "QuickGelu", node.reads[0])
            elif node.op_type == "Erf":
                self._fuse_gelu(node)

    def _fuse_gelu(self, node: Node) -> None:
        """Fuse Mul(Mul(x, Add(Erf(Div(x, c)), 1)), 0.5), in either order of the Muls."""
        chain = [node.reads[0], node.makes[0]]
        start = self._producer(node.reads[0])
        if start is None or start[1].op_type not in ("Div", "Mul"):
            return
        source = start[1].reads[0]
        user = None
        for op_type in ("Add", "Mul", "Mul"):
            user = self._single_user(chain[-1])
            if user is None or user[1].op_type != op_type:
                return
            chain.append(user[1].makes[0])
        assert user is not None
        self._replace(tuple(chain[:-1]), user, "Gelu", source)

    def _replace(
        self, inner: tuple[str, ...], last: tuple[int, Node], op_type: str, source: str
    ) -> None:
        for name in inner:
            self._remove(self._maker[name])
        position, node = last
        self._remove(position)
        self._append(Node(node.label, op_type, (source,), node.makes))

    def fuse_activations(self, activations: frozenset[str]) -> None:
        """Run an activation inside the Conv before it, and HardSwish where it is spelled out."""
        for position, node in list(self._present()):
            if node.op_type != "Conv":
                continue
            made = node.makes[0]
            user = self._single_user(made)
            if user is not None and user[1].op_type in activations:
                fused, last = user[1].op_type, user
            else:
                found = self._hard_swish(made)
                if found is None or "HardSwish" not in activations:
                    continue
                self._remove(found[0])
                fused, last = "HardSwish", found[1]
            self._remove(last[0])
            self._remove(position)
            attributes = {**node.attributes, "activation": fused}
            self._append(Node(node.label, "FusedConv", node.reads, last[1].makes, attributes))

    def _hard_swish(self, name: str) -> tuple[int, tuple[int, Node]] | None:
        """Return the position of HardSigmoid and the Mul of x * HardSigmoid(x)."""
        users = sorted(set(self._users.get(name, ())))
        if len(users) != 2 or name in self._outputs:
            return None
        for position in users:
            node = self._nodes[position]
            if node is None or node.op_type != "HardSigmoid":
                continue
            if abs(node.attributes.get("alpha", 0.2) - 1 / 6) > 1e-6:
                return None
            last = self._single_user(node.makes[0])
            if last is not None and last[1].op_type == "Mul" and last[0] in users:
                return position, last
        return None

    # --- what a compiler does ---------------------------------------------------------------------

    def inline_pointwise(self) -> None:
        """Run pointwise operators, and moves, inside the pointwise operators that read them."""
        for position, node in list(self._present()):
            if not self._is_cheap(node) or node.makes[0] in self._outputs:
                continue
            made, node = node.makes[0], self._nodes[position] or node
            users = [self._nodes[user] for user in self._users.get(made, ())]
            if not users or any(user is None or user.op_type not in POINTWISE for user in users):
                continue
            for user in set(self._users[made]):
                reader = self._nodes[user]
                assert reader is not None
                kept = [name for name in reader.reads if name != made]
                reads = tuple(dict.fromkeys((*kept, *node.reads)))
                self._put(user, _with(reader, reads=reads))
            self._remove(position)

    def _is_cheap(self, node: Node) -> bool:
        """Tell whether a node can be done element by element in what reads it."""
        if node.op_type in ("Resize", "Upsample"):
            return bool(node.attributes.get("mode", "nearest") == "nearest")
        return node.op_type in POINTWISE or node.op_type in _MOVES

    def slice_pieces(self) -> None:
        """Let Slices of a Concat read the pieces they need, so that the whole is never made."""
        for position, node in list(self._present()):
            axis, made = node.attributes.get("axis"), node.makes[0]
            sizes = [(self._dims.get(name) or ())[axis : axis + 1] for name in node.reads if axis]
            if (
                node.op_type != "Concat"
                or made in self._outputs
                or any(s in ((), (None,)) for s in sizes)
            ):
                continue
            whole = self._behind_pointwise(made)
            cuts = [(n, self._cut(n)) for n in self._users.get(whole, ())]
            if not cuts or any(cut is None or cut[0] != axis for _, cut in cuts):
                continue
            if any(self._is_read_by_concat(user) for user, _ in cuts):
                continue
            ends = list(accumulate(size[0] or 0 for size in sizes))
            for user, cut in cuts:
                reader = self._nodes[user]
                assert reader is not None
                assert cut is not None
                begin, end = cut[1:]
                reads = tuple(
                    name
                    for name, size, stop in zip(node.reads, sizes, ends, strict=True)
                    if begin < stop and stop - (size[0] or 0) < end
                )
                self._put(user, _with(reader, op_type="Window", reads=reads))
            if whole != made:
                self._remove(self._maker[whole])
            self._remove(position)

    def _is_read_by_concat(self, position: int) -> bool:
        node = self._nodes[position]
        user = None if node is None else self._single_user(node.makes[0])
        return user is not None and user[1].op_type == "Concat"

    def _behind_pointwise(self, name: str) -> str:
        """Return what the one pointwise reader of a tensor makes of it, or the tensor."""
        user = self._single_user(name)
        if user is None or user[1].op_type not in POINTWISE:
            return name
        others = [read for read in user[1].reads if read and read not in self._constants]
        return (
            user[1].makes[0] if others == [name] and user[1].makes[0] not in self._outputs else name
        )

    def slice_at_once(self) -> None:
        """Run all Slices of a tensor where the first one stands; parts that tile it are views."""
        for name in list(self._users):
            slices = self._slices(name)
            if len(slices) < 2:
                continue
            op_type = "Split" if self._parts(name) else "Slices"
            for position, _ in slices:
                self._remove(position)
            makes = tuple(made for _, node in slices for made in node.makes)
            first, node = slices[0]
            self._put(first, Node(node.label, op_type, (name,), makes))

    def make_in_place(self) -> None:
        """Let the inputs of a Concat be made inside its result, if each is in that Concat alone."""
        concats: dict[str, int] = {}
        for _, node in self._present():
            if node.op_type == "Concat":
                for name in node.reads:
                    concats[name] = concats.get(name, 0) + 1
        for position, node in list(self._present()):
            made = node.makes[0]
            if node.op_type != "Concat":
                continue
            makers = [self._maker.get(name) for name in node.reads]
            if any(concats[name] > 1 or name in self._outputs for name in node.reads):
                continue
            if any(maker is None or not self._makes_one(maker) for maker in makers):
                continue
            self._remove(position)
            if made in self._outputs:
                # It is put together in the compiler's layout first.
                whole = f"{made}/whole"
                self._like(whole, made)
                self._put(position, _with(node, reads=(whole,)))
                made = whole
            first = min(maker for maker in makers if maker is not None)
            for name, maker in zip(node.reads, makers, strict=True):
                assert maker is not None
                source = self._nodes[maker]
                assert source is not None
                # The first one's step makes the whole; the others write into it.
                if maker == first:
                    self._put(maker, _with(source, makes=(made,)))
                else:
                    self._put(maker, _with(source, reads=(*source.reads, made), makes=()))
                for user in set(self._users.get(name, ())):
                    reader = self._nodes[user]
                    assert reader is not None
                    reads = tuple(made if read == name else read for read in reader.reads)
                    self._put(user, _with(reader, reads=reads))

    def _makes_one(self, position: int) -> bool:
        node = self._nodes[position]
        return node is not None and len(node.makes) == 1 and node.op_type not in VIEWS

    # --- the blocked layout -----------------------------------------------------------------------

    def lay_out_in_blocks(self, block: int) -> None:
        """Move Convs, and what stands between them, to the blocked channel layout."""
        self._block = block
        self._blocked: dict[str, _Blocked] = {}
        self._reordered: dict[str, str] = {}
        for position in self._in_order():
            node = self._nodes[position]
            if node is not None:
                self._to_blocks(position, node)
        for name, blocked in self._blocked.items():
            if blocked.left > 0:
                self._append(
                    Node(f"{name} (plain layout)", "ReorderOutput", (blocked.name,), (name,))
                )

    def _to_blocks(self, position: int, node: Node) -> None:
        sources = [name for name in node.reads if name and name not in self._constants]
        inside = [self._blocked.get(name) for name in sources]
        op_type = node.op_type
        if op_type in _CONV_LIKE:
            self._block_conv(position, node)
        elif op_type in _POOLS:
            channels = self._channels(node.reads[0])
            if (
                self._is_plain(node.reads[0])
                and channels
                and channels % self._block == 0
                and len(node.makes) == 1
            ):
                self._make(
                    position, node, _NCHWC + op_type, channels, (self._enter(node.reads[0]),)
                )
        elif not inside or any(entry is None for entry in inside):
            return
        else:
            entries = [entry for entry in inside if entry is not None]
            self._block_other(position, node, entries)

    def _block_other(self, position: int, node: Node, entries: list[_Blocked]) -> None:
        """Lay out a node all of whose inputs are in blocks."""
        op_type, made = node.op_type, node.makes[0]
        first = entries[0]
        if op_type in ("Add", "Sum", "Mul") and len(entries) == len(node.reads):
            shapes = {self._dims.get(name) for name in node.reads}
            if len(shapes) == 1 and None not in shapes:
                if op_type != "Mul" and len(entries) == 2 and self._add_in_conv(position, node):
                    return
                self._keep(position, node, first.channels)
        elif op_type == "Concat" and node.attributes.get("axis") == 1:
            if all(entry.channels % self._block == 0 for entry in entries):
                self._keep(position, node, sum(entry.channels for entry in entries))
        elif op_type in _BLOCKED_ACTIVATIONS:
            conv = self._nodes[first.maker]
            if (
                conv is not None
                and conv.op_type == _NCHWC + "Conv"
                and first.only
                and "activation" not in conv.attributes
            ):
                self._absorb(position, node, first, {"activation": op_type})
            else:
                self._keep(position, node, first.channels)
        elif op_type in _BLOCKED_ELEMENTWISE:
            self._keep(position, node, first.channels)
        elif op_type == "BatchNormalization":
            self._make(
                position, node, _NCHWC + "Conv", first.channels, (self._enter(node.reads[0]),)
            )
        elif op_type in ("Resize", "Upsample"):
            if self._is_blocked_resize(node):
                self._make(
                    position, node, _NCHWC + op_type, first.channels, (self._enter(node.reads[0]),)
                )
        elif op_type in _GLOBAL_POOLS and first.channels % self._block == 0:
            self._make(
                position, node, _NCHWC + op_type, first.channels, (self._enter(node.reads[0]),)
            )
        elif op_type == "Transpose" and node.attributes.get("perm") == (0, 2, 3, 1):
            self._remove(position)
            self._append(Node(node.label, "ReorderOutput", (self._enter(node.reads[0]),), (made,)))

    def _is_plain(self, name: str) -> bool:
        dims = self._dims.get(name)
        return self._bits.get(name) == 32 and dims is not None and len(dims) == 4

    def _block_conv(self, position: int, node: Node) -> None:
        weight = self._dims.get(node.reads[1])
        bias = node.reads[2] if len(node.reads) > 2 else ""
        if node.reads[1] not in self._constants or (bias and bias not in self._constants):
            return
        if (
            weight is None
            or len(weight) != 4
            or None in weight
            or not self._is_plain(node.makes[0])
        ):
            return
        made, taken = weight[0] or 0, weight[1] or 0
        group = node.attributes.get("group", 1)
        direct = group == 1 and taken < self._block
        if group == 1:
            fits = direct or taken % 4 == 0
        elif taken == 1 and made == group:
            fits = made % 4 == 0 and made >= 8
        else:
            fits = taken % self._block == 0 and made // group % self._block == 0
        if not fits:
            return
        source = node.reads[0] if direct else self._enter(node.reads[0])
        self._make(position, node, _NCHWC + "Conv", made, (source, *node.reads[1:]))

    def _enter(self, name: str) -> str:
        """Return the blocked twin of a tensor, with a copy into the layout where there is none."""
        found = self._blocked.get(name)
        if found is not None:
            found.left -= 1
            return found.name
        if name not in self._reordered:
            twin = f"{name}/blocked"
            self._describe(twin, name, self._channels(name) or 0)
            self._reordered[name] = twin
            self._append(Node(f"{name} (blocked layout)", "ReorderInput", (name,), (twin,)))
        return self._reordered[name]

    def _describe(self, twin: str, name: str, channels: int) -> None:
        self._like(twin, name)
        dims = self._dims.get(twin)
        if dims is not None:
            self._dims[twin] = (dims[0], -(-channels // self._block) * self._block, *dims[2:])

    def _enroll(self, name: str, maker: int, channels: int) -> str:
        twin = f"{name}/blocks"
        self._describe(twin, name, channels)
        uses = self._uses(name)
        self._blocked[name] = _Blocked(twin, maker, channels, uses == 1, uses)
        return twin

    def _make(
        self, position: int, node: Node, op_type: str, channels: int, reads: tuple[str, ...]
    ) -> None:
        """Put a new node of the blocked layout in a node's place."""
        self._remove(position)
        twin = self._enroll(node.makes[0], len(self._nodes), channels)
        self._append(Node(node.label, op_type, reads, (twin,), node.attributes))

    def _keep(self, position: int, node: Node, channels: int) -> None:
        """Let a node run in the blocked layout as it stands."""
        twin = self._enroll(node.makes[0], position, channels)
        reads = tuple(self._enter(name) if name in self._blocked else name for name in node.reads)
        self._nodes[position] = _with(node, reads=reads, makes=(twin,))

    def _absorb(
        self, position: int, node: Node, into: _Blocked, attributes: Mapping[str, Any]
    ) -> None:
        """Let the blocked Conv that makes a tensor do its reader's work too."""
        conv = self._nodes[into.maker]
        assert conv is not None
        self._remove(position)
        into.left -= 1
        twin = self._enroll(node.makes[0], into.maker, into.channels)
        self._nodes[into.maker] = _with(
            conv, makes=(twin,), attributes={**conv.attributes, **attributes}
        )

    def _add_in_conv(self, position: int, node: Node) -> bool:
        """Let a Conv add the other operand to its result; tell whether one can."""
        for name, other in (node.reads, node.reads[::-1]):
            entry = self._blocked[name]
            conv = self._nodes[entry.maker]
            if conv is None or conv.op_type != _NCHWC + "Conv" or not entry.only:
                continue
            if "activation" in conv.attributes or len(conv.reads) > 3:
                continue
            reads = (*conv.reads, *("",) * (3 - len(conv.reads)), self._enter(other))
            self._nodes[entry.maker] = _with(conv, reads=reads)
            self._absorb(position, node, entry, {})
            return True
        return False

    def _is_blocked_resize(self, node: Node) -> bool:
        """Tell whether a Resize by whole factors has a kernel in the blocked layout."""
        scales = self._scales(node)
        if len(scales) != 4 or scales[:2] != (1.0, 1.0):
            return False
        if any(scale < 1 or scale != int(scale) for scale in scales):
            return False
        where = node.attributes.get("coordinate_transformation_mode", "half_pixel")
        if node.op_type == "Upsample":
            where = "asymmetric"
        match node.attributes.get("mode", "nearest"):
            case "nearest":
                rounding = node.attributes.get("nearest_mode", "round_prefer_floor")
                return where == "asymmetric" and (node.op_type == "Upsample" or rounding == "floor")
            case "linear":
                return where in ("asymmetric", "align_corners", "half_pixel")
            case _:
                return False

    def _scales(self, node: Node) -> tuple[float, ...]:
        """Return the scales of a Resize as far as the engine knows them when it loads the model."""
        if len(node.reads) > 3 and node.reads[3]:
            ends = node.reads[0], node.makes[0]
            source, made = (self._dims.get(name) for name in ends)
            if not source or not made or any(name in self._tensors.open for name in ends):
                return ()
            sizes = zip(source, made, strict=True)
            return tuple(new / old if old and new else 0.0 for old, new in sizes)
        position = 2 if node.op_type == "Resize" and len(node.reads) > 2 else 1
        return self._value(node.reads[position]) if position < len(node.reads) else ()

    # --- result -----------------------------------------------------------------------------------

    def lowered(self, lowering: Lowering) -> Lowered:
        """Return the graph as it stands."""
        steps, sizes, shapes = [], {}, {}
        known = Tensors(self._dims, self._bits, self._constants, {})
        for _, node in self._present():
            if lowering.workspaces is None:
                workspace = node.workspace or self._workspace(node)
            else:
                workspace = node.workspace + lowering.workspaces.get(node.op_type, 0)
            makes = tuple(name for name in node.makes if name)
            steps.append(Step(node.label, node.op_type, node.reads, makes, workspace, node.body))
            for name in (*node.reads, *makes):
                if name and name not in sizes and name not in self._constants:
                    sizes[name] = known.bytes(name)
                    shapes[name] = (self._dims.get(name), self._bits.get(name))
        return Lowered(tuple(steps), sizes, shapes, self._weights(lowering, known))

    def _weights(self, lowering: Lowering, known: Tensors) -> Weights:
        """Return what loading costs: every constant once in each layout it is read in."""
        held: dict[tuple[str, str], int] = {}
        packed: dict[str, int] = {}
        made: dict[str, int] = {}
        folded: dict[str, int] = {}
        originals: dict[str, int] = {}
        for _, node in self._present():
            operand = lowering.packed.get(node.op_type)
            for at, name in enumerate(node.reads):
                if name not in self._constants:
                    continue
                layout, size = "", known.bytes(name) or 0
                source = self._folded.get(name, name)
                if at == 1 and node.op_type == _NCHWC + "Conv":
                    layout, size = node.op_type, self._in_blocks(name, size)
                    made[source] = size
                if source != name:
                    folded[source] = known.bytes(source) or 0
                if source in made or source in folded:
                    originals[source] = known.bytes(source) or 0
                if at == operand:
                    packed[name] = size
                held[name, layout] = size
        kept = sum(packed.values())
        # Packed one after the other: what the last was made of is given back.
        left = kept - max(packed.values(), default=0)
        anew = sum(made.values()) + sum(folded.values())
        return Weights(sum(held.values()), anew, sum(originals.values()) + left, kept)

    def _in_blocks(self, weight: str, size: int) -> int:
        """Return the bytes of a Conv's weight in the blocked layout."""
        dims = self._dims.get(weight)
        if not dims or None in dims[:2]:
            return size
        made, taken = dims[0] or 0, dims[1] or 0
        block = self._block
        more = -(-made // block) * block / max(made, 1)
        # What has few channels is read in the plain layout.
        if taken >= block:
            more *= -(-taken // block) * block / taken
        return int(size * more)

    def _workspace(self, node: Node) -> int:
        """Return the bytes a kernel needs beside its tensors."""
        made = self._dims.get(node.makes[0]) if node.makes else None
        source = self._dims.get(node.reads[0]) if node.reads else None
        if made is None or source is None or None in made or None in source:
            return 0
        match node.op_type:
            case "Conv" | "FusedConv" | "ConvTranspose":
                return self._columns(node, source, made)
            case "Softmax" | "LogSoftmax" if node.attributes.get("axis", -1) not in (
                -1,
                len(made) - 1,
            ):
                return 2 * prod(made) * self._bits.get(node.makes[0], 0) // 8  # type: ignore[arg-type]
            case "LRN":
                return 3 * prod(made) * self._bits.get(node.makes[0], 0) // 8  # type: ignore[arg-type]
            case _:
                return 0

    def _columns(self, node: Node, source: Shape, made: Shape) -> int:
        """Return the bytes of the matrix that windows are unfolded into."""
        weight = self._dims.get(node.reads[1])
        op_type = "ConvTranspose" if node.op_type == "ConvTranspose" else "Conv"
        conv = read_convolution(Record(op_type, 11, node.attributes, (source, weight)))
        if isinstance(conv, str) or weight is None or None in weight:
            return 0
        taps = prod(conv.kernel)
        if op_type == "ConvTranspose":
            return (weight[1] or 0) * taps * prod(s or 0 for s in source[2:]) * 4
        pointwise = taps == 1 and set(conv.strides) == {1} and not any(conv.begins + conv.ends)
        if pointwise:
            return 0
        positions = prod(s or 0 for s in made[2:])
        if (weight[0] or 0) // conv.group > positions:
            return (weight[1] or 0) * taps * positions * 4
        return _SEGMENT


_SPELLED: Mapping[str, tuple[str, ...]] = {
    "HardSwish": ("HardSigmoid", "Mul"),
    "Mish": ("Softplus", "Tanh", "Mul"),
}


def _swaps_last(perm: Sequence[int]) -> bool:
    """Tell whether a permutation exchanges the last two axes alone."""
    rank = len(perm)
    return rank > 1 and list(perm) == [*range(rank - 2), rank - 1, rank - 2]


def _with(node: Node, **changes: Any) -> Node:
    """Return a node with some fields replaced."""
    return replace(node, **changes)
