"""World models on a Hub: the real client against a small server, and one sentence for each thing that is wrong."""

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import gymnasium as gym
import pytest
import torch
import yaml

from tests import sentences
from tests.hub_server import READ_TOKEN, Repository
from wm_gym.bundle import MODEL_BUNDLE
from wm_gym.bundle_location import names_a_bundle, resolve_folder
from wm_gym.cli.main import main
from wm_gym.errors import BundleError
from wm_gym.hub import HubReference, parse_reference
from wm_gym.hub_card import Score, hub_card
from wm_gym.uncertainty import Uncertainty, VarianceNetwork
from wm_gym.world_model import WorldModel

NAME = "jane/town-model"


@pytest.fixture
def pushed(hub, tiny_model):
    """A model that was pushed."""
    tiny_model.metrics = {"psnr": {"1": 24.5, "5": 20.25}, "ssim": {"1": None}}
    tiny_model.uncertainty = Uncertainty(VarianceNetwork(tiny_model.feature_dim, tiny_model.simulator.action.dim, 3))
    tiny_model.push_to_hub(NAME)
    return tiny_model


sentence_of = partial(sentences.sentence_of, BundleError)


def files_of(hub) -> dict[str, bytes]:
    return hub.repositories[NAME].files


def test_a_pushed_model_comes_back_by_its_name(hub, pushed):
    assert set(files_of(hub)) == {".gitattributes", *MODEL_BUNDLE.files}
    for name in (NAME, f"hf://{NAME}"):
        loaded = WorldModel.from_pretrained(name)
        assert loaded.fingerprint == pushed.fingerprint
        assert loaded.metrics == pushed.metrics
        assert torch.equal(loaded.start_states.latent, pushed.start_states.latent.half().float())
        assert torch.equal(loaded.uncertainty.network.mlp[0].weight, pushed.uncertainty.network.mlp[0].weight)


def test_dreams_take_a_repository_as_their_model(hub, pushed):
    env = gym.make("wm_gym:DreamDriving-v0", model=NAME, horizon=3)
    assert env.reset(seed=0)[0].shape == (pushed.feature_dim,)


def test_only_the_files_of_a_model_are_downloaded(hub, pushed):
    repository = hub.repositories[NAME]
    repository.commit({**repository.files, "pickle.bin": b"boom", "code.py": b"raise SystemExit", "a/config.yaml": b""})
    folder = resolve_folder(NAME, MODEL_BUNDLE)
    found = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert found == set(MODEL_BUNDLE.files)
    assert not [request for request in hub.requests if "pickle" in request or "code.py" in request]


def test_what_is_in_the_cache_is_not_downloaded_again_and_needs_no_network(hub, pushed, monkeypatch):
    WorldModel.from_pretrained(NAME)
    before = len(hub.requests)
    WorldModel.from_pretrained(NAME)
    assert not [request for request in hub.requests[before:] if request.startswith("GET") and "/resolve/" in request]
    hub.stop()
    assert WorldModel.from_pretrained(NAME).fingerprint == pushed.fingerprint


def test_a_revision_is_what_it_was(hub, pushed):
    old = hub.repositories[NAME].head
    fingerprint = pushed.fingerprint
    with torch.no_grad():
        next(pushed.parameters()).add_(1)
    pushed.push_to_hub(NAME)
    assert WorldModel.from_pretrained(f"{NAME}@{old}").fingerprint == fingerprint
    assert WorldModel.from_pretrained(NAME).fingerprint == pushed.fingerprint != fingerprint
    message = sentence_of(WorldModel.from_pretrained, f"{NAME}@v9")
    assert f"{NAME} at {hub.url} has no revision 'v9'" in message


def test_a_second_push_removes_what_is_no_longer_there(hub, pushed, tmp_path):
    (tmp_path / "drive.MP4").write_bytes(b"film")
    pushed.push_to_hub(NAME, video=tmp_path / "drive.MP4", message="with a film")
    repository = hub.repositories[NAME]
    repository.commit({**repository.files, "notes.txt": b"mine"})
    assert repository.files["replay.mp4"] == b"film"
    pushed.start_states = pushed.uncertainty = None
    pushed.push_to_hub(NAME)
    assert set(repository.files) == {".gitattributes", "notes.txt", *MODEL_BUNDLE.files} - {
        "start_states.safetensors",
        "uncertainty.safetensors",
    }


def test_the_card_has_scores_a_video_and_the_name(hub, pushed, tmp_path):
    (tmp_path / "drive.gif").write_bytes(b"film")
    pushed.push_to_hub(NAME, video=tmp_path / "drive.gif")
    _, head, body = files_of(hub)["README.md"].decode().split("---\n", 2)
    fields = yaml.safe_load(head)
    assert fields["library_name"] == "wm_gym" and "world-model" in fields["tags"]
    metrics = fields["model-index"][0]["results"][0]["metrics"]
    assert [(metric["type"], metric["value"]) for metric in metrics] == [("psnr", 24.5), ("psnr", 20.25)]
    assert f"![A drive]({hub.url}/{NAME}/resolve/main/replay.gif)" in body
    assert "| PSNR of predicted frames (dB), 5 steps ahead | 20.25 |" in body
    assert f'WorldModel.from_pretrained("{NAME}")' in body and "PATH" not in body
    assert body.index("# A world model") < body.index("## Scores") < body.index("## Held-out metrics")


