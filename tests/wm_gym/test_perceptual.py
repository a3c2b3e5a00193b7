import pytest
import torch
import torchvision

from wm_gym.clips import Clips
from wm_gym.config import load_config
from wm_gym.errors import ConfigError
from wm_gym.losses import WorldModelLoss
from wm_gym.perceptual import load_perceptual_network


@pytest.fixture(scope="module")
def alexnet_file(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save(torchvision.models.alexnet(weights=None).state_dict(), path)
    return path


def test_local_weights_give_a_distance(alexnet_file):
    network = load_perceptual_network(str(alexnet_file))
    frames = torch.rand(2, 3, 64, 64) * 2 - 1
    assert float(network(frames, frames).abs().max()) < 1e-6
    assert float(network(frames, -frames).min()) > 1e-4
    expected = torch.load(alexnet_file, weights_only=True)["features.3.weight"]
    assert torch.equal(dict(network.net.named_parameters())["slice2.3.weight"], expected)
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_term_reaches_the_gradient(alexnet_file, tiny_model):
    weights = load_config("debug", ["loss.perceptual=0.1"]).loss
    clips = Clips(
        torch.rand(2, 3, 3, 64, 64) * 2 - 1,
        torch.rand(2, 2, 4),
        torch.zeros(2, 2),
        torch.zeros(2, 2, dtype=torch.bool),
        torch.zeros(2, 3, 0),
    )
    loss = WorldModelLoss(weights, context=1, perceptual=load_perceptual_network(str(alexnet_file)))
    total, terms = loss(tiny_model, clips)
    without, _ = WorldModelLoss(weights.model_copy(update={"perceptual": 0.0}), context=1)(tiny_model, clips)
    torch.testing.assert_close(total - without, 0.1 * terms["perceptual"], rtol=1e-3, atol=1e-5)
    total.backward()


def test_without_a_network_the_message_names_both_switches(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"loss\.perceptual=0.*loss\.perceptual_weights=FILE"):
        load_perceptual_network(None)


def test_unusable_weights_files(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_perceptual_network(str(tmp_path / "missing.pth"))
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match="no torchvision AlexNet"):
        load_perceptual_network(str(tmp_path / "other.pth"))
