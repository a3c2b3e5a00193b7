import json
import time
import warnings

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

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
    del manifest["checksums"]  # as it was written before there were any
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


def without_checksums(folder):
    """The model as it was written before there were checksums."""
    manifest = yaml.safe_load((folder / "config.yaml").read_text())
    del manifest["checksums"]
    (folder / "config.yaml").write_text(yaml.safe_dump(manifest))
    return manifest


@pytest.mark.parametrize("name", ["model.safetensors", "start_states.safetensors"])
def test_any_changed_bit_is_noticed(saved, name, rng):
    file = saved / name
    content = file.read_bytes()
    for position in rng.integers(len(content), size=12):
        changed = bytearray(content)
        changed[position] ^= 1 << int(rng.integers(8))
        file.write_bytes(changed)
        with pytest.raises(BundleError) as caught:
            load_model(saved)
        assert name in one_sentence(caught)


@pytest.mark.parametrize("change", [{"reward_limit": 5.0}, {"hidden_dim": 17}])
def test_changed_settings_are_noticed(saved, change):
    manifest = yaml.safe_load((saved / "config.yaml").read_text())
    manifest["model"]["heads"].update(change)
    (saved / "config.yaml").write_text(yaml.safe_dump(manifest))
    with pytest.raises(BundleError, match=r"config\.yaml' has changed since it was written"):
        load_model(saved)


def test_start_states_of_another_model_and_lost_files_are_noticed(tiny_model, saved, tmp_path):
    tiny_model.start_states = tiny_model.start_states.select(torch.arange(3))
    other = tiny_model.save_pretrained(tmp_path / "other")
    own = (saved / "start_states.safetensors").read_bytes()
    (saved / "start_states.safetensors").write_bytes((other / "start_states.safetensors").read_bytes())
    with pytest.raises(BundleError, match="has changed since it was written"):
        load_model(saved)
    (saved / "start_states.safetensors").unlink()
    with pytest.raises(BundleError, match=r"start_states\.safetensors' is missing"):
        load_model(saved)
    (saved / "start_states.safetensors").write_bytes(own)
    (saved / "metrics.json").write_text("{}")
    with pytest.raises(BundleError, match=r"metrics\.json' has changed"):
        load_model(saved)


def test_a_model_without_checksums_loads_with_one_warning(tiny_model, saved):
    without_checksums(saved)
    with pytest.warns(UserWarning, match="was written by an older wm_gym, without checksums") as caught:
        assert load_model(saved).fingerprint == tiny_model.fingerprint
        load_model(saved)
    assert len(caught) == 1


def test_without_checksums_the_fingerprint_is_compared(saved):
    without_checksums(saved)
    file = saved / "model.safetensors"
    state = load_file(file)
    name = next(name for name, tensor in state.items() if tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1])
    for damage, sentence in (
        (lambda tensor: tensor + 1e-3, "its fingerprint does not match"),
        (lambda tensor: tensor.T.contiguous(), "its fingerprint does not match"),
        (lambda tensor: tensor * torch.nan, "holds values that are no numbers"),
        (lambda tensor: tensor / 0, "holds values that are no numbers"),
        (lambda tensor: tensor.half(), "has shape .* and type torch.float16"),
        (lambda tensor: tensor[:-1].contiguous(), "has shape"),
    ):
        save_file({**state, name: damage(tensor=state[name])}, file)
        with warnings.catch_warnings(), pytest.raises(BundleError, match=sentence):
            warnings.simplefilter("ignore")
            load_model(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.update(latent_dim=10**9),
        lambda model: model.update(latent_dim=16_384),
        lambda model: model.update(frame_size=[2**20, 2**20]),
        lambda model: model["decoder"].update(refine=[10**14, 0, 0, 0]),
        lambda model: model["decoder"].update(base_channels=16_384, base_expand=16_384),
        lambda model: model["encoder"].update(blocks_per_stage=10**6),
        lambda model: model["dynamics"].update(hidden_dim=16_384, num_layers=64),
        lambda model: model["heads"].update(reward_limit=float("inf")),
    ],
)
def test_sizes_are_compared_before_anything_is_built(saved, change):
    manifest = without_checksums(saved)
    change(manifest["model"])
    (saved / "config.yaml").write_text(yaml.safe_dump(manifest))
    started = time.monotonic()
    with warnings.catch_warnings(), pytest.raises(BundleError) as caught:
        warnings.simplefilter("ignore")
        load_model(saved)
    assert time.monotonic() - started < 60.0
    one_sentence(caught)


def test_what_the_package_ships_has_checksums():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert load_model("bundled").start_states is not None


def test_a_manifest_that_is_cut_off_is_not_taken_for_an_old_one(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "config.yaml"
    lines = file.read_text().splitlines(keepends=True)
    for kept in range(len(lines)):
        file.write_text("".join(lines[:kept]))
        with pytest.raises(BundleError):
            WorldModel.from_pretrained(tmp_path / "model")