def test_the_card_has_the_judgement_that_lies_in_the_folder(hub, pushed, tmp_path):
    folder = pushed.save_pretrained(tmp_path / "model")
    (folder / "judge").mkdir()
    judgement = folder / "judge" / "scorecard.json"
    agreement = {"steps": 50, "pearson": 0.75, "spearman": None, "mmrv": 12.5}
    judgement.write_text(json.dumps({"policies": [{}, {}], "agreement": [agreement]}))
    assert main(["push", str(folder), NAME]) == 0
    card = files_of(hub)["README.md"].decode()
    assert "| Pearson correlation of returns | 0.75 | dream against simulator, 2 policies over 50 steps |" in card
    assert "| MMRV of returns | 12.5 |" in card and "Spearman" not in card
    assert not any("scorecard" in name for name in files_of(hub))
    judgement.write_text("{}")
    assert "is no scorecard; give the file that `wm-gym judge --out` wrote" in sentence_of(
        pushed.push_to_hub, NAME, judgement=judgement
    )


def test_a_card_without_scores_has_no_empty_table():
    text = hub_card("# A\n\n## B\n", NAME, tags=(), simulator="X-v0")
    assert "Scores" not in text and "model-index" not in text and text.endswith("# A\n\n## B\n")
    assert "Scores" in hub_card("# A\n\n## B\n", NAME, tags=(), simulator="X-v0", scores=[Score("a", "b", 1.0)])


def test_private_repositories(hub, tiny_model, monkeypatch):
    tiny_model.push_to_hub(NAME, private=True)
    assert hub.repositories[NAME].private
    assert WorldModel.from_pretrained(NAME).fingerprint == tiny_model.fingerprint
    shutil.rmtree(Path.cwd().parent / "hub_cache")
    monkeypatch.delenv("HF_TOKEN")
    assert f"there is no hf://{NAME} at {hub.url}, or you may not see it" in sentence_of(
        WorldModel.from_pretrained, NAME
    )
    hub.repositories["jane/public"] = Repository()
    monkeypatch.setenv("HF_TOKEN", "hf_token_of_the_owner")
    assert "exists and is public" in sentence_of(tiny_model.push_to_hub, "jane/public", private=True)
    assert set(hub.repositories["jane/public"].files) == {".gitattributes"}


def test_missing_repositories_gated_ones_and_foreign_ones(hub):
    message = sentence_of(WorldModel.from_pretrained, "jane/nothing")
    assert f"there is no hf://jane/nothing at {hub.url}" in message
    hub.repositories["jane/gated"] = Repository(gated=True)
    assert "given to those only whom its owner allows" in sentence_of(WorldModel.from_pretrained, "jane/gated")
    hub.repositories["jane/photos"] = Repository()
    hub.repositories["jane/photos"].commit({"cat.jpg": b"miaow", "README.md": b"# Cats"})
    message = sentence_of(WorldModel.from_pretrained, "jane/photos")
    assert "hf://jane/photos is no world model of wm_gym: it has no config.yaml" in message


def test_nothing_is_pushed_over_what_is_no_model(hub, tiny_model):
    hub.repositories[NAME] = Repository()
    hub.repositories[NAME].commit({"cat.jpg": b"miaow"})
    assert "exists and is no world model" in sentence_of(tiny_model.push_to_hub, NAME)
    assert set(files_of(hub)) == {"cat.jpg"}


