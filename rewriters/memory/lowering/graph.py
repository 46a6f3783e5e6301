"""A graph under change: who makes and who reads what, kept up to date."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from patchconv_deploy.rewriters.memory.lowering.node import (
    Node,
    Tensors,
)
from patchconv_deploy.rewriters.memory.order import walk

__all__ = ["Graph"]


class Graph:
    """A graph under change. A position is a node's number: a made one is last, a gone one None."""

    def __init__(self, nodes: Sequence[Node], tensors: Tensors, outputs: Collection[str]) -> None:
        self.nodes: list[Node | None] = list(nodes)
        self.dims = dict(tensors.dims)
        self.bits = dict(tensors.bits)
        self.tensors = tensors
        self.constants = set(tensors.constants)
        self.outputs = set(outputs)
        self.renamed: dict[str, str] = {}
        # What folded weights were made of.
        self.folded: dict[str, str] = {}

    def index(self) -> None:
        """Find who makes and who reads every tensor; nobody asks who reads a constant."""
        self.maker: dict[str, int] = {}
        self.users: dict[str, list[int]] = {}
        constants, users = self.constants, self.users
        for position, node in self.present():
            for name in node.makes:
                self.maker[name] = position
            for name in node.reads:
                if name not in constants:
                    users.setdefault(name, []).append(position)

    def present(self) -> Iterator[tuple[int, Node]]:
        """Return the nodes that are there, with their positions."""
        return ((position, node) for position, node in enumerate(self.nodes) if node is not None)

    def uses(self, name: str) -> int:
        """Return how often a tensor is read, an output of the graph once more."""
        return len(self.users.get(name, ())) + (name in self.outputs)

    def channels(self, name: str) -> int | None:
        """Return the channels of a tensor, None if unknown."""
        dims = self.dims.get(name)
        return dims[1] if dims is not None and len(dims) > 1 else None

    def single_user(self, name: str) -> tuple[int, Node] | None:
        """Return the one node that reads a tensor, None if there are others or it is an output."""
        users = self.users.get(name, ())
        if len(users) != 1 or name in self.outputs:
            return None
        node = self.nodes[users[0]]
        return None if node is None else (users[0], node)

    def producer(self, name: str) -> tuple[int, Node] | None:
        """Return the node that makes a tensor, None if there is none."""
        position = self.maker.get(name)
        node = None if position is None else self.nodes[position]
        return None if node is None or position is None else (position, node)

    def put(self, position: int, node: Node) -> None:
        """Write a node in another's place; what it makes and reads is indexed anew."""
        old = self.nodes[position]
        if old is not None:
            self.forget(position, old)
        self.nodes[position] = node
        for name in node.reads:
            if name not in self.constants:
                self.users.setdefault(name, []).append(position)
        for name in node.makes:
            self.maker[name] = position

    def remove(self, position: int) -> None:
        """Take a node away."""
        node = self.nodes[position]
        assert node is not None
        self.forget(position, node)
        self.nodes[position] = None

    def forget(self, position: int, node: Node) -> None:
        """Take a node out of the index of who reads what."""
        for name in node.reads:
            if name not in self.constants:
                self.users[name].remove(position)

    def append(self, node: Node) -> int:
        """Add a node behind all others; return its position."""
        self.nodes.append(None)
        self.put(len(self.nodes) - 1, node)
        return len(self.nodes) - 1

    def like(self, name: str, other: str) -> None:
        """Give a new tensor the shape and type of another."""
        if other in self.dims:
            self.dims[name] = self.dims[other]
        if other in self.bits:
            self.bits[name] = self.bits[other]

    def value(self, name: str) -> tuple[float, ...]:
        """Return the values of a small constant."""
        return self.tensors.values.get(name, ())

    def in_order(self) -> list[int]:
        """Return positions in the order the engine would run the graph as it stands."""
        present = list(self.present())
        order = walk([node.reads for _, node in present], [node.makes for _, node in present])
        return [present[at][0] for at in order]
