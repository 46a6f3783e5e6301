"""The page: its figures are the report's, it holds no markup but its own, and needs nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock
from xml.etree import ElementTree

import onnx
import pytest

from patchconv_deploy.report.page.render import MARK
from patchconv_deploy.report.text import mebibytes
from patchconv_deploy.rewriters.planning.offers import to_ask, typed_size
from patchconv_deploy.sizes import parse_size
from tests.planning.test_peak_holders import tall_halo
from tests.support.commands import run_command
from tests.support.report_pages import HOSTILE, Page, hostile, read_page, write_page
from tests.support.small_models import chain, file_names, super_resolution

# Elements that hold a page's own text; nothing a name could make is among them.
OWN_TAGS = frozenset(
    "html head meta title style script body header nav main section footer aside noscript div p h1"
    " h2 h3 ul li dl dt dd span b em i code pre sup a button input details summary table thead"
    " tbody tr th td".split()
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, dict[str, Any]]:
    """A page of a network that is cut, and the report of the same rewrite."""
    folder = tmp_path_factory.mktemp("page")
    page = write_page(super_resolution(32), folder, "--splits", "6")
    report = folder / "report.json"
    asked = ("--splits", "6", "--dry-run", "--report", report)
    assert run_command("rewrite", folder / "model.onnx", *asked).returncode == 0
    return page, json.loads(report.read_text())


def test_its_figures_are_the_reports(written: tuple[Page, dict[str, Any]]) -> None:
    """Peaks, process, work, regions: each as in the report, with the word for how it is known."""
    page, report = written
    peak, process = report["peak_activation_bytes"], report["process_bytes"]
    summary = page.section("summary")
    before, after = (mebibytes(peak[when]) for when in ("before", "after"))
    assert f"Activations predicted {before} → {after} MiB" in summary
    whole = [mebibytes(process[when]["together"]) for when in ("before", "after")]
    assert f"Whole process predicted {whole[0]} → {whole[1]} MiB" in summary
    assert f"{report['recompute']:.3f}x the work counted" in summary
    seams = sum(len(entry["seams"]) for entry in report["rewritten"])
    assert f"Regions counted {len(report['rewritten'])}" in summary
    assert f"{seams} seams" in summary
    assert "Outputs measured equal" in summary
    assert "at x 1x3x32x32" in summary
    assert report["choice"].startswith("of ")
    assert f"Why this plan: {report['choice']}." in page.section("summary")
    head = page.words.partition("Memory over the run")[0]
    assert f"the whole process needs {whole[1]} MiB instead of {whole[0]} MiB, at" in head
    assert head.index("Whole process predicted") < head.index("Activations predicted")


def test_its_curves_have_the_reports_peaks(written: tuple[Page, dict[str, Any]]) -> None:
    """The highest step of each run is the peak; the ring is the plan that was taken."""
    page, report = written
    peak, plots = report["peak_activation_bytes"], page.data["plots"]
    for when in ("before", "after"):
        run = plots[when]
        assert max(run["bytes"]) == run["bytes"][run["peak"]] == peak[when]
        assert len(run["labels"]) == len(run["regions"]) == len(run["bytes"]) == run["steps"]
    assert set(plots["before"]["regions"]) == {-1}
    assert set(plots["after"]["regions"]) >= set(range(len(report["rewritten"])))
    taken = next(each for each in report["candidates"] if each["taken"])
    found = page.data["curve"]["taken"]
    assert (found["peak"], found["work"], found["time"]) == (
        taken["peak"],
        taken["recompute"],
        taken["time"],
    )


def test_a_region_is_told_in_rows(written: tuple[Page, dict[str, Any]]) -> None:
    """Windows overlap by the halo, cores cover the output once, and begin at the seams."""
    page, report = written
    for region, entry in zip(page.data["regions"], report["rewritten"], strict=True):
        windows = region["windows"]
        patches = windows["patches"]
        assert len(patches) == entry["splits"] == region["splits"]
        cores = [patch["core"] for patch in patches]
        assert [cores[0][0], cores[-1][1]] == [0, windows["out"]]
        assert [core[0] for core in cores[1:]] == entry["seams"]
        assert [core[1] for core in cores[:-1]] == entry["seams"]
        pairs = pairwise(patches)
        overlaps = [a["window"][1] - b["window"][0] for a, b in pairs]
        assert windows["halo"] == max(overlaps) > 0
        assert f"{entry['recompute']:.3f}x" == region["recompute"]
        text = page.section(f"region-{region['number']}")
        assert f"before rows {', '.join(map(str, entry['seams']))} of {windows['out']}" in text


def test_the_commands_are_those_that_were_typed(written: tuple[Page, dict[str, Any]]) -> None:
    """What stands there can be typed, with the options that the page was asked for with."""
    page, _ = written
    text = page.section("commands")
    assert re.search(r"patchconv rewrite \S+/model\.onnx --splits 6(?= )", text)
    assert "--no-curve" not in text.partition("This page")[0]
    assert re.search(r"patchconv measure \S+model\.onnx \S+model\.patched\.onnx --recom", text)


def test_the_page_itself_is_made_again_as_it_was(tmp_path: Path) -> None:
    """With what it shows beside the plan; sizes are spelled as people do."""
    words = ("--memory-budget", "1536KiB", "--no-verify", "--no-curve", "-q")
    page = write_page(super_resolution(16), tmp_path, *words)
    text = page.section("commands")
    typed = "--no-curve --memory-budget 1536KiB --no-verify"
    assert re.search(rf"patchconv report \S+/model\.onnx {typed}(?! -)", text)
    assert re.search(r"patchconv rewrite \S+/model\.onnx --memory-budget 1536KiB(?! -)", text)


@pytest.mark.usefixtures("less_weighed")
@pytest.mark.parametrize("beside", [False, True])
def test_the_curve_says_what_to_type_for_each_plan(beside: bool, tmp_path: Path) -> None:
    """Of a plan that is made for the page and of one that a file holds; the ring's is in it."""
    source, report = tmp_path / "model.onnx", tmp_path / "report.json"
    onnx.save(super_resolution(32), source)
    asked = ("--splits", "4", "--report", report)
    assert run_command("rewrite", source, *asked).returncode == 0
    shown = ("model.patched.onnx",) if beside else ("--splits", "4")
    words = [str(tmp_path / word) if word.endswith(".onnx") else word for word in shown]
    done = run_command("report", source, *words, "--no-verify", "-o", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    page = read_page(tmp_path / "page.html")
    rows = re.findall(r"(\d+) ([\d.,]+) [\d.]+x [\d.]+x ([\d.]+[KM]iB)", page.section("curve"))
    assert len(rows) > 2
    for _, running, typed in rows:
        budget = parse_size(typed)
        assert budget is not None
        # Both are rounded to a tenth.
        assert abs(float(running.replace(",", "")) - 0.95 * budget / 2**20) < 0.16
    need = json.loads(report.read_text())["process_bytes"]["after"]["running"]
    assert typed_size(to_ask(need)) in [typed for _, _, typed in rows]


def test_no_model_is_left(tmp_path: Path) -> None:
    """The rewritten model lies beside the page only while it is verified."""
    write_page(super_resolution(16), tmp_path, "--splits", "2")
    assert file_names(tmp_path) == ["model.onnx", "page.html"]


def test_names_of_models_are_text(tmp_path: Path) -> None:
    """Names that look like markup, templates or commands of a terminal are shown, escaped."""
    page = write_page(hostile(), tmp_path, "--splits", "4")
    assert {tag for tag, _ in page.tags} <= OWN_TAGS
    assert not [a for _, held in page.tags for a in held if a.startswith("on")]
    assert len([tag for tag, _ in page.tags if tag == "script"]) == 8
    for name in HOSTILE:
        shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
        assert shown in page.words, name
        assert any(shown in node[0] for node in page.data["plots"]["drawing"]["nodes"]) or (
            name == HOSTILE[-1]
        )
    own = page.text
    for script in page.scripts:  # a library may have what it likes
        own = own.replace(script, "")
    assert not [c for c in own if not c.isprintable() and c != "\n"]


def test_a_files_name_is_text(tmp_path: Path) -> None:
    """Of the file, too."""
    source = tmp_path / "<b>'model\x1b.onnx"
    onnx.save(super_resolution(16), source)
    asked = ("--no-curve", "--no-verify", "-o", tmp_path / "page.html")
    done = run_command("report", source, *asked)
    assert done.returncode == 0, done.stderr
    page = read_page(tmp_path / "page.html")
    assert "<b>'model\\x1b.onnx" in page.words
    assert "\x1b" not in page.text + done.stdout


def test_scripts_are_the_pages_own_and_fetch_nothing(
    written: tuple[Page, dict[str, Any]],
) -> None:
    """The policy names each script by its hash and lets nothing be fetched; no link leaves."""
    page, _ = written
    head = [held for tag, held in page.tags if tag == "meta"]
    policy = next(h["content"] or "" for h in head if h.get("http-equiv"))
    assert policy.startswith("default-src 'none'; script-src ")
    named = re.findall(r"'sha256-([^']+)'", policy)
    digests = [hashlib.sha256(text.encode()).digest() for text in page.scripts]
    assert named == [base64.b64encode(digest).decode() for digest in digests]
    assert "unsafe-inline" not in policy.partition("style-src")[0]
    places = [held.get(a) for _, held in page.tags for a in ("src", "href") if held.get(a)]
    assert all((place or "").startswith("#") for place in places)
    assert page.text.startswith(MARK)


def test_what_is_not_cut_says_why(tmp_path: Path) -> None:
    """A model that patches do not help has a page, too, with what holds its peak."""
    page = write_page(tall_halo(), tmp_path)
    assert "Nothing is cut" in page.words
    assert page.data["plots"]["after"] is None
    assert page.data["regions"] == []
    assert "layers whose patches would need as much" in page.section("peak")
    # The first lines say why, and what to do, in the words of the part on the peak.
    reason = page.section("peak").partition("Why the original's tensors are there whole ")[2]
    said = "Nothing is cut: no plan that was tried gains. At the peak of "
    assert said in page.words
    cause = reason.partition(" MiB")[0]
    words, size = cause.rsplit(" ", 1)
    assert f"{words} hold {size} MiB." in page.words
    assert "What may help: try more patches" in page.section("summary")
    assert "As it is: " in page.section("peak")
    assert "Before" not in page.section("peak")


def test_sizes_that_are_assumed_are_said(tmp_path: Path) -> None:
    """A free height is named beside what it counts as, and its windows are known later."""
    made = chain(4, (1, 2, "height", 96))
    page = write_page(made, tmp_path, "--no-verify", "--splits", "4", "--form", "fused")
    assert "x 1x2x512x96 free (1x2x?x96); assumed" in page.words
    assert page.data["regions"][0]["windows"] is None
    assert "at run time" in page.section("regions")


def _height_of(text: ElementTree.Element) -> float:
    """Return where a text of an SVG stands, from the top."""
    moved = re.search(r"translate\([-\d.]+ ([-\d.]+)\)", text.get("transform", ""))
    return float(moved[1] if moved else text.get("y", "nan"))


def test_plots_are_files(tmp_path: Path) -> None:
    """Both plots, as SVG and PNG; the SVG names no figure that the page has not."""
    page = write_page(super_resolution(16), tmp_path, "--no-verify", "--plots", tmp_path / "p")
    names = ["curve.png", "curve.svg", "memory.png", "memory.svg"]
    assert file_names(tmp_path / "p") == names
    for name in names:
        data = (tmp_path / "p" / name).read_bytes()
        if name.endswith(".png"):
            assert data.startswith(b"\x89PNG")
        else:
            assert ElementTree.fromstring(data).tag.endswith("svg")
    for when in ("before", "after"):
        highest = max(page.data["plots"][when]["bytes"]) / 2**20
        said = f"{when}, activations, predicted: {highest:,.1f} MiB"
        assert said in (tmp_path / "p" / "memory.svg").read_text()
    for name in ("memory.svg", "curve.svg"):
        drawn = ElementTree.parse(tmp_path / "p" / name)
        area = next(e for e in drawn.iter() if e.tag.endswith("clipPath"))[0]
        legend = next(e for e in drawn.iter() if e.get("id") == "legend_1")
        words = [e for e in legend.iter() if e.tag.endswith("}text")]
        assert words
        assert all(_height_of(word) < float(area.get("y", 0)) for word in words)


def test_a_page_replaces_a_page_and_nothing_else(tmp_path: Path) -> None:
    """What stands there is overwritten if it is a page; the model never is."""
    write_page(super_resolution(16), tmp_path, "--no-verify")
    before = (tmp_path / "model.onnx").read_bytes()
    write_page(super_resolution(16), tmp_path, "--no-verify")
    (tmp_path / "notes.html").write_text("<!doctype html>\nmy notes")
    for out in ("notes.html", "model.onnx", "none/page.html", "."):
        done = run_command("report", tmp_path / "model.onnx", "-o", tmp_path / out)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
    assert (tmp_path / "model.onnx").read_bytes() == before
    assert (tmp_path / "notes.html").read_text() == "<!doctype html>\nmy notes"


# What is said of arguments that are wrong; MODEL is a model, DIR a folder.
BAD = {
    "no such file": ("DIR/none.onnx",),
    "not an ONNX model": ("DIR/text.onnx",),
    "holds no plan": ("MODEL", "DIR/other.onnx"),
    "is not": ("MODEL", "DIR/larger.onnx"),
    "no such input": ("MODEL", "--shape", "z:1x3x16x16"),
    "is not of the form": ("MODEL", "--shape", "x"),
    "at least 1": ("MODEL", "--splits", "0"),
    "not JSON": ("MODEL", "--figures", "DIR/text.json"),
    "neither a measurement": ("MODEL", "--figures", "DIR/other.json"),
    "No such file": ("MODEL", "--figures", "DIR/none.json"),
    "means nothing beside PATCHED": ("MODEL", "MODEL", "--splits", "3"),
    "is no folder": ("MODEL", "--plots", "DIR/text.json"),
    "--inputs": ("MODEL", "--inputs", "DIR/none.npz"),
}


@pytest.mark.parametrize("said", list(BAD))
def test_bad_input_is_one_line_and_no_file(said: str, tmp_path: Path) -> None:
    """Exit code 2, one line that says what is wrong, and nothing written."""
    onnx.save(super_resolution(16), tmp_path / "model.onnx")
    onnx.save(chain(4), tmp_path / "other.onnx")
    onnx.save(super_resolution(24), tmp_path / "larger.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    (tmp_path / "text.json").write_text("no JSON")
    (tmp_path / "other.json").write_text('{"verification": {"ran": true}}')
    named = {"MODEL": f"{tmp_path}/model.onnx"}
    arguments = [named.get(word, word).replace("DIR", str(tmp_path)) for word in BAD[said]]
    before = file_names(tmp_path)
    done = run_command("report", *arguments, "--no-curve", "-o", tmp_path / "page.html")
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert file_names(tmp_path) == before


@pytest.mark.parametrize(
    ("package", "option"), [("jinja2", ()), ("matplotlib", ("--plots", "plots"))]
)
def test_what_is_not_installed_is_named(
    package: str, option: tuple[str, ...], tmp_path: Path
) -> None:
    """Without a package the line says what to install, before any work."""
    with mock.patch.dict(sys.modules, {package: None}):
        done = run_command("report", tmp_path / "model.onnx", "-o", tmp_path / "a.html", *option)
    assert done.returncode == 2
    assert "install patchconv-deploy[report]" in done.stderr
    assert not list(tmp_path.iterdir())
