"""What follows what, as a graph: ``call.graph``, to be printed or drawn by Graphviz."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TextIO


class Node(Protocol):
    """The handle of a call or group."""

    @property
    def label(self) -> str: ...
    @property
    def children(self) -> Sequence[Node]: ...


class DependencyGraph:
    """The calls that follow one, each with those that follow it."""

    def __init__(self, root: Node) -> None:
        self._root = root

    def edges(self) -> Iterator[tuple[Node, Node]]:
        """Each call and one that follows it, the last ones first."""
        yield from _edges(self._root)

    def to_dot(self, file: TextIO) -> None:
        """Write it in Graphviz's language."""
        file.write("digraph {\n")
        file.writelines(f'    "{before.label}" -> "{after.label}";\n' for before, after in self.edges())
        file.write("}\n")

    def __repr__(self) -> str:
        """Each call that something follows, with how many do, and what that is, indented."""
        parents = dict.fromkeys(before for before, _ in self.edges())
        return "\n".join(line for node in parents for line in _lines(node, 0))


def _edges(node: Node) -> Iterator[tuple[Node, Node]]:
    for child in node.children:
        yield from _edges(child)
        yield node, child


def _lines(node: Node, level: int) -> Iterator[str]:
    yield f"{'    ' * level}{node.label}({sum(1 for _ in _edges(node))})"
    for child in node.children:
        yield from _lines(child, level + 1)
