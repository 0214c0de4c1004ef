"""Which module may import which: read from the sources, without running them."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from going_modular.utils import CHECKOUT

PACKAGE = CHECKOUT / "going_modular"
# The modules that a reader looks for. Everything else has its folder.
TOP = {"data_setup", "engine", "model_builder", "predictions", "train", "utils"}
CORE_FOLDERS = {"vit", "training", "pretraining", "images", "drawings"}
OUTER_FOLDERS = {"checks", "experiments", "publishing"}


def modules_of(package: Path) -> dict[str, Path]:
    """Each module's name and file: "going_modular.vit.config", for example."""
    modules = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def imports_of(name: str, path: Path, modules: dict[str, Path]) -> set[str]:
    """The modules that a file imports, wherever the import stands.

    `from package import x` imports the module `package.x` if there is one. Packages
    that are imported on the way count as well, but not the file's own.
    """
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(filter(None, (parent, node.module)))
            members = {f"{base}.{alias.name}" for alias in node.names}
            found |= {base} | (members & modules.keys())
    for module in list(found):
        while module := module.rpartition(".")[0]:
            found.add(module)
    return found - {name} - {name[:i] for i, letter in enumerate(name) if letter == "."}


def room_of(module: str) -> str:
    """The folder of a module of ours, or its name if it stands at the top."""
    package, *names = module.split(".")
    return names[0] if package == "going_modular" and names else ""


def faults_of(package: Path) -> list[str]:
    """Everything in which a package breaks the rules of this file."""
    modules = modules_of(package)
    graph = {name: imports_of(name, path, modules) for name, path in modules.items()}
    faults = []
    top = {path.stem for path in package.glob("*.py")} - {"__init__"}
    if top != TOP:
        faults.append(f"at the top stand {sorted(top)}, expected {sorted(TOP)}")
    folders = {path.relative_to(package).parts[0] for path in package.rglob("*/*.py")}
    if folders != CORE_FOLDERS | OUTER_FOLDERS:
        faults.append(f"the folders are {sorted(folders)}: say of a new one where it belongs")
    for name, imported in graph.items():
        if room_of(name) in TOP | CORE_FOLDERS | {""}:  # "" is the package's __init__
            outer = [each for each in imported if room_of(each) in OUTER_FOLDERS]
            faults += [f"{name} imports {each}" for each in sorted(outer)]
        others = {"experiments", "publishing"} - {room_of(name)}
        if room_of(name) in ("experiments", "publishing"):
            faults += [f"{name} imports {each}" for each in imported if room_of(each) in others]
        if "helper_functions" in imported:
            faults.append(f"{name} imports helper_functions")
    try:
        TopologicalSorter(
            {name: imported & modules.keys() for name, imported in graph.items()}
        ).prepare()
    except CycleError as error:
        faults.append(f"imports run in a circle: {' -> '.join(error.args[1])}")
    return faults


def test_the_package_keeps_its_structure():
    assert faults_of(PACKAGE) == []


def test_every_folder_says_what_it_is_for():
    for folder in CORE_FOLDERS | OUTER_FOLDERS:
        tree = ast.parse((PACKAGE / folder / "__init__.py").read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), folder


@pytest.fixture
def package(tmp_path):
    """A made-up package that keeps the rules, to break them one at a time."""
    package = tmp_path / "going_modular"
    for folder in sorted(CORE_FOLDERS | OUTER_FOLDERS):
        (package / folder).mkdir(parents=True)
        (package / folder / "__init__.py").touch()
    (package / "__init__.py").touch()
    for name in TOP:
        (package / f"{name}.py").touch()
    (package / "experiments" / "claims.py").write_text("from going_modular import engine, train\n")
    (package / "vit" / "config.py").write_text("import math\nfrom torch import nn\n")
    (package / "engine.py").write_text("from going_modular.vit.config import ViTConfig\n")
    assert faults_of(package) == []
    return package


@pytest.mark.parametrize(
    "place, source, fault",
    [
        ("vit/config.py", "import going_modular.checks", "vit.config imports going_modular.checks"),
        ("engine.py", "from going_modular import publishing", "engine imports"),
        ("__init__.py", "from . import experiments", "going_modular imports going_modular.exp"),
        ("publishing/new.py", "from going_modular.experiments import claims", "new imports"),
        ("experiments/new.py", "from ..publishing import x", "new imports"),
        ("engine.py", "from .experiments.claims import x", "imports going_modular.experiments"),
        ("vit/new.py", "from ..experiments import claims", "imports going_modular.experiments.cl"),
        ("training/new.py", "def f():\n    import going_modular.checks.x", "training.new imports"),
        ("vit/config.py", "from going_modular import engine", "in a circle"),
        ("vit/config.py", "def f():\n    from going_modular.engine import x", "in a circle"),
        ("experiments/new.py", "from helper_functions import x", "new imports helper_functions"),
        ("another.py", "", "at the top stand ['another', 'data_setup'"),
        ("rooms/__init__.py", "", "the folders are"),
    ],
)
def test_a_package_that_breaks_a_rule_is_found_out(place, source, fault, package):
    (package / place).parent.mkdir(exist_ok=True)
    (package / place).write_text(source)
    faults = faults_of(package)
    assert any(fault in each for each in faults), faults
