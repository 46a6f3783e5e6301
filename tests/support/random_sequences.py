"""Random transformers at free sizes: an image folded into a sequence, worked on, and unfolded."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from tests.support.small_models import Array, model, node, noise

__all__ = ["CHANNELS", "WINDOW", "Sequences", "random_sequences"]

CHANNELS, HEADS, WINDOW = 16, 2, 4


class Sequences:
    """A graph that is built.

    Args:
        seed: What is drawn.
        images: Whether the number of images is free.
    """

    def __init__(self, seed: int, *, images: bool) -> None:
        self.drawn = random.Random(seed)
        self.opset = self.drawn.choice([12, 17, 18, 21])
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Array] = {}
        self.images = images
        self._seed = seed
        self._count = 0

    def add(self, op: str, inputs: str, *, outputs: int = 1, **attributes: Any) -> str:
        """Add a node; return its output, or its outputs with blanks between."""
        self._count += 1
        name = f"{op.lower()}{self._count}"
        made = " ".join([name, *(f"{name}_{at}" for at in range(1, outputs))])
        self.nodes.append(node(op, inputs, made, name=name, **attributes))
        return made

    def ints(self, *values: int) -> str:
        """Add a vector of whole numbers."""
        name = "i" + "_".join(str(value) for value in values).replace("-", "m")
        self.weights[name] = np.array(values)
        return name

    def weight(self, *shape: int) -> str:
        """Add random numbers, as a layer's weights."""
        self._count += 1
        name = f"w{self._count}"
        self.weights[name] = noise(*shape, seed=self._seed + self._count) / float(shape[0]) ** 0.5
        return name

    def reduce_mean(self, x: str, axis: int, *, keep: bool = True) -> str:
        """Add a mean over a dimension."""
        if self.opset >= 18:
            return self.add("ReduceMean", f"{x} {self.ints(axis)}", keepdims=int(keep))
        return self.add("ReduceMean", x, axes=[axis], keepdims=int(keep))

    def with_axes(self, op: str, x: str, *axes: int) -> str:
        """Add a Squeeze or an Unsqueeze."""
        if self.opset >= 13:
            return self.add(op, f"{x} {self.ints(*axes)}")
        return self.add(op, x, axes=list(axes))

    def size(self, x: str, axis: int) -> str:
        """Work out a size of a tensor, a vector of one number."""
        return self.add("Gather", f"{self.add('Shape', x)} {self.ints(axis)}")

    def reshape(self, x: str, *sizes: int | str) -> str:
        """Add a Reshape to numbers and sizes that are worked out."""
        parts = [self.ints(size) if isinstance(size, int) else size for size in sizes]
        if all(isinstance(size, int) for size in sizes):
            return self.add("Reshape", f"{x} {self.ints(*(int(size) for size in sizes))}")
        return self.add("Reshape", f"{x} {self.add('Concat', ' '.join(parts), axis=0)}")

    # Ways to fold an image and back.

    def flattened(self, x: str) -> str:
        """[N, C, H, W] to [N, H * W, C]."""
        if self.drawn.random() < 0.5:
            flat = self.reshape(x, 0 if self.images else 1, CHANNELS, -1)
            return self.add("Transpose", flat, perm=[0, 2, 1])
        last = self.add("Transpose", x, perm=[0, 2, 3, 1])
        return self.reshape(last, self.size(x, 0) if self.images else 1, -1, CHANNELS)

    def restored(self, t: str, image: str) -> str:
        """[N, H * W, C] to [N, C, H, W]."""
        count: int | str = self.size(image, 0) if self.images else 1
        height, width = self.size(image, 2), self.size(image, 3)
        if self.drawn.random() < 0.5:
            turned = self.add("Transpose", t, perm=[0, 2, 1])
            return self.reshape(turned, count, CHANNELS, height, width)
        last = self.reshape(t, count, height, width, CHANNELS)
        return self.add("Transpose", last, perm=[0, 3, 1, 2])

    def windows(self, x: str) -> str:
        """[N, C, H, W] to [N * H / 4 * W / 4, 16, C]."""
        last = self.add("Transpose", x, perm=[0, 2, 3, 1])
        by = self.ints(WINDOW)
        rows, columns = (self.add("Div", f"{self.size(x, axis)} {by}") for axis in (2, 3))
        count: int | str = self.size(x, 0) if self.images else 1
        apart = self.reshape(last, count, rows, WINDOW, columns, WINDOW, CHANNELS)
        turned = self.add("Transpose", apart, perm=[0, 1, 3, 2, 4, 5])
        return self.reshape(turned, -1, WINDOW * WINDOW, CHANNELS)

    def from_windows(self, t: str, image: str) -> str:
        """[N * H / 4 * W / 4, 16, C] to [N, C, H, W]."""
        by = self.ints(WINDOW)
        rows, columns = (self.add("Div", f"{self.size(image, axis)} {by}") for axis in (2, 3))
        count: int | str = self.size(image, 0) if self.images else 1
        apart = self.reshape(t, count, rows, columns, WINDOW, WINDOW, CHANNELS)
        turned = self.add("Transpose", apart, perm=[0, 1, 3, 2, 4, 5])
        height, width = self.size(image, 2), self.size(image, 3)
        last = self.reshape(turned, count, height, width, CHANNELS)
        return self.add("Transpose", last, perm=[0, 3, 1, 2])

    # What is done to a sequence [N, L, C].

    def linear(self, t: str) -> str:
        """A linear layer."""
        made = self.add("MatMul", f"{t} {self.weight(CHANNELS, CHANNELS)}")
        return self.add("Add", f"{made} {self.weight(CHANNELS)}")

    def in_rows(self, t: str) -> str:
        """A linear layer of all elements of all images, as a matrix."""
        flat = self.reshape(t, -1, CHANNELS)
        added = self.weight(*self.drawn.choice([[1], [CHANNELS], [1, CHANNELS]]))
        rest = f"{self.weight(CHANNELS, CHANNELS)} {added}"
        made = self.add("Gemm", f"{flat} {rest}", transB=self.drawn.randint(0, 1))
        return self.reshape(made, self.size(t, 0), self.size(t, 1), CHANNELS)

    def normalised(self, t: str) -> str:
        """LayerNormalization, or the same spelled out."""
        if self.opset >= 17 and self.drawn.random() < 0.5:
            scale = f"{self.weight(CHANNELS)} {self.weight(CHANNELS)}"
            return self.add("LayerNormalization", f"{t} {scale}", axis=self.drawn.choice([-1, 2]))
        off = self.add("Sub", f"{t} {self.reduce_mean(t, self.drawn.choice([-1, 2]))}")
        squares = self.reduce_mean(self.add("Mul", f"{off} {off}"), -1)
        self.weights["little"] = np.array(0.1, np.float32)
        return self.add("Div", f"{off} {self.add('Sqrt', self.add('Add', f'{squares} little'))}")

    def activated(self, t: str) -> str:
        """A function of each number."""
        return self.add(self.drawn.choice(["Relu", "Sigmoid", "Tanh", "Erf"]), t)

    def attended(self, t: str) -> str:
        """Attention of several heads over each sequence."""
        given: list[list[int | str]] = [[0, self.size(t, axis)] for axis in (0, 1)]
        count, length = (self.drawn.choice(each) for each in given)
        if self.drawn.random() < 0.3:
            count = -1
        each = CHANNELS // HEADS
        q, k, v = (
            self.add("Transpose", self.reshape(made, count, length, HEADS, each), perm=perm)
            for made, perm in (
                (self.linear(t), [0, 2, 1, 3]),
                (self.linear(t), [0, 2, 3, 1]),
                (self.linear(t), [0, 2, 1, 3]),
            )
        )
        scores = self.add("Softmax", self.add("MatMul", f"{q} {k}"), axis=3)
        made = self.add("Transpose", self.add("MatMul", f"{scores} {v}"), perm=[0, 2, 1, 3])
        return self.reshape(made, 0, self.size(t, 1), CHANNELS)

    def heads(self, t: str, *perm: int) -> str:
        """[N, L, C] to [N, L, heads, C / heads], its dimensions in another order."""
        apart = self.reshape(self.linear(t), 0, self.size(t, 1), HEADS, CHANNELS // HEADS)
        return self.add("Transpose", apart, perm=list(perm))

    def over_length(self, x: str) -> str:
        """Each channel [.., L] over its length, which exporters expand."""
        if self.opset >= 18:
            length = self.add("ReduceL2", f"{x} {self.ints(3)}")
        else:
            length = self.add("ReduceL2", x, axes=[-1])
        if self.drawn.random() < 0.7:
            length = self.add("Expand", f"{length} {self.add('Shape', x)}")
        return self.add("Div", f"{x} {length}")

    def smaller(self, x: str) -> str:
        """What many positions are added up of, so that no Softmax behind it is all or nothing."""
        self.weights["small"] = np.array(0.002, np.float32)
        return self.add("Mul", f"{x} small")

    def attended_by_channels(self, t: str) -> str:
        """Attention between the channels of each head: all positions are added up."""
        q, k, v = (self.heads(t, 0, 2, 3, 1) for _ in range(3))
        if self.drawn.random() < 0.6:
            q, k = self.over_length(q), self.over_length(k)
        else:
            q = self.smaller(q)
        turned = self.add("Transpose", k, perm=[0, 1, 3, 2])
        weights = self.add("Softmax", self.add("MatMul", f"{q} {turned}"), axis=3)
        made = self.add("Transpose", self.add("MatMul", f"{weights} {v}"), perm=[0, 3, 1, 2])
        return self.reshape(made, 0, self.size(t, 1), CHANNELS)

    def attended_linearly(self, t: str) -> str:
        """Keys by values first, over all positions, and queries by these."""
        k, q, v = self.heads(t, 0, 2, 3, 1), self.heads(t, 0, 2, 1, 3), self.heads(t, 0, 2, 1, 3)
        if self.drawn.random() < 0.3:
            k = self.add("Softmax", k, axis=3)
        made = self.add("MatMul", f"{q} {self.smaller(self.add('MatMul', f'{k} {v}'))}")
        turned = self.add("Transpose", made, perm=[0, 2, 1, 3])
        return self.reshape(turned, 0, self.size(t, 1), CHANNELS)

    def split(self, t: str) -> str:
        """Its channels in two, put together the other way round."""
        half = CHANNELS // 2
        if self.opset >= 18:
            both = self.add("Split", t, outputs=2, axis=2, num_outputs=2)
        elif self.opset >= 13:
            both = self.add("Split", f"{t} {self.ints(half, half)}", outputs=2, axis=-1)
        else:
            both = self.add("Split", t, outputs=2, axis=2, split=[half, half])
        first, second = both.split()
        return self.add("Concat", f"{second} {first}", axis=self.drawn.choice([2, -1]))

    def sliced(self, t: str) -> str:
        """Some of its channels, and its channels in another order."""
        bounds = f"{self.ints(3)} {self.ints(11)} {self.ints(self.drawn.choice([2, -1]))}"
        some = self.add("Slice", f"{t} {bounds}")
        those = self.add("Gather", f"{t} {self.ints(*range(7, -1, -1))}", axis=2)
        return self.add("Concat", f"{some} {those}", axis=2)

    def through_more(self, t: str) -> str:
        """A dimension of one put in and taken out."""
        at = self.drawn.randint(0, 3)
        return self.with_axes("Squeeze", self.add("Neg", self.with_axes("Unsqueeze", t, at)), at)

    def gated(self, t: str) -> str:
        """Weighed by channels, by what the whole sequence says."""
        mean = self.reduce_mean(t, 1)
        return self.add("Mul", f"{t} {self.add('Sigmoid', self.linear(mean))}")

    def weighed(self, t: str) -> str:
        """Weighed element by element, by a sum without its dimension."""
        mean = self.add("Sigmoid", self.reduce_mean(t, 2, keep=False))
        return self.add("Mul", f"{t} {self.with_axes('Unsqueeze', mean, 2)}")

    def with_class(self, t: str) -> str:
        """One more element in front, and gone again."""
        token = self.reduce_mean(t, 1)
        more = self.linear(self.add("Concat", f"{token} {t}", axis=1))
        end = self.ints(1 << 40)
        return self.add("Slice", f"{more} {self.ints(1)} {end} {self.ints(1)}")

    def along_channels(self, t: str) -> str:
        """Weights over the channels, which add up to one."""
        return self.add("Softmax", t, axis=2)

    def turned(self, t: str) -> str:
        """[N, C, L], normalised as a batch, and back."""
        made = self.add("Transpose", t, perm=[0, 2, 1])
        self.weights["variance"] = np.full(CHANNELS, 0.7, np.float32)
        rest = f"{self.weight(CHANNELS)} {self.weight(CHANNELS)} {self.weight(CHANNELS)} variance"
        return self.add(
            "Transpose", self.add("BatchNormalization", f"{made} {rest}"), perm=[0, 2, 1]
        )

    def conv(self, x: str, channels: int = CHANNELS) -> str:
        """A convolution of the image."""
        made = self.weight(channels, 3 if x == "x" else CHANNELS, 3, 3)
        return self.add("Conv", f"{x} {made}", pads=[1] * 4)


_LAYERS: tuple[Callable[[Sequences, str], str], ...] = (
    Sequences.linear,
    Sequences.linear,
    Sequences.normalised,
    Sequences.normalised,
    Sequences.activated,
    Sequences.activated,
    Sequences.attended,
    Sequences.attended,
    Sequences.attended_by_channels,
    Sequences.attended_linearly,
    Sequences.split,
    Sequences.sliced,
    Sequences.through_more,
    Sequences.gated,
    Sequences.weighed,
    Sequences.with_class,
    Sequences.along_channels,
    Sequences.turned,
)


def random_sequences(
    seed: int,
    *,
    images: bool = False,
    size: tuple[int | str, int | str] = ("H", "W"),
    matrices: bool = False,
) -> onnx.ModelProto:
    """Make a model of input x [1 or N, 3, H, W], whose sizes are multiples of 4.

    Args:
        seed: What is drawn.
        images: The number of images is free as well.
        size: Height and width.
        matrices: Some layers take all elements of all images as the rows of a matrix.
    """
    layers = (*_LAYERS, *[Sequences.in_rows] * 5) if matrices else _LAYERS
    made = Sequences(seed, images=images)
    image = made.conv("x")
    for _ in range(made.drawn.randint(1, 2)):
        in_windows = made.drawn.random() < 0.4
        t = start = made.windows(image) if in_windows else made.flattened(image)
        for _ in range(made.drawn.randint(1, 4)):
            t = made.drawn.choice(layers)(made, t)
            if made.drawn.random() < 0.4:
                t = made.add("Add", f"{t} {start}")
        back = made.from_windows if in_windows else made.restored
        image = made.add("Add", f"{made.conv(back(t, image))} {image}")
    nodes = [*made.nodes, node("Conv", f"{image} {made.weight(2, CHANNELS, 1, 1)}", "y")]
    count = "N" if images else 1
    return model(
        nodes, {"x": (count, 3, *size)}, {"y": (None,) * 4}, made.weights, opset=made.opset
    )
