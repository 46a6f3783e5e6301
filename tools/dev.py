"""Set up and run: ``python3 tools/dev.py demo|test|test-slow|lint|docs``.

Needs Python 3.11 to 3.13 and nothing else that is installed: each command makes the virtual
environment it runs in (below ``.venv/`` of the repository, or where --env says) and installs into
it. Standard library alone.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Models come from installed packages, which need none of what these packages ask for.
MODELS = ["rapidocr-onnxruntime==1.4.4"]
PUBLISHED = ["patch_conv==0.0.1b0"]
DETECTOR = "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"

COMMANDS = {
    "demo": "rewrite the PP-OCR text detector at 1x3x2048x2048, verify and measure it",
    "test": "run the tests (about a quarter of an hour on 2 cores)",
    "test-slow": "run the slow tier of the tests",
    "lint": "format check, lint, types, layers",
    "docs": "build the documentation into build/site; a link that leads nowhere is an error",
}


class Environment:
    """A virtual environment with an extra of this project in it."""

    def __init__(self, folder: Path, extra: str) -> None:
        self.folder = folder
        self.extra = extra
        scripts = "Scripts" if os.name == "nt" else "bin"
        self.python = folder / scripts / ("python.exe" if os.name == "nt" else "python")
        self.scripts = folder / scripts

    def prepare(self, bare: list[str]) -> None:
        """Create it and install, unless that was done for this very pyproject.toml.

        Args:
            bare: Packages to install without what they depend on.
        """
        recipe = (ROOT / "pyproject.toml").read_bytes() + repr((self.extra, bare)).encode()
        stamp, wanted = self.folder / "installed", hashlib.sha256(recipe).hexdigest()
        if stamp.is_file() and stamp.read_text() == wanted:
            return
        print(f"setting up {self.folder} (once; minutes on a slow network)", flush=True)
        if self.folder.exists():
            shutil.rmtree(self.folder)
        venv.create(self.folder, with_pip=True)
        pip = [str(self.python), "-m", "pip", "install", "--quiet", "--no-input"]
        run([*pip, "--editable", f"{ROOT}[{self.extra}]"])
        if bare:
            run([*pip, "--no-deps", "--ignore-requires-python", *bare])
        stamp.write_text(wanted)


def run(command: list[str], **environment: str) -> None:
    """Run a command in the repository; its failure is this program's."""
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def demo(environment: Environment) -> None:
    """Rewrite a real model."""
    environment.prepare(MODELS)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    found = subprocess.run(
        [str(environment.python), "-c", code], capture_output=True, text=True, check=True
    )
    source = Path(found.stdout.strip()) / DETECTOR
    model = ROOT / "build" / "demo" / "detector.onnx"
    model.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, model)
    folder = "build/demo"
    page = [f"{folder}/page.npz", "2048", "2048"]
    run([str(environment.python), "tools/demo_page.py", *page])
    shape = ["--shape", "x:1x3x2048x2048"]
    both = [f"{folder}/detector.onnx", f"{folder}/detector.patched.onnx"]
    for command in (
        ["patchconv-rewrite", both[0], *shape, "--splits", "8", "--inputs", page[0], "--force"],
        ["patchconv", "measure", *both, *shape, "--no-mem-reuse", "--no-mem-pattern"],
    ):
        print("$ " + " ".join(command), flush=True)
        run([str(environment.scripts / command[0]), *command[1:]])
    print(f"Next, a model of your own: {environment.scripts / 'patchconv-rewrite'} MODEL.onnx")
    print("What the columns say: docs/measuring.md")


def run_tests(environment: Environment, more: list[str], *, slow: bool = False) -> None:
    """Run the tests; those of Triton against a server in an environment of its own."""
    environment.prepare([*MODELS, *PUBLISHED])
    server = environment.folder.parent / "triton"
    run([str(environment.python), "tools/serve.py", "--prepare-if-supported", "--env", str(server)])
    marker = ["-m", "slow"] if slow else []
    # By file: what a module sets up once (a server, measurements) is set up once.
    pytest = [str(environment.python), "-m", "pytest", "-n", "2", "--dist", "loadfile"]
    pytest += [*marker, *more]
    # Many tests start processes of this package: what one compiled is kept for the others.
    run(pytest, PATCHCONV_TRITON=str(server), PYTHONDONTWRITEBYTECODE="")


def lint(environment: Environment) -> None:
    """Run every static check."""
    environment.prepare([*MODELS, *PUBLISHED])
    for command in (
        ["ruff", "format", "--check", "."],
        ["ruff", "check", "."],
        ["mypy"],
        ["lint-imports"],
    ):
        print("$ " + " ".join(command), flush=True)
        run([str(environment.scripts / command[0]), *command[1:]])


def build_docs(environment: Environment) -> None:
    """Build the documentation; warnings are errors."""
    environment.prepare([])
    build = [str(environment.python), "-m", "mkdocs", "build", "--strict", "--quiet"]
    # What it advertises is no warning about these pages.
    run(build, NO_MKDOCS_2_WARNING="1")
    print(f"Built: {ROOT / 'build' / 'site' / 'index.html'}")


def main() -> None:
    """Read the command line."""
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        sys.exit(f"error: Python 3.11 to 3.13 is needed, this is {sys.version.split()[0]}")
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="; ".join(f"{name}: {what}" for name, what in COMMANDS.items()),
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--env", type=Path, default=ROOT / ".venv", help="where environments go")
    arguments, more = parser.parse_known_args()
    name = arguments.command
    folder = arguments.env.absolute()
    if name == "demo":
        demo(Environment(folder / "demo", "cpu"))
    elif name == "lint":
        lint(Environment(folder / "test", "test,lint"))
    elif name == "docs":
        build_docs(Environment(folder / "docs", "docs"))
    else:
        run_tests(Environment(folder / "test", "test,lint"), more, slow=name == "test-slow")


if __name__ == "__main__":
    main()
