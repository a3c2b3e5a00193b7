import json

import pytest
import torch
import yaml

from wm_gym.bundle import load_model, save_model
from wm_gym.errors import BundleError
from wm_gym.world_model import WorldModel


@pytest.fixture
def saved(tiny_model, tmp_path):
    tiny_model.metrics = {"validation_loss": 1.5}
    tiny_model.provenance = {"wm_gym": "0"}
    return tiny_model.save_pretrained(tmp_path / "model")


def test_round_trip_is_exact(tiny_model, saved):
    loaded = WorldModel.from_pretrained(saved)
    assert loaded.fingerprint == tiny_model.fingerprint
    assert loaded.metrics == {"validation_loss": 1.5}
    assert loaded.simulator == tiny_model.simulator
    action = torch.rand(4, 4)
    state = tiny_model.start_states.select(torch.arange(4))
    expected, actual = tiny_model.imagine(state, action), loaded.imagine(state, action)
    assert torch.equal(expected.reward, actual.reward)
    torch.testing.assert_close(loaded.start_states.latent, tiny_model.start_states.latent, rtol=1e-3, atol=1e-3)


def test_fingerprint_follows_the_parameters(tiny_model):
    before = tiny_model.fingerprint
    with torch.no_grad():
        next(tiny_model.parameters()).add_(1e-3)
    assert tiny_model.fingerprint != before


def test_saving_replaces_a_model_but_nothing_else(tiny_model, saved, tmp_path):
    save_model(tiny_model, saved)
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.jpg").touch()
    with pytest.raises(BundleError, match="no world model"):
        save_model(tiny_model, other)
    assert (other / "cat.jpg").exists()


def one_sentence(caught) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_missing_path():
    with pytest.raises(BundleError) as caught:
        load_model("no/such/model")
    assert "no/such/model" in one_sentence(caught)


def test_foreign_folder(tmp_path):
    with pytest.raises(BundleError, match=r"no readable config\.yaml"):
        load_model(tmp_path)
    (tmp_path / "config.yaml").write_text("a: 1")
    with pytest.raises(BundleError, match="another format"):
        load_model(tmp_path)


@pytest.mark.parametrize("keep", [0, 7, 100, 1000])
def test_cut_tensor_file(saved, keep):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(BundleError) as caught:
        load_model(saved)
    assert "missing or damaged" in one_sentence(caught)


def test_other_sizes(saved):
    manifest = yaml.safe_load((saved / "config.yaml").read_text())
    manifest["model"]["latent_dim"] = 32
    (saved / "config.yaml").write_text(yaml.safe_dump(manifest))
    with pytest.raises(BundleError) as caught:
        load_model(saved)
    assert "does not fit its config.yaml" in one_sentence(caught)


def test_newer_version_and_unknown_key(saved):
    manifest = yaml.safe_load((saved / "config.yaml").read_text())
    (saved / "config.yaml").write_text(yaml.safe_dump({**manifest, "version": 99}))
    with pytest.raises(BundleError, match="format version 99"):
        load_model(saved)
    (saved / "config.yaml").write_text(yaml.safe_dump({**manifest, "extra": 1}))
    with pytest.raises(BundleError, match="unknown key 'extra'"):
        load_model(saved)


def test_card_says_what_it_is(saved):
    card = (saved / "README.md").read_text()
    assert "CarRacingDriving-v0" in card
    assert json.loads((saved / "metrics.json").read_text()) == {"validation_loss": 1.5}
