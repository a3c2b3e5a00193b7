"""The README's Python examples run; the commands of all documents exist, with the options that they are shown with."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from wm_gym.cli.main import build_parser

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCUMENTS = (README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "tests" / "carla_server" / "README.md")


def blocks(language: str, document: Path = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_python_examples_run():
    names: dict[str, object] = {}
    examples = blocks("python")
    assert len(examples) >= 2
    for example in examples:
        exec(compile(example, "README.md", "exec"), names)


@pytest.mark.parametrize("document", [README, ROOT / "docs" / "carla.md"], ids=lambda path: path.name)
def test_commands_parse(document):
    commands = [line for block in blocks("sh", document) for line in block.splitlines() if line.startswith("wm-gym ")]
    assert len(commands) >= 6
    for command in commands:
        build_parser().parse_args(shlex.split(command)[1:])


def test_the_compose_files_command_parses_and_names_its_own_server():
    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    arguments = build_parser().parse_args(services["collector"]["command"])
    host, port = arguments.carla.split(":")
    assert host in services
    assert f"-carla-rpc-port={port}" in services[host]["command"]
    assert (ROOT / "docker" / services["collector"]["build"]["context"] / "docker" / "Dockerfile").exists()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_linked_files_exist(document):
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
        assert target.startswith("http") or (document.parent / target).exists(), target
