"""Comparing outputs: what passes, what does not, and what is reported."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from patchconv_deploy.comparison import Seam, compare_output, seam_rows


def _image(seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((1, 2, 16, 8)).astype(np.float32)


def test_equal_outputs_pass_with_zero_error() -> None:
    """The same array has no error anywhere."""
    found = compare_output("y", _image(), _image(), _image())
    assert found.passed
    assert (found.max_abs, found.max_rel, found.differing) == (0, 0, 0)


def test_one_wrong_row_fails_and_shows_at_its_seam() -> None:
    """A row off by a hundredth of the output fails; the seam's own figure names it."""
    wrong = _image()
    wrong[:, :, 8] += 0.05
    seams = [Seam(axis=2, rows=16, at=(8,))]
    found = compare_output("y", _image(), _image(), wrong, seams=seams)
    assert not found.passed
    assert found.seam_max_abs == pytest.approx(0.05, rel=1e-4)
    far = compare_output("y", _image(), _image(), wrong, seams=[Seam(2, 16, (2,))])
    assert far.seam_max_abs == 0


def test_a_model_that_differs_from_itself_is_neither_right_nor_wrong() -> None:
    """Random operators: nothing can be said, whatever the difference."""
    noisy = _image() + np.float32(0.01)
    found = compare_output("y", _image(), noisy, noisy)
    assert found.passed is None
    assert "itself differs" in found.reason
    assert compare_output("y", _image(), _image(), noisy).passed is False
    whole = np.arange(100)
    assert compare_output("y", whole, whole + 1, whole).passed is None


@pytest.mark.parametrize(("offset", "fills"), [(1e6, 0), (0, 1), (1e6, 1)])
def test_neither_an_offset_nor_a_few_huge_values_hide_an_error(offset: float, fills: int) -> None:
    """A large mean or a mask of -1e9 does not widen the tolerance of the other elements."""
    reference = 30 * np.random.default_rng(0).standard_normal((1, 2, 64, 64)).astype(np.float32)
    reference += np.float32(offset)
    reference.reshape(-1)[:fills] = -1e9
    wrong = reference.copy()
    wrong[:, :, 20:22] = reference[:, :, 24:26]
    assert compare_output("y", reference, reference, reference.copy()).passed
    assert compare_output("y", reference, reference, wrong).passed is False


def test_wrong_integers_at_a_seam_are_not_lost_in_a_tall_output() -> None:
    """Two wrong rows of 4096 are a small share of the output, not of the seam."""
    reference = np.random.default_rng(0).integers(0, 200, (1, 1, 4096, 8)).astype(np.uint8)
    wrong = reference.copy()
    wrong[:, :, 2047:2049] += 1
    assert compare_output("y", reference, reference, wrong).passed
    seams = [Seam(2, 4096, (2048,))]
    assert compare_output("y", reference, reference, wrong, seams=seams).passed is False


def test_constant_and_empty_outputs_are_faint() -> None:
    """They agree whatever was computed."""
    constant = np.ones((4, 4), np.float32)
    assert compare_output("y", constant, constant, constant).faint
    empty = np.ones((0, 4), np.float32)
    assert compare_output("y", empty, empty, empty).faint


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_tolerance_follows_the_element_type(dtype: type) -> None:
    """Half of a type's tolerance passes and twice of it fails."""
    from patchconv_deploy.comparison import TOLERANCES

    reference: np.ndarray[Any, Any] = np.linspace(-1, 1, 64, dtype=dtype)
    share = TOLERANCES[np.dtype(dtype).name]
    for factor, passes in ((0.5, True), (4, False)):
        other = (reference + dtype(factor * share)).astype(dtype)
        assert compare_output("y", reference, reference, other).passed is passes


def test_integers_are_exact_or_nearly_so() -> None:
    """One element in ten thousand is allowed, unless every cut Conv is an integer one."""
    reference = np.arange(10_000, dtype=np.int32)
    other = reference.copy()
    other[5] += 1
    assert compare_output("y", reference, reference, other).passed
    assert not compare_output("y", reference, reference, other, exact_integers=True).passed
    other[:100] += 1
    assert not compare_output("y", reference, reference, other).passed


def test_special_values_must_stand_in_the_same_places() -> None:
    """NaN equals NaN; a NaN of the rewritten model alone fails."""
    reference = _image()
    reference[0, 0, 0, 0] = np.nan
    reference[0, 0, 0, 1] = np.inf
    assert compare_output("y", reference, reference, reference.copy()).passed
    other = reference.copy()
    other[0, 0, 3, 3] = np.nan
    assert not compare_output("y", reference, reference, other).passed
    assert not compare_output("y", reference, reference, _image()).passed


def test_another_shape_or_type_fails() -> None:
    """Shape and element type are part of the interface."""
    assert not compare_output("y", _image(), _image(), _image()[:, :, :-1]).passed
    assert not compare_output("y", _image(), _image(), _image().astype(np.float64)).passed


def test_faint_outputs_are_called_faint() -> None:
    """An output near zero proves little."""
    tiny = _image() * np.float32(1e-7)
    assert compare_output("y", tiny, tiny, tiny).faint
    assert not compare_output("y", _image(), _image(), _image()).faint


def test_seams_are_carried_to_other_heights() -> None:
    """A seam in the middle of 8 rows lies in the middle of 32."""
    found = seam_rows((1, 1, 32, 4), [Seam(axis=2, rows=8, at=(4,))])
    assert found is not None
    axis, rows = found
    assert axis == 2
    assert rows.min() == 8
    assert rows.max() == 23
    assert seam_rows((3,), [Seam(2, 8, (4,))]) is None
