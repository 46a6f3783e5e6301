"""``patchconv doctor``: what is found on this machine, and what can be done here."""

from __future__ import annotations

import json

import click

from patchconv_deploy.cli.command import command
from patchconv_deploy.console import printable, stdout_console
from patchconv_deploy.doctor import Findings, examine
from patchconv_deploy.report.text import mebibytes
from patchconv_deploy.tables import Row, print_table

__all__ = ["doctor_command"]


@command(
    "doctor",
    summary="Show what is installed, and what can be done here.",
    examples="""
    # for people
    patchconv doctor
    # for programs and bug reports
    patchconv doctor --json
    """,
)
@click.option("--json", "as_json", is_flag=True, help="Print all as JSON.")
def doctor_command(as_json: bool) -> None:
    """Show which runtimes and GPUs are found here, and what can be done with them.

    What is missing is named with what to install; the exit code is 0 all the same.
    """
    found = examine()
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=2))
        return
    _print(found)


def _print(found: Findings) -> None:
    console = stdout_console()
    memory = found.memory
    console.print(f"patchconv {found.version}, Python {found.python}, {found.system}")
    limit = "" if memory.limit is None else f", limited to {mebibytes(memory.limit)} MiB here"
    console.print(
        f"Memory: {mebibytes(memory.free)} MiB free of {mebibytes(memory.total)} MiB{limit}"
    )
    for gpu in found.gpus:
        console.print(
            f"GPU: {printable(gpu.name)}, {mebibytes(gpu.free_bytes)} MiB free of "
            f"{mebibytes(gpu.total_bytes)} MiB, compute capability {gpu.capability or 'unknown'}, "
            f"driver {printable(found.driver)}"
        )
    if not found.gpus:
        console.print(f"GPU: none ({printable(found.gpu_problem)})")
    rows = [
        Row(
            module.name,
            (module.version or "-",),
            ", ".join(module.providers)
            or ("" if module.found else (module.problem or "not installed")),
        )
        for module in found.modules.values()
    ]
    print_table(console, "package", ("version",), rows)
    console.print("Can be done here:")
    for each in found.abilities:
        console.print(f"  {'yes' if each.possible else 'no ':3}  {each.what}")
        for said in each.missing:
            console.print(f"         {printable(said)}")
        if each.install:
            console.print(f"         pip install '{each.install}'")
