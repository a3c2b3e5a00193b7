"""The uncertainty of dreams: its maths against plain loops, its training, and its file in a model's folder."""

import json
import math

import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces
from safetensors.torch import load_file, save_file

from wm_gym.acceleration import AcceleratedModel
from wm_gym.actions import ActionFormat
from wm_gym.bundle import load_model, read_manifest
from wm_gym.cli.main import main
from wm_gym.data_collection.datasets.training_data import open_training_data
from wm_gym.errors import BundleError, TrainingError
from wm_gym.metrics import area_under_roc, uncertainty_metrics
from wm_gym.rollouts import follow, imagine_step
from wm_gym.simulator import SimulatorSpec
from wm_gym.training.uncertainty import (
    DreamErrors,
    UncertaintySettings,
    dream_errors,
    negative_log_likelihood,
    train_uncertainty,
)
from wm_gym.uncertainty import Uncertainty, VarianceNetwork, fit_multipliers
from wm_gym.world_model import WorldModel

SETTINGS = UncertaintySettings(horizon=6, windows=40, steps=8, batch_size=16, hidden_dim=8)


def make_uncertainty(model, horizon=4):
    torch.manual_seed(1)
    network = VarianceNetwork(model.feature_dim, model.simulator.action.dim, horizon, hidden_dim=8)
    network.mean.uniform_(-1, 1)
    network.deviation.uniform_(0.5, 2)
    network.multipliers.uniform_(0.5, 2)
    return Uncertainty(network)


@pytest.fixture
def saved(tiny_model, tmp_path):
    tiny_model.uncertainty = make_uncertainty(tiny_model)
    return tiny_model.save_pretrained(tmp_path / "model")


def test_variance_against_the_formula(tiny_model):
    told = make_uncertainty(tiny_model)
    features, action = torch.randn(5, tiny_model.feature_dim), torch.rand(5, 4)
    weights = {name: value.double().numpy() for name, value in told.network.state_dict().items()}
    x = (np.concatenate((features.numpy(), action.numpy()), 1) - weights["mean"]) / weights["deviation"]
    for layer in (0, 2):
        x = x @ weights[f"mlp.{layer}.weight"].T + weights[f"mlp.{layer}.bias"]
        x = x / (1 + np.exp(-x))
    expected = np.log1p(np.exp(x @ weights["mlp.4.weight"].T + weights["mlp.4.bias"]))[:, 0] + 1e-6
    np.testing.assert_allclose(told.step_variance(features, action).numpy(), expected, rtol=1e-5)


def test_deviations_add_up_as_variances_and_keep_the_last_multiplier(tiny_model):
    told = make_uncertainty(tiny_model, horizon=3)
    features, actions = torch.randn(2, 5, tiny_model.feature_dim), torch.rand(2, 5, 4)
    found = told.along(features, actions)
    for row in range(2):
        total = 0.0
        for step in range(5):
            total += told.step_variance(features[row : row + 1, step], actions[row : row + 1, step]).item()
            expected = told.network.multipliers[min(step, 2)].item() * math.sqrt(total)
            assert found[row, step] == pytest.approx(expected, rel=1e-5)
            assert told.sigma_of_one(total, step + 1) == pytest.approx(expected, rel=1e-6)
    assert told.sigma(np.array([0.0, 4.0]), np.array([0, 1])).tolist() == [0.0, pytest.approx(2 * told.multipliers[0])]


def test_multipliers_bring_normal_errors_to_one_deviation(rng):
    deviations = rng.uniform(0.5, 2.0, (20_000, 3))
    errors = rng.normal(size=deviations.shape) * deviations * [1.0, 3.0, 0.25]
    np.testing.assert_allclose(fit_multipliers(errors, deviations), [1.0, 3.0, 0.25], rtol=0.03)


def test_likelihood_against_the_normal_density(tiny_model):
    network = make_uncertainty(tiny_model).network
    dreams = DreamErrors(
        torch.randn(3, 4, tiny_model.feature_dim), torch.rand(3, 4, 4), torch.randn(3, 4), torch.zeros(3, 2)
    )
    deviation = network(dreams.features, dreams.actions).cumsum(1).sqrt()
    density = torch.distributions.Normal(0.0, deviation).log_prob(dreams.errors).mean() + math.log(2 * math.pi) / 2
    assert negative_log_likelihood(network, dreams).item() == pytest.approx(-density.item(), rel=1e-5)


