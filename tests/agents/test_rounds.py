"""The closed loop on the real CarRacing: record with the agent, train the model further, train in the new dream."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from wm_gym.agents.baselines.behaviour_cloning import CloningConfig, clone_behaviour
from wm_gym.agents.bundles.driver import Driver
from wm_gym.agents.bundles.folder import load_agent
from wm_gym.agents.training.rounds import RoundsConfig, train_agent_in_rounds
from wm_gym.config import load_config
from wm_gym.data_collection import Dataset
from wm_gym.data_collection.datasets.training_data import open_training_data
from wm_gym.errors import BundleError, ConfigError, DatasetError, TrainingError
from wm_gym.training.trainer import WorldModelTrainer

ROUNDS = RoundsConfig(rounds=2, steps=40, model_updates=3, agent_steps=32, select_drives=1)


def train_model(data_folder, out, *changes):
    config = load_config("debug", changes)
    data = open_training_data(data_folder, config.training.validation_fraction)
    return WorldModelTrainer(
        config, data.simulator, data.train, data.validation, out, data_info=data.info, device="cpu", progress=False
    ).run()


@pytest.fixture(scope="module")
def trained_model(car_racing_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("model") / "run"
    train_model(car_racing_data, out, "training.steps=4", "training.validate_every=4")
    return out


def run(model, data, out, config, agent_config, *, initial=None):
    return train_agent_in_rounds(
        model,
        [data],
        out=out,
        config=config,
        agent_config=agent_config,
        initial=initial,
        max_episode_steps=12,
        progress=False,
    )


def test_rounds_record_with_the_agent_and_go_on_from_the_model(trained_model, car_racing_data, small_config, tmp_path):
    out = tmp_path / "rounds"
    summary = run(trained_model, car_racing_data, out, ROUNDS, small_config)

    first, second = (Dataset.open(out / f"round-{number}" / "data") for number in (1, 2))
    assert [entry.recorded_steps for entry in summary.rounds] == [0, first.num_steps, second.num_steps]
    assert first.num_steps + second.num_steps >= 40
    assert first.metadata.collection.patience == 40
    agents = {header.behaviour for header in first.episodes}
    assert agents
    assert all(str(out / "round-0" / "agent") in name for name in agents)
    assert [entry.selection_steps > 0 for entry in summary.rounds] == [False, False, True]
    assert summary.simulator_steps == sum(e.recorded_steps + e.selection_steps for e in summary.rounds)

    for number, datasets in ((1, [first]), (2, [first, second])):
        record = json.loads((out / f"round-{number}" / "model" / "run.json").read_text())
        given = Dataset.open(car_racing_data)
        assert record["data"]["num_steps"] == given.num_steps + sum(dataset.num_steps for dataset in datasets)
    earlier = load_agent(out / "round-1" / "agent").model.fingerprint
    assert record["initial_model"] == earlier

    assert [entry.score is None for entry in summary.rounds] == [True, True, False]
    last = load_agent(out / "round-2" / "agent")
    assert Driver.load(out).model.fingerprint == last.model.fingerprint

    changed = (out / "policy.safetensors").stat().st_mtime_ns
    again = run(trained_model, car_racing_data, out, ROUNDS, small_config)
    assert again == summary
    assert (out / "policy.safetensors").stat().st_mtime_ns == changed


@pytest.mark.slow
def test_stopped_rounds_go_on_where_they_were(trained_model, car_racing_data, small_config, tmp_path, monkeypatch):
    out = tmp_path / "rounds"
    with monkeypatch.context() as patch:
        patch.setattr(WorldModelTrainer, "run", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(trained_model, car_racing_data, out, ROUNDS, small_config)
    recorded = (out / "round-1" / "data" / "dataset.json").stat().st_mtime_ns
    summary = run(trained_model, car_racing_data, out, ROUNDS, small_config)
    assert len(summary.rounds) == 3
    assert (out / "round-1" / "data" / "dataset.json").stat().st_mtime_ns == recorded


def _interrupt(self):
    raise KeyboardInterrupt


@pytest.mark.slow
def test_an_agent_may_go_on_from_the_one_before(trained_model, car_racing_data, small_config, tmp_path):
    config = ROUNDS.model_copy(update={"rounds": 1, "continue_agent": True})
    out = tmp_path / "rounds"
    run(trained_model, car_racing_data, out, config, small_config)
    record = json.loads((out / "round-1" / "agent" / "run.json").read_text())
    assert record["initial"] is not None
    assert json.loads((out / "round-0" / "agent" / "run.json").read_text())["initial"] is None
    scales = [json.loads((out / f"round-{n}" / "agent" / "metrics.json").read_text())["reward_scale"] for n in (0, 1)]
    assert scales[0] == scales[1]


@pytest.mark.slow
@pytest.mark.parametrize("continues", [False, True])
def test_rounds_may_begin_from_an_agent(trained_model, car_racing_data, small_config, tmp_path, continues):
    clone, out = tmp_path / "clone", tmp_path / "rounds"
    clone_behaviour(car_racing_data, trained_model, out=clone, steps=5, device="cpu", progress=False)
    unlike = small_config.model_copy(update={"net_arch": CloningConfig().net_arch})
    config = ROUNDS.model_copy(update={"rounds": 1, "continue_agent": continues})
    run(trained_model, car_racing_data, out, config, unlike, initial=clone)
    begun = [json.loads((out / f"round-{n}" / "agent" / "run.json").read_text())["initial"] for n in (0, 1)]
    assert begun[0] is not None
    assert (begun[0] == begun[1]) is not continues
    with pytest.raises(TrainingError, match="initial"):
        run(trained_model, car_racing_data, out, config, unlike)
    with pytest.raises(BundleError):
        run(trained_model, car_racing_data, tmp_path / "other", config, unlike, initial=tmp_path / "no_agent")
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
@pytest.mark.parametrize("unlimited", [0, 1, 5])
def test_the_first_agents_may_be_hasty_and_never_the_last(
    trained_model, car_racing_data, small_config, tmp_path, unlimited
):
    config = ROUNDS.model_copy(update={"unlimited_agents": unlimited})
    limited = small_config.model_copy(update={"reward_limit": 4.5})
    run(trained_model, car_racing_data, tmp_path / "rounds", config, limited)
    agents = (load_agent(tmp_path / "rounds" / f"round-{number}" / "agent") for number in range(3))
    limits = [agent.manifest.config.reward_limit for agent in agents]
    assert limits == [None if number < min(unlimited, 2) else 4.5 for number in range(3)]


@pytest.mark.slow
def test_a_model_trained_in_two_phases_keeps_its_encoder(car_racing_data, small_config, tmp_path):
    latent = ("training.latent.steps=3", "training.latent.clip_length=8")
    first = train_model(car_racing_data, tmp_path / "model", "training.steps=3", *latent, "model.dynamics.kind=rssm")
    rounds = ROUNDS.model_copy(update={"rounds": 1})
    run(tmp_path / "model", car_racing_data, tmp_path / "rounds", rounds, small_config)
    further = load_agent(tmp_path / "rounds").model
    before = first.state_dict()
    changed = {name for name, value in further.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("dynamics") for name in changed)
    assert not any(name.startswith("encoder") for name in changed)


def begin_with_nothing(out, config, agent_config, **simulator_kwargs):
    return train_agent_in_rounds(
        None,
        [],
        out=out,
        config=config,
        agent_config=agent_config,
        simulator="car-racing",
        simulator_kwargs=simulator_kwargs,
        max_episode_steps=12,
        progress=False,
    )


NOTHING = RoundsConfig(
    rounds=2,
    steps=108,
    first_steps=36,
    world_model="debug",
    model_changes=("training.steps=3", "training.validate_every=3"),
    clone_fraction=0.5,
    agent_steps=32,
    select_drives=1,
    seed=7,
)


@pytest.mark.slow
def test_rounds_may_begin_with_nothing(small_config, tmp_path):
    out = tmp_path / "rounds"
    summary = begin_with_nothing(out, NOTHING, small_config, max_frames=60)
    data = [Dataset.open(out / f"round-{number}" / "data") for number in range(3)]
    assert {header.behaviour for header in data[0].episodes} == {"random"}
    assert all("round-0" in header.behaviour for header in data[1].episodes)
    assert [entry.recorded_steps for entry in summary.rounds] == [dataset.num_steps for dataset in data]
    assert data[0].num_steps >= 36
    assert sum(dataset.num_steps for dataset in data) >= 108
    assert summary.rounds[0].data_return is not None

    models = [json.loads((out / f"round-{number}" / "model" / "run.json").read_text()) for number in range(3)]
    assert [record["initial_model"] for record in models] == [None, None, None]
    assert models[2]["data"]["num_steps"] == sum(dataset.num_steps for dataset in data)
    assert not (out / "round-0" / "clone").exists()
    begun = [json.loads((out / f"round-{number}" / "agent" / "run.json").read_text()) for number in range(3)]
    assert [record["initial"] is None for record in begun] == [True, False, False]
    own = open_training_data([dataset.path for dataset in data[1:]], CloningConfig().validation_fraction)
    assert json.loads((out / "round-2" / "clone" / "run.json").read_text())["dataset"] == own.info["fingerprint"]
    assert Driver.load(out).simulator.kwargs["max_frames"] == 60
    assert begin_with_nothing(out, NOTHING, small_config, max_frames=60) == summary


def test_a_folder_of_before_these_settings_goes_on(trained_model, car_racing_data, small_config, tmp_path):
    out, config = tmp_path / "rounds", ROUNDS.model_copy(update={"rounds": 1})
    summary = run(trained_model, car_racing_data, out, config, small_config)
    settings = yaml.safe_load((out / "rounds_config.yaml").read_text())
    for name in ("first_behaviour", "first_steps", "world_model", "model_changes", "anew", "clone_fraction"):
        del settings["rounds"][name]
    del settings["simulator"], settings["simulator_kwargs"]
    (out / "rounds_config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    assert run(trained_model, car_racing_data, out, config, small_config) == summary


@pytest.mark.slow
def test_what_began_with_nothing_may_train_its_models_further(small_config, tmp_path):
    out = tmp_path / "rounds"
    config = NOTHING.model_copy(update={"rounds": 1, "anew": False, "clone_fraction": 0.0, "model_updates": 3})
    begin_with_nothing(out, config, small_config)
    records = [json.loads((out / f"round-{number}" / "model" / "run.json").read_text()) for number in range(2)]
    assert [record["initial_model"] is None for record in records] == [True, False]


def test_a_beginning_that_cannot_work_is_refused(trained_model, car_racing_data, small_config, tmp_path):
    out = tmp_path / "rounds"
    with pytest.raises(ConfigError, match="give more steps, or fewer for the first"):
        begin_with_nothing(out, NOTHING.model_copy(update={"first_steps": 108}), small_config)
    with pytest.raises(ConfigError, match="only a ppo policy can begin as a clone, not one of a2c"):
        begin_with_nothing(out, NOTHING, small_config.model_copy(update={"algo": "a2c"}))
    with pytest.raises(ConfigError, match="frames are 32x32, but the world model 'debug' has 64x64"):
        begin_with_nothing(out, NOTHING, small_config, frame_size=32)
    with pytest.raises(ConfigError, match="no-such"):
        begin_with_nothing(out, NOTHING.model_copy(update={"world_model": "no-such"}), small_config)
    with pytest.raises(ConfigError, match="cannot go on in one that is trained anew"):
        begin_with_nothing(out, NOTHING.model_copy(update={"continue_agent": True}), small_config)
    with pytest.raises(ConfigError, match="leave out clone_fraction or continue_agent"):
        begin_with_nothing(out, NOTHING.model_copy(update={"continue_agent": True, "anew": False}), small_config)
    anew = ROUNDS.model_copy(update={"anew": True})
    with pytest.raises(ConfigError, match="leave out the initial agent"):
        run(trained_model, car_racing_data, out, anew, small_config, initial=tmp_path / "agent")
    for model, data, simulator in (
        (None, [car_racing_data], "car-racing"),
        (trained_model, [], None),
        (trained_model, [car_racing_data], "car-racing"),
        (None, [], None),
    ):
        with pytest.raises(ConfigError, match="begin with a world model and its data, or with a simulator"):
            train_agent_in_rounds(
                model, data, out=out, config=ROUNDS, agent_config=small_config, simulator=simulator, progress=False
            )
    assert not out.exists()


def test_what_cannot_work_is_refused_before_anything_is_written(trained_model, car_racing_data, small_config, tmp_path):
    out = tmp_path / "rounds"
    with pytest.raises(DatasetError):
        run(trained_model, tmp_path / "nothing", out, ROUNDS, small_config)
    with pytest.raises(BundleError):
        run(tmp_path / "no_model", car_racing_data, out, ROUNDS, small_config)
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(TrainingError, match="holds no training run"):
        run(trained_model, car_racing_data, out, ROUNDS, small_config)
