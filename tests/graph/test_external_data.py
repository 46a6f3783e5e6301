"""`graph.external_data`: an untrusted model says where its weights lie."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from patchconv_deploy.rewriters.errors import ExternalDataError
from patchconv_deploy.rewriters.graph.external_data import (
    copy_external,
    external_range,
    is_external,
    tensors,
)
from patchconv_deploy.rewriters.graph.model import load
from patchconv_deploy.rewriters.graph.skeleton import skeleton
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.regions.selection import Selection
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.support.small_models import assert_same, chain, copy_of, model, node, noise


def refer(tensor: onnx.TensorProto, **entries: Any) -> onnx.TensorProto:
    """Make a tensor external, with these entries."""
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, entry in entries.items():
        tensor.external_data.add(key=key, value=str(entry))
    return tensor


def one(**entries: Any) -> onnx.TensorProto:
    """Return an external tensor of 6 floats, 24 bytes."""
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[2, 3])
    return refer(tensor, **entries)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with 100 bytes of weights in it, and some beside it."""
    inside = tmp_path / "model"
    inside.mkdir()
    (inside / "w.bin").write_bytes(bytes(range(100)))
    (inside / "deep").mkdir()
    (inside / "deep" / "w.bin").write_bytes(bytes(100))
    (tmp_path / "secret.bin").write_bytes(bytes(100))
    return inside


def external_chain(folder: Path) -> tuple[Path, onnx.ModelProto]:
    """Save a chain of three Convs with its weights beside it; return the file and the original."""
    made = chain(3)
    saved = copy_of(made)
    onnx.save(
        saved, folder / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0
    )
    return folder / "m.onnx", made


class TestRange:
    """Where bytes lie, and every way in which they cannot."""

    @pytest.mark.parametrize(
        ("entries", "offset"),
        [
            ({"location": "w.bin", "offset": 8, "length": 24}, 8),
            ({"location": "w.bin", "length": 24}, 0),
            ({"location": "w.bin", "offset": 76}, 76),
            ({"location": "w.bin"}, 0),
            ({"location": "./w.bin", "offset": ""}, 0),
            ({"location": "deep/w.bin"}, 0),
            ({"location": "deep\\w.bin"}, 0),
        ],
    )
    def test_good(self, folder: Path, entries: dict[str, Any], offset: int) -> None:
        """Offset 0 unless given; the length follows from the shape unless given."""
        found = external_range(one(**entries), folder)
        assert (found.offset, found.length) == (offset, 24)
        assert len(found.read()) == 24

    @pytest.mark.parametrize(
        "location",
        [
            "",
            ".",
            "./",
            "..",
            "../secret.bin",
            "deep/../../secret.bin",
            "deep/../w.bin",
            "..\\secret.bin",
            "/etc/passwd",
            "\\\\server\\share",
            "C:\\w.bin",
            "C:w.bin",
            "file:///etc/passwd",
        ],
    )
    def test_ways_out(self, folder: Path, location: str) -> None:
        """Absolute paths, drives, "..", and no path at all, wherever they lead."""
        with pytest.raises(
            ExternalDataError, match="must name a file below the model's own folder"
        ):
            external_range(one(location=location), folder)

    def test_no_location(self, folder: Path) -> None:
        """An external tensor that does not say where it is."""
        with pytest.raises(ExternalDataError, match=r"'w'.*must name a file"):
            external_range(one(), folder)

    def test_symbolic_links(self, folder: Path) -> None:
        """A link that leads out is refused, one that stays inside is not."""
        (folder / "out.bin").symlink_to(folder.parent / "secret.bin")
        (folder / "away").symlink_to(folder.parent, target_is_directory=True)
        (folder / "in.bin").symlink_to(folder / "deep" / "w.bin")
        for location in ("out.bin", "away/secret.bin"):
            with pytest.raises(ExternalDataError, match="leads out of the model's folder"):
                external_range(one(location=location), folder)
        assert external_range(one(location="in.bin"), folder).length == 24

    def test_a_folder_that_is_itself_a_link(self, folder: Path) -> None:
        """Only the way below the model's folder matters."""
        link = folder.parent / "link"
        link.symlink_to(folder, target_is_directory=True)
        assert external_range(one(location="w.bin"), link).length == 24

    @pytest.mark.parametrize("location", ["missing.bin", "deep", "w.bin/x", "deep/missing.bin"])
    def test_missing(self, folder: Path, location: str) -> None:
        """No such file, or a folder."""
        with pytest.raises(ExternalDataError, match="is missing beside the model"):
            external_range(one(location=location), folder)

    @pytest.mark.parametrize("location", ["w\0.bin", "w" * 5000, "loop"])
    def test_impossible_names(self, folder: Path, location: str) -> None:
        """Names the operating system will not look at."""
        (folder / "loop").symlink_to(folder / "loop")
        with pytest.raises(ExternalDataError):
            external_range(one(location=location), folder)

    @pytest.mark.parametrize(
        "entries",
        [
            {"offset": 77},
            {"offset": 101},
            {"offset": 77, "length": 24},
            {"offset": 2**70, "length": 24},
            {"offset": -1},
            {"offset": -24, "length": 24},
            {"length": 101},
            {"length": -24},
            {"length": 2**63},
        ],
    )
    def test_beyond_the_file(self, folder: Path, entries: dict[str, int]) -> None:
        """Bytes before the file's begin or after its end."""
        with pytest.raises(ExternalDataError, match="lie beyond the 100 bytes"):
            external_range(one(location="w.bin", **entries), folder)

    @pytest.mark.parametrize("length", [20, 28, 100])
    def test_length_of_another_shape(self, folder: Path, length: int) -> None:
        """Bytes that are there, but not as many as the shape asks for."""
        with pytest.raises(ExternalDataError, match=r"its shape \[2, 3\] asks for 24"):
            external_range(one(location="w.bin", length=length), folder)

    @pytest.mark.parametrize("key", ["offset", "length"])
    @pytest.mark.parametrize("text", ["x", "1.5", "0x10", "1e3", "9" * 5000])
    def test_not_a_number(self, folder: Path, key: str, text: str) -> None:
        """Offset or length that is no whole number."""
        with pytest.raises(ExternalDataError, match="not a number"):
            external_range(one(location="w.bin", **{key: text}), folder)


