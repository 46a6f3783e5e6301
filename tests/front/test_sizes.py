"""Sizes as people write them: units of 1024 and of 1000, and plain numbers that are doubted."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from patchconv_deploy.cli.main import patchconv
from patchconv_deploy.sizes import doubted, parse_size, spelled_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512MiB", 512 * 2**20),
        ("512M", 512 * 2**20),
        ("2g", 2 * 2**30),
        ("1.5GiB", 3 * 2**29),
        (".5KiB", 512),
        ("2GB", 2_000_000_000),
        ("300 MB", 300_000_000),
        (" 64 mib ", 64 * 2**20),
        ("1TiB", 2**40),
        ("9007199254740993", 9007199254740993),
        ("512B", 512),
        ("100000", 100_000),
    ],
)
def test_a_size_is_read(text: str, size: int) -> None:
    """One letter and iB are powers of 1024, two letters powers of 1000."""
    assert parse_size(text) == size
    assert doubted(text) is None


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (1, "1B"),
        (1000, "1000B"),
        (1024, "1KiB"),
        (1536, "1536B"),
        (60 << 20, "60MiB"),
        ((1 << 30) + 1024, "1048577KiB"),
        (3 << 40, "3TiB"),
    ],
)
def test_a_size_is_spelled_so_that_it_is_read_back(size: int, text: str) -> None:
    """In the largest unit of which it is a whole number; none is doubted but for what is plain."""
    assert spelled_size(size) == text
    assert parse_size(text) == size
    assert doubted(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "MiB",
        "2 G B",
        "-5MiB",
        "0",
        "0.2B",
        "nan",
        "infGiB",
        "1e3",
        "2GBit",
        "4,5MiB",
        "9" * 400,
    ],
)
def test_what_is_no_size_is_told(text: str) -> None:
    """Signs, exponents, other units, and nothing at all."""
    assert parse_size(text) is None


@pytest.mark.parametrize("text", ["512", "1", "1023", "200.5"])
def test_a_small_plain_number_is_doubted(text: str) -> None:
    """Bytes were hardly meant; both ways to write it are shown."""
    assert doubted(text) == f"{text} bytes? Write {text}MiB, or {text}B if bytes are meant"


@pytest.mark.parametrize(
    "command",
    [
        ["rewrite", "m.onnx", "--memory-budget"],
        ["measure", "m.onnx", "--memory-limit"],
        ["triton", "m.onnx", "--memory"],
    ],
)
def test_every_command_asks_back(command: list[str]) -> None:
    """Exit code 2, and the option is named; a word that is no size likewise."""
    done = CliRunner().invoke(patchconv, [*command, "512"])
    assert done.exit_code == 2
    assert f"'{command[-1]}': 512 bytes? Write 512MiB, or 512B" in done.output
    done = CliRunner().invoke(patchconv, [*command, "plenty"])
    assert done.exit_code == 2
    assert "'plenty' is not a size such as 512MiB, 2GiB (512M, 2G are the same), or" in done.output
