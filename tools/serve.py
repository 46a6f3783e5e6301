"""Serve a model repository with Triton on a machine without a GPU: ``python tools/serve.py DIR``.

What runs is Triton's own server and core, the ``tritonserver`` of the nvidia-pytriton wheel, with
auto-completion of configurations off; ONNX models run in a Python-based backend
(`tools/triton_backend.py`) that is as strict as Triton's own. It listens on 127.0.0.1 alone.

The server lives in a virtual environment of its own (its wheel needs numpy below 2), which
``--prepare`` makes. Standard library alone.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BACKEND = Path(__file__).resolve().parent / "triton_backend.py"
WHEEL = "nvidia-pytriton==0.7.0"
VARIABLE = "PATCHCONV_TRITON"
START_SECONDS = 120.0
STOP_SECONDS = 30.0
# The kernel ends the server when this process dies, whatever the reason; execv keeps that.
_LAUNCH = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"
)


class ServeError(Exception):
    """The server cannot be had or does not start; one line."""


def unsupported() -> str | None:
    """Return why this machine cannot run the server, None if it can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"tritonserver is for Linux on x86-64, this is {sys.platform} {platform.machine()}"
    if sys.version_info[:2] not in ((3, 11), (3, 12)):
        return "numpy below 2 has wheels for Python up to 3.12; the server needs 3.11 or 3.12"
    libc, version = platform.libc_ver()
    if libc != "glibc" or tuple(map(int, version.split(".")[:2])) < (2, 35):
        return f"the wheel of tritonserver needs glibc 2.35, this is {libc} {version}"
    return None


def default_environment() -> Path:
    """Return where the server's environment is: ``$PATCHCONV_TRITON`` or ``.venv/triton``."""
    return Path(os.environ.get(VARIABLE) or ROOT / ".venv" / "triton")


def prepare(folder: Path) -> None:
    """Make the server's environment, unless it is there.

    Raises:
        ServeError: This machine cannot run it, or a package cannot be had.
    """
    reason = unsupported()
    if reason is not None:
        raise ServeError(reason)
    # The same ONNX Runtime as the caller's, so that answers can be equal to the bit.
    runtime = "onnxruntime"
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        runtime = f"onnxruntime=={importlib.metadata.version('onnxruntime')}"
    packages = [WHEEL, "numpy<2", runtime]
    stamp = folder / "installed"
    wanted = hashlib.sha256(repr((packages, sys.version_info[:2])).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    print(f"setting up {folder} (once; minutes on a slow network)", flush=True)
    if folder.exists():
        shutil.rmtree(folder)
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--no-input", *packages],
    ):
        if subprocess.run(command, check=False).returncode:
            raise ServeError(f"{' '.join(command)} failed")
    _libpython(folder)
    stamp.write_text(wanted)


def _libpython(folder: Path) -> Path | None:
    """Return the folder of the interpreter's shared library; None if the loader finds it itself.

    An interpreter that was linked statically has none; Debian's package is then unpacked below
    the environment, which needs no rights.
    """
    version = "{}.{}".format(*sys.version_info[:2])
    name = f"libpython{version}.so.1.0"
    unpacked = folder / "libpython"
    places = [Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib")]
    places += [Path(sys.base_prefix) / "lib", unpacked / "usr/lib/x86_64-linux-gnu"]
    for place in places:
        if (place / name).is_file():
            return place
    listed = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=False)
    if name in listed.stdout:
        return None
    unpacked.mkdir(parents=True, exist_ok=True)
    for command in (["apt-get", "download", f"libpython{version}"], ["dpkg-deb", "-x"]):
        if command[0] == "dpkg-deb":
            command += [*map(str, unpacked.glob("*.deb")), str(unpacked)]
        with contextlib.suppress(FileNotFoundError):
            subprocess.run(command, cwd=unpacked, check=False)
    if (places[-1] / name).is_file():
        return places[-1]
    raise ServeError(f"{name} is missing; install libpython{version} (Debian, Ubuntu)")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@dataclass
class Server:
    """A running server.

    Attributes:
        http: Its HTTP address, host and port.
        grpc: Its gRPC address.
        process: The server's process; models run in children of it.
        log: The file it logs to.
    """

    http: str
    grpc: str
    process: subprocess.Popen[bytes]
    log: Path

    def ask(self, path: str, *, post: bool = False) -> Any:
        """Return the JSON answer to a request, None for an empty one."""
        request = urllib.request.Request(
            f"http://{self.http}/{path}",
            data=b"" if post else None,
            method="POST" if post else None,
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=10) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def is_ready(self) -> bool:
        """Tell whether every model is loaded."""
        try:
            self.ask("v2/health/ready")
        except OSError:
            return False
        return True

    def models(self) -> list[dict[str, str]]:
        """Return name, version, state and reason of every model the server knows."""
        answer: list[dict[str, str]] = self.ask("v2/repository/index", post=True)
        return answer

    def peak_bytes(self, *, instances: bool = False) -> int:
        """Return the resident high-water marks of the server and its children, added up.

        Args:
            instances: Leave the server itself out, which holds the requests in flight: what counts
                then is the processes that models run in.
        """
        return sum(_high_water(pid) for pid in _family(self.process.pid)[int(instances) :])


