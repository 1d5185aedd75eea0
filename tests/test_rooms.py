"""Imports go one way through the house: read from the source, run nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "llmctl"

FLOORS = [
    {"workspace"},
    {"reporting", "tokenizers"},
    {"data", "models"},
    {"attribution", "formats", "inference", "evaluation"},
    {"compression", "training"},
    {"tasks"},
    {"stages", "serving"},
    {"cli"},
]
"""From the ground up: a room imports from the floors below its own."""

FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

EVERYWHERE = {"", "errors", "parsing", "config"}
"""``llmctl`` itself (its version), and what has no room because every room may use it."""

EXCEPTIONS = {
    ("config", "reporting.units"): "durations such as 10m, parsed where they are printed",
}
"""(module, what it imports): why it may import from its own floor or from above."""

LONGEST_MODULE, LONGEST_FUNCTION = 400, 60
"""Lines; a function's are those behind its signature: a command's is its list of options."""

TOO_LONG: dict[str, str] = {}
"""Modules and functions that are longer, and why; none is to be added."""

MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """``data.encoding`` for llmctl/data/shards/encoding.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


KNOWN = {name_of(path) for path in MODULES}


def room_of(module: str) -> str:
    return module.partition(".")[0]


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported: none in functions or for the type checker."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from at_import(child)


def imports(path: Path, *, top_level: bool = False) -> Iterator[str]:
    """Full names of the modules that a file imports."""
    nodes = at_import(tree_of(path)) if top_level else ast.walk(tree_of(path))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: relative import"
            assert node.module
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_module = inner.removeprefix("llmctl.") in KNOWN
                yield inner if is_module else node.module


def own_imports(path: Path) -> set[str]:
    """Modules of llmctl that a file imports, without the ``llmctl.``."""
    found = {name for name in imports(path) if name.partition(".")[0] == "llmctl"}
    return {name.removeprefix("llmctl").removeprefix(".") for name in found}


def outside(path: Path, *, top_level: bool = False) -> set[str]:
    return {name.partition(".")[0] for name in imports(path, top_level=top_level)}


def is_exception(module: str, imported: str) -> bool:
    return any(
        module == importer and (imported == allowed or imported.startswith(f"{allowed}."))
        for importer, allowed in EXCEPTIONS
    )


def breaches() -> Iterator[tuple[str, str]]:
    for path in MODULES:
        module = name_of(path)
        room = room_of(module)
        for imported in sorted(own_imports(path)):
            target = room_of(imported)
            if target in EVERYWHERE or target == room or module == "__main__":
                continue
            if room not in FLOOR or FLOOR[target] >= FLOOR[room]:
                yield module, imported


def test_every_module_has_a_room():
    rooms = {room_of(name_of(path)) for path in MODULES}
    assert rooms - set(FLOOR) == {"", "__main__", "errors", "parsing", "config"}
    assert set(FLOOR) <= rooms


def test_rooms_import_from_below_only():
    assert [pair for pair in breaches() if not is_exception(*pair)] == []


def test_exceptions_are_still_needed():
    found = list(breaches())
    for importer, allowed in EXCEPTIONS:
        assert any(
            module == importer and is_exception(module, imported) and imported.startswith(allowed)
            for module, imported in found
        ), (importer, allowed)


def test_modules_and_functions_are_short():
    long = set()
    for path in MODULES:
        module = name_of(path)
        if len(path.read_text(encoding="utf-8").splitlines()) > LONGEST_MODULE:
            long.add(module)
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.body[0].lineno + 1
                long |= {f"{module}:{node.name}"} if lines > LONGEST_FUNCTION else set()
    assert long - set(TOO_LONG) == set(), "divide what is too long"
    assert set(TOO_LONG) - long == set(), "no longer too long: take it out of TOO_LONG"


def test_errors_imports_nothing_of_ours():
    assert own_imports(PACKAGE / "errors.py") == set()


def test_only_the_command_line_knows_typer():
    users = {room_of(name_of(path)) for path in MODULES if "typer" in outside(path)}
    assert users == {"cli"}


def test_only_the_command_line_and_reporting_know_rich():
    users = {room_of(name_of(path)) for path in MODULES if "rich" in outside(path)}
    assert users == {"cli", "reporting"}


@pytest.mark.parametrize("room", ["data", "tokenizers", "workspace", "reporting", "cli"])
def test_no_torch_on_import(room: str):
    """The workers that tokenize, and every --help, start without it."""
    torch_rooms = {
        "models",
        "formats",
        "inference",
        "evaluation",
        "training",
        "tasks",
        "serving",
    }
    for path in MODULES:
        if room_of(name_of(path)) != room and (room != "cli" or not is_table_of_tasks(path)):
            continue
        names = set(imports(path, top_level=True))
        assert not {name for name in names if name.partition(".")[0] == "torch"}, path
        own = {name.removeprefix("llmctl.") for name in names if name.startswith("llmctl.")}
        tables = {name_of(path) for path in MODULES if is_table_of_tasks(path)}
        assert not {room_of(name) for name in own - tables} & torch_rooms, path


def is_table_of_tasks(path: Path) -> bool:
    """What lists the tasks, which the help does too, and loads none."""
    return room_of(name_of(path)) == "tasks" and path.name in ("__init__.py", "entry.py")


def test_no_pickle():
    """Not in files that others made, nor in ours: neither by name nor through torch or NumPy. What
    older models of others have for weights is read in one place, as tensors alone."""
    picklers = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for path in MODULES:
        assert not outside(path) & picklers, path
        careful = []
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and path.match("formats/huggingface/weights.py"):
                only = [ast.unparse(k.value) for k in node.keywords if k.arg == "weights_only"]
                careful += [node.func] if only == ["True"] else []
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                call = f"{node.value.id}.{node.attr}"
                assert call not in {"torch.save", "np.load", "np.save"}, path
                assert call != "torch.load" or node in careful, path
            if isinstance(node, ast.keyword):
                assert node.arg != "allow_pickle", path


def test_no_pickle_from_another_process():
    """PyTorch's collectives of objects, and those who call them (its launcher, its writer of
    checkpoints), read pickles from a socket; its store listens on all interfaces."""
    for path in MODULES:
        assert not {
            name
            for name in imports(path)
            if name.startswith(("torch.distributed.elastic", "torch.distributed.launcher"))
            or name.endswith(("state_dict_saver", "multiprocessing.connection.Listener"))
        }, path
        for node in ast.walk(tree_of(path)):
            name = getattr(node, "attr", getattr(node, "id", ""))
            assert not name.endswith(("_object", "_object_list")) or name in OBJECTS, path
            assert name != "TCPStore", path
            if isinstance(node, ast.Call) and "storage_reader" in ast.unparse(node):
                told = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert told["no_dist"] == "True", path


OBJECTS = {"_object", "read_object", "read_json_object", "json_object"}
"""Names of ours that end so: an object of JSON."""


def test_our_modules_are_imported_by_statement_only():
    """``importlib`` would go round every rule above."""
    for path in MODULES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                ("import_module", "__import__")
            ):
                name = ast.literal_eval(node.args[0])
                assert not name.startswith("llmctl"), f"{path}:{node.lineno}"
