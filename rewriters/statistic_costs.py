"""What each statistic costs: the bytes that stay for it, or the work to make them again.

    x --+-- reduce -- statistic --+
        |                         |
        +----- stays, or ------ apply -- y
               is made again

What is read before a statistic and behind it either stays in memory meanwhile or is made a second
time. Both are counted here one statistic at a time; which of them a plan does is up to the search
(`planning.rematerialisation`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from patchconv_deploy.rewriters.graph.statistics import Statistic
from patchconv_deploy.rewriters.operators.elementwise import BROADCAST
from patchconv_deploy.rewriters.operators.record import RowLocal
from patchconv_deploy.rewriters.planning.model_facts import ModelFacts

__all__ = ["StatisticCost", "statistic_costs"]


@dataclass(frozen=True, slots=True)
class StatisticCost:
    """A statistic, and what it costs.

    Attributes:
        node: The node that looks at the whole image.
        kind: What people call it: "GroupNorm statistics".
        image: The tensor that it looks at.
        kept: Tensors that are read behind it again: the image, or what it is made of element by
            element; none where nothing is.
        bytes: Bytes of these, None where any is of unknown size.
        work: Multiply-accumulates to make them again from the model's inputs, from what other
            statistics keep and from what stays in any case.
        share: The same over those of the whole model.
    """

    node: str
    kind: str
    image: str
    kept: tuple[str, ...]
    bytes: int | None
    work: float
    share: float


def statistic_costs(facts: ModelFacts, links: Mapping[int, RowLocal]) -> tuple[StatisticCost, ...]:
    """Return what each statistic of a model costs, the most bytes first, unknown ones before.

    Args:
        facts: The model, its statistics written in two.
        links: Row-local nodes, by position.
    """
    entries = facts.statistics
    kept = [_kept(facts, links, entry) for entry in entries]
    others = {name for names in kept for name in names}
    total = sum(facts.work)
    found = []
    for entry, names in zip(entries, kept, strict=True):
        sizes = [facts.bytes.get(name) for name in names]
        held = None if None in sizes else sum(size or 0 for size in sizes)
        work = sum(facts.work[at] for at in _makers(facts, links, names, others))
        share = work / total if total else 0.0
        found.append(StatisticCost(entry.label, entry.kind, entry.image, names, held, work, share))
    return tuple(sorted(found, key=lambda each: (each.bytes is not None, -(each.bytes or 0))))


def _kept(facts: ModelFacts, links: Mapping[int, RowLocal], entry: Statistic) -> tuple[str, ...]:
    """Return the tensors that are read behind a statistic again."""
    index, behind = facts.index, _behind(facts, entry.rows)
    kept, seen, pending = dict[str, None](), {entry.image}, [entry.image]
    while pending:
        name = pending.pop()
        if not behind.isdisjoint(index.users.get(name, ())):
            kept[name] = None
            continue
        maker = index.producer.get(name)
        if maker is None or maker not in links:
            continue
        if index.graph.node[maker].op_type in BROADCAST:
            before = [each for each in _carried(facts, links, maker) if each not in seen]
            seen.update(before)
            pending += before
    return tuple(kept)


def _behind(facts: ModelFacts, name: str) -> set[int]:
    """Return the nodes that depend on a tensor."""
    index, found = facts.index, set[int]()
    pending = [name]
    while pending:
        for user in index.users.get(pending.pop(), ()):
            if user not in found:
                found.add(user)
                pending += index.graph.node[user].output
    return found


def _makers(
    facts: ModelFacts, links: Mapping[int, RowLocal], names: tuple[str, ...], there: set[str]
) -> set[int]:
    """Return the nodes that make tensors again of others that are there, and of what is whole."""
    found, pending = set[int](), list(names)
    while pending:
        maker = facts.index.producer.get(pending.pop())
        if maker is not None and maker in links and maker not in found:
            found.add(maker)
            pending += (name for name in _carried(facts, links, maker) if name not in there)
    return found


def _carried(facts: ModelFacts, links: Mapping[int, RowLocal], position: int) -> Iterator[str]:
    """Yield the tensors whose rows a row-local node reads."""
    node = facts.index.graph.node[position]
    yield from (node.input[i] for i, _ in links[position].carriers)
