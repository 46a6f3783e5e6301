"""The page in a real browser: it draws, opens and finds, asks for nothing, and runs no name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.planning.test_peak_holders import vae_decoder
from tests.support.commands import run_command
from tests.support.report_pages import HOSTILE, hostile, measured_row
from tests.support.small_models import model, node, noise, super_resolution

pytestmark = pytest.mark.slow

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


# What stands beyond the edge of what is written on; tables scroll by themselves.
BEYOND = """
  const EDGE = document.querySelector("main").getBoundingClientRect().right;
  [...document.querySelectorAll("header *, main *")]
    .filter((e) => !e.closest(".table") && !e.closest("#graph-plot"))
    .filter((e) => e.getBoundingClientRect().width > 0)
    .filter((e) => e.getBoundingClientRect().right > EDGE + 1)
    .map((e) => `${e.tagName} ${e.className} ${e.textContent.slice(0, 40)}`)
"""

# Draw the memory plot anew; return what is written: left, right, upper and lower edge.
WRITTEN = """
  () => {
    const found = [];
    const say = Report.say;
    Report.say = (ctx, text, x, y) => {
      const wide = ctx.measureText(text).width;
      const begin = { left: x, right: x - wide, center: x - wide / 2 }[ctx.textAlign];
      found.push([text, begin, begin + wide, y - 11 * devicePixelRatio, y]);
      say(ctx, text, x, y);
    };
    Report.highlight(-1);
    const { width, height } = document.querySelector("#memory-plot canvas");
    return new Promise((done) => setTimeout(() => done([found, width, height]), 100));
  }
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser that is installed, without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser is installed (none of {', '.join(BROWSERS)})")
    with playwright.sync_playwright() as driver:
        # A container has no sandbox to offer, no GPU, and little shared memory.
        given = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        opened = driver.chromium.launch(executable_path=found, args=given)
        yield opened
        opened.close()


class _Opened:
    """A page in the browser, and what it complained of and asked for."""

    def __init__(self, browser: Any, path: Path, scheme: str = "light", width: int = 1280) -> None:
        viewport = {"width": width, "height": 900}
        self.page = browser.new_page(viewport=viewport, color_scheme=scheme)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_timeout(300)

    def close(self) -> None:
        """Close it; it complained of nothing, and asked for nothing but itself."""
        assert self.complaints == []
        assert len(self.requests) == 1
        self.page.close()


def _write(made: onnx.ModelProto, folder: Path, *options: str) -> Path:
    onnx.save(made, folder / "model.onnx")
    out = folder / "page.html"
    done = run_command("report", folder / "model.onnx", "--no-verify", "-o", out, *options)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a network that is cut into several regions."""
    folder = tmp_path_factory.mktemp("decoder")
    return _write(vae_decoder((64, 64)), folder, "--splits", "8", "--max-recompute", "4")


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a network of which a region runs what another one runs, too."""
    folder = tmp_path_factory.mktemp("again")
    asked = ("--splits", "8", "--max-recompute", "4", "--no-curve", "--exclude", "deep*")
    return _write(_with_a_skip(128), folder, *asked)


def _with_a_skip(side: int) -> onnx.ModelProto:
    """Make a network down and up, with a large tensor that waits beside."""
    weights = {"w": noise(16, 3, 3, 3), "c": noise(64, 16, 3, 3) / 12}
    weights |= {"d": noise(16, 64, 3, 3) / 24, "e": noise(16, 32, 3, 3) / 16}
    weights |= {"f": noise(3, 16, 3, 3) / 12, "s": np.array([1, 1, 4, 4], np.float32)}
    nodes = [
        node("Conv", "x w", "t0", name="in", pads=[1] * 4),
        node("Relu", "t0", "t1", name="act"),
        node("MaxPool", "t1", "t2", name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "t2 c", "t3", name="deep", pads=[1] * 4, strides=[2, 2]),
        node("Relu", "t3", "t4", name="deeper"),
        node("Conv", "t4 d", "t5", name="deepest", pads=[1] * 4),
        node(
            *("Resize", "t5 ? s", "t6"),
            name="up",
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        ),
        node("Concat", "t1 t6", "t7", name="join", axis=1),
        node("Conv", "t7 e", "t8", name="merge", pads=[1] * 4),
        node("Relu", "t8", "t9", name="last"),
        node("Conv", "t9 f", "y", name="out", pads=[1] * 4),
    ]
    nodes[6].input[:] = ["t5", "", "s"]
    whole = (1, 3, side, side)
    return model(nodes, {"x": whole}, {"y": whole}, weights)


