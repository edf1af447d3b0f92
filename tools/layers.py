"""Which way imports point: from the edges to the words, never back, and never hidden."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LAYERS = ("words", "ports", "adapters", "face", "runtime", "edges")
CORE = LAYERS[:-1]
WORDS = {
    "batch",
    "clock",
    "crashes",
    "errors",
    "message",
    "options",
    "outcome",
    "rate",
    "retry",
    "schedule",
    "schemas",
    "serializers",
    "steps",
    "topics",
}
FAMILIES = {"brokers", "middleware", "results"}
PORTS = {"log"}
"""What needs the broker's port alone; like it, for all that is above."""
SHARED_BY_ADAPTERS = {"results.forgotten", "results.inbox"}
"""What several adapters of a family stand on; counts as part of its port."""
FACE = (
    "plugins",
    "signals",
    "handlers",
    "claims",
    "revocation",
    "publishing",
    "unique",
    "graph",
    "result",
    "stamping",
    "canvas",
    "signature",
    "context",
    "errback",
    "topic",
    "task",
    "shared",
    "published",
    "catalog",
    "app",
    "__init__",
)
"""In this order: a module of the face imports only those before it."""

MAY_IMPORT = {
    "words": {"words"},
    "ports": {"words", "ports"},
    "adapters": {"words", "ports"},
    "face": {"words", "ports", "face"},
    "runtime": {"words", "ports", "face", "runtime"},
    "edges": set(LAYERS),
}
WORDS_PACKAGES = {"cronsim", "msgspec", "pydantic", "typing_extensions"}
EFFECTS = {"asyncio", "concurrent", "http", "multiprocessing", "select", "socket", "sqlite3", "subprocess", "threading"}
"""Words neither wait nor talk to anybody."""

ALWAYS_INSTALLED = {"click", "cronsim", "msgspec", "pulsar", "structlog", "typing_extensions", *sys.stdlib_module_names}
OURS = {"apps", "pulsartasks", "tools"}
INSTALLED_FOR = {
    "tools.deploy": {"boto3", "botocore", "yaml"},
    "tools.tokens": {"boto3", "botocore", "cryptography", "jwt"},
}
"""Tools that are started when an environment is there with what they need."""
SHARED_BY_APPS = {"audio", "events", "storage"}
COMPOSITION = {"demo", "run", "tasks"}
"""Put all apps together, so they may know them all."""


@dataclass(frozen=True)
class Import:
    """One imported module, and how it is written."""

    module: str
    line: int
    in_function: bool
    for_types_only: bool

    @property
    def package(self) -> str:
        """The part before the first dot."""
        return self.module.partition(".")[0]


def layer_of(module: str) -> str:
    """The layer of a module of the library, by its full name.

    >>> layer_of("pulsartasks.retry"), layer_of("pulsartasks.brokers.base"), layer_of("pulsartasks.brokers.local.store")
    ('words', 'ports', 'adapters')
    """
    first, _, rest = module.removeprefix("pulsartasks").lstrip(".").partition(".")
    if first in WORDS:
        return "words"
    if first in PORTS:
        return "ports"
    if first in FAMILIES:
        return "ports" if rest in {"", "base"} or f"{first}.{rest}" in SHARED_BY_ADAPTERS else "adapters"
    if first in FACE or not first:
        return "face"
    return "runtime" if first == "worker" else "edges"


def violations(checkout: Path) -> Iterator[str]:
    """Every import that points the wrong way or is hidden, as ``file:line: what is wrong``."""
    for folder in ("pulsartasks", "apps", "tools"):
        for path in sorted((checkout / folder).rglob("*.py")):
            module = module_name(path, checkout)
            tree = ast.parse(path.read_text("utf-8"))
            imports = _imports(tree, module, is_package=path.name == "__init__.py")
            complaints = {
                (found.line, complaint): None for found in imports for complaint in _complaints(module, found, checkout)
            }
            for line, complaint in complaints:
                yield f"{path.relative_to(checkout)}:{line}: {complaint}"
            for line in _loads_by_name(tree) if module != "pulsartasks.plugins" else ():
                yield f"{path.relative_to(checkout)}:{line}: only plugins.load() loads a module of pulsartasks by name"


