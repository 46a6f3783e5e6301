"""Measured against predicted activation memory: what `memory.reader` is worth.

A table of networks, at two sizes each, as they are, rewritten Conv by Conv, and with a whole region
cut into patches; each under ONNX Runtime (the most its arena had in use, from its profile, fresh
processes, default options and tuned ones) and as TensorRT for RTX plans it for SM80.

    python -m tools.calibrate_memory                       # all of it: two minutes
    python -m tools.calibrate_memory --model 'srvgg*' --target onnxruntime

Every line shows the ratio of predicted to measured; the last ones how many lie within the bounds.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from patchconv_deploy import convert_model
from patchconv_deploy.engines.errors import BuildError, ParseError
from patchconv_deploy.engines.ort.options import OrtOptions
from patchconv_deploy.engines.process.child import child_process
from patchconv_deploy.engines.trt.build import build, load_module
from patchconv_deploy.engines.trt.options import BuildOptions
from patchconv_deploy.rewriters.graph.fixed_shapes import fix_shapes
from patchconv_deploy.rewriters.graph.inference import infer
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.graph.skeleton import skeleton
from patchconv_deploy.rewriters.memory.peak import Peak
from patchconv_deploy.rewriters.memory.reader import read
from patchconv_deploy.rewriters.memory.targets import ENGINES, Engine
from patchconv_deploy.verify.inputs import save_inputs

__all__ = [
    "BOUNDS",
    "Case",
    "cases",
    "conv_chain",
    "engine_here",
    "looped",
    "measured",
    "planned",
    "predicted",
    "unrolled",
]

MIB = 1 << 20
BOUNDS = {
    "onnxruntime": 0.15,
    "onnxruntime-tuned": 0.15,
    "onnxruntime-server": 0.15,
    "tensorrt": 0.30,
}
OPTIONS = {
    "onnxruntime": OrtOptions(threads=2),
    "onnxruntime-tuned": OrtOptions(threads=2, memory_pattern=False, memory_reuse=False),
    "onnxruntime-server": OrtOptions(threads=2, memory_pattern=False),
}
# Two runs and no more: the second can need more than the first, further ones do not.
_RUNS = 2


def engine_here(name: str) -> Engine:
    """Return an engine with the channel block ONNX Runtime uses on this processor."""
    engine = ENGINES[name]
    if not engine.lowering.block:
        return engine
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else "avx512f"
    block = 16 if "avx512f" in flags else 8
    return replace(engine, lowering=replace(engine.lowering, block=block))


# --- graphs ---------------------------------------------------------------------------------------


def conv_chain(size: int, *, channels: int = 64, layers: int = 8) -> onnx.ModelProto:
    """Return Conv 3x3 + Relu, ``layers`` times, 1x3xSxS -> 1x3xSxS."""
    rng = np.random.default_rng(0)
    widths = [3, *[channels] * (layers - 1), 3]
    nodes, weights, name = [], [], "x"
    for k, (a, b) in enumerate(pairwise(widths)):
        kernel = rng.standard_normal((b, a, 3, 3), dtype=np.float32) * 0.05
        weights.append(numpy_helper.from_array(kernel, f"w{k}"))
        last = k == layers - 1
        made = "y" if last else f"c{k}"
        nodes.append(helper.make_node("Conv", [name, f"w{k}"], [made], f"conv{k}", pads=[1] * 4))
        name = made
        if not last:
            nodes.append(helper.make_node("Relu", [name], [f"r{k}"], f"relu{k}"))
            name = f"r{k}"
    shape = [1, 3, size, size]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def unrolled(
    model: onnx.ModelProto, patches: int, halo: int, source: str, result: str
) -> onnx.ModelProto:
    """Return a model with the nodes from ``source`` to ``result`` run patch by patch.

    Uniform windows along the height: a Slice, the nodes cloned, a Slice of the rows the patch owns;
    one Concat. For memory alone: nobody proves here that the halo suffices.

    Args:
        model: Static shapes; all between the two tensors is row-local and reads nothing else that
            has rows.
        patches: Number of patches; divides the rows of ``source``.
        halo: Rows of ``source`` beyond a patch's own, each side.
        source: The tensor to cut.
        result: The tensor to put together.
    """
    dims = infer(skeleton(Loaded(model, None)), estimate=True).dims
    taken, made = dims[source][2] or 0, dims[result][2] or 0
    after = {source}
    for node in model.graph.node:
        if after.intersection(node.input):
            after.update(node.output)
    before = {result}
    for node in reversed(model.graph.node):
        if before.intersection(node.output):
            before.update(node.input)
    region = [n for n in model.graph.node if after & set(n.input) and before & set(n.output)]
    inner = {name for node in region for name in node.output}
    behind = {result}
    for node in model.graph.node:
        if node not in region and behind.intersection(node.input):
            behind.update(node.output)
    rest = [node for node in model.graph.node if node not in region]
    new = onnx.ModelProto()
    new.CopyFrom(model)
    del new.graph.node[:]
    del new.graph.value_info[:]
    new.graph.node.extend(n for n in rest if not behind.intersection(n.output))

    def constant(name: str, value: int) -> str:
        new.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
        return name

    axis = constant("patch/axis", 2)
    core = taken // patches
    window = min(taken, core + 2 * halo)
    pieces = []
    for p in range(patches):
        begin = min(max(p * core - halo, 0), taken - window)
        low = (p * core - begin) * made // taken

        def cut(name: str, label: str, low: int, high: int, p: int = p) -> str:
            ends = [constant(f"{label}{p}/{k}", v) for k, v in (("from", low), ("to", high))]
            new.graph.node.add().CopyFrom(
                helper.make_node("Slice", [name, *ends, axis], [f"{label}{p}"], f"{label}{p}")
            )
            return f"{label}{p}"

        names = {source: cut(source, "window", begin, begin + window)}
        names |= {name: f"{name}/{p}" for name in inner}
        for node in region:
            clone = new.graph.node.add()
            clone.CopyFrom(node)
            clone.name = f"{node.name}/{p}"
            for field in (clone.input, clone.output):
                field[:] = [names.get(name, name) for name in field]
        pieces.append(cut(names[result], "core", low, low + core * made // taken))
    new.graph.node.add().CopyFrom(helper.make_node("Concat", pieces, [result], "join", axis=2))
    new.graph.node.extend(n for n in rest if behind.intersection(n.output))
    return new


def looped(model: onnx.ModelProto, patches: int, halo: int) -> onnx.ModelProto:
    """Return a model of one input and one output, row-local throughout, as a Loop over its patches.

    The windows are stacked outside, one is taken by the iteration's number; what the iterations
    make is stacked, and cropped outside. Arguments as for `unrolled`; the rows stay as many.
    """
    taken, made = model.graph.input[0], model.graph.output[0]
    shape = [dim.dim_value for dim in taken.type.tensor_type.shape.dim]
    core = shape[2] // patches
    window = core + 2 * halo
    weights = list(model.graph.initializer)
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, value: int | list[int]) -> str:
        weights.append(numpy_helper.from_array(np.array(value, np.int64), name))
        return name

    def cut(name: str, label: str, low: int, high: int) -> str:
        ends = [constant(f"{label}/{k}", [v]) for k, v in (("from", low), ("to", high))]
        nodes.append(helper.make_node("Slice", [name, *ends, axis], [label], label))
        return label

    axis, zero = constant("patch/axis", [2]), constant("zero", [0])
    begins = [min(max(p * core - halo, 0), shape[2] - window) for p in range(patches)]
    stacked = []
    for p, begin in enumerate(begins):
        name = cut(taken.name, f"window{p}", begin, begin + window)
        nodes.append(helper.make_node("Unsqueeze", [name, zero], [f"{name}/up"]))
        stacked.append(f"{name}/up")
    nodes.append(helper.make_node("Concat", stacked, ["windows"], "stack", axis=0))
    # A name is made once, in bodies too.
    names = {taken.name: "window", made.name: "result"}
    inner = [helper.make_node("Gather", ["windows", "i"], ["window"], axis=0)]
    for node in model.graph.node:
        inner.append(onnx.NodeProto.FromString(node.SerializeToString()))
        for field in (inner[-1].input, inner[-1].output):
            field[:] = [names.get(name, name) for name in field]
    go_on = helper.make_tensor("true", TensorProto.BOOL, [], [True])
    inner += [helper.make_node("Constant", [], ["go_on"], value=go_on)]
    flag = helper.make_tensor_value_info
    body = helper.make_graph(
        inner,
        "body",
        [flag("i", TensorProto.INT64, []), flag("before", TensorProto.BOOL, [])],
        [flag("go_on", TensorProto.BOOL, []), flag("result", TensorProto.FLOAT, None)],
    )
    trips = constant("trips", patches)
    nodes.append(helper.make_node("Loop", [trips, ""], ["results"], "loop", body=body))
    pieces = []
    for p, begin in enumerate(begins):
        number, low = constant(f"number{p}", p), p * core - begin
        nodes.append(helper.make_node("Gather", ["results", number], [f"result{p}"], axis=0))
        pieces.append(cut(f"result{p}", f"core{p}", low, low + core))
    nodes.append(helper.make_node("Concat", pieces, [made.name], "join", axis=2))
    graph = helper.make_graph(nodes, "looped", [taken], [made], weights)
    return helper.make_model(
        graph, opset_imports=list(model.opset_import), ir_version=model.ir_version
    )


@dataclass(frozen=True)
class Case:
    """A model to measure.

    Attributes:
        network: Its network.
        size: Height and width of its input.
        form: "original", "batch", "sequential", "4 patches" and the like, "loop of 8",
            "8, shrinking" (what the rewriter makes of it).
        make: Returns the model.
    """

    network: str
    size: tuple[int, int]
    form: str
    make: Callable[[], onnx.ModelProto]

    @property
    def label(self) -> str:
        """Network, size and form."""
        return f"{self.network} {self.size[0]}x{self.size[1]} {self.form}"


OCR = {
    "ppocr_det": "ch_PP-OCRv4_det_infer",
    "ppocr_cls": "ch_ppocr_mobile_v2.0_cls_infer",
    "ppocr_rec": "ch_PP-OCRv4_rec_infer",
}
SIZES: dict[str, tuple[tuple[int, int], ...]] = {
    "chain": ((256, 256), (512, 512)),
    "srvgg": ((192, 192), (320, 384)),
    "rrdbnet": ((96, 96), (160, 128)),
    "unet": ((256, 256), (512, 384)),
    "vae_decoder": ((24, 24), (48, 56)),
    "mobilenet": ((512, 512), (1024, 1280)),
    "ppocr_det": ((640, 640), (960, 1280)),
    "ppocr_cls": ((48, 9600), (48, 12800)),
}
# Region and halo for the unrolled form: first and last tensor.
_REGIONS = {
    "chain": ("x", "y", 8),
    "srvgg": ("input", "output", 9),
    "rrdbnet": ("/Add_output_0", "output", 4),
    "unet": ("input", "output", 32),
}


def ocr_file(network: str) -> Path:
    """Return the file of a network of PP-OCR, a key of `OCR`.

    Raises:
        click.ClickException: The package that holds it is not installed.
    """
    found = importlib.util.find_spec("rapidocr_onnxruntime")
    if found is None or found.origin is None:
        raise click.ClickException("pip install --no-deps rapidocr-onnxruntime==1.4.4")
    return Path(found.origin).parent / "models" / f"{OCR[network]}.onnx"


def _original(network: str, size: tuple[int, int], folder: Path) -> onnx.ModelProto:
    if network == "chain":
        return conv_chain(size[0])
    if network in OCR:
        model = onnx.load(ocr_file(network))
        fix_shapes(model, {model.graph.input[0].name: (1, 3, *size)})
        return model
    from tools.export_models import export

    path = folder / f"{network}-{size[0]}x{size[1]}.onnx"
    return onnx.load(path if path.exists() else export(network, path, size=size))


def cases(folder: Path, sizes: Sequence[int] = (0, 1)) -> Iterator[Case]:
    """Yield the table's cases.

    Args:
        folder: Exported networks are kept there.
        sizes: Which of the two sizes.
    """
    for network, both in SIZES.items():
        for size in (both[k] for k in sizes):

            def original(network: str = network, size: tuple[int, int] = size) -> onnx.ModelProto:
                return _original(network, size, folder)

            def rewritten(
                form: str, original: Callable[[], onnx.ModelProto] = original
            ) -> onnx.ModelProto:
                return convert_model(original(), splits=4, form=form, min_elements=0, verify=False)

            def shrinking(
                original: Callable[[], onnx.ModelProto] = original,
            ) -> onnx.ModelProto:
                return convert_model(original(), splits=8, form="shrinking", verify=False)

            def cut(
                patches: int,
                network: str = network,
                original: Callable[[], onnx.ModelProto] = original,
            ) -> onnx.ModelProto:
                source, result, halo = _REGIONS[network]
                return unrolled(original(), patches, halo, source, result)

            yield Case(network, size, "original", original)
            for form in ("batch", "sequential"):
                yield Case(network, size, form, lambda r=rewritten, f=form: r(f))  # type: ignore[misc]
            if network == "chain":
                yield Case(network, size, "loop of 8", lambda o=original: looped(o(), 8, 8))  # type: ignore[misc]
            if network in _REGIONS:
                yield Case(network, size, "8, shrinking", shrinking)
                for patches in (4, 8):
                    yield Case(network, size, f"{patches} patches", lambda c=cut, p=patches: c(p))  # type: ignore[misc]


# --- figures --------------------------------------------------------------------------------------


def predicted(model: onnx.ModelProto, target: str) -> Peak:
    """Return the predicted peak."""
    shapes = infer(skeleton(Loaded(model, None)), estimate=True)
    return read(model.graph, shapes).peak(engine_here(target))


def measured(path: Path, target: str) -> int:
    """Return the most ONNX Runtime's arena had in use, bytes, from a fresh process."""
    value = onnx.load(path, load_external_data=False).graph.input[0]
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    inputs = path.with_suffix(".npz")
    noise = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    save_inputs(inputs, {value.name: noise})
    with (
        tempfile.TemporaryDirectory(prefix="patchconv-") as folder,
        child_process("patchconv_deploy.engines.ort.child", "0") as child,
    ):
        answer = child.ask(
            "profile",
            folder=folder,
            model=str(path),
            inputs=str(inputs),
            options=asdict(OPTIONS[target]),
            runs=_RUNS,
        )
    found: int = answer["runtime_peak_bytes"]
    return found


