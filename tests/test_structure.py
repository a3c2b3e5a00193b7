"""The direction of imports that docs/architecture.md promises, and that no modules import each other in a circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = next(
    ast.literal_eval(node.value)
    for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FOLDER_OF_PACKAGE"
)
MAY_IMPORT = {
    "wm_gym": set(),
    "wm_gym.envs": {"wm_gym"},
    "wm_gym.data_collection": {"wm_gym"},
    "wm_gym.agents": {"wm_gym", "wm_gym.envs", "wm_gym.data_collection"},
}
"""When a module is imported; the command line and the benchmarks, which import everything, do so inside functions."""
REGISTERS = ("wm_gym", "wm_gym.envs.registration")
"""``import wm_gym`` makes the environments known to Gymnasium."""
ORDER = {
    "wm_gym.data_collection": ("datasets", "conversion", "recording"),
    "wm_gym.agents": (
        "autopilots",
        "policies",
        "bundles",
        "behaviours",
        "alarm",
        "evaluation",
        "dream_check",
        "learning",
        "baselines",
        "training",
        "web",
        "reports",
        "play",
        "view",
        "demo",
    ),
}
"""What lies in a folder; later parts may import earlier ones, inside functions too."""
MAY_CLOSE_A_CIRCLE = {
    # A model saves, loads and sends itself; the modules that do it make models, and are imported inside these methods.
    ("wm_gym.world_model", "wm_gym.bundle"),
    ("wm_gym.world_model", "wm_gym.hub_push"),
    # So does a dataset.
    ("wm_gym.data_collection.datasets.dataset", "wm_gym.data_collection.datasets.hub_push"),
}


def module_name(package: str, file: Path) -> str:
    parts = file.relative_to(ROOT / FOLDERS[package]).with_suffix("").parts
    return ".".join((package, *(part for part in parts if part != "__init__")))


FILES = {
    module_name(package, file): file for package in FOLDERS for file in sorted((ROOT / FOLDERS[package]).rglob("*.py"))
}


def owner(module: str) -> str:
    """The folder's package that a module belongs to."""
    return next(name for name in sorted(FOLDERS, key=len, reverse=True) if f"{module}.".startswith(f"{name}."))


def names(node: ast.AST, *, in_functions: bool):
    """What is imported with a module, or in its functions, too, when they are called; not for types alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.level == 0:
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        elif in_functions or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from names(child, in_functions=in_functions)


def imported(module: str, *, in_functions: bool) -> set[str]:
    """The package's own modules that one imports."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    found = set()
    for name in names(tree, in_functions=in_functions):
        if name.split(".")[0] == "wm_gym":
            found.add(name if name in FILES else name.rpartition(".")[0])
    return found


@pytest.mark.parametrize("package", FOLDERS)
def test_folders_import_in_one_direction(package):
    edges = {
        (module, other)
        for module in FILES
        if owner(module) == package
        for other in imported(module, in_functions=False)
    }
    assert edges
    wrong = {edge for edge in edges - {REGISTERS} if owner(edge[1]) not in {package, *MAY_IMPORT[package]}}
    assert wrong == set()


@pytest.mark.parametrize("package", ORDER)
def test_parts_of_a_folder_import_in_one_direction(package):
    def place(module: str) -> int:
        return ORDER[package].index(module[len(package) + 1 :].split(".", 1)[0])

    inside = [module for module in FILES if module.startswith(f"{package}.")]
    assert {place(module) for module in inside} == set(range(len(ORDER[package])))
    wrong = [
        f"{module} imports {other}"
        for module in inside
        for other in sorted(imported(module, in_functions=True))
        if other in inside and place(other) > place(module)
    ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle():
    graph = {module: imported(module, in_functions=True) - {module} for module in FILES}
    for module, other in MAY_CLOSE_A_CIRCLE:
        graph[module].remove(other)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" is imported by ".join(error.args[1]))
