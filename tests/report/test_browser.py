"""The page in a real browser: it draws, opens and finds, asks for nothing, and runs no name."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.planning.test_peak_holders import vae_decoder
from tests.support.commands import run_command
from tests.support.report_pages import HOSTILE, hostile
from tests.support.small_models import super_resolution

pytestmark = pytest.mark.slow

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


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
@pytest.mark.parametrize("width", [1280, 800])
def test_it_draws(browser: Any, decoder: Path, scheme: str, width: int) -> None:
    """Both plots and the graph are there in both schemes, and nothing is wider than the window."""
    opened = _Opened(browser, decoder, scheme, width)
    for place in ("#memory-plot", "#curve-plot"):
        assert _painted(opened.page, place) > 10
    assert opened.page.evaluate("Report.graph.nodes('.region').length") > 1
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    paper = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(251, 250, 248)", "dark": "rgb(21, 24, 27)"}[scheme]
    opened.close()


def test_a_region_opens_and_tells(browser: Any, decoder: Path) -> None:
    """A click opens its box; its nodes are drawn in it, and it is told beside."""
    opened = _Opened(browser, decoder)
    page = opened.page
    assert page.evaluate("Report.graph.nodes('.inner').length") == 0
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