@pytest.mark.parametrize("token", [None, READ_TOKEN])
def test_a_push_without_permission(hub, tiny_model, token, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    hub.repositories[NAME] = Repository()
    message = sentence_of(tiny_model.push_to_hub, NAME)
    assert "does not let you use" in message and "hf auth login" in message
    assert set(files_of(hub)) == {".gitattributes"}


def test_a_push_that_fails_leaves_the_old_model(hub, pushed):
    before = files_of(hub)
    hub.refuse_commits = True
    with torch.no_grad():
        next(pushed.parameters()).add_(1)
    assert "answered a request for" in sentence_of(pushed.push_to_hub, NAME)
    assert files_of(hub) == before


def test_an_unreachable_hub(hub, tiny_model):
    hub.stop()
    message = sentence_of(WorldModel.from_pretrained, NAME)
    assert f"{hub.url} cannot be reached, and this machine keeps no whole copy of hf://{NAME}" in message
    assert f"{hub.url} cannot be reached (ConnectError" in sentence_of(tiny_model.push_to_hub, NAME)


def test_a_file_that_was_changed_in_the_repository_is_refused(hub, pushed):
    repository = hub.repositories[NAME]
    changed = bytearray(repository.files["model.safetensors"])
    changed[-1] ^= 1
    repository.commit({**repository.files, "model.safetensors": bytes(changed)})
    message = sentence_of(WorldModel.from_pretrained, NAME)
    assert "model.safetensors' has changed since it was written" in message
    assert f"push hf://{NAME} again, or delete" in message


def test_a_file_that_is_missing_in_the_repository_is_told(hub, pushed):
    repository = hub.repositories[NAME]
    repository.commit({name: content for name, content in repository.files.items() if "start" not in name})
    assert "start_states.safetensors' is missing" in sentence_of(WorldModel.from_pretrained, NAME)


def test_a_copy_that_was_damaged_here_is_fetched_again(hub, pushed):
    file = resolve_folder(NAME, MODEL_BUNDLE) / "model.safetensors"
    whole = file.read_bytes()
    file.resolve().write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert WorldModel.from_pretrained(NAME).fingerprint == pushed.fingerprint
    assert file.read_bytes() == whole


def test_folders_win_and_a_mistyped_path_is_looked_for_nowhere_else(hub, tiny_model):
    tiny_model.save_pretrained(NAME)
    assert WorldModel.from_pretrained(NAME).fingerprint == tiny_model.fingerprint
    assert "there is no world model at 'jane/other'" in sentence_of(WorldModel.from_pretrained, "jane/other")
    assert not hub.requests
    assert "there is no hf://jane" in sentence_of(WorldModel.from_pretrained, f"hf://{NAME}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("jane/model", HubReference("jane/model")),
        ("hf://jane/model", HubReference("jane/model")),
        ("jane/model@v1.0", HubReference("jane/model", "v1.0")),
        ("hf://jane/model@refs/pr/1", HubReference("jane/model", "refs/pr/1")),
        ("bundled", None),
        ("./model", None),
        ("../model", None),
        ("/runs/model", None),
        ("runs/a/model", None),
        ("runs\\model", None),
        ("C:/model", None),
        ("jane/model@../x", None),
        ("jane/model/", None),
        (Path("jane/model"), None),
    ],
)
def test_what_names_a_repository(text, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_reference(text) == expected
    assert names_a_bundle(text) == (expected is not None or text == "bundled")


@pytest.mark.parametrize("text", ["hf://jane", "hf://datasets/jane/model", "hf://jane/model@", "hf://jane/../x"])
def test_what_looks_like_a_repository_and_is_none(text):
    assert "names no repository; write owner/name" in sentence_of(parse_reference, text)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("jane",), "'jane' names no repository"),
        ((f"{NAME}@v1",), "leave @v1 out"),
        ((NAME, "--video", "film.avi"), "must be .mp4 or .gif"),
        ((NAME, "--video", "film.mp4"), "is missing or empty"),
        ((NAME, "--evaluation", "result.json"), "--evaluation belongs to an agent"),
    ],
)
def test_the_command_says_what_is_wrong_before_it_asks_the_hub(hub, tiny_model, capsys, arguments, sentence):
    tiny_model.save_pretrained("model")
    assert main(["push", "model", *arguments]) == 2
    assert sentence in capsys.readouterr().err
    assert not hub.requests


def test_the_command_pushes_a_model(hub, tiny_model, capsys):
    tiny_model.save_pretrained("model")
    assert main(["push", "model", NAME]) == 0
    assert f"pushed to {hub.url}/{NAME}" in capsys.readouterr().out
    assert WorldModel.from_pretrained(NAME).fingerprint == tiny_model.fingerprint
    assert main(["push", "nothing", NAME]) == 2
    assert "'nothing' holds neither a world model" in capsys.readouterr().err


def test_lerobots_env_hub_makes_dreams_of_a_pushed_model(hub, tiny_model):
    """As LeRobot does: the file is imported, and its function called."""
    tiny_model.save_pretrained("model")
    assert main(["push", "model", NAME, "--env-hub"]) == 0
    names = {}
    exec(compile(files_of(hub)["env.py"], "env.py", "exec"), names)
    env = names["make_env"](n_envs=2, use_async_envs=True)
    observation, _ = env.reset(seed=[0, 1])
    assert observation["pixels"]["front"].shape == (2, *tiny_model.config.frame_size, 3)
    assert env.observation_space.contains(observation)
    assert env.call("_max_episode_steps") == (200, 200) and env.call("task_description") == ("drive", "drive")
    _, rewards, *_ = env.step(env.action_space.sample())
    assert rewards.shape == (2,)
    tiny_model.push_to_hub(NAME)
    assert "env.py" not in files_of(hub)


def test_without_the_extra_one_sentence_says_what_to_install(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (WorldModel.from_pretrained, tiny_model.push_to_hub):
        assert "pip install 'wm_gym[hub]'" in sentence_of(call, NAME)
    assert "there is no folder 'jane/town-model' here" in sentence_of(WorldModel.from_pretrained, NAME)
