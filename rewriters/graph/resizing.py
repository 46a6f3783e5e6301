"""Resizes whose rows lie differently from row to row, written as a few shifts with weights.

    x -- repeat each row f times --+-- shifted by 0 -- times w_0 --+
                                   +-- shifted by 1 -- times w_1 --+-- sum -- resize the rest -- y
                                   +-- shifted by 2 -- times w_2 --+
    w_k, one number a row: worked out from both heights

To another tensor's height, with corners that are aligned, or by a factor that is no power of two,
an output row reads other rows of x than the same row of a window would. Yet it never reads far
from row y / f, for the whole number f that is nearest to the factor: how far is bounded by what
the output has less than f times the rows. So each output row is a sum over a few rows around y / f,
weighted by what the whole image says. The weights are small and vary along the axis; what is
left is row-local. Where rows are taken and not averaged (``nearest``), rows are chosen
in place of weighted.

The coordinates are those of ONNX Runtime, operation by operation in float32, so that the same
rows are found where they lie on an edge. Another engine may find others there: rows are chosen for
ONNX Runtime alone, and weighted, which is continuous, for all. To the nearest row ONNX Runtime
rounds what lies within 1e-6 of the middle in another way from version to version.

    written so                                   not
    linear; nearest by floor or ceil             cubic, antialias, nearest to the nearest row
    half_pixel, pytorch_half_pixel,              tf_crop_and_resize, half_pixel_symmetric
    asymmetric, align_corners                    to a smaller height
    to sizes, by whole scales                    where rows lie too far apart

Source: ONNX, operator Resize; ONNX Runtime, `core/providers/cpu/tensor/upsamplebase.h`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from patchconv_deploy.rewriters.graph.facts import CertainFacts, record_of
from patchconv_deploy.rewriters.graph.new_nodes import NewNodes, ReadGraph
from patchconv_deploy.rewriters.graph.nodes import node_label
from patchconv_deploy.rewriters.graph.respelling import (
    Respelling,
    copied,
    free_word,
    with_servants,
)
from patchconv_deploy.rewriters.operators.record import ONNX_DOMAINS, Record, RowLocal
from patchconv_deploy.rewriters.operators.resampling import resize
from patchconv_deploy.rewriters.operators.rules import resize_axes
from patchconv_deploy.rewriters.operators.table import rows_of
from patchconv_deploy.rewriters.tiling.sizes import Size, ratio

__all__ = ["find_resizes"]


# A coordinate in float32 is off by less, in rows of images of up to so many rows.
_OFF, _MOST_ROWS = Fraction(1, 16), 1 << 18

# More shifts cost more than they are worth.
_MOST_SHIFTS = 6

_LARGEST_FACTOR = 64

# Of what ONNX Runtime resizes.
_KINDS = (TensorProto.FLOAT, TensorProto.FLOAT16)

_COORDINATES = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")

_TRANSFORMATION = "coordinate_transformation_mode"


@dataclass(frozen=True)
class _Rows:
    """How the rows of a Resize lie.

    Attributes:
        before: Rows of its input.
        after: Rows of its output.
        factor: Each row of the input is repeated so many times, and then shifted.
        lacks: The least and the most rows that the output has less than that.
        scale: What it is scaled by; None where that is its output's size over its input's.
        coordinates: How rows of the output are mapped to rows of the input.
        rounding: How a row is chosen; empty where rows are averaged.
    """

    before: Size
    after: Size
    factor: int
    lacks: tuple[int, int]
    scale: float | None
    coordinates: str
    rounding: str

    def shifts(self) -> range | None:
        """Return which rows may be read: how many after ``y // factor``; None if no bound is."""
        f, begin = Fraction(self.factor), Fraction(0)
        # How far the last row is from y / f; the first is not, and others lie between.
        if self.coordinates == "align_corners":
            ends = [(lack - f + 1) / f for lack in self.lacks]
        elif self.scale is None:
            ends = [lack / f for lack in self.lacks]
        elif self.after.constant:
            ends = [self.after.constant * (1 / Fraction(self.scale) - 1 / f)]
        elif self.scale == self.factor:
            ends = [Fraction(0)]
        else:
            return None
        if "half_pixel" in self.coordinates:
            begin = 1 / (2 * f) - Fraction(1, 2)
        low = begin + min([Fraction(0), *ends]) - (0 if self._is_never_above() else _OFF)
        # y / f itself lies so far behind its whole number.
        high = begin + max([Fraction(0), *ends]) + (f - 1) / f + _OFF
        if self.rounding == "ceil":
            first, last = ceil(low), ceil(high)
        else:
            first, last = floor(low), floor(high) + (not self.rounding)
        # What lies outside of the image is moved to its edge.
        first = min(first, 0, floor(self.lacks[0] / f))
        return range(first, max(last, 0) + 1)

    def _is_never_above(self) -> bool:
        """Tell whether no row is chosen above row ``y // factor``, whatever is rounded.

        Where the output lacks rows, row ``factor * b`` is read from beyond row b, by a share of
        1 / (rows of the output) and more, which float32 tells apart; where it lacks none, from it.
        """
        exact = self.scale in (None, self.factor) and self.lacks[0] >= 0
        return exact and self.coordinates == "asymmetric" and self.rounding == "floor"


