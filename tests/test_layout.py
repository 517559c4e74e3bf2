"""The tree of docs/architecture.md is the folder, and its order is the order of imports."""

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import sparse_circuits as sc

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src/sparse_circuits"


def listed_files() -> list[str]:
    """Return the files of the tree in docs/architecture.md, such as `kernels/cpu_topk.py`, in its order."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    tree = re.search(r"^```\w*\nsrc/sparse_circuits/\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert tree is not None, "docs/architecture.md has no tree that starts with src/sparse_circuits/"
    files, folders = [], []
    for line in tree[1].splitlines():
        entry = re.match(r"((?:  )+)(\S+)", line)
        assert entry is not None, f"{line!r} is neither a file nor a folder, indented by twos"
        depth, name = len(entry[1]) // 2, entry[2]
        folders = folders[: depth - 1]
        if name.endswith("/"):
            folders.append(name)
        else:
            files.append("".join(folders) + name)
    return files


def module_name(file: str) -> str:
    """Return the module of a file, such as `sparse_circuits.kernels` for `kernels/__init__.py`."""
    parts = file.removesuffix(".py").split("/")
    return ".".join(["sparse_circuits", *(part for part in parts if part != "__init__")])


def module_order() -> list[str]:
    """Return all modules in the tree's order; a package stands after its files."""
    order: list[str] = []
    files = listed_files()
    for file, following in zip(files, [*files[1:], ""], strict=True):
        order.append(module_name(file))
        package = file.rpartition("/")[0]
        if package and not following.startswith(f"{package}/"):
            order.append(module_name(package))
    return order


def file_of(module: str) -> Path:
    plain = SOURCE.parent / module.replace(".", "/")
    return plain.with_suffix(".py") if plain.with_suffix(".py").exists() else plain / "__init__.py"


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield every node below this one, what stands under TYPE_CHECKING left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from statements(child)


def imported_modules(file: Path, known: set[str]) -> set[str]:
    """Return the package's modules that a file imports, at its top or inside its functions."""
    found = set()
    for node in statements(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "sparse_circuits"}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: line {node.lineno} imports relatively"
            if node.module is not None and node.module.split(".")[0] == "sparse_circuits":
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= (names & known) or {node.module}
    return found


MODULES = module_order()
NEEDS = {
    "sparse_circuits.kernels._cuda_triton": "triton",
    "sparse_circuits.interop.transformer_lens": "transformer_lens",
}
"""Modules that can't even be imported without an extra that the tests may be without."""


def test_the_tree_lists_every_file_once():
    files = listed_files()
    assert len(files) == len(set(files))
    assert set(files) == {
        path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py") if path.name != "__init__.py"
    }


def test_every_folder_with_an_init_is_in_the_tree():
    packages = {module_name(path.relative_to(SOURCE).as_posix()) for path in SOURCE.glob("*/**/__init__.py")}
    assert packages <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_stands_above_it(module):
    above = set(MODULES[: MODULES.index(module)])
    assert imported_modules(file_of(module), set(MODULES)) <= above


def test_a_module_that_imports_downwards_would_be_found(tmp_path):
    file = tmp_path / "early.py"
    file.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from sparse_circuits import demo\n"
        "def late():\n    from sparse_circuits import cli\n    from sparse_circuits.errors import FormatError\n"
    )
    assert imported_modules(file, set(MODULES)) == {"sparse_circuits.cli", "sparse_circuits.errors"}


@pytest.mark.parametrize("module", ["sparse_circuits", "sparse_circuits.cli"])
def test_importing_the_package_or_its_command_imports_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_module_shadows_a_public_name():
    for module in MODULES:
        if module in NEEDS and importlib.util.find_spec(NEEDS[module]) is None:
            continue
        importlib.import_module(module)
    for name in sc.__all__:
        home = sc._HOMES[name]
        if home:
            module = importlib.import_module(f"sparse_circuits.{home}")
            assert getattr(sc, name) is getattr(module, name)
            assert not isinstance(getattr(sc, name), ModuleType)
        else:
            assert getattr(sc, name) is importlib.import_module(f"sparse_circuits.{name}")


@pytest.mark.parametrize("module", ["sparse_circuits", *MODULES])
def test_a_module_and_what_it_has_in_public_are_documented(module):
    tree = ast.parse(file_of(module).read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    public = [
        node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    for owner in [node for node in public if isinstance(node, ast.ClassDef)]:
        public += [node for node in owner.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    assert [node.name for node in public if not ast.get_docstring(node)] == []
