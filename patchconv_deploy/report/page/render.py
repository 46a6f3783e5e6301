"""A page's data in one HTML file, with all it needs.

Nothing in a name can become markup: the template escapes whatever it is given, data for scripts is
JSON with every `<`, `>` and `&` escaped, and scripts write text, never markup. A policy in the file
lets run the scripts that were put there and no other, by their hashes, and lets nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from patchconv_deploy.errors import UsageError

__all__ = ["MARK", "check_jinja", "check_page_target", "render"]

# What a page begins with; a file that does is one, and may be replaced by the next.
MARK = "<!doctype html>\n<!-- patchconv report -->\n"

_ASSETS = files("patchconv_deploy.report.page").joinpath("assets")

# Libraries first. All are MIT; their licences lie beside them.
_SCRIPTS = (
    "vendor/uplot-1.6.32.min.js",
    "vendor/cytoscape-3.35.0.min.js",
    "vendor/dagre-3.1.3.min.js",
    "common.js",
    "memory.js",
    "curve.js",
    "graph.js",
)

_STYLES = ("vendor/uplot-1.6.32.min.css", "page.css")

_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&'\u2028\u2029"}


def check_jinja() -> None:
    """See, before any work, that what writes the page is installed.

    Raises:
        UsageError: It is not.
    """
    try:
        import jinja2  # noqa: F401
    except ImportError:
        raise UsageError("Jinja2 is not installed; install patchconv-deploy[report]") from None


def check_page_target(path: Path) -> None:
    """Refuse a file for a page that cannot be written, or holds anything but a page.

    Raises:
        UsageError: The folder is missing, or something else stands there.
    """
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path}: no such folder {path.parent}")
    if path.is_dir():
        raise UsageError(f"{path}: is a folder")
    if path.is_file():
        with path.open("rb") as stream:
            begin = stream.read(len(MARK))
        if begin and begin != MARK.encode():
            raise UsageError(f"{path}: a file that is no such report stands there; name another")


def render(page: Mapping[str, Any]) -> str:
    """Return the HTML file.

    Args:
        page: `content.content`.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_text),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    scripts = [_text(name).strip() for name in _SCRIPTS]
    data = {"plots": page["plots"], "curve": page["curve"], "regions": page["regions"]}
    # Ours, not the model's: the files of the package.
    trusted = {
        "scripts": [Markup(f"<script>{text}</script>") for text in scripts],
        "styles": Markup("<style>" + "\n".join(map(_text, _STYLES)) + "</style>"),
        "data": Markup(f'<script type="application/json" id="data">{_json(data)}</script>'),
    }
    policy = _policy(scripts)
    text = environment.get_template("page.html.jinja").render(page=page, policy=policy, **trusted)
    return MARK + text


def _text(name: str) -> str:
    return _ASSETS.joinpath(name).read_text(encoding="utf-8")


def _json(data: Any) -> str:
    """Return JSON that ends no script element, whatever it holds."""
    return json.dumps(data, ensure_ascii=True, separators=(",", ":")).translate(_ESCAPES)


def _policy(scripts: list[str]) -> str:
    """Return the content security policy: these scripts, styles in the file, and no request."""
    hashes = [hashlib.sha256(text.encode()).digest() for text in scripts]
    allowed = " ".join(f"'sha256-{base64.b64encode(each).decode()}'" for each in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