def test_coverage_and_auroc_against_pairs(rng):
    sigma = torch.from_numpy(rng.uniform(0, 100, (40, 2)))
    error = torch.from_numpy(rng.normal(size=(40, 2))) * sigma
    found = uncertainty_metrics(sigma, error, [1, 2])
    for steps in (1, 2):
        size, told = error[:, steps - 1].abs().numpy(), sigma[:, steps - 1].numpy()
        wrong = size > np.quantile(size, 0.75)
        pairs = [(a > b) + 0.5 * (a == b) for a in told[wrong] for b in told[~wrong]]
        assert found["auroc"][steps] == pytest.approx(np.mean(pairs), abs=1e-6)
        assert found["coverage"][steps] == pytest.approx(np.mean(size <= told))
    assert uncertainty_metrics(sigma, torch.zeros(40, 2), [2])["auroc"][2] is None
    assert area_under_roc(torch.tensor([1e6, 2e6, 3e6]), torch.tensor([False, True, True])) == 1.0
    assert area_under_roc(torch.zeros(4), torch.tensor([False, True, True, False])) == 0.5


def test_errors_are_those_of_dreams_from_the_followed_state(tiny_model, car_racing_data):
    source = open_training_data(car_racing_data, 0).train
    settings = SETTINGS.__class__(**{**SETTINGS.__dict__, "windows": 1, "horizon": 10})
    found = dream_errors(tiny_model, source, settings)
    episode, start = found.begin[0].tolist()
    clip = source.read_clips(np.array([[episode, 0]]), start + 11)
    observed = clip.observations
    first = type(observed)(*(part[0, : start + 1] for part in observed))
    state = follow(tiny_model, first, clip.actions[0])[-1]
    torch.testing.assert_close(found.features[0, 0], tiny_model.features(state)[0], rtol=1e-4, atol=1e-4)
    rng = np.random.default_rng((settings.seed, 0))
    rng.choice(int((source.episode_lengths() - 9).sum()), 1, replace=False)
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    error = 0.0
    with torch.no_grad():
        for step in range(10):
            action = torch.from_numpy(clip.actions[:, start + step])
            state, reward, _ = imagine_step(tiny_model, state, action, generator)
            error += reward.item() - clip.rewards[0, start + step]
            assert found.errors[0, step].item() == pytest.approx(error, abs=1e-3)


def test_training_repeats_and_leaves_the_model_as_it_is(tiny_model, car_racing_data):
    data = open_training_data(car_racing_data, 0.25)
    before = tiny_model.fingerprint
    results = [train_uncertainty(tiny_model, data.train, data.validation, SETTINGS, progress=False) for _ in range(2)]
    assert tiny_model.fingerprint == before
    first, second = (told.network.state_dict() for told, _ in results)
    assert all(torch.equal(first[name], second[name]) for name in first)
    figures = results[0][1]
    assert figures["coverage"].keys() == {1, 5, 6}
    assert all(0.5 < share < 0.85 for share in figures["coverage"].values())
    elsewhere, _ = train_uncertainty(
        tiny_model, data.train, data.validation, SETTINGS, calibration=data.train, progress=False
    )
    changed = {name for name, value in elsewhere.network.state_dict().items() if not torch.equal(value, first[name])}
    assert changed == {"multipliers"}
    dreams = dream_errors(tiny_model, data.train, SETTINGS, "calibration")
    assert all(0.5 < share < 0.85 for share in dreams.metrics(elsewhere)["coverage"].values())


def test_training_finds_where_the_errors_are_large(tiny_model):
    """Errors that one feature tells, and that add up: the learnt deviations follow them."""
    torch.manual_seed(0)
    features = torch.rand(400, 6, tiny_model.feature_dim)
    deviation = torch.where(features[..., 0] > 0.5, 4.0, 0.2)
    dreams = DreamErrors(
        features, torch.rand(400, 6, 4), (torch.randn(400, 6) * deviation).cumsum(1), torch.zeros(400, 2)
    )
    network = VarianceNetwork(tiny_model.feature_dim, 4, 6, hidden_dim=32)
    network.mean.fill_(0.5)
    network.deviation.fill_(0.3)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        negative_log_likelihood(network, dreams.select(torch.randint(300, (64,)))).backward()
        optimizer.step()
    held_out = dreams.select(torch.arange(300, 400))
    told = Uncertainty(network).step_variance(held_out.features, held_out.actions).sqrt()
    large = held_out.features[..., 0] > 0.5
    assert told[~large].median() < 1.0
    assert 2.0 < told[large].median() < 6.0


def test_episodes_that_are_too_short_are_named(tiny_model, car_racing_data):
    source = open_training_data(car_racing_data, 0).train
    with pytest.raises(TrainingError, match="no episode has the 500 steps of a dream"):
        dream_errors(tiny_model, source, UncertaintySettings(horizon=500))


