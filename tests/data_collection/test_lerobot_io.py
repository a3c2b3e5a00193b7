"""LeRobot's format both ways; datasets of other programs are made small here, odd cases included."""

import json
import math
import sys
from fractions import Fraction

import cv2
import numpy as np
import pytest
from episode_factory import assert_same_episode, make_episode, make_metadata

from wm_gym.actions import ActionFormat
from wm_gym.cli.main import main
from wm_gym.data_collection import Dataset, export_lerobot, import_lerobot
from wm_gym.data_collection.conversion.convert import guess_layout
from wm_gym.data_collection.conversion.lerobot_import import driving_places
from wm_gym.data_collection.conversion.lerobot_statistics import Statistics
from wm_gym.data_collection.conversion.video_files import VideoWriter, read_video
from wm_gym.errors import ConfigError, DatasetError
from wm_gym.vector import VectorField

arrow = pytest.importorskip("pyarrow")
pytest.importorskip("av")
parquet = pytest.importorskip("pyarrow.parquet")

SIZE = (64, 96)
CAMERA = "observation.images.front"
FIELDS = (VectorField(name="speed", unit="m/s", low=-9, high=9), VectorField.of_classes("light", ("none", "red")))


def smooth_frames(count, seed):
    """Frames that a video keeps nearly as they are, each with a level of its own."""
    ramp = np.add.outer(np.arange(SIZE[0]), np.arange(SIZE[1]))
    levels = [np.stack([ramp + 3 * t, np.full(SIZE, 30 * seed + 8 * t), ramp[::-1]], -1) for t in range(count)]
    return np.stack(levels).astype(np.uint8)


@pytest.fixture
def source(tmp_path):
    names, seeds = ("calm", "wild", "calm"), (-1, 7, 9)
    episodes = [
        make_episode(i, steps=4 + i, size=SIZE, behaviour=names[i], seed=seeds[i], terminated=i == 1) for i in range(3)
    ]
    for number, episode in enumerate(episodes):
        episode.frames = smooth_frames(len(episode) + 1, number)
        episode.vectors = np.stack([np.linspace(-2, 9, len(episode) + 1), np.arange(len(episode) + 1) % 2], -1).astype(
            np.float32
        )
    episodes[2].index = 12
    episodes[2].infos["reward/centre"] = np.ones(6, np.float32)
    metadata = make_metadata(size=SIZE)
    simulator = metadata.simulator.model_copy(update={"vector": FIELDS})
    return Dataset.create(tmp_path / "source", metadata.model_copy(update={"simulator": simulator}), episodes)


def levels(frames):
    return np.rint(frames.mean(axis=(1, 2, 3))).astype(int).tolist()


@pytest.mark.parametrize("file_bytes", [None, 1], ids=["one file", "a file an episode"])
def test_round_trip_keeps_everything_but_the_last_bit_of_the_frames(source, tmp_path, file_bytes):
    limits = {} if file_bytes is None else {"data_file_bytes": 1, "video_file_bytes": 1}
    export_lerobot(source, tmp_path / "lerobot", **limits)
    assert len(list((tmp_path / "lerobot" / "videos").rglob("*.mp4"))) == (3 if limits else 1)
    for path in [*(tmp_path / "lerobot").rglob("*.parquet")]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")  # macOS leaves such files on disks of other systems
    back = import_lerobot(tmp_path / "lerobot", tmp_path / "back")
    assert back.metadata.simulator == source.metadata.simulator
    for i in range(3):
        found, wanted = back.read_episode(i), source.read_episode(i)
        assert np.abs(found.frames.astype(int) - wanted.frames).mean() < 3
        np.testing.assert_array_equal(found.vectors, wanted.vectors)
        found.frames = wanted.frames
        assert_same_episode(found, wanted)