class TestModels:
    """Models whose weights lie beside them."""

    def test_loading_leaves_weights_on_disk(self, tmp_path: Path) -> None:
        """`load` checks the ranges and reads none of the bytes."""
        path, _ = external_chain(tmp_path)
        loaded = load(path)
        assert loaded.has_external_data
        assert all(is_external(tensor) for tensor in loaded.model.graph.initializer)
        assert not any(tensor.raw_data for tensor in loaded.model.graph.initializer)

    @pytest.mark.parametrize("damage", ["gone", "short", "empty"])
    def test_loading_checks_the_file(self, tmp_path: Path, damage: str) -> None:
        """A weight file that is gone or too short is an error at once."""
        path, _ = external_chain(tmp_path)
        weights = tmp_path / "m.bin"
        if damage == "gone":
            weights.unlink()
        else:
            data = weights.read_bytes()
            weights.write_bytes(data[:-1] if damage == "short" else b"")
        with pytest.raises(ExternalDataError):
            load(path)

    @pytest.mark.parametrize("place", ["constant", "function", "body"])
    def test_loading_checks_every_place(self, folder: Path, place: str) -> None:
        """Tensors in attributes, bodies and functions count."""
        constant = node("Constant", "", "k", value=one(location="../secret.bin"))
        made = model([node("Identity", "x", "y")], {"x": (2, 3)}, {"y": (2, 3)})
        if place == "constant":
            made.graph.node.append(constant)
        elif place == "function":
            made.functions.add(name="F", domain="d").node.append(constant)
        else:
            inner = onnx.helper.make_graph([constant], "g", [], [])
            made.graph.node.append(node("If", "x", "z", then_branch=inner, else_branch=inner))
        (folder / "m.onnx").write_bytes(made.SerializeToString())
        assert any(is_external(tensor) for tensor in tensors(made))
        with pytest.raises(ExternalDataError):
            load(folder / "m.onnx")

    @pytest.mark.parametrize("form", ["batch", "sequential"])
    def test_rewritten_with_weights_on_disk(self, tmp_path: Path, form: str) -> None:
        """The references survive the rewrite, and the numbers are the original's."""
        path, original = external_chain(tmp_path)
        loaded = load(path)
        before = [tensor.SerializeToString() for tensor in loaded.model.graph.initializer]
        outcome = rewrite_model(loaded, Options(form=form, selection=Selection(min_elements=0)))
        assert len(outcome.rewritten) == 3
        after = [tensor.SerializeToString() for tensor in outcome.model.graph.initializer]
        assert after[: len(before)] == before
        onnx.load_external_data_for_model(outcome.model, str(tmp_path))
        assert_same(original, outcome.model, {"x": noise(1, 2, 16, 10)})

    def test_small_external_tensors_are_read_for_analysis(self, tmp_path: Path) -> None:
        """A Reshape's sizes in the weight file still tell the shape."""
        made = model(
            [node("Reshape", "x shape", "r"), node("Conv", "r w", "y", name="conv", pads=[1] * 4)],
            {"x": (320,)},
            {"y": (None,) * 4},
            {"shape": np.array([1, 2, 16, 10], np.int64), "w": noise(3, 2, 3, 3)},
        )
        onnx.save(
            copy_of(made),
            tmp_path / "m.onnx",
            save_as_external_data=True,
            location="m.bin",
            size_threshold=0,
        )
        loaded = load(tmp_path / "m.onnx")
        assert skeleton(loaded).graph.initializer[0].raw_data
        outcome = rewrite_model(loaded, Options(selection=Selection(min_elements=0)))
        assert outcome.rewritten[0].rows == 16


