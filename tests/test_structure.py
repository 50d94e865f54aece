"""How the package and experiments/ are cut: short functions and modules, few files at the root, no
private names used from outside, and no titles inside a file."""

import ast
import re
from pathlib import Path

import pytest

import alexnet_jax

PACKAGE = Path(alexnet_jax.__file__).parent
EXPERIMENTS = PACKAGE.parent / "experiments"
FUNCTION_LINES, MODULE_LINES, ROOT_FILES = 60, 350, 22

# What is above a limit today: no entry may be added.
LONG_FUNCTIONS = {"experiments/on_gpu.py: commands"}  # a list of data
LONG_MODULES: set[str] = set()
PRIVATE: set[str] = set()
# Names of other packages that have no public form.
FOREIGN = {"os._exit", "pickle._Unpickler", "torch._dynamo"}

MODULES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
ROOT = [name for name in MODULES if "/" not in name]
MODULES |= {f"experiments/{path.name}": path for path in sorted(EXPERIMENTS.glob("*.py"))}


def parsed(name):
    return ast.parse(MODULES[name].read_text())


def test_no_function_is_long():
    long = {
        f"{name}: {node.name}"
        for name in MODULES
        for node in ast.walk(parsed(name))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES
    }
    assert long <= LONG_FUNCTIONS


def test_no_module_is_long():
    lines = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert {name for name, number in lines.items() if number > MODULE_LINES} <= LONG_MODULES


def test_few_files_stand_at_the_root():
    assert len(ROOT) <= ROOT_FILES


def test_no_file_has_titles_inside():
    """A comment of a few words alone between empty lines names what should be a module."""
    title = re.compile(r"\n\n\n?#(?!#)[ -=]*[A-Z][^\n.]{0,80}\n\n")
    found = {name for name, path in MODULES.items() if title.search(path.read_text())}
    assert found == set()


@pytest.mark.parametrize("name", MODULES)
def test_no_module_uses_private_names_of_another(name):
    tree = parsed(name)
    imported, used = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                imported.add((alias.asname or alias.name).partition(".")[0])
                if isinstance(node, ast.ImportFrom) and is_private(alias.name):
                    used.add(f"{node.module}.{alias.name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = node.value
            while isinstance(owner, ast.Attribute):
                owner = owner.value
            if isinstance(owner, ast.Name) and owner.id in imported:
                used.add(ast.unparse(node))
    assert {f"{name}: {each}" for each in used - FOREIGN} <= PRIVATE


def is_private(name):
    return name.startswith("_") and not name.startswith("__")
