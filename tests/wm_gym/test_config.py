import pytest
import yaml

from wm_gym.config import Config, load_config, parse_config, preset_names
from wm_gym.errors import ConfigError


def test_presets_are_valid_and_named():
    assert {"tiny", "compact", "base", "large", "debug"} <= set(preset_names())
    for name in preset_names():
        assert isinstance(load_config(name), Config)


def test_base_has_the_guides_default_weights_and_training_tricks():
    config = load_config("base")
    assert (config.loss.reconstruction, config.loss.prediction) == (1.0, 1.0)
    assert (config.loss.perceptual, config.loss.regularisation) == (0.1, 0.01)
    training = config.training
    assert (training.batch_size, training.accumulation, training.clip_length) == (16, 4, 10)
    assert (training.warmup_steps, training.clip_norm) == (1000, 1.0)
    assert config.model.frame_size == (256, 256)


def test_changes_reach_nested_keys_with_their_types():
    config = load_config(
        "tiny", ["training.steps=7", "training.learning_rate=3e-4", "model.decoder.stages=[8,8,8,8]", "loss.reward=2"]
    )
    assert config.training.steps == 7
    assert config.training.learning_rate == 3e-4
    assert config.model.decoder.stages == (8, 8, 8, 8)
    assert config.loss.reward == 2.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["training.stepz=7"], ["stepz", "did you mean 'steps'"]),
        (["trainig.steps=7"], ["trainig", "did you mean 'training'"]),
        (["training.steps=many"], ["training.steps", "many"]),
        (["training.steps=-1"], ["training.steps", "-1"]),
        (["training.steps"], ["key=value"]),
        (["training.steps.more=1"], ["steps"]),
        (["model.frame_size=[60,64]"], ["60x64", "multiple of"]),
        (["training.context=50"], ["context=50", "clip_length"]),
        (["model.encoder.attention_heads=7"], ["attention_heads=7", "divide"]),
        (["model.decoder.refine=[1]"], ["refine", "stages"]),
    ],
)
def test_wrong_settings_are_refused_in_one_sentence(changes, words):
    with pytest.raises(ConfigError) as caught:
        load_config("tiny", changes)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    for word in words:
        assert word in message


def test_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'compact'"):
        load_config("compct")


def test_a_yaml_file_round_trips(tmp_path):
    config = load_config("compact", ["training.seed=3"])
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config(file) == config


def test_yaml_runs_no_code(tmp_path):
    file = tmp_path / "evil.yaml"
    marker = tmp_path / "ran"
    file.write_text(
        f"model: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{marker}']]"
    )
    with pytest.raises(ConfigError, match="no valid YAML"):
        load_config(file)
    assert not marker.exists()


def test_missing_file_and_non_mapping():
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config("nowhere.yaml")
    with pytest.raises(ConfigError, match="mapping"):
        parse_config(Config, [1, 2], origin="it")