def _status(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    return 0


def _high_water(pid: int) -> int:
    with contextlib.suppress(OSError):
        return _status(pid, "VmHWM") * 1024
    return 0


def _family(root: int) -> list[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = _status(int(entry.name), "PPid")
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def _backends(environment: Path, folder: Path) -> None:
    """Lay out the backend folder: the wheel's Python backend, and ours for ONNX."""
    (package,) = environment.glob("lib/python3*/site-packages/pytriton/tritonserver")
    version = "{}.{}".format(*sys.version_info[:2])
    shutil.copytree(package / "backends" / "python", folder / "python")
    stub = package / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy(stub, folder / "python" / stub.name)
    (folder / "python" / stub.name).chmod(0o755)
    (folder / "onnxruntime").mkdir()
    shutil.copy(BACKEND, folder / "onnxruntime" / "model.py")


def _environment(environment: Path) -> dict[str, str]:
    libraries = [next(environment.glob("lib/python3*/site-packages/nvidia_pytriton.libs"))]
    python = _libpython(environment)
    if python is not None:
        libraries.append(python)
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    variables["PATH"] = f"{environment / 'bin'}{os.pathsep}{variables.get('PATH', '')}"
    variables["VIRTUAL_ENV"] = str(environment)
    variables["LD_LIBRARY_PATH"] = os.pathsep.join(map(str, libraries))
    return variables


@contextlib.contextmanager
def serve(
    repository: Path,
    *,
    environment: Path | None = None,
    config_name: str = "",
    poll_seconds: int = 0,
    ports: tuple[int, int] | None = None,
    verbose: int = 0,
) -> Iterator[Server]:
    """Run a server; it answers when the context is entered and is gone when it is left.

    Models that do not load do not end it: `Server.models` has the reasons.

    Args:
        repository: The model repository.
        environment: As made by `prepare`.
        config_name: Use ``configs/NAME.pbtxt`` of each model where there is one.
        poll_seconds: Look for changes of the repository this often; 0: never.
        ports: HTTP and gRPC; free ones if None.
        verbose: Level of the server's log.

    Raises:
        ServeError: It did not start; the message holds the end of its log.
    """
    environment = (environment or default_environment()).absolute()
    if not (environment / "installed").is_file():
        raise ServeError(f"{environment} is not set up; run python {__file__} --prepare")
    (binary,) = environment.glob(
        "lib/python3*/site-packages/pytriton/tritonserver/bin/tritonserver"
    )
    http, grpc = ports or _free_ports(2)
    with tempfile.TemporaryDirectory(prefix="patchconv-triton-") as name:
        folder = Path(name)
        _backends(environment, folder / "backends")
        command = [str(binary), f"--model-repository={repository.absolute()}"]
        command += [f"--backend-directory={folder / 'backends'}", f"--log-verbose={verbose}"]
        # Named, so that what a killed server leaves in shared memory can be removed.
        prefix = f"{folder.name}_"
        command.append(f"--backend-config=python,shm-region-prefix-name={prefix}")
        command += ["--disable-auto-complete-config", "--exit-on-error=false"]
        command += ["--http-address=127.0.0.1", f"--http-port={http}"]
        command += ["--grpc-address=127.0.0.1", f"--grpc-port={grpc}", "--allow-metrics=false"]
        if config_name:
            command.append(f"--model-config-name={config_name}")
        if poll_seconds:
            command += ["--model-control-mode=poll", f"--repository-poll-secs={poll_seconds}"]
        log = folder / "log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-c", _LAUNCH, *command],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=_environment(environment),
                start_new_session=True,
            )
        server = Server(f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", process, log)
        try:
            _wait(server)
            yield server
        finally:
            _stop(process)
            for left in Path("/dev/shm").glob(f"{prefix}*"):
                left.unlink(missing_ok=True)


def _wait(server: Server) -> None:
    limit = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(OSError):
            server.ask("v2/health/live")
            return
        code = server.process.poll()
        if code is not None or time.monotonic() > limit:
            lines = server.log.read_text(errors="replace").strip().splitlines()[-5:]
            what = "did not answer in time" if code is None else f"ended with code {code}"
            raise ServeError(f"tritonserver {what}: " + " | ".join(lines))
        time.sleep(0.1)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and its children: politely, then by force."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repository", nargs="?", type=Path)
    parser.add_argument("--prepare", action="store_true", help="make the server's environment")
    parser.add_argument(
        "--prepare-if-supported", action="store_true", help="the same; say so where it cannot be"
    )
    parser.add_argument(
        "--env", type=Path, default=None, help=f"default: ${VARIABLE}, .venv/triton"
    )
    parser.add_argument("--http-port", type=int, default=8000)
    parser.add_argument("--grpc-port", type=int, default=8001)
    parser.add_argument("--config-name", default="", help="configs/NAME.pbtxt, for example cpu")
    parser.add_argument("--poll", type=int, default=0, metavar="SECONDS", help="watch for changes")
    arguments = parser.parse_args()
    environment = (arguments.env or default_environment()).absolute()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    reason = unsupported()
    if arguments.prepare_if_supported and reason is not None:
        print(f"no server here: {reason}", flush=True)
        return 0
    try:
        prepare(environment)
        if arguments.repository is None:
            return 0
        if not arguments.repository.is_dir():
            raise ServeError(f"{arguments.repository}: no such folder")
        with serve(
            arguments.repository,
            environment=environment,
            config_name=arguments.config_name,
            poll_seconds=arguments.poll,
            ports=(arguments.http_port, arguments.grpc_port),
        ) as server:
            for model in server.models():
                print(" ".join(str(value) for value in model.values()))
            state = "ready" if server.is_ready() else "not ready"
            print(
                f"{state}: http://{server.http} grpc://{server.grpc} (Ctrl-C ends it)", flush=True
            )
            return server.process.wait()
    except ServeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