def _painted(page: Any, place: str) -> int:
    """Return how many colours a canvas shows."""
    count: int = page.evaluate(
        """(place) => {
          const canvas = document.querySelector(`${place} canvas`);
          const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
          return new Set(new Uint32Array(data.buffer)).size;
        }""",
        place,
    )
    return count


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 800, 390])
def test_it_draws(browser: Any, decoder: Path, scheme: str, width: int) -> None:
    """Both plots and the graph are there in both schemes, and nothing is wider than the window."""
    opened = _Opened(browser, decoder, scheme, width)
    for place in ("#memory-plot", "#curve-plot"):
        assert _painted(opened.page, place) > 10
    assert opened.page.evaluate("Report.graph.nodes('.region').length") > 1
    opened.page.evaluate("document.querySelectorAll('details').forEach((e) => (e.open = true))")
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.page.evaluate(BEYOND) == []
    paper = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(251, 250, 248)", "dark": "rgb(21, 24, 27)"}[scheme]
    opened.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_words_of_a_plot_stand_apart(browser: Any, width: int, tmp_path: Path) -> None:
    """Both measured lines lie at a predicted peak: nothing is written over or cut off."""
    source, patched = tmp_path / "model.onnx", tmp_path / "model.patched.onnx"
    onnx.save(super_resolution(32), source)
    report = tmp_path / "r.json"
    cut = run_command("rewrite", source, "--splits", "4", "--no-verify", "--report", report)
    assert cut.returncode == 0
    peaks = json.loads(report.read_text())["peak_activation_bytes"]
    rows = [measured_row(path.name, peaks["after"]) for path in (source, patched)]
    (tmp_path / "m.json").write_text(json.dumps({"results": rows}))
    out = tmp_path / "page.html"
    asked = ("--figures", tmp_path / "m.json", "--no-verify", "--no-curve", "-o", out)
    assert run_command("report", source, patched, *asked).returncode == 0
    opened = _Opened(browser, out, width=width)
    words, wide, tall = opened.page.evaluate(WRITTEN)
    assert len(words) == 4
    assert len([text for text, *_ in words if "measured: " in text]) == 2
    for text, left, right, top, bottom in words:
        assert 0 <= left < right <= wide, text
        assert 0 <= top < bottom <= tall, text
    for (one, a, b, c, d), (other, e, f, g, h) in combinations(words, 2):
        assert b <= e or f <= a or d <= g or h <= c, (one, other)
    opened.close()


def test_what_is_made_again_is_dashed(browser: Any, again: Path) -> None:
    """A region that runs nodes of another reads what they read, and not what they make."""
    opened = _Opened(browser, again)
    page = opened.page
    ends = "(edge) => [edge.source(), edge.target()].map((end) => end.data('label'))"
    dashed = page.evaluate(f"Report.graph.edges('.again').map({ends})")
    drawn = page.evaluate(f"Report.graph.edges().map({ends})")
    assert dashed
    for source, target in dashed:
        assert source.startswith("R")
        assert target.startswith("R")
        # What its nodes are made of is read there, too.
        assert [end for end, other in drawn if other == target and end.startswith("x\n")]
    page.evaluate("void Report.graph.edges('.again')[0].emit('tap')")
    assert "not read: made again" in page.inner_text("#graph-about")
    page.evaluate("void Report.graph.edges('.again')[0].target().emit('tap')")
    assert "that other regions draw" in page.inner_text("#graph-about")
    assert page.is_visible("#graph-again")
    opened.close()


def test_a_region_opens_and_tells(browser: Any, decoder: Path) -> None:
    """A click opens its box; its nodes are drawn in it, and it is told beside."""
    opened = _Opened(browser, decoder)
    page = opened.page
    assert page.evaluate("Report.graph.nodes('.inner').length") == 0
    assert page.is_visible("#graph-again") == page.evaluate(
        "Report.graph.edges('.again').length > 0"
    )
    page.evaluate("void Report.graph.nodes('.region')[0].emit('tap')")
    inner = page.evaluate("Report.graph.nodes('.inner').length")
    assert inner > 0
    assert page.inner_text("#graph-about h3") == "Region R1"
    page.evaluate("void Report.graph.nodes('.region')[0].emit('tap')")
    assert page.evaluate("Report.graph.nodes('.inner').length") == 0
    page.click("[data-graph=open]")
    assert page.evaluate("Report.graph.nodes('.inner').length") > inner
    page.click("[data-graph=close]")
    assert page.evaluate("Report.graph.nodes('.inner').length") == 0
    opened.close()


def test_a_node_is_found(browser: Any, decoder: Path) -> None:
    """Its box is opened, and it is told; what is not there is said."""
    opened = _Opened(browser, decoder)
    opened.page.fill("#graph-search", "block1.1.conv")
    opened.page.wait_for_timeout(600)
    assert opened.page.inner_text("#graph-about h3") == "block1.1.conv"
    opened.page.fill("#graph-search", "nowhere")
    opened.page.wait_for_timeout(600)
    assert "No node is named like that" in opened.page.inner_text("#graph-about")
    opened.close()


