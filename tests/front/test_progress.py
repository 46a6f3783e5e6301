"""What a command says while it works, where there is no terminal."""

from __future__ import annotations

import re
import time

import pytest

from patchconv_deploy.cli import progress


def test_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is done, how far it is, and for how long; on standard error."""
    monkeypatch.setattr(progress, "EVERY_S", 0.02)
    with progress.progress_bar(what="reading") as told:
        time.sleep(0.5)
        assert told is not None
        told("searching\x1b[2J", 3, 7)
        time.sleep(0.5)
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert re.fullmatch(r"reading: \d+ s so far", lines[0])
    assert re.fullmatch(r"searching\\x1b\[2J, 3 of 7: \d+ s so far", lines[-1])
    assert not said.out
    time.sleep(0.1)
    assert not capsys.readouterr().err


def test_what_is_quick_or_quiet_says_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing before the first half minute; with quiet nothing at all."""
    with progress.progress_bar() as told:
        assert told is not None
        told("searching", 1, 2)
    monkeypatch.setattr(progress, "EVERY_S", 0.01)
    with progress.progress_bar(quiet=True) as told:
        assert told is None
        time.sleep(0.05)
    assert capsys.readouterr().err == ""
