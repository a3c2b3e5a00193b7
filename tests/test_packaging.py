"""Metadata of the package and the files around it: they parse, agree with each other, and types reach a user."""

import re
import runpy
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import yaml

from wm_gym import __version__

setuptools = pytest.importorskip("setuptools", reason="setup.py is read with setuptools")

ROOT = Path(__file__).parent.parent
YAML_FILES = sorted(
    file
    for pattern in ("*.y*ml", "*.cff", ".*.yaml", ".github/**/*.yml", "docker/*.yaml", "wm_gym/configs/*.yaml")
    for file in ROOT.glob(pattern)
)
PROGRAM = """\
from wm_gym.checksums import file_sha256
from wm_gym.envs.angles import wrap_degrees
total: int = file_sha256
"""


def constraint(package: str) -> str:
    return re.search(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]


@pytest.fixture(scope="module")
def metadata():
    """What setup.py hands to setuptools."""
    given = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **arguments: given.update(arguments))
        runpy.run_path(str(ROOT / "setup.py"))
    return given


@pytest.mark.parametrize("file", YAML_FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_yaml_files_are_mappings(file):
    assert isinstance(yaml.safe_load(file.read_text(encoding="utf-8")), dict)


def test_the_yaml_files_are_all_found():
    names = {str(file.relative_to(ROOT).as_posix()) for file in YAML_FILES}
    assert {".pre-commit-config.yaml", ".github/workflows/tests.yml", "CITATION.cff", "docker/compose.yaml"} <= names


def test_pre_commit_has_the_ruff_of_the_constraints():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["rev"] == f"v{constraint('ruff')}"
    assert [hook["id"] for hook in repository["hooks"]] == ["ruff-check", "ruff-format"]


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (__version__, "MIT")


def test_the_workflow_installs_extras_that_exist_and_runs_files_that_exist(metadata):
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    extras = {name for group in re.findall(r'"\.\[([\w,]+)\]"', workflow) for name in group.split(",")}
    assert extras and extras <= set(metadata["extras_require"])
    tests = re.findall(r"tests/[\w/]+\.py", workflow)
    assert tests and all((ROOT / test).exists() for test in tests)
    jobs = yaml.safe_load(workflow)["jobs"]
    pythons = jobs["newest"]["strategy"]["matrix"]["python"]
    assert pythons[0] == metadata["python_requires"].removeprefix(">=")


def test_classifiers_are_of_pythons_that_are_allowed(metadata):
    versions = [text.rpartition(" ")[2] for text in metadata["classifiers"] if re.search(r":: 3\.\d+$", text)]
    lowest = metadata["python_requires"].removeprefix(">=")
    assert versions[0] == lowest
    assert all((ROOT / file).is_file() for file in metadata["license_files"])


def as_installed(metadata, site_packages: Path) -> None:
    """Lay the package out as an installation does: the folders under their import names, and only files that ship."""
    for name in metadata["packages"]:
        top = max((key for key in metadata["package_dir"] if f"{name}.".startswith(f"{key}.")), key=len)
        inner = name.removeprefix(top).strip(".").replace(".", "/")
        source, target = ROOT / metadata["package_dir"][top] / inner, site_packages / name.replace(".", "/")
        target.mkdir(parents=True, exist_ok=True)
        data = (file for pattern in metadata["package_data"].get(name, ()) for file in source.glob(pattern))
        for file in (*source.glob("*.py"), *(file for file in data if file.parent == source)):
            shutil.copy(file, target)


def test_a_users_type_checker_sees_the_types(metadata, tmp_path):
    venv.create(tmp_path / "venv", with_pip=False)
    (site_packages,) = (tmp_path / "venv").rglob("site-packages")
    as_installed(metadata, site_packages)
    python = next(path for path in (tmp_path / "venv").glob("*/python*") if path.stem == "python")
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "mypy", "--python-executable", str(python), "program.py"]
    finished = subprocess.run(
        [*command, "--cache-dir", str(tmp_path / "cache")], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    # The one error is the program's own: functions of the package have types, in folders with another name too.
    assert finished.stdout.count("error:") == 1, finished.stdout
    assert 'expression has type "Callable[[Path], str]", variable has type "int"' in finished.stdout


def test_the_commands_of_the_documents_are_those_of_the_makefile_and_of_ci():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert targets == set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())
    for document in ("README.md", "CONTRIBUTING.md", ".ci/run", ".github/pull_request_template.md"):
        named = re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / document).read_text(encoding="utf-8"), re.MULTILINE)
        assert named and set(named) <= targets, document
    ran = re.findall(r"^make ([a-z-]+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert ran == ["clean", "test-lowest", "test-all", "lint", "types", "docs"]
    # What is left out has one name everywhere.
    recipe = re.search(r"^test: .*\n\t.*-m (.*)$", makefile, re.MULTILINE)[1]
    assert recipe == '"not slow"'
    assert f"python -m pytest -m {recipe}" in (ROOT / "README.md").read_text(encoding="utf-8")
    for job in re.findall(r'-m ("not [^"]*")', (ROOT / ".github" / "workflows" / "tests.yml").read_text()):
        assert "not slow" in job
