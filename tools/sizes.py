"""``python -m tools.sizes``: the sizes that this code keeps to, and where it does not.

Lines are those with code: no docstrings, comments or blank lines. A limit is an example to follow, not a law: a breach
is shown here, and said why in the change; it fails nothing.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tools import layers

CHECKOUT = Path(__file__).parent.parent
LIMITS = {
    "core": 3500,
    "pulsartasks": 7000,
    "apps/chat": 1800,
    "apps/transcribe": 500,
    "apps/images": 500,
    "benchmarks": 1200,
}
FUNCTION_LIMIT = 40
MODULE_LIMIT = 450
METHODS_LIMIT = 15
NO_CODE = {
    tokenize.COMMENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
    tokenize.INDENT,
    tokenize.NEWLINE,
    tokenize.NL,
}
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


def main() -> None:
    """Prints the table, then what is bigger than it should be."""
    totals, breaches = measure(CHECKOUT)
    for name, lines in totals.items():
        limit = LIMITS.get(name)
        print(f"{name:<20} {lines:>6}" + (f" of {limit:>6}{'  TOO BIG' if lines > limit else ''}" if limit else ""))
    for breach in breaches:
        print(breach)


def measure(checkout: Path) -> tuple[dict[str, int], list[str]]:
    """The lines of each layer and app, and every function, class and module above its limit."""
    totals: Counter[str] = Counter()
    breaches: list[str] = []
    for folder in ("pulsartasks", "apps", "benchmarks", "tools", "tests"):
        for path in sorted((checkout / folder).rglob("*.py")):
            source = path.read_text("utf-8")
            tree = ast.parse(source)
            code = code_lines(source, tree)
            for name in _accounts(path.relative_to(checkout)):
                totals[name] += len(code)
            breaches += [f"{path.relative_to(checkout)}:{breach}" for breach in _breaches(tree, code)]
    order = [*layers.LAYERS, *LIMITS, "tools", "tests"]
    return {name: totals[name] for name in order if name in totals}, breaches


def code_lines(source: str, tree: ast.Module) -> set[int]:
    r"""The numbers of the lines that hold code.

    >>> text = "'doc'\n\nx = 1  # why\n# more\n"
    >>> code_lines(text, ast.parse(text))
    {3}
    """
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def _accounts(path: Path) -> Iterator[str]:
    """The names under which a file is counted."""
    if path.parts[0] == "pulsartasks":
        layer = layers.layer_of(layers.module_name(path, Path()))
        yield from (layer, "pulsartasks", *(["core"] if layer in layers.CORE else []))
    elif path.parts[0] == "apps":
        yield f"apps/{path.parts[1]}"
    else:
        yield path.parts[0]


def _breaches(tree: ast.Module, code: set[int]) -> Iterator[str]:
    if len(code) > MODULE_LIMIT:
        yield f"1: {len(code)} lines, better split at {MODULE_LIMIT}"
    for node in ast.walk(tree):
        if isinstance(node, FunctionNode) and (lines := _lines(node, code)) > FUNCTION_LIMIT:
            yield f"{node.lineno}: {node.name}() has {lines} lines, rarely needed above {FUNCTION_LIMIT}"
        if isinstance(node, ast.ClassDef) and (methods := _public_methods(node)) > METHODS_LIMIT:
            yield f"{node.lineno}: {node.name} has {methods} public methods, at most {METHODS_LIMIT}"


def _lines(node: FunctionNode, code: set[int]) -> int:
    return len(code.intersection(range(node.lineno, (node.end_lineno or node.lineno) + 1)))


def _public_methods(node: ast.ClassDef) -> int:
    names = {member.name for member in node.body if isinstance(member, FunctionNode)}
    return sum(not name.startswith("_") for name in names)


if __name__ == "__main__":
    main()