def test_what_is_exported_lies_as_lerobot_wants_it(source, tmp_path):
    export_lerobot(source, tmp_path / "out", task="follow the road")
    info = json.loads((tmp_path / "out" / "meta" / "info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_episodes"], info["total_frames"]) == ("v3.0", 20, 3, 18)
    assert info["features"][CAMERA]["shape"] == [*SIZE, 3]
    assert info["features"]["action"]["names"] == ["steering", "throttle", "brake", "gear"]
    assert info["features"]["observation.state"]["names"] == ["speed", "light"]
    assert not any("/" in name for name in info["features"])
    episodes = parquet.read_table(tmp_path / "out" / "meta" / "episodes" / "chunk-000" / "file-000.parquet").to_pylist()
    assert [row["length"] for row in episodes] == [5, 6, 7]
    assert [row["dataset_from_index"] for row in episodes] == [0, 5, 11]
    starts = [row[f"videos/{CAMERA}/from_timestamp"] for row in episodes]
    assert starts == pytest.approx([0, 5 / 20, 11 / 20])
    assert episodes[2][f"videos/{CAMERA}/to_timestamp"] == pytest.approx(18 / 20)
    assert episodes[0]["tasks"] == ["follow the road"]
    rows = parquet.read_table(tmp_path / "out" / "data" / "chunk-000" / "file-000.parquet").to_pylist()
    assert [row["index"] for row in rows] == list(range(18))
    assert [row["frame_index"] for row in rows] == [*range(5), *range(6), *range(7)]
    second = source.read_episode(1)
    np.testing.assert_array_equal([row["action"] for row in rows[5:10]], second.actions)
    assert rows[10]["action"] == rows[9]["action"]
    assert [row["next.done"] for row in rows[5:11]] == [False] * 4 + [True] * 2
    assert rows[9]["next.terminated"] and not rows[4]["next.terminated"]
    schema = parquet.read_schema(tmp_path / "out" / "meta" / "tasks.parquet")
    assert json.loads(schema.metadata[b"pandas"])["index_columns"] == ["task"]
    statistics = json.loads((tmp_path / "out" / "meta" / "stats.json").read_text())
    assert np.shape(statistics[CAMERA]["mean"]) == (3, 1, 1)
    assert statistics["observation.state"]["max"] == pytest.approx([9, 1])
    # Each episode has the same of its own, as LeRobot writes them: lists by feature, 3 x 1 x 1 for pictures.
    own = [{name: row[f"stats/action/{name}"] for name in statistics["action"]} for row in episodes]
    np.testing.assert_allclose(own[1]["mean"], np.mean([row["action"] for row in rows[5:11]], axis=0), rtol=1e-6)
    assert np.max([values["max"] for values in own], axis=0).tolist() == statistics["action"]["max"]
    assert [values["count"] for values in own] == [[5], [6], [7]]
    assert np.shape(episodes[2][f"stats/{CAMERA}/std"]) == (3, 1, 1)
    named = {name.removeprefix("stats/").rpartition("/")[0] for name in episodes[0] if name.startswith("stats/")}
    assert named == statistics.keys() == info["features"].keys()


def test_statistics_are_those_of_numpy():
    rng = np.random.default_rng(0)
    statistics = Statistics()
    values, frames = rng.normal(size=(50, 2)), rng.integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
    statistics.add({"action": values[:20], "hole": np.array([1.0, np.nan])})
    statistics.add({"action": values[20:], "hole": np.array([np.nan, 3.0])})
    statistics.add_frames(CAMERA, frames)
    found = statistics.to_dict()
    np.testing.assert_allclose(found["action"]["mean"], values.mean(axis=0))
    np.testing.assert_allclose(found["action"]["std"], values.std(axis=0))
    np.testing.assert_allclose(found["action"]["q90"], np.quantile(values, 0.9, axis=0, method="inverted_cdf"))
    assert (found["hole"]["mean"], found["hole"]["count"]) == ([2.0], [4])
    np.testing.assert_allclose(np.ravel(found[CAMERA]["std"]), (frames / 255).std(axis=(0, 1, 2)))


def test_frames_of_odd_sides_and_odd_rates_survive(tmp_path):
    frames = smooth_frames(6, 1)[:, :31, :45]
    writer = VideoWriter(tmp_path / "a.mp4", Fraction(25, 2), (31, 45))
    writer.add(frames)
    assert writer.end_s == pytest.approx(0.48)
    writer.close()
    found = np.stack(read_video(tmp_path / "a.mp4", 2 / 12.5, 4, 12.5))
    assert np.abs(found.astype(int) - frames[2:]).mean() < 3


