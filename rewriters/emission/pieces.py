"""Pieces handed over from one Loop to the next: what both know of is never put together.

    put together   Loop(... SequenceInsert) -- ConcatFromSequence -- y -- Loop(Slice -- window)
    handed over    Loop(... SequenceInsert) -- pieces -- Loop(SequenceAt -- Slice --+
                                                              SequenceAt -- Slice --+-- window)

A tensor that rounds make (`emission.rounds`) is a sequence of pieces first. To put it together
holds it twice; and the next Loop reads windows alone. A window lies on a few neighbouring pieces,
and all pieces but the first and the last are equally high (`tiling.rounds`), so that a round works
out which they are, and takes from each the rows that it needs.

A tensor is handed over if everybody who reads it does so in windows of rounds; what the graph
returns, or a node that is not cut reads, is put together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from patchconv_deploy.rewriters.emission.bounds import RunTimeNumber, maximum, minimum
from patchconv_deploy.rewriters.emission.fragment import Fragment, Pieces
from patchconv_deploy.rewriters.emission.opset_nodes import add_concat, add_slice, add_squeeze
from patchconv_deploy.rewriters.tiling.patches import Rows
from patchconv_deploy.rewriters.tiling.rounds import touched

__all__ = ["Given", "hand_over_pieces"]


# A tensor so many times smaller than the largest that could be handed over is as well put together.
_SMALL = 8


@dataclass(frozen=True, slots=True)
class Given:
    """A tensor that comes in pieces, as a round takes its window of it.

    Attributes:
        pieces: The tensor.
        body: The round.
        suffix: Names what is made.
    """

    pieces: Pieces
    body: Fragment
    suffix: str

    def window(self, begin: RunTimeNumber, end: RunTimeNumber, most: int) -> gs.Variable:
        """Write the window.

        Args:
            begin: First row.
            end: One past the last row.
            most: Rows that it has at most.
        """
        given, body = self.pieces, self.body
        count = RunTimeNumber(body, body.outer(given.count))
        cores = given.rows_each, given.top, count
        cuts = []
        for at, (number, low, high) in enumerate(
            touched((begin, end), most, cores, minimum, maximum)
        ):
            place = add_squeeze(body, number.tensor, 0, f"{self.suffix}/number_{at}")
            inputs = [body.outer(given.name), place]
            piece = body.add("SequenceAt", inputs, f"{self.suffix}/of_{at}")
            bounds = low.tensor, high.tensor
            cuts.append(add_slice(body, piece, [given.axis], *bounds, f"{self.suffix}/part_{at}"))
        return add_concat(body, cuts, given.axis, self.suffix) if len(cuts) > 1 else cuts[0]

    def assumed_window(self, rows: Rows) -> gs.Variable:
        """Write the window at assumed sizes."""
        given, body = self.pieces, self.body
        cuts, begin = list[gs.Variable](), 0
        for name, (dims, kind) in given.parts:
            end = begin + (dims[given.axis] or 0)
            taken = min(end, rows.end) - max(begin, rows.begin)
            begin = end
            if taken <= 0:
                continue
            # Gather copies a piece, as SequenceAt does.
            at, attrs = len(cuts), {"axis": 0}
            inputs = [body.outer(name), body.ints(list(range(dims[0] or 1)))]
            piece = body.add(
                "Gather", inputs, f"{self.suffix}/of_{at}", attrs=attrs, like=(dims, kind)
            )
            cut = self._resized(dims, taken), kind
            cuts.append(
                add_slice(
                    body, piece, [given.axis], [0], [taken], f"{self.suffix}/part_{at}", like=cut
                )
            )
        if len(cuts) == 1:
            return cuts[0]
        dims, kind = given.parts[0][1]
        like = self._resized(dims, len(rows)), kind
        return add_concat(body, cuts, given.axis, self.suffix, like=like)

    def _resized(self, dims: Sequence[int | None], rows: int) -> tuple[int | None, ...]:
        axis = self.pieces.axis
        return (*dims[:axis], rows, *dims[axis + 1 :])


def hand_over_pieces(
    fragments: Mapping[int, Fragment], whole: Collection[str], sizes: Mapping[str, int | None]
) -> dict[int, Fragment]:
    """Return the fragments that change where rounds hand pieces over; none where they do not.

    Args:
        fragments: All fragments, by position.
        whole: Tensors that something else reads, or the graph returns.
        sizes: Bytes of tensors at assumed sizes.
    """
    made: dict[str, Pieces] = {}
    for fragment in fragments.values():
        made.update(fragment.pieces)
    for name in whole:
        made.pop(name, None)
    read = set[str]()
    for fragment in fragments.values():
        for name in fragment.reads & made.keys():
            if fragment.in_windows.get(name) == made[name].axis:
                read.add(name)
            else:
                del made[name]
    read &= made.keys()
    least = max((sizes.get(name) or 0 for name in read), default=0) / _SMALL
    handed = {name: made[name] for name in sorted(read) if (sizes.get(name) or 0) >= least}
    changed = {}
    for at, fragment in fragments.items():
        kept = frozenset(fragment.pieces.keys() & handed.keys())
        given = {name: handed[name] for name in fragment.in_windows if name in handed}
        if fragment.rewrite is not None and (kept or given):
            key = "pieces", kept, tuple(given.items())
            if key not in fragment.variants:
                fragment.variants[key] = fragment.rewrite(kept, given)
            changed[at] = fragment.variants[key]
    return changed
