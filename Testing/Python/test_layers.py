"""Every import of the library, those inside functions too, against the table in core/layers.py."""

import ast
from pathlib import Path

import pytest
from FoundationRegLib.core import layers

LIBRARY = Path(layers.__file__).parents[1]
# What starts the package or a process, and so stands above every layer.
ENTRIES = {"__init__", "worker"}


def modules():
    for path in sorted(LIBRARY.rglob("*.py")):
        parts = path.relative_to(LIBRARY).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        if name not in ENTRIES:
            yield name, path


def package_of(module):
    """The row of the table that ``module`` belongs to."""
    parts = module.split(".")
    return next((name for n in (2, 1) if (name := ".".join(parts[:n])) in layers.LAYERS), parts[0])


def is_for_types_only(node):
    """Whether ``node`` is an `if TYPE_CHECKING:` block, which never runs."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(path):
    """(imported module without the library's name or with that of another's, whether ours, whether at file scope)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = [*path.relative_to(LIBRARY).parts[:-1]]
    lazy = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, (ast.FunctionDef, ast.AsyncFunctionDef)) or is_for_types_only(block)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, False, id(node) not in lazy
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module, False, id(node) not in lazy
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                full = ".".join(filter(None, [module, alias.name]))
                target = LIBRARY.joinpath(*full.split("."))
                is_module = target.with_suffix(".py").exists() or target.is_dir()
                yield (full if is_module else module), True, id(node) not in lazy


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=lambda value: str(value)[-40:])
def test_imports_keep_to_the_layers(module, path):
    package = package_of(module)
    assert package in layers.LAYERS or package == "slicer", f"{module} stands in no package of the table"
    for name, ours, at_file_scope in imports(path):
        root = name.split(".")[0]
        if ours:
            if name in ("", "errors") or root not in {row.split(".")[0] for row in layers.LAYERS}:
                continue
            other = package_of(name)
            allowed = other == package or other in layers.LAYERS.get(package, ())
            excepted = not at_file_scope and (module, name) in layers.LAZY_EXCEPTIONS
            assert allowed or excepted, f"{module} imports {name}, which {package} may not"
            only = layers.ONLY.get((package.split(".")[0], other))
            assert only is None or name in only, f"{module} imports {name}, of which only {only} are open to it"
        elif root == "SimpleITK":
            assert package.split(".")[0] in layers.SIMPLEITK, f"{module} imports SimpleITK"
        elif root == "torch" and at_file_scope and module not in layers.TORCH_AT_FILE_SCOPE:
            assert package.split(".")[0] not in layers.NO_TORCH_AT_FILE_SCOPE, f"{module} imports torch at file scope"
        elif root in ("slicer", "qt", "ctk", "vtk"):
            assert package.split(".")[0] in layers.SLICER, f"{module} imports {name}"
        elif root == "rich":
            assert package in layers.RICH, f"{module} imports rich"


def test_every_exception_is_used_and_gives_a_reason():
    for (module, name), reason in layers.LAZY_EXCEPTIONS.items():
        path = LIBRARY.joinpath(*module.split(".")).with_suffix(".py")
        assert name in [imported for imported, ours, _ in imports(path) if ours], f"{module} no longer imports {name}"
        assert reason


def test_no_import_circle_at_file_scope():
    graph = {
        name: {imported for imported, ours, at_file_scope in imports(path) if ours and at_file_scope}
        for name, path in modules()
    }
    done, open_ = set(), []

    def visit(name):
        if name in done or name not in graph:
            return
        assert name not in open_, f"import circle: {' -> '.join([*open_[open_.index(name) :], name])}"
        open_.append(name)
        for other in graph[name] - {name}:
            visit(other)
        open_.pop()
        done.add(name)

    for name in graph:
        visit(name)


def test_files_are_short_enough_to_read_in_one_sitting():
    long = {
        name: count for name, path in modules() if (count := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not long


def test_the_architecture_page_shows_the_same_table():
    page = (LIBRARY.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    for package, allowed in layers.LAYERS.items():
        row = f"| `{package}` | {', '.join(f'`{name}`' for name in allowed) or 'nothing'} |"
        assert row in page, f"docs/architecture.md lacks the row {row}"
