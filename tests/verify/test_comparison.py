"""Comparing outputs: what passes, what does not, and what is reported."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from patchconv_deploy.verify.comparison import compare_output
from patchconv_deploy.verify.seams import Seam, seam_rows
from patchconv_deploy.verify.tolerances import Way


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
    from patchconv_deploy.verify.tolerances import TOLERANCES

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


def test_a_coarse_type_inside_widens_the_tolerance_and_hides_no_row() -> None:
    """Errors of float16 pass in a float32 output, spread over it; a tenth of it in one row not."""
    reference = np.random.default_rng(0).standard_normal((1, 3, 64, 48)).astype(np.float32)
    noise = np.random.default_rng(1).standard_normal(reference.shape).astype(np.float32)
    rounded = reference + np.float32(3e-4) * noise
    seams, way = [Seam(2, 64, (16, 32, 48))], Way("float16")
    given: dict[str, Any] = {"seams": seams, "way": way}
    assert not compare_output("y", reference, reference, rounded, seams=seams).passed
    assert compare_output("y", reference, reference, rounded, **given).passed
    wrong = rounded.copy()
    wrong[:, :, 32] += np.float32(0.01) * noise[:, :, 32]
    found = compare_output("y", reference, reference, wrong, **given)
    assert found.max_abs < found.tolerance
    assert found.passed is False
    assert "row 32, next to a seam, stands out" in found.reason


def test_what_the_original_is_free_to_do_is_a_floor_and_no_more() -> None:
    """Its distance to itself without optimisations counts, up to a tenth of the spread."""
    reference = np.random.default_rng(0).standard_normal((1, 3, 64, 48)).astype(np.float32)
    noise = np.random.default_rng(1).standard_normal(reference.shape).astype(np.float32)
    for size, passes in ((1e-3, True), (0.3, None)):
        other, plain = (reference + np.float32(size * sign) * noise for sign in (1, -1))
        assert compare_output("y", reference, reference, other).passed is False
        found = compare_output("y", reference, reference, other, plain=plain)
        assert found.passed is passes
        assert found.freedom == pytest.approx(size * np.abs(noise).max(), rel=1e-2)
    far = reference + np.float32(3) * noise
    assert compare_output("y", reference, reference, far, plain=plain).passed is False


def test_labels_may_differ_where_their_scores_are_as_good_as_equal() -> None:
    """Another label is right where the original's scores tie, and only there."""
    scores = np.random.default_rng(0).standard_normal((1, 5, 32, 24)).astype(np.float32)
    scores[0, 1, 3, 4] = scores[0, 2, 3, 4] = 4.0
    scores[0, 2, 3, 4] += np.float32(1e-5)
    labels = np.argmax(scores, axis=1)
    tie, wrong = labels.copy(), labels.copy()
    tie[0, 3, 4] = 1
    wrong[0, 9, 9] = np.argmin(scores[0, :, 9, 9])
    way = Way(kind="labels", scores="s", axis=1)
    for other, passes in ((tie, True), (wrong, False), (labels, True)):
        found = compare_output("y", labels, labels, other, way=way, scores=scores)
        assert found.passed is passes
        first = compare_output("y", labels, labels, other, way=way, final=False)
        assert first.passed is (other is labels)
    beyond = np.where(labels == 0, 7, labels)
    assert compare_output("y", labels, labels, beyond, way=way, scores=scores).passed is False


def test_levels_may_be_one_off_on_a_rounding_edge() -> None:
    """A few levels off by one pass, one off by many does not, nor a row of them at a seam."""
    reference = np.random.default_rng(0).integers(0, 200, (1, 3, 64, 48)).astype(np.uint8)
    way, seams = Way("float16", kind="levels"), [Seam(2, 64, (32,))]
    few = reference.copy()
    few.reshape(-1)[::97] += 1
    assert compare_output("y", reference, reference, few, way=way, seams=seams).passed
    for rows, by in ((slice(5, 6), 40), (slice(32, 33), 1)):
        wrong = few.copy()
        wrong[:, :, rows] += by
        found = compare_output("y", reference, reference, wrong, way=way, seams=seams)
        assert found.passed is False, found


def test_a_difference_stands_beside_what_it_was_held_against() -> None:
    """A value has last places of its own: 0.02 in zeros is held to less than the 1 beside it."""
    reference = np.zeros((1, 2, 64, 64), np.float32)
    reference[0, 0, 3, 3], reference[0, 1, 5, 5] = 1, 0.02
    other = reference.copy()
    other[0, 0, 3, 3] -= 10 * np.float32(2**-23)
    found = compare_output("y", reference, reference, other)
    assert found.passed
    assert found.max_abs == pytest.approx(1.2e-6, rel=0.05)
    assert found.max_abs < found.tolerance
    wrong = reference.copy()
    wrong[0, 1, 5, 5] += 2e-6
    found = compare_output("y", reference, reference, wrong)
    assert not found.passed
    assert found.max_abs > found.tolerance