def module_name(path: Path, checkout: Path) -> str:
    """The name under which a file is imported."""
    parts = path.relative_to(checkout).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(tree: ast.Module, module: str, *, is_package: bool) -> Iterator[Import]:
    package = module if is_package else module.rpartition(".")[0]
    stack: list[tuple[ast.AST, bool, bool]] = [(tree, False, False)]
    while stack:
        node, in_function, for_types_only = stack.pop()
        in_function |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for_types_only |= isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if isinstance(node, ast.Import | ast.ImportFrom):
            for name in _imported(node, package):
                yield Import(name, node.lineno, in_function, for_types_only)
        stack.extend((child, in_function, for_types_only) for child in ast.iter_child_nodes(node))


def _imported(node: ast.Import | ast.ImportFrom, package: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        parents = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*parents, base] if base else parents)
    return [f"{base}.{alias.name}" for alias in node.names]


def _complaints(module: str, found: Import, checkout: Path) -> Iterator[str]:
    if found.for_types_only:
        yield f"{found.module} is imported under TYPE_CHECKING"
    target = _existing(found.module, checkout)
    if found.in_function and not _is_optional(target, checkout):
        yield f"{target} is imported in a function"
    yield from {"pulsartasks": _in_library, "apps": _in_apps, "tools": _in_tools}[module.partition(".")[0]](
        module, target
    )


def _is_optional(name: str, checkout: Path) -> bool:
    """Whether it may be absent: a package of an extra, or a module of ours that stands on one."""
    package = name.partition(".")[0]
    if package not in OURS:
        return package not in ALWAYS_INSTALLED
    path = checkout.joinpath(*name.split(".")).with_suffix(".py")
    if not path.exists():
        return False
    imports = _imports(ast.parse(path.read_text("utf-8")), name, is_package=False)
    return any(found.package not in {*ALWAYS_INSTALLED, *OURS} for found in imports if not found.in_function)


def _existing(name: str, checkout: Path) -> str:
    """`name` without what is not a module: ``from pulsartasks.errors import Retry`` imports ``pulsartasks.errors``."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        path = checkout.joinpath(*parts[:length])
        if path.with_suffix(".py").exists() or (path / "__init__.py").exists():
            return ".".join(parts[:length])
    return name


def _in_library(module: str, target: str) -> Iterator[str]:
    layer, package = layer_of(module), target.partition(".")[0]
    if package in {"apps", "tests", "tools"}:
        yield f"the library imports {target}"
    if package == "pulsar" and not module.startswith("pulsartasks.brokers.pulsar"):
        yield "only pulsartasks.brokers.pulsar imports pulsar"
    if layer == "words" and package != "pulsartasks":
        yield from _in_words(package)
    if package == "pulsartasks":
        yield from _between_layers(module, target)


def _in_words(package: str) -> Iterator[str]:
    if package in EFFECTS:
        yield f"words do no input or output and start no threads: {package}"
    elif package not in WORDS_PACKAGES and package not in sys.stdlib_module_names:
        yield f"words import the standard library and {', '.join(sorted(WORDS_PACKAGES))} only: {package}"


def _between_layers(module: str, target: str) -> Iterator[str]:
    layer, aim = layer_of(module), layer_of(target)
    if layer == aim == "adapters":
        if _adapter(module) != _adapter(target):
            yield f"adapters do not import each other: {target}"
    elif layer == aim == "face":
        if _face_rank(target) > _face_rank(module):
            yield f"{target} comes after {module} in the face"
    elif aim not in MAY_IMPORT[layer]:
        yield f"{layer} do not import {aim}: {target}"


def _adapter(module: str) -> str:
    return ".".join(module.split(".")[:3])


def _face_rank(module: str) -> int:
    return FACE.index(module.partition(".")[2].partition(".")[0] or "__init__")


def _in_apps(module: str, target: str) -> Iterator[str]:
    if target.partition(".")[0] in {"tests", "tools"}:
        yield f"an app imports {target}"
    app, other = (name.split(".")[1] if name.count(".") else "" for name in (module, target))
    if target.startswith("apps.") and app not in COMPOSITION and other not in {app, *SHARED_BY_APPS}:
        yield f"apps share blobs and topics only: {target}"


def _in_tools(module: str, target: str) -> Iterator[str]:
    package = target.partition(".")[0]
    if package not in {"tools", *sys.stdlib_module_names, *INSTALLED_FOR.get(module, ())}:
        yield f"{module} runs before anything is installed and cannot import {target}"


def _loads_by_name(tree: ast.Module) -> Iterator[int]:
    for call in ast.walk(tree):
        loads = isinstance(call, ast.Call) and ast.unparse(call.func).endswith(("import_module", "__import__"))
        if isinstance(call, ast.Call) and loads and any("pulsartasks" in ast.unparse(name) for name in call.args):
            yield call.lineno
