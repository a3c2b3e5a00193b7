"""docs/guide.md: the files and settings that it names exist, and its figures are the model's own."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from wm_gym.config import load_config
from wm_gym.world_model import WorldModel

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "docs" / "guide.md"
TEXT = GUIDE.read_text(encoding="utf-8")
SECTIONS = {
    "Encoder": load_config("base").model.encoder,
    "Decoder": load_config("base").model.decoder,
    "Loss": load_config("base").loss,
    "Training": load_config("base").training,
}


def test_every_file_it_names_exists():
    targets = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert len(targets) > 30
    missing = [target for target in targets if not (GUIDE.parent / target).exists()]
    assert not missing


def test_every_file_named_by_its_last_part_is_linked():
    linked = {Path(target).name for target in re.findall(r"\]\(([^)#]+)\)", TEXT)}
    named = set(re.findall(r"`([\w/]+\.(?:py|yaml|md))`", TEXT))
    assert {Path(name).name for name in named} <= linked


def column(section: str, number: int) -> list[str]:
    """A column of a section's table, without its head."""
    body = TEXT.split(f"\n## {section}\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in body.splitlines() if line.startswith("|")]
    return [row[number].strip() for row in rows[2:]]


@pytest.mark.parametrize("section", SECTIONS)
def test_settings_have_the_values_that_it_gives_them(section):
    config = SECTIONS[section].model_dump(mode="json")
    settings = re.findall(r"`(\w+): ([^`]+)`", " ".join(column(section, 1)))
    assert settings
    latent = {"latent_dim": load_config("base").model.latent_dim}
    for name, value in settings:
        assert {**config, **latent}[name] == yaml.safe_load(value), name


def test_dynamics_of_the_base_configuration():
    dynamics = load_config("base").model.dynamics
    assert "`kind: gru`, `hidden_dim: 512`, `num_layers: 4`" in TEXT
    assert (dynamics.kind, dynamics.hidden_dim, dynamics.num_layers, dynamics.mlp_ratio) == ("gru", 512, 4, 3.0)
    assert "`mlp_ratio: 3.0`" in TEXT


@pytest.mark.parametrize(
    ("config", "parts", "said"),
    [
        ("base", ("encoder", "dynamics", "decoder"), "8.7, 13.4, 8.5"),
        ("base", ("total",), "31.0 with both heads"),
        ("compact", ("total",), "9.7"),
        ("large", ("total",), "98.1"),
    ],
)
def test_parameter_counts_are_those_of_the_models(config, parts, said, driving_spec):
    spec = driving_spec.model_copy(update={"frame_size": (256, 256)})
    with torch.device("meta"):
        counts = WorldModel(load_config(config).model, spec).num_parameters()
    assert said in column("Sizes", 2)
    assert said.split(" with")[0] == ", ".join(f"{counts[part] / 1e6:.1f}" for part in parts)


def test_modules_that_cite_the_guide_say_where_it_is():
    cites = re.compile(r"[Gg]uide'?s?\b")
    for folder in ("wm_gym", "envs", "agents", "data_collection"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            text = file.read_text(encoding="utf-8")
            if cites.search(re.sub(r"docs/guide\.md", "", text)):
                assert "docs/guide.md" in text, file