def planned(path: Path, module: Any) -> int:
    """Return the activation memory TensorRT for RTX plans for SM80, bytes; nothing runs."""
    found = build(path, BuildOptions(), module).planned_activation_bytes
    assert found is not None
    return found


@click.command()
@click.option("--model", "pattern", default="*", help="Cases whose label matches the pattern.")
@click.option("--target", "targets", type=click.Choice(list(BOUNDS)), multiple=True)
def main(pattern: str, targets: tuple[str, ...]) -> None:
    """Print measured and predicted activation memory side by side."""
    logging.disable(logging.WARNING)
    targets = targets or tuple(BOUNDS)
    module = load_module("tensorrt-rtx") if "tensorrt" in targets else None
    ratios: dict[str, list[float]] = {target: [] for target in targets}
    with tempfile.TemporaryDirectory(prefix="calibrate-") as name:
        folder = Path(name)
        for case in cases(folder):
            if not fnmatch.fnmatch(case.label, pattern):
                continue
            model = case.make()
            path = folder / "model.onnx"
            onnx.save(model, path)
            for target in targets:
                guess = predicted(model, target)
                try:
                    found = planned(path, module) if module and target == "tensorrt" else 0
                except (BuildError, ParseError) as error:
                    click.echo(f"{case.label:36} {target:18} refused: {str(error)[:80]}")
                    continue
                found = found or measured(path, target)
                ratio = guess.bytes / found
                ratios[target].append(ratio)
                note = "" if abs(ratio - 1) <= BOUNDS[target] else "  outside"
                note += f"  {guess.unknown} sizes unknown" if guess.unknown else ""
                click.echo(
                    f"{case.label:36} {target:18} {found / MIB:8.1f} MiB  "
                    f"predicted {guess.bytes / MIB:8.1f}  ratio {ratio:.3f}{note}"
                )
    for target, each in ratios.items():
        inside = sum(abs(ratio - 1) <= BOUNDS[target] for ratio in each)
        click.echo(f"{target}: {inside} of {len(each)} within {BOUNDS[target]:.0%}")


if __name__ == "__main__":
    main()