def find_resizes(
    facts: CertainFacts, axes: Mapping[str, int], *, chooses: bool
) -> list[Respelling]:
    """Find Resizes that are not row-local, and write them in other words; the model is not changed.

    Args:
        facts: The model.
        axes: Which dimension of a tensor is the tiled axis, where that is known.
        chooses: Those too that choose rows, as ONNX Runtime does.
    """
    found = ReadGraph(facts, axes, free_word("resizing", facts.index.names))
    made = []
    for position, node in enumerate(facts.graph.node):
        if node.op_type == "Resize" and node.domain in ONNX_DOMAINS and facts.opset >= 11:
            new = _by_scales(found, position) or _written(found, position, chooses=chooses)
            if new is not None:
                covered = with_servants(found, [position], new)
                originals = tuple(copied(facts.graph.node[at]) for at in covered)
                nodes, outputs = tuple(new.nodes), (node.output[0],)
                made.append(Respelling(covered, originals, nodes, outputs, node_label(node)))
    return made


def _by_scales(found: ReadGraph, position: int) -> NewNodes | None:
    """Write a Resize by scales that is to sizes worked out, each its input's own times a number.

    A patch of it is the same node then, without sizes of its own, which TensorRT may refuse.
    """
    node = found.node(position)
    x, y = node.input[0], node.output[0]
    record, dims = record_of(found.facts, position), found.shapes.dims.get(x)
    if dims is None or not record.given(3) or record.value(3) is not None:
        return None
    if not found.shapes.doubtful.isdisjoint((x, y)):
        return None
    axes, coordinates = resize_axes(record), record.attributes.get(_TRANSFORMATION, "half_pixel")
    if coordinates not in _COORDINATES or record.attributes.get("antialias", 0):
        return None
    factors = [_factor(found, x, y, at) for at in axes]
    scales = [float(factor) for factor in factors if factor is not None]
    if len(scales) < len(axes):
        return None
    new = found.new(position, x, "a Resize")
    if all(scale == 1 for scale in scales):
        new.add("Identity", [x], "itself", y)
        return new
    # Until opset 13 it asks for a region of interest, which nothing is done with.
    roi = new.floats([], "no_roi") if new.opset < 13 else ""
    resized = copied(node)
    resized.name = f"{new.base}/by_scales"
    del resized.input[:]
    resized.input.extend([x, roi, new.floats(scales, "scales")])
    new.nodes.append(resized)
    return new


def _factor(found: ReadGraph, x: str, y: str, axis: int) -> Fraction | None:
    """Return what a dimension is times another one; None if it is no power of two."""
    before, after = found.facts.size(x, axis), found.facts.size(y, axis)
    if before is None or after is None:
        return None
    if before == after:
        return Fraction(1)
    factor = ratio(after, before)
    if before.constant and after.constant:
        factor = Fraction(after.constant, before.constant)
    if factor is None or factor <= 0 or factor > _LARGEST_FACTOR:
        return None
    powers = all(number & (number - 1) == 0 for number in factor.as_integer_ratio())
    return factor if powers else None


