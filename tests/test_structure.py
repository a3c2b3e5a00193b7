"""The direction of imports that docs/architecture.md promises."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "wm_gym": "wm_gym",
    "wm_gym.envs": "envs",
    "wm_gym.data_collection": "data_collection",
    "wm_gym.agents": "agents",
}
MAY_IMPORT = {
    "wm_gym": set(),
    "wm_gym.envs": {"wm_gym"},
    "wm_gym.data_collection": {"wm_gym"},
    "wm_gym.agents": {"wm_gym", "wm_gym.envs", "wm_gym.data_collection"},
}
"""When a module is imported; the command line and the benchmarks, which import everything, do so inside functions."""
REGISTERS = "wm_gym/__init__.py imports wm_gym.envs.registration"
"""``import wm_gym`` makes the environments known to Gymnasium."""


def owner(module: str) -> str:
    """The folder's package that a module belongs to."""
    return next(name for name in sorted(FOLDERS, key=len, reverse=True) if f"{module}.".startswith(f"{name}."))


def imported(body: list[ast.stmt]):
    """Modules that are imported with a module: at its top, not for types alone, not inside functions."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.If | ast.Try | ast.With):
            yield from imported([*node.body, *getattr(node, "orelse", [])])
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


@pytest.mark.parametrize("package", FOLDERS)
def test_folders_import_in_one_direction(package):
    wrong = []
    for file in sorted((ROOT / FOLDERS[package]).rglob("*.py")):
        for module in imported(ast.parse(file.read_text(encoding="utf-8")).body):
            if module.split(".")[0] == "wm_gym" and owner(module) not in {package, *MAY_IMPORT[package]}:
                wrong.append(f"{file.relative_to(ROOT)} imports {module}")
    assert [sentence for sentence in wrong if sentence != REGISTERS] == []
