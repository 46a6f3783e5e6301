"""What is found on this machine, and what can be done here. Nothing here raises.

Runtimes are imported in a process of their own each: a broken one may end the process, or never
return.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from patchconv_deploy.engines.errors import DeviceMissing
from patchconv_deploy.engines.gpu.nvml import Device, devices
from patchconv_deploy.engines.ort.options import PROVIDERS
from patchconv_deploy.free_memory import Memory, memory_here
from patchconv_deploy.version import VERSION

__all__ = ["ABILITIES", "MODULES", "Ability", "Findings", "Module", "examine", "probe"]

# Seconds that importing a runtime may take.
_TIMEOUT_S = 120.0

# Modules that are looked for, with the packages that bring them, the likely one first.
MODULES: Mapping[str, tuple[str, ...]] = {
    "onnx": ("onnx",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "tensorrt": ("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
    "tensorrt_rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13"),
    "pynvml": ("nvidia-ml-py",),
    "torch": ("torch",),
    "tritonclient.grpc": ("tritonclient",),
    "jinja2": ("jinja2",),
    "matplotlib": ("matplotlib",),
}

_CODE = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
providers = getattr(module, "get_available_providers", list)()
print(json.dumps({"version": str(getattr(module, "__version__", "")), "providers": providers}))
"""


@dataclass(frozen=True, slots=True)
class Module:
    """A module that was looked for.

    Attributes:
        name: Its name.
        found: It can be imported.
        version: Its version, empty if that is not known.
        package: The package that brings it, empty where none is installed.
        problem: Why it cannot be imported, empty if it can or is not installed.
        providers: Of ONNX Runtime, the execution providers it was built with.
    """

    name: str
    found: bool
    version: str = ""
    package: str = ""
    problem: str = ""
    providers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ability:
    """Something that can be done here, or not.

    Attributes:
        what: What.
        possible: It can.
        missing: What is missing for it.
        install: What to install for that, as pip has it; empty where that is no help.
    """

    what: str
    possible: bool
    missing: tuple[str, ...] = ()
    install: str = ""


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found.

    Attributes:
        version: This package's version.
        python: Python's.
        system: The operating system and the processor's kind.
        modules: What was looked for, by name.
        driver: Version of NVIDIA's driver, empty for none.
        gpus: The GPUs.
        gpu_problem: Why there are none, empty if there are.
        memory: The machine's memory.
        abilities: What can be done.
    """

    version: str
    python: str
    system: str
    modules: Mapping[str, Module]
    driver: str
    gpus: tuple[Device, ...]
    gpu_problem: str
    memory: Memory
    abilities: tuple[Ability, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON-ready data; sizes in bytes."""
        data = asdict(self)
        data["modules"] = list(data["modules"].values())
        data["memory"]["free"] = self.memory.free
        return data


@dataclass(frozen=True)
class _Needs:
    """What something needs.

    Attributes:
        modules: Modules that have to be there.
        provider: Of ONNX Runtime, the provider.
        gpu: A GPU and its driver.
        extra: The extra of this package that brings the modules.
    """

    modules: Sequence[str] = ()
    provider: str = ""
    gpu: bool = False
    extra: str = ""


ABILITIES: Mapping[str, _Needs] = {
    "rewrite": _Needs(("onnx",)),
    "verify": _Needs(("onnxruntime",), "cpu", extra="cpu"),
    "measure on the CPU": _Needs(("onnxruntime",), "cpu", extra="cpu"),
    "measure on CUDA": _Needs(("onnxruntime", "pynvml"), "cuda", gpu=True, extra="gpu"),
    "plan with TensorRT for RTX (no GPU needed)": _Needs(("tensorrt_rtx",), extra="tensorrt-rtx"),
    "build TensorRT plans": _Needs(("tensorrt",), gpu=True, extra="tensorrt"),
    "serve (publish for Triton)": _Needs(("tritonclient.grpc", "onnxruntime"), extra="triton"),
    "write reports": _Needs(("jinja2", "matplotlib"), extra="report"),
    "export from PyTorch": _Needs(("torch",), extra="torch"),
}


def examine(
    look: Callable[[str], Module] | None = None,
    find_gpus: Callable[[], tuple[str, tuple[Device, ...]]] = devices,
    memory: Callable[[], Memory] = memory_here,
) -> Findings:
    """Look at this machine.

    Args:
        look: Looks for a module, `probe` if None.
        find_gpus: Returns driver and GPUs, or raises `DeviceMissing`.
        memory: Returns the machine's memory.
    """
    look = look or probe
    modules = {name: look(name) for name in MODULES}
    driver, gpus, problem = "", tuple[Device, ...](), ""
    try:
        driver, gpus = find_gpus()
        problem = "" if gpus else "the driver knows no GPU"
    except DeviceMissing as error:
        problem = str(error)
    found = Findings(
        VERSION,
        platform.python_version(),
        f"{platform.system()} {platform.machine()}",
        modules,
        driver,
        gpus,
        problem,
        memory(),
    )
    abilities = tuple(_ability(what, needs, found) for what, needs in ABILITIES.items())
    return replace(found, abilities=abilities)


def _ability(what: str, needs: _Needs, found: Findings) -> Ability:
    """Tell whether something can be done, and what is missing for it."""
    missing = []
    for name in needs.modules:
        module = found.modules[name]
        if not module.found:
            said = f" ({module.problem})" if module.problem else " is not installed"
            missing.append(f"{name}{said}")
    lacking = bool(missing)
    runtime = found.modules["onnxruntime"]
    wanted = PROVIDERS.get(needs.provider, "")
    if wanted and runtime.found and wanted not in runtime.providers:
        missing.append(f"this ONNX Runtime has no {wanted}")
        lacking = True
    if needs.gpu and not found.gpus:
        missing.append("no NVIDIA GPU is found")
    install = f"patchconv-deploy[{needs.extra}]" if lacking and needs.extra else ""
    return Ability(what, not missing, tuple(missing), install)


def probe(name: str, timeout_s: float = _TIMEOUT_S) -> Module:
    """Look for a module by importing it in a process of its own.

    Args:
        name: Its name, a key of `MODULES`.
        timeout_s: Seconds that this may take.
    """
    package, installed = "", ""
    for each in MODULES[name]:
        try:
            installed = version(each)
            package = each
            break
        except PackageNotFoundError:
            continue
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CODE, name],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
        last = done.stdout.strip().splitlines()[-1:]
        data = json.loads(last[0]) if done.returncode == 0 and last else None
    except (subprocess.TimeoutExpired, OSError, ValueError):
        return Module(name, False, installed, package, "importing it does not end well")
    if data is not None:
        providers = tuple(map(str, data["providers"]))
        return Module(name, True, data["version"] or installed, package, "", providers)
    if not package and "ModuleNotFoundError" in done.stderr:
        return Module(name, False)
    words = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
    return Module(name, False, installed, package, f"cannot be imported: {words[0]}")