class TestCopy:
    """Copying all external weights into one file."""

    def copied(self, folder: Path, name: str = "m.onnx") -> tuple[onnx.ModelProto, bytes]:
        """Load a model, copy its weights, return both."""
        loaded = load(folder / name)
        stream = io.BytesIO()
        copy_external(loaded.model, folder, stream, "new.bin")
        return loaded.model, stream.getvalue()

    def test_same_weights(self, tmp_path: Path) -> None:
        """Every tensor has its bytes in the new file, on a page of its own."""
        external_chain(tmp_path)
        copied, data = self.copied(tmp_path)
        original = chain(3)
        for tensor, source in zip(
            copied.graph.initializer, original.graph.initializer, strict=True
        ):
            entries = {entry.key: entry.value for entry in tensor.external_data}
            at, length = int(entries["offset"]), int(entries["length"])
            assert entries["location"] == "new.bin"
            assert at % 4096 == 0
            assert data[at : at + length] == numpy_helper.to_array(source).tobytes()
        (tmp_path / "new.bin").write_bytes(data)
        onnx.load_external_data_for_model(copied, str(tmp_path))
        assert_same(original, copied, {"x": noise(1, 2, 16, 10)})

    def test_deterministic(self, tmp_path: Path) -> None:
        """Same model, same bytes."""
        external_chain(tmp_path)
        (one_model, one_data), (two_model, two_data) = (self.copied(tmp_path) for _ in range(2))
        assert one_data == two_data
        assert one_model.SerializeToString() == two_model.SerializeToString()

    def test_ranges_used_twice_are_written_once(self, folder: Path) -> None:
        """Three tensors, two ranges: two ranges in the new file; padding reads as zeros."""
        made = model([node("Identity", "x", "y")], {"x": (2, 3)}, {"y": (2, 3)})
        for name, offset in (("a", 0), ("b", 24), ("c", 0)):
            tensor = one(location="w.bin", offset=offset, length=24)
            tensor.name = name
            made.graph.initializer.append(tensor)
        (folder / "m.onnx").write_bytes(made.SerializeToString())
        copied, data = self.copied(folder)
        offsets = [
            int({entry.key: entry.value for entry in tensor.external_data}["offset"])
            for tensor in copied.graph.initializer
        ]
        assert offsets == [0, 4096, 0]
        assert data == bytes(range(24)) + bytes(4096 - 24) + bytes(range(24, 48))

    def test_without_lengths_only_the_tensors_bytes_are_copied(self, folder: Path) -> None:
        """A reference without a length means the shape's bytes, not the rest of the file."""
        made = model([node("Identity", "x", "y")], {"x": (2, 3)}, {"y": (2, 3)})
        made.graph.initializer.append(one(location="w.bin", offset=10))
        (folder / "m.onnx").write_bytes(made.SerializeToString())
        _, data = self.copied(folder)
        assert data == bytes(range(10, 34))

    def test_nothing_external_nothing_written(self) -> None:
        """A model that holds its weights is not changed."""
        made, stream = chain(2), io.BytesIO()
        before = made.SerializeToString()
        copy_external(made, Path(), stream, "new.bin")
        assert stream.getvalue() == b""
        assert made.SerializeToString() == before

    def test_a_file_that_shrinks_meanwhile(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Bytes that end early while they are copied are an error."""
        made = model([node("Identity", "x", "y")], {"x": (2, 3)}, {"y": (2, 3)})
        made.graph.initializer.append(one(location="w.bin", offset=10))

        def shrinking(tensor: onnx.TensorProto, where: Path) -> Any:
            found = external_range(tensor, where)
            (folder / "w.bin").write_bytes(b"short")
            return found

        monkeypatch.setattr(
            "patchconv_deploy.rewriters.graph.external_data.external_range", shrinking
        )
        with pytest.raises(ExternalDataError, match="became shorter"):
            copy_external(made, folder, io.BytesIO(), "new.bin")