def foreign(folder, *, names=("steer", "gas", "brake"), cameras=(CAMERA,), rows=(8, 9), dtype="video", actions=None):
    """A dataset as LeRobot writes it itself: two episodes of one file, rows with a state and no reward."""
    total, width = sum(rows), len(names)
    if actions is None:
        actions = np.linspace(0, 0.9, total * width).reshape(total, width)
    owners = np.repeat(np.arange(len(rows)), rows)
    places = np.concatenate([np.arange(count) for count in rows])
    columns = {
        "action": actions.tolist() if width > 1 else actions.ravel().tolist(),
        "observation.state": np.stack([places, -places], -1).astype(float).tolist(),
        "curvature": (places / 10).tolist(),
        "episode_index": owners.tolist(),
        "frame_index": places.tolist(),
        "timestamp": (places / 10).tolist(),
    }
    pictures = np.stack(
        [np.full((*SIZE, 3), 50 * owner + 5 * place, np.uint8) for owner, place in zip(owners, places, strict=True)]
    )
    entries = [
        {"episode_index": i, "length": count, "data/chunk_index": 0, "data/file_index": 0}
        for i, count in enumerate(rows)
    ]
    for camera in cameras:
        if dtype == "image":
            coded = [cv2.imencode(".png", picture)[1].tobytes() for picture in pictures]
            columns[camera] = [{"bytes": image, "path": None} for image in coded]
            continue
        path = folder / "videos" / camera / "chunk-000" / "file-000.mp4"
        path.parent.mkdir(parents=True)
        writer = VideoWriter(path, Fraction(10), SIZE)
        for i, entry in enumerate(entries):
            entry |= {f"videos/{camera}/chunk_index": 0, f"videos/{camera}/file_index": 0}
            entry[f"videos/{camera}/from_timestamp"] = writer.end_s
            writer.add(pictures[owners == i])
        writer.close()
    for name, table in (("data", columns), ("meta/episodes", entries)):
        path = folder / name / "chunk-000" / "file-000.parquet"
        path.parent.mkdir(parents=True)
        made = arrow.Table.from_pylist(table) if isinstance(table, list) else arrow.table(table)
        parquet.write_table(made, path)
    features = {camera: {"dtype": dtype, "shape": [3, *SIZE], "names": ["c", "h", "w"]} for camera in cameras}
    features |= {
        "action": {"dtype": "float32", "shape": [width], "names": {"motors": list(names)}},
        "observation.state": {"dtype": "float32", "shape": [2], "names": ["speed", "lag"]},
        "curvature": {"dtype": "float32", "shape": [1], "names": None},
        "episode_index": {"dtype": "int64", "shape": [1], "names": None},
        "frame_index": {"dtype": "int64", "shape": [1], "names": None},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    }
    write_info(folder, features=features)
    return folder


def write_info(folder, **changes):
    path = folder / "meta" / "info.json"
    content = json.loads(path.read_text()) if path.exists() else {"codebase_version": "v3.0", "fps": 10}
    path.write_text(json.dumps(content | changes))


def test_driving_of_another_program_is_known_by_its_names(tmp_path):
    dataset = import_lerobot(foreign(tmp_path / "src"), tmp_path / "out", reward="speed - abs(steering) + curvature")
    assert (dataset.num_episodes, dataset.num_steps) == (2, 15)
    first, second = dataset.read_episode(0), dataset.read_episode(1)
    actions = np.linspace(0, 0.9, 51).reshape(17, 3)
    np.testing.assert_allclose(second.actions[:, :3], actions[8:16], atol=1e-6)
    assert (second.actions[:, 3] == 1).all()
    assert levels(first.frames) == pytest.approx([5 * i for i in range(8)], abs=2)
    assert levels(second.frames) == pytest.approx([50 + 5 * i for i in range(9)], abs=2)
    np.testing.assert_allclose(second.rewards, np.arange(8) * 1.1 - actions[8:16, 0], atol=1e-5)
    assert second.truncated[-1] and not second.terminated.any()
    assert (second.behaviour, second.seed, second.infos.keys()) == ("lerobot", -1, {"curvature"})
    simulator = dataset.metadata.simulator
    assert (simulator.step_s, simulator.action, simulator.frame_size) == (0.1, ActionFormat.driving(), SIZE)
    assert [(field.name, field.low, field.high) for field in simulator.vector] == [("speed", 0, 8), ("lag", -8, 0)]
    np.testing.assert_array_equal(second.vectors[:, 0], np.arange(9))


def test_images_in_the_table_are_exact_and_are_fitted(tmp_path):
    source = foreign(tmp_path / "src", dtype="image")
    assert levels(import_lerobot(source, tmp_path / "out").read_episode(1).frames) == [50 + 5 * i for i in range(9)]
    boxed = import_lerobot(source, tmp_path / "boxed", frame_size=(32, 32)).read_episode(1).frames
    assert boxed.shape == (9, 32, 32, 3) and (boxed[:, 0] == 0).all() and (boxed[:, 16] > 0).all()