def _written(found: ReadGraph, position: int, *, chooses: bool) -> NewNodes | None:
    node = found.node(position)
    x, y = node.input[0], node.output[0]
    dims, axis = found.shapes.dims.get(x), found.axes.get(x)
    if dims is None or axis is None or not found.shapes.doubtful.isdisjoint((x, y)):
        return None
    record = record_of(found.facts, position)
    if isinstance(rows_of(resize, record, axis), RowLocal):
        return None
    rows = _rows(found, record, node, axis)
    shifts = None if rows is None else rows.shifts()
    kind = found.shapes.elements.get(x, 0)
    if (
        rows is None
        or shifts is None
        or (rows.rounding and not chooses)
        or len(shifts) > _MOST_SHIFTS
        or kind not in _KINDS
    ):
        return None
    new = found.new(position, x, "a Resize")
    more = [at for at in range(len(dims)) if at != axis and not _is_same(found, x, y, at)]
    if (
        not chooses
        and found.facts.opset < 18
        and any(_scale(found, node, at) is None for at in more)
    ):
        # TensorRT takes no sizes of which one is worked out, and without axes all are given.
        return None
    before, after = _heights(record, node, axis, rows, new)
    weights = _weights(new, rows, shifts, before, after, len(dims) - axis - 1)
    single = kind != TensorProto.FLOAT and not rows.rounding
    image = new.add("Cast", [x], "single", to=int(TensorProto.FLOAT)) if single else x
    resized = _Shifts(image, axis, len(dims), rows, shifts).write(
        new, weights, after, "" if single or more else y
    )
    if single:
        resized = new.add("Cast", [resized], "half", "" if more else y, to=kind)
    if more:
        _add_rest(new, found, record, node, axis, resized)
    return new


def _is_same(found: ReadGraph, x: str, y: str, axis: int) -> bool:
    size = found.facts.size(x, axis)
    return size is not None and size == found.facts.size(y, axis)


def _rows(found: ReadGraph, record: Record, node: onnx.NodeProto, axis: int) -> _Rows | None:
    """Return how a Resize's rows lie, None where that is not known or not served."""
    given = record.attributes
    mode, coordinates = given.get("mode", "nearest"), given.get(_TRANSFORMATION, "half_pixel")
    if mode not in ("nearest", "linear") or coordinates not in _COORDINATES:
        return None
    if given.get("antialias", 0) or given.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return None
    axes, scale = resize_axes(record), None
    if axis not in axes:
        return None
    before, after = found.facts.size(node.input[0], axis), found.facts.size(node.output[0], axis)
    if not record.given(3):
        scales = record.value(2)
        fits = scales is not None and len(scales) == len(axes)
        scale = float(scales[axes.index(axis)]) if scales and fits else 0.0
        if not 0 < scale <= _LARGEST_FACTOR:
            return None
        if after is None and before is not None and scale.is_integer():
            after = before * int(scale)
    factor = None if before is None or after is None else _nearest_factor(before, after)
    if before is None or after is None or factor is None:
        return None
    lacks = before * factor - after
    if lacks is None or lacks.slope or (after.constant or 0) > _MOST_ROWS:
        return None
    # At one row of output the first row is taken, which is what half_pixel does of one row.
    if coordinates == "pytorch_half_pixel" and max(lacks.values) >= 2 * factor - 1:
        return None
    rounding = given.get("nearest_mode", "round_prefer_floor") if mode == "nearest" else ""
    if rounding not in ("", "floor", "ceil"):
        return None
    return _Rows(
        before, after, factor, (min(lacks.values), max(lacks.values)), scale, coordinates, rounding
    )


def _nearest_factor(before: Size, after: Size) -> int | None:
    """Return how many rows of an output come of each row of the input, about."""
    if before.constant and after.constant:
        factor = Fraction(after.constant, before.constant)
    elif before.symbol == after.symbol and before.slope > 0:
        factor = Fraction(after.slope * before.period, before.slope * after.period)
        if factor.denominator > 1:
            return None
    else:
        return None
    found = floor(factor + Fraction(1, 2))
    return found if 1 <= found <= _LARGEST_FACTOR else None


def _heights(
    record: Record, node: onnx.NodeProto, axis: int, rows: _Rows, new: NewNodes
) -> tuple[str, str]:
    """Write the rows before and after, a vector of one number each."""
    if rows.before.constant and rows.after.constant:
        before = new.ints([rows.before.constant], "before")
        return before, new.ints([rows.after.constant], "after")
    shape = new.add("Shape", [node.input[0]], "shape")
    before = new.add("Gather", [shape, new.ints([axis], "axis")], "before")
    if record.given(3):
        at = new.ints([resize_axes(record).index(axis)], "place")
        return before, new.add("Gather", [node.input[3], at], "after")
    # Its scale is the factor: of another one nothing is known at free sizes.
    return before, new.add("Mul", [before, new.ints([rows.factor], "factor")], "after")


