"""Examples in the documents run; the commands in them exist, with the options that they are shown with."""

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


@pytest.mark.parametrize("document", [README, ROOT / "docs" / "architecture.md"], ids=lambda path: path.name)
def test_python_examples_run(document):
    names: dict[str, object] = {}
    examples = blocks("python", document)
    assert examples
    for example in examples:
        exec(compile(example, document.name, "exec"), names)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_parse(document):
    for block in blocks("sh", document):
        for command in block.splitlines():
            if command.startswith("wm-gym "):
                build_parser().parse_args(shlex.split(command, comments=True)[1:])


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
