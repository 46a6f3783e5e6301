"""Strips handed over from one region to the next: what one makes and the next reads is never whole.

    made whole     strips -- Concat -- y -- Slice -- window          (y and its strips at once)
    handed over    strips that a window touches -- Slice -- Concat -- window

A strip is freed when the last window with rows of it is done, so that the old tensor goes while
the new one grows, and nothing is put together in between. A tensor is handed over if everybody who
reads it does so in windows; what the graph returns, or a node that is not cut reads, stays whole.

Passes over the same tensor read the same windows. Runtimes take equal nodes of equal inputs for
one and keep its result for all of them, so that nothing would be made again. So each further
Slice of the same rows is written in another way: bounds counted from the end, the axis too. A
window of whole strips alone has none: there one of them is cut, all its rows, in the next way.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.numpy_helper

from patchconv_deploy.rewriters.emission.fragment import Fragment, Join, Window, size_of
from patchconv_deploy.rewriters.emission.names import Like
from patchconv_deploy.rewriters.graph.use_def import Index

__all__ = ["hand_over"]


@dataclass(frozen=True, slots=True)
class Strip:
    """Rows ``[begin, end)`` of a tensor, as a tensor of their own."""

    name: str
    begin: int
    end: int


def hand_over(order: Sequence[int | Fragment], index: Index) -> list[int | Fragment]:
    """Return an arrangement of a graph in which regions hand strips over.

    Args:
        order: `emission.splice.arrange` of the graph.
        index: The graph.
    """
    makers: dict[str, Join] = {}
    whole = set(index.outputs)
    windows: dict[str, list[Window]] = {}
    for item in order:
        if isinstance(item, int):
            whole.update(index.ends[item][0])
            continue
        makers.update({join.name: join for join in item.joins})
        for window in item.windows:
            windows.setdefault(window.source, []).append(window)
        whole |= item.read_whole
    handed = {
        name: _strips(join)
        for name, join in makers.items()
        if name not in whole
        and name in windows
        and all(each.axis == join.axis and _is_part(each, join) for each in windows[name])
    }
    seen: dict[tuple[str, int, int], int] = {}
    result: list[int | Fragment] = []
    for item in order:
        if isinstance(item, int):
            result.append(item)
            continue
        given = {w.source: handed[w.source] for w in item.windows if w.source in handed}
        kept = frozenset(join.name for join in item.joins if join.name in handed)
        # Who makes a strip and reads it on reads it as a window of the whole strip does.
        for join in item.joins:
            if join.name in kept and not item.read_strips.isdisjoint(join.parts):
                for part, rows in zip(join.parts, join.rows, strict=True):
                    if part in item.read_strips:
                        seen[part, 0, rows] = 1
        again = _again(item, given, seen)
        result.append(_changed(item, kept, given, again) if kept or given or again else item)
    return _windows_first(result, handed)


def _windows_first(
    order: Sequence[int | Fragment], handed: Mapping[str, Sequence[Strip]]
) -> list[int | Fragment]:
    """Put windows right behind what they are cut from, and what else is read of them behind that.

    Of two operands ONNX Runtime makes the one first that stands later in the file. What a window is
    scaled by is a statistic of all patches: made after the window, it would find the window, and
    the strips that it is made of, there already.
    """
    makers: dict[str, int] = {}
    behind: dict[int, list[Fragment]] = {}
    result: list[int | Fragment] = []
    for place, item in enumerate(order):
        if isinstance(item, int):
            result.append(item)
            continue
        sources = {}
        for window in item.windows:
            strips = handed.get(window.source)
            first = window.source if strips is None else strips[0].name
            if makers.get(first, place) < place - 1:
                sources[window.source] = makers[first]
        body = item
        if sources:
            body, parts = _apart(item, frozenset(sources))
            for source, part in parts.items():
                behind.setdefault(sources[source], []).append(part)
        makers.update(dict.fromkeys(item.makes, place))
        result.append(body)
    return [each for place, item in enumerate(result) for each in (item, *behind.get(place, ()))]


def _apart(item: Fragment, sources: frozenset[str]) -> tuple[Fragment, dict[str, Fragment]]:
    """Return a fragment without the windows of some tensors, and these by tensor."""
    key = "apart", sources
    if key not in item.variants:
        nodes, constants = item.export()
        source_of = {window.name: window.source for window in item.windows}
        # Nodes that a window is made of stand before it, and serve it alone.
        # In the order of the windows: a set has another one in each process.
        apart = (window.source for window in item.windows if window.source in sources)
        parts = {source: list[onnx.NodeProto]() for source in apart}
        rest, pending = list[onnx.NodeProto](), list[onnx.NodeProto]()
        stems = {item.name(window.suffix) for window in item.windows}
        pieces = {
            name for node in nodes for name in node.output if name.rpartition("/strip_")[0] in stems
        }
        for node in nodes:
            name = node.output[0] if node.output else ""
            if name in pieces:
                pending.append(node)
                continue
            there = parts.get(source_of.get(name, ""), rest)
            there.extend(pending)
            there.append(node)
            pending.clear()
        rest.extend(pending)
        windows = {
            source: item.rewritten(
                own,
                constants,
                tuple(node.output[0] for node in own if node.output[0] in source_of),
                {
                    name: item.shapes[name]
                    for node in own
                    for name in node.output
                    if name in item.shapes
                },
                0,
            )
            for source, own in parts.items()
        }
        body = item.rewritten(rest, constants, item.makes, dict(item.shapes), item.moved)
        item.variants[key] = body, windows
    found: tuple[Fragment, dict[str, Fragment]] = item.variants[key]
    return found


def _strips(join: Join) -> tuple[Strip, ...]:
    strips, begin = [], 0
    for name, rows in zip(join.parts, join.rows, strict=True):
        strips.append(Strip(name, begin, begin + rows))
        begin += rows
    return tuple(strips)


def _is_part(window: Window, join: Join) -> bool:
    return 0 <= window.begin < window.end <= sum(join.rows)


def _pieces(window: Window, strips: Sequence[Strip]) -> list[tuple[Strip, int, int]]:
    """Return the strips that a window touches, and which of their rows."""
    return [
        (
            strip,
            max(window.begin, strip.begin) - strip.begin,
            min(window.end, strip.end) - strip.begin,
        )
        for strip in strips
        if strip.begin < window.end and strip.end > window.begin
    ]


def _again(
    item: Fragment,
    given: Mapping[str, Sequence[Strip]],
    seen: dict[tuple[str, int, int], int],
) -> dict[tuple[str, int, int], int]:
    """Count who cuts the same rows of the same tensor before, and return where that is anybody."""
    cuts = set()
    for window in item.windows:
        if window.source in given:
            cuts |= {(s.name, b, e) for s, b, e in _pieces(window, given[window.source])}
        else:
            cuts.add((window.source, window.begin, window.end))
    found = {}
    for cut in cuts:
        if seen.get(cut):
            found[cut] = seen[cut]
        seen[cut] = seen.get(cut, 0) + 1
    return found


def _changed(
    item: Fragment,
    handed: frozenset[str],
    given: Mapping[str, tuple[Strip, ...]],
    again: Mapping[tuple[str, int, int], int],
) -> Fragment:
    """Return a fragment that leaves tensors in strips and reads others in strips."""
    key = handed, tuple(given.items()), tuple(sorted(again.items()))
    known: Fragment | None = item.variants.get(key)
    if known is None:
        known = item.variants[key] = _written(item, handed, given, again)
    return known


def _written(
    item: Fragment,
    handed: frozenset[str],
    given: Mapping[str, tuple[Strip, ...]],
    again: Mapping[tuple[str, int, int], int],
) -> Fragment:
    nodes, constants = item.export()
    by_window = {window.name: window for window in item.windows}
    made = list[onnx.NodeProto]()
    extra = dict(constants)
    shapes = dict(item.shapes)
    for node in nodes:
        name = node.output[0] if node.output else ""
        if name in handed:
            continue
        window = by_window.get(name)
        if window is None:
            made.append(node)
            continue
        _Window(item, window, again, made, extra, shapes).write(given.get(window.source))
    strips = tuple(part for join in item.joins if join.name in handed for part in join.parts)
    makes = (*(name for name in item.makes if name not in handed), *strips)
    for name in handed:
        shapes.pop(name, None)
    moved = _moved(item, handed, given)
    return item.rewritten(made, extra, makes, shapes, moved)


def _moved(item: Fragment, handed: Collection[str], given: Collection[str]) -> int:
    """Return the bytes that are still cut and put together."""
    joined = sum(size_of(join.like) or 0 for join in item.joins if join.name in handed)
    # A window of strips is put together of pieces.
    pieces = sum(size_of(window.like) or 0 for window in item.windows if window.source in given)
    return item.moved - joined + pieces


@dataclass(frozen=True)
class _Window:
    """A window as it is written: nodes, constants and shapes are added to what there is."""

    item: Fragment
    window: Window
    again: Mapping[tuple[str, int, int], int]
    nodes: list[onnx.NodeProto]
    constants: dict[str, onnx.TensorProto]
    shapes: dict[str, Like]

    def write(self, strips: Sequence[Strip] | None) -> None:
        """Write it, of the whole tensor or of its strips."""
        window = self.window
        if strips is None:
            rows = window.end if window.of is None else window.of
            pieces = [(Strip(window.source, 0, rows), window.begin, window.end)]
        else:
            pieces = _pieces(window, strips)
        if len(pieces) == 1:
            self._cut(*pieces[0], window.suffix, window.name)
            return
        parts, again = [], self._again_whole(pieces)
        for number, (strip, begin, end) in enumerate(pieces):
            name = strip.name
            if (begin, end) != (0, strip.end - strip.begin) or number == again:
                suffix = f"{window.suffix}/strip_{number}"
                name = self._cut(strip, begin, end, suffix, self.item.name(suffix))
            parts.append(name)
        self._add("Concat", parts, window.suffix, window.name, window.end - window.begin)
        self.nodes[-1].attribute.append(onnx.helper.make_attribute("axis", window.axis))

    def _again_whole(self, pieces: Sequence[tuple[Strip, int, int]]) -> int | None:
        """Return which strip to cut, of whole ones that were all read whole before."""
        counts = [self.again.get((strip.name, begin, end), 0) for strip, begin, end in pieces]
        if any((b, e) != (0, s.end - s.begin) for s, b, e in pieces) or 0 in counts:
            return None
        return min(range(len(pieces)), key=lambda at: (pieces[at][2], at))

    def _cut(self, strip: Strip, begin: int, end: int, suffix: str, made: str) -> str:
        window, opset = self.window, self.item.opset
        number = self.again.get((strip.name, begin, end), 0)
        rows = strip.end - strip.begin
        if (begin, end) == (0, rows) and not number:
            return self._add("Identity", [strip.name], suffix, made, rows)
        rank = len(window.like[0])
        axis = window.axis - (rank if number & 4 and opset >= 11 else 0)
        bounds = dict(zip(("starts", "ends"), _spelled(begin, end, rows, number), strict=True))
        bounds["axes"] = axis
        read = [self._int(value) for value in bounds.values()] if opset >= 10 else []
        self._add("Slice", [strip.name, *read], suffix, made, end - begin)
        if opset < 10:
            self.nodes[-1].attribute.extend(
                onnx.helper.make_attribute(name, [value]) for name, value in bounds.items()
            )
        return made

    def _add(self, op: str, inputs: Sequence[str], suffix: str, made: str, rows: int) -> str:
        (dims, kind), axis = self.window.like, self.window.axis
        name = self.item.name(suffix)
        self.nodes.append(onnx.NodeProto(op_type=op, name=name, input=inputs, output=[made]))
        self.shapes[made] = (*dims[:axis], rows, *dims[axis + 1 :]), kind
        return made

    def _int(self, value: int) -> str:
        array = np.asarray([value], dtype=np.int64)
        name = self.item.names.shared(array)
        if name not in self.constants:
            self.constants[name] = onnx.numpy_helper.from_array(array, name)
        return name


def _spelled(begin: int, end: int, rows: int, number: int) -> tuple[int, int]:
    """Return the bounds of a Slice, written in one of four ways.

    Args:
        begin: First row.
        end: One past the last row.
        rows: Rows of what is cut.
        number: Which way.
    """
    low = begin - rows if number & 1 else begin
    if not number & 2:
        return low, end
    return low, end - rows if end < rows else end + 1  # beyond the end is the end