def _weights(
    new: NewNodes, rows: _Rows, shifts: range, before: str, after: str, behind: int
) -> list[str]:
    """Write what each row is weighted by, or whether it is taken, for each shift.

    Args:
        new: Takes the nodes.
        rows: How the rows lie.
        shifts: The shifts.
        before: Rows before, as a tensor.
        after: Rows after, as a tensor.
        behind: Dimensions behind the tiled axis.

    Returns:
        Tensors of as many rows as there are after, and one of each dimension behind them.
    """
    if len(shifts) == 1:
        return []
    work = NewNodes(new.base, new.opset, new.image, new.kind)
    single = int(TensorProto.FLOAT)

    def number(value: float, suffix: str) -> str:
        return work.number(value, single, suffix)

    one, none = number(1, "one"), number(0, "none")
    zero, step = (work.number(each, TensorProto.INT64, f"counted_{each}") for each in (0, 1))
    end = work.squeeze(after, [0], "end", "")
    numbers = work.add("Range", [zero, end, step], "numbers")
    row = work.add("Cast", [numbers], "row", to=single)
    height = work.add("Cast", [before], "height", to=single)
    wanted = work.add("Cast", [after], "wanted", to=single)
    last = work.add("Sub", [height, one], "last")
    if rows.coordinates == "align_corners":
        gaps = work.add("Max", [work.add("Sub", [wanted, one], "gaps_or_none"), one], "gaps")
        at = work.add("Div", [work.add("Mul", [row, last], "stretched"), gaps], "at")
    else:
        scale = number(rows.scale, "scale") if rows.scale else ""
        scale = scale or work.add("Div", [wanted, height], "scale")
        half = number(0.5, "half_a_row") if "half_pixel" in rows.coordinates else ""
        middle = work.add("Add", [row, half], "middle") if half else row
        at = work.add("Div", [middle, scale], "at")
        at = work.add("Sub", [at, half], "from_its_middle") if half else at
    if rows.rounding:
        at = work.add(rows.rounding.capitalize(), [at], "rounded")
    at = work.add("Max", [work.add("Min", [at, last], "not_below"), none], "inside")
    by = work.number(rows.factor, TensorProto.INT64, "times")
    repeated = work.add("Cast", [work.add("Div", [numbers, by], "repeated")], "own", to=single)
    off = work.add("Sub", [at, repeated], "off")
    off = work.reshape(off, [-1] + [1] * behind, "off_by_row")
    made = []
    for place, shift in enumerate(shifts):
        by = number(shift, f"shift_{place}")
        if rows.rounding:
            made.append(work.add("Equal", [off, by], f"weight_{place}"))
            continue
        far = work.add("Abs", [work.add("Sub", [off, by], f"from_{place}")], f"far_{place}")
        near = work.add("Sub", [one, far], f"near_{place}")
        made.append(work.add("Max", [near, none], f"weight_{place}"))
    if rows.before.constant and rows.after.constant:
        _add_constants(new, work, made)
    else:
        new.nodes.extend(work.nodes)
    return made


def _add_constants(new: NewNodes, work: NewNodes, names: Sequence[str]) -> None:
    """Add what nodes make, worked out; they read what was added so far."""
    empty = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in names]
    graph = helper.make_graph([*new.nodes, *work.nodes], "weights", [], empty)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", new.opset)])
    for name, array in zip(names, ReferenceEvaluator(model).run(None, {}), strict=True):
        tensor = numpy_helper.from_array(np.asarray(array))
        new.add("Constant", [], name.removeprefix(f"{new.base}/"), value=tensor)