def test_round_trip_is_exact_and_no_part_of_the_fingerprint(tiny_model, saved):
    loaded = WorldModel.from_pretrained(saved)
    expected = tiny_model.uncertainty.network.state_dict()
    assert {n: v.tolist() for n, v in loaded.uncertainty.network.state_dict().items()} == {
        n: v.tolist() for n, v in expected.items()
    }
    assert not any("uncertainty" in name for name in loaded.state_dict())
    fingerprint = loaded.fingerprint
    loaded.uncertainty = None
    assert loaded.fingerprint == fingerprint == read_manifest(saved)[1].fingerprint
    assert AcceleratedModel(tiny_model).uncertainty is tiny_model.uncertainty


def test_a_folder_without_it_is_as_before(tiny_model, saved, tmp_path):
    tiny_model.uncertainty = None
    plain = tiny_model.save_pretrained(tmp_path / "plain")
    assert not (plain / "uncertainty.safetensors").exists()
    assert load_model(plain).uncertainty is None
    manifests = [yaml.safe_load((folder / "config.yaml").read_text()) for folder in (plain, saved)]
    checksums = [manifest.pop("checksums") for manifest in manifests]
    assert manifests[0] == manifests[1]  # a reader that knows no uncertainty finds nothing that is unknown
    assert checksums[1].keys() - checksums[0].keys() == {"uncertainty.safetensors"}
    assert (plain / "model.safetensors").read_bytes() == (saved / "model.safetensors").read_bytes()


def one_sentence(caught) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_changed_or_missing_file_is_refused(saved):
    file = saved / "uncertainty.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BundleError) as caught:
        load_model(saved)
    assert "has changed since it was written" in one_sentence(caught)
    file.unlink()
    with pytest.raises(BundleError) as caught:
        load_model(saved)
    assert "missing or damaged" in one_sentence(caught)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("multipliers", None, "holds no uncertainty"),
        ("mean", torch.zeros(3), "does not fit the model beside it"),
        ("multipliers", torch.tensor([1.0, -1.0, 1.0, 1.0]), "numbers above 0"),
        ("mlp.4.bias", torch.tensor([math.nan]), "no numbers"),
        ("mean", math.inf, "numbers above 0"),
    ],
)
def test_other_contents_are_refused(saved, name, value, message):
    file = saved / "uncertainty.safetensors"
    tensors = load_file(file)
    if value is None:
        del tensors[name]
    else:
        tensors[name] = torch.full_like(tensors[name], value) if isinstance(value, float) else value
    save_file(tensors, file)
    manifest = yaml.safe_load((saved / "config.yaml").read_text())
    del manifest["checksums"]
    (saved / "config.yaml").write_text(yaml.safe_dump(manifest))
    with pytest.raises(BundleError) as caught, pytest.warns(UserWarning, match="without checksums"):
        load_model(saved)
    assert message in one_sentence(caught)


def test_command(tiny_model, car_racing_data, tmp_path, capsys):
    model = tiny_model.save_pretrained(tmp_path / "model")
    out, result = tmp_path / "told", tmp_path / "told.json"
    command = ["train-uncertainty", "--model", str(model), "--data", str(car_racing_data), "--out", str(out)]
    options = ["--check", str(car_racing_data), "--horizon", "5", "--steps", "3", "--json", str(result), "--quiet"]
    options += ["--calibrate", str(car_racing_data)]
    assert main([*command, *options, "--device", "cpu"]) == 0
    loaded = WorldModel.from_pretrained(out)
    assert loaded.fingerprint == tiny_model.fingerprint
    assert loaded.uncertainty.horizon == 5
    figures = json.loads(result.read_text())
    assert figures["coverage"].keys() == {"1", "5"}
    assert loaded.metrics["uncertainty"] == figures
    assert str(car_racing_data) in figures["checks"]
    assert "held-out recordings" in capsys.readouterr().out


def test_recordings_of_another_simulator_are_refused(debug_config, car_racing_data, tmp_path, capsys):
    native = SimulatorSpec(
        id="Other-v0", frame_size=(64, 64), action=ActionFormat.native(spaces.Box(-1, 1, (4,))), step_s=0.08
    )
    model = WorldModel(debug_config.model, native).save_pretrained(tmp_path / "model")
    out = tmp_path / "told"
    command = ["train-uncertainty", "--model", str(model), "--data", str(car_racing_data), "--out", str(out)]
    assert main(command) == 2
    assert "takes 4 driving values" in capsys.readouterr().err
    assert not out.exists()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    assert main([*command[:-1], str(tmp_path / "photos")]) == 2
    assert "exists and is no world model" in capsys.readouterr().err