def test_a_pointer_is_told_the_step(browser: Any, decoder: Path) -> None:
    """The line below the plot has what both runs hold there."""
    opened = _Opened(browser, decoder)
    opened.page.hover("#memory-plot .u-over", position={"x": 300, "y": 100})
    opened.page.wait_for_timeout(200)
    said = opened.page.inner_text("#memory-readout")
    assert "before" in said
    assert "after" in said
    assert "%" in said
    opened.close()


def test_what_is_told_of_long_names_scrolls(browser: Any, tmp_path: Path) -> None:
    """The plot and what is below it stay within a screen of each other."""
    made = super_resolution(16)
    for each in made.graph.node:
        each.name = f"{each.name or each.op_type}{'x' * 10_000}"
    opened = _Opened(browser, _write(made, tmp_path, "--no-curve"))
    page = opened.page
    page.hover("#memory-plot .u-over", position={"x": 300, "y": 100})
    page.wait_for_timeout(200)
    assert "x" * 10_000 in page.inner_text("#memory-readout")
    tall, whole = page.evaluate(
        "(({ clientHeight, scrollHeight }) => [clientHeight, scrollHeight])"
        "(document.querySelector('#memory-readout'))"
    )
    assert tall < 100 < whole
    assert page.evaluate(BEYOND) == []
    opened.close()


def test_dragging_zooms(browser: Any, decoder: Path) -> None:
    """The plot shows what was dragged over; a double click shows all of it again."""
    opened = _Opened(browser, decoder)
    page = opened.page
    page.locator("#memory-plot").scroll_into_view_if_needed()
    box = page.locator("#memory-plot .u-over").bounding_box()
    assert box is not None
    told = []

    def tell() -> float:
        page.mouse.move(box["x"] + 2, box["y"] + 100)
        page.wait_for_timeout(200)
        return float(page.inner_text("#memory-readout").partition(" %")[0])

    told.append(tell())
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 110, steps=5)
    page.mouse.up()
    told.append(tell())
    page.mouse.dblclick(box["x"] + 50, box["y"] + 100)
    told.append(tell())
    assert told[0] == told[2] < 1
    assert 49 < told[1] < 52
    opened.close()


def test_names_run_nothing(browser: Any, tmp_path: Path) -> None:
    """Names that look like markup are text everywhere, in what scripts write, too."""
    opened = _Opened(browser, _write(hostile(), tmp_path, "--splits", "4"))
    page = opened.page
    page.click("[data-graph=open]")
    for number in range(page.evaluate("Report.graph.nodes('.inner').length")):
        page.evaluate(f"void Report.graph.nodes('.inner')[{number}].emit('tap')")
    page.evaluate("void Report.graph.edges().forEach((edge) => edge.emit('tap'))")
    page.hover("#memory-plot .u-over", position={"x": 300, "y": 100})
    page.fill("#graph-search", HOSTILE[1])
    page.wait_for_timeout(600)
    assert HOSTILE[1] in page.inner_text("#graph-about h3")
    assert page.evaluate("document.images.length") == 0
    assert page.evaluate("document.scripts.length") == 8
    opened.close()


def test_a_script_that_gets_in_does_not_run(browser: Any, tmp_path: Path) -> None:
    """Were a name to become markup after all, the policy would stop it."""
    out = _write(super_resolution(16), tmp_path)
    text = out.read_text().replace("<main>", "<main><script>window.ran = 1</script>", 1)
    out.write_text(text)
    opened = _Opened(browser, out)
    assert opened.page.evaluate("window.ran") is None
    assert "Content Security Policy" in opened.complaints[0]
    opened.page.close()


def test_it_prints(browser: Any, decoder: Path) -> None:
    """On paper it is light, every region is open, the graph is a picture; then it is as before."""
    opened = _Opened(browser, decoder, "dark")
    page = opened.page
    ink = "getComputedStyle(document.documentElement).getPropertyValue('--before').trim()"
    assert page.evaluate(ink) == "#d98a66"
    page.emulate_media(media="print")
    page.evaluate("void dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(ink) == "#b4603c"
    assert not page.is_visible("nav")
    assert not page.is_visible("#graph-plot")
    assert page.evaluate("document.querySelector('.graph-picture').naturalWidth") > 100
    assert page.evaluate("document.querySelectorAll('.region:not([open])').length") == 0
    assert len(page.pdf()) > 20_000
    page.emulate_media(media="screen")
    page.evaluate("void dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(ink) == "#d98a66"
    assert page.is_visible("#graph-plot")
    assert page.evaluate("document.images.length") == 0
    opened.close()