@dataclass(frozen=True)
class _Shifts:
    """An image whose rows are repeated and shifted.

    Attributes:
        image: The image.
        axis: The tiled axis.
        rank: Its dimensions.
        rows: How the rows lie.
        shifts: The shifts.
    """

    image: str
    axis: int
    rank: int
    rows: _Rows
    shifts: range

    def write(self, new: NewNodes, weights: Sequence[str], after: str, output: str) -> str:
        """Write the sum of the shifts with their weights, or the rows chosen of them.

        Args:
            new: Takes the nodes.
            weights: As `_weights` returns them.
            after: Rows after, as a tensor.
            output: What the sum is called; any name where it is empty.
        """
        if not weights:
            return self._shifted(new, self._repeated(new), 0, after, output)
        repeated = self._repeated(new)
        shifted = [self._shifted(new, repeated, place, after) for place in range(len(self.shifts))]
        last = len(self.shifts) - 1
        if self.rows.rounding:
            made = shifted[last]
            for place in range(last):
                name = output if place == last - 1 else ""
                chosen = [weights[place], shifted[place], made]
                made = new.add("Where", chosen, f"chosen_{place}", name)
            return made
        terms = [
            new.add("Mul", [each, weight], f"term_{place}")
            for place, (each, weight) in enumerate(zip(shifted, weights, strict=True))
        ]
        made = terms[0]
        for place, term in enumerate(terms[1:], 1):
            made = new.add("Add", [made, term], f"sum_{place}", output if place == last else "")
        return made

    def _repeated(self, new: NewNodes) -> str:
        """Write the image with its edges repeated as often as shifts reach, and then each row."""
        rows, image = self.rows, self.image
        below = max(0, self.shifts[-1] + ceil(Fraction(-rows.lacks[0], rows.factor)))
        pads = [0] * (2 * self.rank)
        pads[self.axis], pads[self.rank + self.axis] = -self.shifts[0], below
        if any(pads):
            image = new.add("Pad", [image, new.ints(pads, "edges")], "padded", mode="edge")
        if rows.factor == 1:
            return image
        scales = [1.0] * self.rank
        scales[self.axis] = float(rows.factor)
        # Until opset 13 it asks for a region of interest, which nothing is done with.
        roi = new.floats([], "no_roi") if new.opset < 13 else ""
        return new.add(
            "Resize",
            [image, roi, new.floats(scales, "factors")],
            "repeated_rows",
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )

    def _shifted(
        self, new: NewNodes, repeated: str, place: int, after: str, output: str = ""
    ) -> str:
        """Write the rows of one shift."""
        begin = place * self.rows.factor
        suffix = f"shifted_{place}"
        if self.rows.after.constant:
            end = new.ints([begin + self.rows.after.constant], f"{suffix}/end")
        else:
            end = new.add("Add", [after, new.ints([begin], f"{suffix}/more")], f"{suffix}/end")
        begins, axes = new.ints([begin], f"{suffix}/begin"), new.ints([self.axis], f"{suffix}/axis")
        return new.add("Slice", [repeated, begins, end, axes], suffix, output)


def _add_rest(
    new: NewNodes, found: ReadGraph, record: Record, node: onnx.NodeProto, axis: int, resized: str
) -> None:
    """Write the Resize of all dimensions but the one that has its size by now.

    By scales where these are exact: TensorRT takes no sizes of which one is worked out.
    """
    axes = resize_axes(record)
    given: Sequence[float | None] = record.value(2) or ()
    if record.given(3):
        given = [_scale(found, node, at) for at in axes]
    scales = [1.0 if at == axis else each for at, each in zip(axes, given, strict=True)]
    exact = [scale for scale in scales if scale is not None]
    others = [at for at in axes if at != axis]
    if len(exact) < len(scales) and new.opset >= 18:
        # Sizes of the other dimensions alone: a patch states none of its rows.
        places = [axes.index(at) for at in others]
        sizes = new.add("Gather", [node.input[3], new.ints(places, "rest/places")], "rest/sizes")
        made = copied(node)
        made.name = f"{new.base}/rest"
        del made.input[:]
        made.input.extend([resized, "", "", sizes])
        kept = [each for each in made.attribute if each.name != "axes"]
        del made.attribute[:]
        made.attribute.extend([*kept, helper.make_attribute("axes", others)])
        new.nodes.append(made)
        return
    inputs = [resized, *node.input[1:]]
    if len(exact) == len(scales):
        # An optional input may be named as absent: no sizes go with scales.
        inputs[2:] = [new.floats(exact, "scales")]
    rest = helper.make_node("Resize", inputs, [node.output[0]], name=f"{new.base}/rest")
    rest.attribute.extend(node.attribute)
    new.nodes.append(rest)


def _scale(found: ReadGraph, node: onnx.NodeProto, axis: int) -> float | None:
    """Return what a dimension is scaled by, None where single precision does not hold it."""
    before, after = (found.facts.size(name, axis) for name in (node.input[0], node.output[0]))
    if before is None or after is None or not before.constant or after.constant is None:
        return None
    exact = Fraction(after.constant, before.constant)
    single = float(np.float32(exact.numerator) / np.float32(exact.denominator))
    return single if Fraction(single) == exact else None
