"""Random graphs, cut as whole regions, against the uncut graph and against brute force.

The graphs come from `tests.support.random_graphs`: branches of different reach and scale, joins,
padding of every kind, squeeze-and-excite, channels last, side outputs, several inputs, quantised
tensors. All weights are random numbers. Every row-local node is cut
(`tests.support.regions_by_hand`); what is refused has a reason, and a least share is asked to be
cut.

The second half takes onnx away: one-dimensional networks of row maps, evaluated on plain numbers
with NaN beyond the interior edges of a window. A row of a window is right exactly where no NaN
reached it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patchconv_deploy.rewriters.tiling import network as networks
from patchconv_deploy.rewriters.tiling import proof
from patchconv_deploy.rewriters.tiling.network import Link, Network, Shrinking
from patchconv_deploy.rewriters.tiling.patches import Patch, Tiling, covers, tile
from patchconv_deploy.rewriters.tiling.row_maps import (
    Padding,
    Periodic,
    Pointwise,
    RowMap,
    Sliding,
    Transposed,
    dropped,
    removable_padding,
)
from patchconv_deploy.rewriters.tiling.shrinking import shrink
from tests.support.random_graphs import random_graph
from tests.support.regions_by_hand import tile_all
from tests.support.small_models import Array
from tests.support.tiers import examples, slow

_NAN = math.nan


def _settings(examples: int) -> settings:
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def _run(made: onnx.ModelProto, feeds: dict[str, Array], *, optimised: bool) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        made.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, feeds))


def _assert_equal(name: str, wanted: Array, got: Array, rel: float) -> None:
    assert wanted.dtype == got.dtype
    assert wanted.shape == got.shape, name
    if wanted.dtype != np.float32:
        assert np.array_equal(wanted, got), name
        return
    largest = float(np.nanmax(np.abs(wanted), initial=0.0))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=rel * largest + 1e-7, err_msg=name)


def _compare(
    draw: Callable[[int, int], int], form: str, seen: Counter[str], *, most: int, optimised: bool
) -> None:
    graph = random_graph(draw, most=most)
    model, feeds = graph.model(), graph.feeds()
    made = tile_all(model, draw(2, 6), form, graph.axis)
    seen["graphs"] += 1
    seen.update(f"{reason}" for reason in made.reasons)
    interface = [(list(m.graph.input), list(m.graph.output)) for m in (model, made.model)]
    assert interface[0] == interface[1]
    if not made.plans:
        assert made.reasons
        return
    seen["cut"] += 1
    seen["nodes"] += len(made.labels)
    seen["nodes cut"] += sum(len(plan.region.nodes) for plan in made.plans)
    seen["several inputs"] += any(len(plan.region.inputs) > 1 for plan in made.plans)
    seen["several outputs"] += any(len(plan.region.outputs) > 1 for plan in made.plans)
    seen["shrinking"] += any(plan.shrinking is not None for plan in made.plans)
    seen["several scales"] += any(len(set(plan.steps)) > 1 for plan in made.plans)
    # Without optimisation both run the same kernels on the same numbers; a kernel that folds
    # other rows into one multiplication may still add in another order.
    wanted = _run(model, feeds, optimised=False)
    got = _run(made.model, feeds, optimised=optimised)
    for value, a, b in zip(model.graph.output, wanted, got, strict=True):
        _assert_equal(value.name, a, b, 3e-5)


# How many graphs by default, of how many nodes, and whether the runtime optimises what is cut. The
# slow tier compares five times as many.
_GRAPHS = [
    ("fused", 200, 8, False),
    ("shrinking", 200, 8, False),
    ("loop", 120, 8, False),
    ("fused", 30, 20, False),
    ("shrinking", 30, 20, False),
    ("fused", 40, 8, True),
    ("shrinking", 30, 8, True),
    ("loop", 30, 8, True),
]


@pytest.mark.parametrize(
    ("form", "examples", "most", "optimised"),
    [*_GRAPHS, *(slow(form, 5 * examples, *rest) for form, examples, *rest in _GRAPHS)],
)
def test_random_graphs(form: str, examples: int, most: int, optimised: bool) -> None:
    """A cut graph computes what the whole one does, whatever it is made of."""
    seen: Counter[str] = Counter()

    @_settings(examples)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        def draw(low: int, high: int) -> int:
            return data.draw(st.integers(low, high))

        _compare(draw, form, seen, most=most, optimised=optimised)

    check()
    assert seen["graphs"] >= 0.9 * examples, seen
    assert seen["cut"] > 0.8 * seen["graphs"], seen
    assert seen["nodes cut"] > 0.4 * seen["nodes"], seen
    assert (seen["shrinking"] > 0.3 * seen["graphs"]) == (form == "shrinking"), seen


def _apply(op: RowMap, x: Sequence[float], mode: str, *, first: bool, last: bool) -> list[float]:
    """Apply one operator to the rows of a window, from its definition.

    Args:
        op: The operator.
        x: The rows.
        mode: What rows beyond a true border are: "zero", "edge" or "reflect".
        first: The window begins at a true border; elsewhere rows beyond are NaN.
        last: The same of its end.
    """
    kept = x
    if isinstance(op, Padding):
        cut = len(x) + min(op.end, 0)
        kept = x[max(-op.begin, 0) : cut]

    def at(row: int, rows: Sequence[float] = kept) -> float:
        if 0 <= row < len(rows):
            return rows[row]
        if not (first if row < 0 else last):
            return _NAN
        if mode == "zero":
            return 0.0
        if mode == "edge":
            return rows[0 if row < 0 else -1]
        return rows[-row if row < 0 else 2 * len(rows) - 2 - row]

    match op:
        case Sliding():
            begin = op.pads(len(x))[0]
            return [
                math.fsum((3 * k + 1) * at(a * op.stride - begin + k) for k in range(op.reach))
                for a in range(op.rows_out(len(x)))
            ]
        case Transposed():
            return [
                math.fsum(
                    (3 * k + 1) * at((y + op.begin - k) // op.stride)
                    for k in range(op.reach)
                    if (y + op.begin - k) % op.stride == 0
                )
                for y in range(op.rows_out(len(x)))
            ]
        case Padding():
            return [at(row) for row in range(-max(op.begin, 0), len(kept) + max(op.end, 0))]
        case Periodic():
            made = []
            for y in range(op.rows_out(len(x))):
                period, phase = divmod(y, op.step_out)
                down = period * op.step_in
                reads = range(down + op.lows[phase], down + op.highs[phase])
                made.append(math.fsum((2 * k + 1) * at(row) for k, row in enumerate(reads)))
            return made
        case _:
            return list(x)


def _evaluate(
    network: Network,
    modes: Sequence[str],
    inputs: Sequence[Sequence[float]],
    *,
    first: bool,
    last: bool,
) -> list[list[float]]:
    """Return every tensor; an operator that reads several adds them up, each times another odd."""
    values: list[list[float]] = [[] for _ in range(network.tensors)]
    for tensor, rows in zip(network.inputs, inputs, strict=True):
        values[tensor] = list(rows)
    for link, mode in zip(network.links, modes, strict=True):
        read = [
            math.fsum((2 * k + 1) * value for k, value in enumerate(column))
            for column in zip(*(values[tensor] for tensor in link.reads), strict=True)
        ]
        made = _apply(link.row_map, read, mode, first=first, last=last)
        for k, tensor in enumerate(link.makes):
            values[tensor] = [row if math.isnan(row) else (row + k) % 1_000_003 for row in made]
    return values


def _periodic(draw: st.DrawFn) -> Periodic:
    up, down = draw(st.sampled_from(((2, 1), (3, 1), (4, 1), (1, 2), (2, 3), (3, 2), (1, 1))))
    half = draw(st.booleans())
    reach = draw(st.sampled_from((1, 2, 4)))
    at = [((2 * y + 1) * down - up) // (2 * up) if half else y * down // up for y in range(up)]
    lows = tuple(row - (reach - 1) // 2 for row in at)
    return Periodic(down, up, lows, tuple(low + reach for low in lows))


@st.composite
def _networks(draw: st.DrawFn) -> tuple[Network, tuple[str, ...], tuple[int, ...]]:
    """Draw a network that branches, its padding modes, and the rows of its inputs."""
    rows: list[int] = [draw(st.integers(2, 40))]
    given = [0]
    links: list[Link] = []
    modes: list[str] = []
    for _ in range(draw(st.integers(1, 7))):
        back = draw(st.integers(1, len(rows))) if draw(st.integers(0, 2)) == 0 else 1
        source = len(rows) - back
        if draw(st.integers(0, 9)) == 0 and len(given) < 3:
            given.append(len(rows))
            rows.append(rows[source])
        reads = [source]
        partners = [t for t, count in enumerate(rows) if count == rows[source] and t != source]
        joins = draw(st.integers(0, 1))
        if partners and joins:
            reads.append(draw(st.sampled_from(partners)))
        op: RowMap
        mode = "zero"
        reach, stride = draw(st.integers(1, 6)), draw(st.sampled_from((1, 1, 1, 2, 3)))
        begin, end = draw(st.integers(0, reach // 2 + 1)), draw(st.integers(0, reach // 2 + 1))
        match draw(st.integers(0, 7)):
            case 0 | 1:
                op = Sliding(reach, stride, reach // 2, (reach - 1) // 2)
            case 2:
                op = Sliding(reach, stride, begin, end)
            case 3:
                op = Sliding(
                    reach, stride, same=draw(st.sampled_from(("SAME_UPPER", "SAME_LOWER")))
                )
            case 4:
                op = Transposed(reach, stride, begin, end, draw(st.integers(0, stride - 1)))
            case 5:
                mode = draw(st.sampled_from(("zero", "edge", "reflect")))
                begin, end = draw(st.integers(-3, 4)), draw(st.integers(-3, 4))
                cut = max(-begin, -end, 0)
                margin = {"zero": 0, "edge": 1, "reflect": max(begin, end, 0) + 1}[mode] + cut
                if rows[source] + min(begin, 0) + min(end, 0) <= max(begin, end, 0):
                    continue
                op = Padding(begin, end, margin)
            case 6:
                op, mode = _periodic(draw), "edge"
                if rows[source] % op.step_in:
                    continue
            case _:
                op = Pointwise()
        count = op.rows_out(rows[source])
        if not 1 <= count <= 80:
            continue
        makes = [len(rows)]
        if draw(st.integers(0, 9)) == 0:
            makes.append(len(rows) + 1)
        links.append(Link(op, tuple(reads), tuple(makes)))
        modes.append(mode)
        rows += [count] * len(makes)
    read = {tensor for link in links for tensor in link.reads}
    made = [tensor for link in links for tensor in link.makes]
    inputs = tuple(tensor for tensor in given if tensor in read)
    outputs = tuple(tensor for tensor in made if tensor not in read or draw(st.integers(0, 5)) == 0)
    # Inputs that nobody reads are not the network's.
    numbers = {tensor: number for number, tensor in enumerate((*inputs, *made))}
    network = Network(
        len(numbers),
        tuple(
            Link(
                link.row_map,
                tuple(numbers[tensor] for tensor in link.reads),
                tuple(numbers[tensor] for tensor in link.makes),
                removable_padding(link.row_map),
            )
            for link in links
        ),
        tuple(numbers[tensor] for tensor in inputs),
        tuple(numbers[tensor] for tensor in outputs),
    )
    return network, tuple(modes), tuple(rows[tensor] for tensor in inputs)


def _image(rows: int, seed: int) -> list[float]:
    return [float(n) for n in np.random.default_rng([rows, seed]).integers(1, 1000, rows)]


def _check_window(
    network: Network,
    modes: Sequence[str],
    rows: Sequence[int],
    shift: int,
    trim: int,
) -> int | None:
    """Compare what `tiling.network.walk` calls right with what is; return the rows it misses."""
    step, whole = networks.steps(network), networks.heights(network, rows)
    assert not isinstance(step, str)
    assert not isinstance(whole, str)
    found = networks.walk(network, step, whole, shift=shift, trim=trim)
    if isinstance(found, str):
        return None
    images = [_image(count, seed) for seed, count in enumerate(rows)]
    full = _evaluate(network, modes, images, first=True, last=True)
    windows = [
        image[shift * step[t] : shift * step[t] + len(image) - trim * step[t]]
        for t, image in zip(network.inputs, images, strict=True)
    ]
    local = _evaluate(network, modes, windows, first=shift == 0, last=shift == trim)
    missed = 0
    for tensor in range(network.tensors):
        begin = shift * step[tensor]
        assert len(local[tensor]) == whole[tensor] - trim * step[tensor]
        right = [
            row for row, value in enumerate(local[tensor]) if value == full[tensor][begin + row]
        ]
        claimed = range(*found[tensor])
        assert set(claimed) <= set(right), (tensor, claimed, right)
        missed += sum(not math.isnan(local[tensor][row]) for row in right) - len(claimed)
    return missed


@examples(300, 1500)
def test_right_rows_of_networks(examples: int) -> None:
    """What the proof calls right in a window is right, tensor by tensor; it misses little."""
    seen: Counter[str] = Counter()

    @_settings(examples)
    @given(_networks(), st.integers(0, 12), st.integers(0, 12))
    def check(
        drawn: tuple[Network, tuple[str, ...], tuple[int, ...]], shift: int, beyond: int
    ) -> None:
        network, modes, rows = drawn
        if not network.links or isinstance(networks.steps(network), str):
            seen["refused"] += 1
            return
        missed = _check_window(network, modes, rows, shift, shift + beyond)
        seen["no window" if missed is None else "exact" if not missed else "careful"] += 1

    check()
    assert seen["exact"] > examples / 8, seen
    assert seen["careful"] < seen["exact"], seen


@examples(400, 1500)
def test_tilings_of_networks(examples: int) -> None:
    """Every tiling that is proven gives the whole, for every output."""
    seen: Counter[str] = Counter()

    @_settings(examples)
    @given(_networks(), st.integers(2, 7))
    def check(drawn: tuple[Network, tuple[str, ...], tuple[int, ...]], splits: int) -> None:
        network, modes, rows = drawn
        step = networks.steps(network) if network.links else "it is empty"
        if isinstance(step, str):
            seen[step] += 1
            return
        whole = networks.heights(network, rows)
        assert not isinstance(whole, str)
        tiling = tile(proof.extents(network, rows), splits)
        reason = proof.prove(network, rows, tiling)
        if reason is not None:
            seen["not proven"] += 1
            return
        images = [_image(count, seed) for seed, count in enumerate(rows)]
        full = _evaluate(network, modes, images, first=True, last=True)
        for k, tensor in enumerate(network.outputs):
            assert covers([patch.cores[k] for patch in tiling.patches], whole[tensor])
        shrinking = shrink(network, step, whole, tiling)
        if shrinking is not None and proof.prove(network, rows, tiling, shrinking) is not None:
            # A window may be too low then for the rows that its padding mirrors.
            seen["kept"] += 1
            shrinking = None
        for less in (None, shrinking) if shrinking is not None else (None,):
            for patch in tiling.patches:
                _check_patch(network, modes, images, full, tiling, patch, less)
        seen["shrinking"] += shrinking is not None
        seen["right"] += 1
        seen["trimmed"] += tiling.trim > 0
        seen["several inputs"] += tiling.trim > 0 and len(network.inputs) > 1
        seen["several outputs"] += tiling.trim > 0 and len(network.outputs) > 1

    check()
    assert seen["trimmed"] > examples / 10, seen
    assert seen["shrinking"] > 10 * seen["kept"], seen
    assert seen["shrinking"] > examples / 30, seen
    assert seen["several outputs"] > examples / 40, seen
    assert seen["several inputs"] > examples / 150, seen


def _check_patch(
    network: Network,
    modes: Sequence[str],
    images: Sequence[Sequence[float]],
    full: Sequence[Sequence[float]],
    tiling: Tiling,
    patch: Patch,
    shrinking: Shrinking | None,
) -> None:
    """Compute a patch from its windows, with less padding where those shrink; compare its cores."""
    step = networks.steps(network)
    assert not isinstance(step, str)
    top: Sequence[int] = (0,) * network.tensors
    bottom = top
    links = network.links
    if shrinking is not None:
        top, bottom = shrinking.at(patch.shift, tiling.trim)
        less = [networks.padding_dropped(link, top, bottom) for link in links]
        links = tuple(
            link._replace(row_map=dropped(link.row_map, *rows or (0, 0)))
            for link, rows in zip(links, less, strict=True)
        )
    begins = [patch.shift * r + above for r, above in zip(step, top, strict=True)]
    windows = [
        image[begins[t] :][: len(image) - tiling.trim * step[t] - top[t] - bottom[t]]
        for t, image in zip(network.inputs, images, strict=True)
    ]
    local = _evaluate(
        replace(network, links=links),
        modes,
        windows,
        first=patch.shift == 0,
        last=patch.shift == tiling.trim,
    )
    for tensor, owned in zip(network.outputs, patch.cores, strict=True):
        down = begins[tensor]
        here = local[tensor][owned.begin - down : max(owned.begin, owned.end) - down]
        assert here == full[tensor][owned.begin : owned.end]


@pytest.mark.parametrize("mode", ["zero", "edge", "reflect"])
def test_padding_of_small_windows(mode: str) -> None:
    """Where the rows that padding is made of are few, or wrong themselves."""
    compared = 0
    base = {"zero": 0, "edge": 1, "reflect": 5}[mode]
    for begin, end in ((4, 0), (0, 4), (3, 4), (-2, 4), (4, -2), (-1, -2)):
        margin = base + max(-begin, -end, 0)
        if mode == "reflect":
            margin += max(begin, end, 0) - 4
        chain: tuple[RowMap, ...] = (Sliding(5, 1, 2, 2), Padding(begin, end, margin))
        for rows in range(9, 16):
            for trim in range(rows):
                for shift in range(trim + 1):
                    found = _check_window(Network.chain(chain), ("zero", mode), [rows], shift, trim)
                    compared += found is not None
    assert compared > 500