def test_other_actions_are_taken_as_they_are(tmp_path):
    told = []
    source = foreign(tmp_path / "src", names=("shoulder", "wrist"))
    dataset = import_lerobot(source, tmp_path / "out", notify=told.append, reward="wrist")
    action = dataset.metadata.simulator.action
    assert (action.kind, action.dim) == ("native", 2)
    assert "shoulder, wrist; they are taken as they are" in told[0]
    episode = dataset.read_episode(0)
    np.testing.assert_array_equal(episode.rewards, episode.actions[:, 1])
    with pytest.raises(DatasetError, match="to which --fill throttle adds none"):
        import_lerobot(source, tmp_path / "more", fill={"throttle": 0.3})


def test_names_that_a_formula_cannot_tell_apart_are_numbered_and_factors_reach_the_actions(tmp_path):
    source = foreign(tmp_path / "src", names=("wrist.x", "wrist_x"))
    dataset = import_lerobot(source, tmp_path / "out", scale={"action_1": -2.0}, reward="action_1")
    first = dataset.read_episode(0)
    np.testing.assert_allclose(first.actions[1], np.linspace(0, 0.9, 34)[2:4] * [1, -2], atol=1e-6)
    np.testing.assert_array_equal(first.rewards, first.actions[:, 1])


def test_steering_alone_needs_a_throttle_to_be_driving(tmp_path):
    source = foreign(tmp_path / "src", names=("steering",))
    assert import_lerobot(source, tmp_path / "native").metadata.simulator.action.kind == "native"
    actions = import_lerobot(source, tmp_path / "out", fill={"throttle": 0.3}).read_episode(0).actions
    np.testing.assert_allclose(actions[:, 1], 0.3)


def test_names_of_driving_actions():
    assert driving_places(["Gas.pedal_normalized", "steering_angle.pos", "x"]) == {"throttle": 0, "steering": 1}
    assert driving_places(["steer", "steering"]) == {}


def test_the_camera_is_chosen_where_there_are_two(tmp_path):
    source = foreign(tmp_path / "src", cameras=(CAMERA, "observation.images.left"))
    with pytest.raises(ConfigError, match=r"choose one by --camera observation\.images\.front"):
        import_lerobot(source, tmp_path / "out")
    with pytest.raises(ConfigError, match="is no camera of"):
        import_lerobot(source, tmp_path / "out", camera="right")
    assert import_lerobot(source, tmp_path / "out", camera="left").num_episodes == 2


def without_video(folder):
    next((folder / "videos").rglob("*.mp4")).unlink()


def without_column(folder):
    path = next((folder / "data").rglob("*.parquet"))
    parquet.write_table(parquet.read_table(path).drop_columns(["curvature"]), path)


def without_row(folder):
    path = next((folder / "data").rglob("*.parquet"))
    parquet.write_table(parquet.read_table(path).slice(1), path)


def with_a_hole(folder):
    path = next((folder / "data").rglob("*.parquet"))
    table = parquet.read_table(path)
    states = [[math.nan, 0.0], *table["observation.state"].to_pylist()[1:]]
    place = table.schema.get_field_index("observation.state")
    parquet.write_table(table.set_column(place, "observation.state", arrow.array(states)), path)


def with_half_a_video(folder):
    path = next((folder / "videos").rglob("*.mp4"))
    path.unlink()
    writer = VideoWriter(path, Fraction(10), SIZE)
    writer.add(smooth_frames(10, 1))
    writer.close()


ODD = {
    "an older version": (lambda f: write_info(f, codebase_version="v2.1"), "of version v2.1, but v3.0 is wanted"),
    "no rate": (lambda f: write_info(f, fps=0), "info.json is damaged: fps: "),
    "a path outside": (lambda f: write_info(f, data_path="../../x-{chunk_index}.parquet"), "lies outside of it"),
    "a path without meaning": (lambda f: write_info(f, data_path="{nothing}"), "where the data of an episode lies"),
    "no video": (without_video, r"file-000.mp4 is missing; copy the dataset again"),
    "a column less": (without_column, "lacks the column curvature"),
    "a row less": (without_row, "has 7 rows of episode 0, but its length is 8"),
    "a state that is none": (with_a_hole, "has an action or a state that is no finite number"),
    "a table that is none": (
        lambda f: next((f / "data").rglob("*.parquet")).write_bytes(b"PAR1 no"),
        "is no Parquet file that can be read",
    ),
    "a video that is none": (
        lambda f: next((f / "videos").rglob("*.mp4")).write_bytes(b"no video"),
        "is no video that can be read",
    ),
    "half a video": (with_half_a_video, "has no frame at 1.000 s, though an episode has 9 from 0.800 s on"),
    "no episodes": (lambda f: next((f / "meta" / "episodes").rglob("*.parquet")).unlink(), "has no episodes in"),
}


@pytest.mark.parametrize("case", ODD)
def test_what_does_not_fit_is_told_in_one_sentence_and_leaves_nothing(case, tmp_path):
    change, sentence = ODD[case]
    source = foreign(tmp_path / "src")
    change(source)
    with pytest.raises(DatasetError, match=sentence) as raised:
        import_lerobot(source, tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_without_a_camera_or_actions_nothing_can_be_learnt(tmp_path):
    source = foreign(tmp_path / "src")
    features = json.loads((source / "meta" / "info.json").read_text())["features"]
    write_info(source, features={name: value for name, value in features.items() if name != "action"})
    with pytest.raises(DatasetError, match="has no feature 'action'"):
        import_lerobot(source, tmp_path / "out")
    write_info(source, features={name: value for name, value in features.items() if name != CAMERA})
    with pytest.raises(DatasetError, match="has no camera, but frames are needed"):
        import_lerobot(source, tmp_path / "out")


def test_an_export_that_cannot_be_is_refused_and_leaves_nothing(source, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("")
    with pytest.raises(DatasetError, match="is not empty"):
        export_lerobot(source, tmp_path / "used")
    with pytest.raises(ConfigError, match=r"has steps of 0.05 s, so that --step-s 0.1 cannot be"):
        export_lerobot(source, tmp_path / "out", step_s=0.1)
    source.episodes[2].path.write_bytes(source.episodes[2].path.read_bytes()[:-1])
    with pytest.raises(DatasetError, match="damaged"):
        export_lerobot(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_dataset_without_a_step_needs_one(tmp_path):
    metadata = make_metadata()
    simulator = metadata.simulator.model_copy(update={"step_s": 0.0})
    dataset = Dataset.create(
        tmp_path / "src", metadata.model_copy(update={"simulator": simulator}), [make_episode(steps=3)]
    )
    with pytest.raises(DatasetError, match="does not say how long a step takes"):
        export_lerobot(dataset, tmp_path / "out")
    export_lerobot(dataset, tmp_path / "out", step_s=0.08)
    assert json.loads((tmp_path / "out" / "meta" / "info.json").read_text())["fps"] == 12.5


@pytest.mark.parametrize("package", ["pyarrow", "av"])
def test_without_the_packages_the_way_to_install_them_is_named(source, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DatasetError, match=rf"need the package {package}; .*pip install wm_gym\[lerobot\]"):
        export_lerobot(source, tmp_path / "out")


def test_the_command_guesses_converts_there_and_back_and_refuses_what_has_no_use(tmp_path, capsys):
    source = foreign(tmp_path / "src")
    assert guess_layout(source) == "lerobot"
    data, out = str(tmp_path / "data"), str(tmp_path / "out")
    assert main(["dataset", "convert", str(source), "--out", data, "--frame-size", "32"]) == 0
    assert main(["dataset", "convert", data, "--out", f"lerobot:{out}"]) == 0
    assert main(["dataset", "convert", out, "--from", "lerobot", "--out", str(tmp_path / "back")]) == 0
    assert Dataset.open(tmp_path / "back").metadata.simulator == Dataset.open(data).metadata.simulator
    assert main(["dataset", "convert", str(source), "--out", out, "--cut-gap", "2"]) == 2
    assert "--cut-gap has no use in a conversion from lerobot" in capsys.readouterr().err


def test_it_trains_and_dreams(tmp_path):
    import gymnasium as gym

    import wm_gym  # noqa: F401  # registers the dream

    source, data, model = foreign(tmp_path / "src", rows=(12, 12, 12)), tmp_path / "data", tmp_path / "model"
    convert = ["dataset", "convert", str(source), "--out", str(data), "--frame-size", "64", "--reward", "speed"]
    assert main(convert) == 0
    train = ["train-model", "--data", str(data), "--config", "debug", "--out", str(model), "--device", "cpu", "--quiet"]
    assert main([*train, "--set", "training.steps=3", "--set", "training.validate_every=3"]) == 0
    env = gym.make("DreamDriving-v0", model=str(model), horizon=5)
    env.reset(seed=0)
    _, reward, *_ = env.step(env.action_space.sample())
    assert math.isfinite(reward)
    env.close()
