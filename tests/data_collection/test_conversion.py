"""Recordings of other projects, made small in each layout, odd cases included."""

import csv
import gzip
import json
import math

import cv2
import numpy as np
import pytest

from wm_gym.cli.main import main
from wm_gym.data_collection import Dataset, convert_recordings, describe, verify
from wm_gym.data_collection.conversion.carla_routes import FIELDS
from wm_gym.data_collection.conversion.convert import guess_layout
from wm_gym.data_collection.conversion.pictures import fit_frame
from wm_gym.data_collection.conversion.reward_expression import RewardExpression
from wm_gym.envs.carla.observed_vector import vector_fields
from wm_gym.errors import ConfigError, DatasetError, OutputError


def picture(path, level, size=(20, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((*size, 3), level, np.uint8))


def levels(episode):
    """What the pictures were filled with."""
    return np.rint(episode.frames.mean(axis=(1, 2, 3))).astype(int).tolist()


def udacity_name(row):
    return f"center_2016_12_01_13_{30 + row // 600:02d}_{row // 10 % 60:02d}_{row % 10}00.jpg"


def udacity(folder, rows=8, *, header=False, prefix="C:\\Users\\me\\IMG\\", pause_at=None):
    lines = ["center,left,right,steering,throttle,brake,speed"] if header else []
    for row in range(rows):
        name = udacity_name(row + (50 if pause_at is not None and row >= pause_at else 0))
        picture(folder / "IMG" / name, 10 * (row % 25))
        side = name.replace("center", "left")
        picture(folder / "IMG" / side, 5)
        steering = 0.5 * math.sin(row)
        lines.append(f"{prefix}{name}, {prefix}{side}, {prefix}{name}, {steering:.4f}, {row % 7 / 10}, 0, {row}")
    (folder / "driving_log.csv").write_text("\r\n".join(lines) + "\r\n")
    return folder


def table(folder, rows=8):
    folder.mkdir(parents=True)
    with (folder / "log.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Timestamp", "image", "Steering Angle", "gas", "brake_pedal", "speed"])
        for row in range(rows):
            picture(folder / "pics" / f"{row}.png", 10 * (row % 25))
            writer.writerow(
                [f"{1600000000000 + 50 * row}", f"pics/{row}.png", 0.3 * math.sin(row), row % 7 / 10, 0, row]
            )
    return folder


def donkey(folder, rows=8, *, deleted=(), broken=(), pause_at=None):
    lines = []
    for row in range(rows):
        name = f"{row}_cam_image_array_.jpg"
        picture(folder / "images" / name, 10 * (row % 25))
        record = {
            "cam/image_array": name,
            "user/angle": 0.4 * math.sin(row),
            "user/throttle": 0.1 * (row % 8) - 0.1,
            "user/mode": "user",
            "_index": row,
            "_timestamp_ms": 1000 + 50 * row + (10_000 if pause_at is not None and row >= pause_at else 0),
        }
        lines.append(json.dumps(record) if row not in broken else '{"cam/image_array": "x')
    (folder / "catalog_0.catalog").write_text("\r\n".join(lines) + "\r\n")
    (folder / "catalog_0.catalog_manifest").write_text("{}\n")
    catalogs = {"paths": ["catalog_0.catalog"], "current_index": rows, "deleted_indexes": list(deleted)}
    (folder / "manifest.json").write_text("\n".join(("[]", "[]", "{}", "{}", json.dumps(catalogs))) + "\n")
    return folder


def transfuser(folder, rows=8, *, garage=False):
    for row in range(rows):
        record = {
            "speed": 2.0 + row / 10,
            "command": row % 6 + 1,
            "steer": 0.1,
            "throttle": row % 7 / 10,
            "brake": False,
        }
        if garage:
            record |= {"target_point": [12.0, -3.0], "control_brake": row == 2}
        else:  # the car looks east (theta is a quarter turn); the point lies 10 m east and 4 m south of it
            record |= {"x": 5.0, "y": 7.0, "theta": math.pi / 2, "x_command": 1.0, "y_command": 17.0}
        path = folder / "town" / "route1" / "measurements" / f"{row:04d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        if garage:
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(json.dumps(record).encode()))
        else:
            path.write_text(json.dumps(record))
        picture(folder / "town" / "route1" / "rgb" / f"{row:04d}.png", 10 * (row % 25))
    return folder


def bench2drive(folder, rows=8):
    for row in range(rows):
        record = {
            **{"x": 10.0, "y": 20.0, "theta": math.pi / 2, "speed": row / 4, "steer": -0.1, "throttle": row % 7 / 10},
            **{"brake": 0.0, "reverse": row == 3, "command_near": 4, "x_command_near": 30.0, "y_command_near": 25.0},
        }
        path = folder / "clip" / "anno" / f"{row:05d}.json.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(json.dumps(record).encode()))
        picture(folder / "clip" / "camera" / "rgb_front" / f"{row:05d}.jpg", 10 * (row % 25))
    return folder


MAKERS = {
    "udacity": udacity,
    "table": table,
    "donkey": donkey,
    "transfuser": transfuser,
    "bench2drive": bench2drive,
}
STEPS = {"udacity": 0.1, "table": 0.05, "donkey": 0.05, "transfuser": 0.5, "bench2drive": 0.1}


@pytest.mark.parametrize("layout", MAKERS)
def test_each_layout_arrives_and_is_guessed(layout, tmp_path):
    source = MAKERS[layout](tmp_path / "src")
    assert guess_layout(source) == layout
    dataset = convert_recordings(source, tmp_path / "out")
    assert (dataset.num_episodes, dataset.num_steps) == (1, 7)
    assert dataset.metadata.simulator.step_s == pytest.approx(STEPS[layout])
    assert dataset.metadata.simulator.frame_size == (20, 40)
    episode = dataset.read_episode(0)
    assert levels(episode) == [10 * row for row in range(8)]
    assert episode.truncated[-1]
    assert verify(tmp_path / "out").is_valid


def test_udacity_values(tmp_path):
    episode = convert_recordings(udacity(tmp_path / "src", header=True), tmp_path / "out").read_episode(0)
    np.testing.assert_allclose(episode.actions[:, 0], 0.5 * np.sin(np.arange(7)), atol=1e-4)
    np.testing.assert_allclose(episode.actions[:, 1:], [[row / 10, 0, 1] for row in range(7)], rtol=1e-6)
    np.testing.assert_array_equal(episode.infos["speed"], np.arange(7))
    np.testing.assert_allclose(episode.infos["time_s"], np.arange(7) / 10, atol=1e-5)
    left = convert_recordings(tmp_path / "src", tmp_path / "left", camera="left").read_episode(0)
    assert levels(left) == [5] * 8


def test_rows_that_cannot_be_used_are_counted_and_end_an_episode(tmp_path):
    source = udacity(tmp_path / "src", rows=20)
    (source / "IMG" / udacity_name(4)).unlink()
    whole = (source / "IMG" / udacity_name(9)).read_bytes()
    (source / "IMG" / udacity_name(9)).write_bytes(whole[: len(whole) // 2])
    lines = (source / "driving_log.csv").read_text().split("\n")
    lines[13] = "\0" * 30
    lines[16] = lines[16].replace(", 0,", ', "x,')
    (source / "driving_log.csv").write_text("\ufeff" + "\n".join(lines))
    said = []
    dataset = convert_recordings(source, tmp_path / "out", notify=said.append)
    episodes = [dataset.read_episode(i) for i in range(dataset.num_episodes)]
    assert [levels(episode) for episode in episodes] == [
        [0, 10, 20, 30],
        [50, 60, 70, 80],
        [100, 110, 120],
        [140, 150],
        [170, 180, 190],
    ]
    assert said == [
        f"{source / 'driving_log.csv'}: 4 of 20 rows are left out (1 without an image, 1 with a damaged image, "
        "2 broken)."
    ]


def test_a_pause_and_a_length_cut_a_recording(tmp_path):
    source = udacity(tmp_path / "src", rows=30, pause_at=10)
    lengths = [h.length for h in convert_recordings(source, tmp_path / "out").episodes]
    assert lengths == [9, 19]
    assert [h.length for h in convert_recordings(source, tmp_path / "whole", cut_gap=60.0).episodes] == [29]
    short = convert_recordings(source, tmp_path / "short", cut_seconds=0.5)
    assert [h.length for h in short.episodes] == [4, 4, 4, 4, 4, 4]


def test_donkey_deleted_broken_and_pauses(tmp_path):
    source, said = donkey(tmp_path / "src", 20, deleted=[3, 4], broken=[9], pause_at=14), []
    dataset = convert_recordings(source, tmp_path / "out", notify=said.append)
    episodes = [dataset.read_episode(i) for i in range(dataset.num_episodes)]
    assert [levels(e)[0] // 10 for e in episodes] == [0, 5, 10, 14]
    assert [len(e) for e in episodes] == [2, 3, 3, 5]
    np.testing.assert_allclose(episodes[0].actions[0], [0, 0, 0.1, 1], atol=1e-6)
    assert "a throttle below 0 counts as the brake" in said[0]
    assert "3 of 20 rows are left out (2 deleted, 1 broken)" in said[1]


def test_a_donkey_pilots_actions_are_taken_where_it_drove(tmp_path):
    source = donkey(tmp_path / "src", 4)
    path = source / "catalog_0.catalog"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records[1:]:
        record |= {"user/mode": "local", "pilot/angle": -0.75, "pilot/throttle": 0.5}
    path.write_text("\n".join(map(json.dumps, records)))
    episode = convert_recordings(source, tmp_path / "out").read_episode(0)
    np.testing.assert_allclose(episode.actions[1:, :2], [[-0.75, 0.5]] * 2)
    for record in records[2:]:
        del record["pilot/angle"]
    path.write_text("\n".join(map(json.dumps, records)))
    said = []
    assert len(convert_recordings(source, tmp_path / "unknown", notify=said.append).read_episode(0)) == 1
    assert "2 of 4 rows are left out (2 broken)" in said[-1]


def test_target_points_and_commands(tmp_path):
    route = convert_recordings(transfuser(tmp_path / "tf"), tmp_path / "a").read_episode(0)
    np.testing.assert_allclose(route.vectors[1], [2.1, 1, 10, 4], atol=1e-5)
    garage = convert_recordings(transfuser(tmp_path / "garage", garage=True), tmp_path / "b")
    assert garage.metadata.simulator.step_s == 0.25
    np.testing.assert_allclose(garage.read_episode(0).vectors[0], [2, 0, 12, -3], atol=1e-5)
    np.testing.assert_array_equal(garage.read_episode(0).actions[:, 2], [0, 0, 1, 0, 0, 0, 0])
    clip = convert_recordings(bench2drive(tmp_path / "b2d"), tmp_path / "c").read_episode(0)
    np.testing.assert_allclose(clip.vectors[4], [1, 3, 20, 5], atol=1e-5)
    np.testing.assert_array_equal(clip.actions[:, 3], [1, 1, -1, 1, 1, 1, 1])  # what led to frame 3
    assert FIELDS[:2] == vector_fields(["speed", "command"])


def test_bench2drive_actions_lead_to_the_frame_of_their_record(tmp_path):
    source = bench2drive(tmp_path / "src")
    (source / "clip" / "anno" / "00003.json.gz").unlink()
    dataset = convert_recordings(source, tmp_path / "out")
    throttles = [dataset.read_episode(i).actions[:, 1] for i in range(2)]
    np.testing.assert_allclose(np.concatenate(throttles), [0.1, 0.2, 0.5, 0.6, 0], atol=1e-6)


def test_a_bench2drive_cars_box_tells_its_place(tmp_path):
    source = bench2drive(tmp_path / "src", rows=4)
    for row, path in enumerate(sorted((source / "clip" / "anno").iterdir())):
        record = json.loads(gzip.decompress(path.read_bytes())) | {"theta": math.nan}
        # CARLA's y axis points to the right of its x axis: the car looks along y.
        box = {"class": "ego_vehicle", "location": [11.0, 20.0, 0.0], "rotation": [0.0, 0.0, 90.0]}
        record["bounding_boxes"] = [{"class": "vehicle"}, box] if row else []
        path.write_bytes(gzip.compress(json.dumps(record).encode()))
    said = []
    episode = convert_recordings(source, tmp_path / "out", notify=said.append).read_episode(0)
    np.testing.assert_allclose(episode.vectors[:, 2:], [[5, -19]] * 3, atol=1e-5)
    assert "1 of 4 rows are left out (1 broken)" in said[0]


def test_records_are_paired_with_pictures_by_name(tmp_path):
    source, said = transfuser(tmp_path / "src"), []
    route = source / "town" / "route1"
    (route / "rgb" / "0000.png").unlink()
    (route / "measurements" / "0005.json").write_text("{")
    dataset = convert_recordings(source, tmp_path / "out", notify=said.append)
    assert [levels(dataset.read_episode(i)) for i in range(2)] == [[10, 20, 30, 40], [60, 70]]
    assert "2 of 8 rows are left out (1 without an image, 1 broken)" in said[0]


def steering_only(folder, header="frame,angle", values=(0.1, 0.2, 0.3)):
    folder.mkdir()
    for row, _ in enumerate(values):
        picture(folder / f"{row}.png", row)
    rows = "".join(f"{row}.png,{value}\n" for row, value in enumerate(values))
    (folder / "drive.csv").write_text(f"{header}\n{rows}")
    return folder


def test_what_is_not_recorded_must_be_given(tmp_path):
    source = steering_only(tmp_path / "src")
    out = tmp_path / "out"
    with pytest.raises(DatasetError, match="does not say the time between two rows; give it by --step-s"):
        convert_recordings(source, out)
    with pytest.raises(DatasetError, match=r"has no throttle; .* --fill throttle=0\.3"):
        convert_recordings(source, out, step_s=0.1)
    with pytest.raises(DatasetError, match="has no times, so --cut-gap cannot be used"):
        convert_recordings(source, out, step_s=0.1, fill={"throttle": 0.3}, cut_gap=1.0)
    with pytest.raises(DatasetError, match="has a column for steering already"):
        convert_recordings(source, out, step_s=0.1, fill={"throttle": 0.3, "steering": 0})
    assert not out.exists()
    said = []
    dataset = convert_recordings(
        source, out, step_s=0.1, fill={"throttle": 0.3}, scale={"steering": -1}, notify=said.append
    )
    np.testing.assert_allclose(dataset.read_episode(0).actions, [[-0.1, 0.3, 0, 1], [-0.2, 0.3, 0, 1]], rtol=1e-6)
    assert "has no brake; it is taken as 0" in said[0]


@pytest.mark.parametrize(
    ("header", "values", "message"),
    [
        ("frame,speed", (1, 2, 3), "none of them is a steering"),
        ("name,angle", (1, 2, 3), "none of them is a picture"),
        ("frame,angle", (1, 25, 3), r"steering 25 in row .*--scale steering=0\.04"),
        ("frame,angle", ("x", "y", ""), r"no row that can be used \(3 broken\)"),
    ],
)
def test_tables_that_do_not_fit(tmp_path, header, values, message):
    with pytest.raises(DatasetError, match=message):
        convert_recordings(
            steering_only(tmp_path / "src", header, values), tmp_path / "out", step_s=0.1, fill={"throttle": 1}
        )
    assert not (tmp_path / "out").exists()


def test_two_columns_for_one_thing_and_two_pictures_of_one_name(tmp_path):
    with pytest.raises(DatasetError, match="two columns for steering, 'angle' and 'steer'"):
        convert_recordings(steering_only(tmp_path / "a", "angle,steer"), tmp_path / "out", layout="table")
    source = steering_only(tmp_path / "b")
    picture(source / "other" / "1.png", 9)
    (source / "1.png").rename(source / "other" / "x.png")
    picture(source / "more" / "1.png", 9)
    with pytest.raises(DatasetError, match=r"the image '1\.png' may be"):
        convert_recordings(source, tmp_path / "out", step_s=0.1, fill={"throttle": 1})


def drives(folder, header, row, rows=8, *, sign=",", suffix=".png", encoding="utf-8"):
    """A table as ``row`` writes its rows from their numbers, and a picture of each."""
    folder.mkdir()
    for number in range(rows):
        picture(folder / "pics" / f"{number}{suffix}", 10 * number)
    lines = [*([header] if header else []), *(sign.join(map(str, row(number))) for number in range(rows))]
    (folder / "log.csv").write_bytes("\r\n".join(lines).encode(encoding))
    return folder


def comma(value):
    return str(value).replace(".", ",")


def zoned(row):
    """Every tenth of a second around midnight, in two time zones."""
    zone = "+02:00" if row % 2 else "Z"
    clock = 23 * 3600 + 59 * 60 + 59 + (5 + row) // 10 + (7200 if row % 2 else 0)
    day, clock = 1 + clock // 86400, clock % 86400
    return (
        f"2024-05-{day:02d}T{clock // 3600:02d}:{clock // 60 % 60:02d}:{clock % 60:02d}.{(5 + row) % 10}00000000{zone}"
    )


@pytest.mark.parametrize(
    ("sign", "header", "row"),
    [
        (";", "Time;Image;Steering;Gas", lambda i: (comma(i / 10), f"pics/{i}.png", comma(-i / 10), comma(i / 10))),
        ("\t", "time\timage\tsteer\tgas", lambda i: (comma(i / 10), f"pics/{i}.png", comma(-i / 10), comma(i / 10))),
        (",", "time,image,steer,gas", lambda i: (i / 10, f"pics/{i}.png", f'"{comma(-i / 10)}"', i / 10)),
        (",", "time,image,steer,gas", lambda i: (zoned(i), f"pics/{i}.png", -i / 10, i / 10)),
        (",", "Time,image,steer,gas", lambda i: (f"12:59:59.{i}", f"pics/{i}.png", -i / 10, i / 10)),
        (",", "timestampMs,imagePath,steeringAngle,gasPedal", lambda i: (100 * i, f"pics/{i}.png", -i / 10, i / 10)),
        (";", "sep=;\r\ntime;image;steer;gas", lambda i: (i / 10, f"PICS\\{i}.PNG", -i / 10, i / 10)),
    ],
    ids=["semicolons", "tabs", "quoted commas", "dates", "clock", "camel case", "excel"],
)
def test_tables_as_other_programs_and_countries_write_them(tmp_path, sign, header, row):
    source = drives(tmp_path / "src", header, row, sign=sign)
    (source / "._log.csv").write_bytes(b"\0\5\x16\7")  # macOS leaves such files on disks of other systems
    dataset = convert_recordings(source, tmp_path / "out")
    assert dataset.metadata.simulator.step_s == pytest.approx(0.1, abs=1e-6)
    wanted = [[-i / 10, i / 10] for i in range(7)]
    np.testing.assert_allclose(dataset.read_episode(0).actions[:, :2], wanted, rtol=1e-6)
    assert levels(dataset.read_episode(0)) == [10 * i for i in range(8)]


def plain_row(row):
    return row / 10, f"pics/{row}.png", 0.1, 0.2


def test_rows_without_a_time_are_left_out(tmp_path):
    source = drives(tmp_path / "src", "time,image,steer,gas", lambda i: ("" if i == 3 else i / 10, *plain_row(i)[1:]))
    said = []
    assert [h.length for h in convert_recordings(source, tmp_path / "out", notify=said.append).episodes] == [2, 3]
    assert "1 of 8 rows are left out (1 without a time)" in said[-1]


def test_rows_without_neighbours_are_told_and_not_their_times(tmp_path):
    source = drives(tmp_path / "src", "time,image,steer,gas", lambda i: plain_row(i)[: 4 - i % 2])
    with pytest.raises(DatasetError, match=r"no two rows that follow each other \(4 broken\), so there is no step"):
        convert_recordings(source, tmp_path / "out")


@pytest.mark.parametrize(
    "time",
    [lambda i: 1_700_000_000 + i // 10, lambda i: i // 2 / 10, lambda i: i * 5 % 8 / 10],
    ids=["whole seconds", "rows twice", "shuffled"],
)
def test_times_that_do_not_rise_are_refused(tmp_path, time):
    source = drives(tmp_path / "src", "time,image,steer,gas", lambda i: (time(i), *plain_row(i)[1:]))
    with pytest.raises(DatasetError, match=r"times that do not rise in \d+ of 7 rows; sort its rows by time"):
        convert_recordings(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pictures_and_recordings_behind_links_and_elsewhere(tmp_path):
    (tmp_path / "store").mkdir()
    source = drives(tmp_path / "store" / "src", "time,image,steer,gas", plain_row)
    (source / "pics").rename(tmp_path / "pics")
    with pytest.raises(
        DatasetError, match=r"8 without an image\).*row 1 names 'pics/0\.png', and there is no such PNG"
    ):
        convert_recordings(source, tmp_path / "no")
    (source / "pics").symlink_to(tmp_path / "pics")
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    (chosen / "first").symlink_to(source)
    (chosen / "loop").symlink_to(chosen)
    assert [h.length for h in convert_recordings(chosen, tmp_path / "linked").episodes] == [7]
    (source / "pics").unlink()
    log = source / "log.csv"
    log.write_text(log.read_text().replace("pics/", f"{tmp_path}/pics/"))
    assert levels(convert_recordings(log, tmp_path / "absolute").read_episode(0)) == [10 * i for i in range(8)]


def test_a_recording_without_rows_is_told_and_the_others_are_taken(tmp_path):
    for name in ("a", "b"):
        udacity(tmp_path / "src" / name)
    log = tmp_path / "src" / "a" / "driving_log.csv"
    log.write_text("")
    said = []
    assert [h.length for h in convert_recordings(tmp_path / "src", tmp_path / "out", notify=said.append).episodes] == [
        7
    ]
    assert said == [f"{log} has no row that can be used (it has none); check its table and images."]
    with pytest.raises(DatasetError, match="has no row that can be used"):
        convert_recordings(tmp_path / "src" / "a", tmp_path / "no")


def test_webp_pictures_and_those_cut_short(tmp_path):
    row = lambda i: (i / 10, f"pics/{i}.WEBP", 0.1, 0.2)  # noqa: E731
    source = drives(tmp_path / "src", "time,image,steer,gas", row, suffix=".webp")
    assert len(convert_recordings(source, tmp_path / "out").read_episode(0)) == 7
    for path in (source / "pics").iterdir():
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DatasetError, match=r"8 with a damaged image\).* is no whole PNG, JPEG or WebP file"):
        convert_recordings(source, tmp_path / "no")


@pytest.mark.parametrize(
    ("header", "values", "message"),
    [
        ("gas", lambda i: [i * 36], r"throttle 36 .*--scale throttle=0\.0039\."),
        ("gas,brake", lambda i: [(i - 4) / 8, 0], "rename the column of the brake"),
        ("gas,gear", lambda i: [0.1, 3], "gear 3 in row 1.*; change it in the recording"),
        ("gas", lambda _: [0.1, 9], "broken.*row 1 has 5 cells, but there are 4 columns"),
        ("gas", lambda _: ["full"], "broken.*row 1 has 'full' for throttle, where a number is wanted"),
    ],
)
def test_the_remedy_fits_the_fault(tmp_path, header, values, message):
    row = lambda i: (*plain_row(i)[:3], *values(i))  # noqa: E731
    source = drives(tmp_path / "src", f"time,image,steer,{header}", row)
    with pytest.raises(DatasetError, match=message):
        convert_recordings(source, tmp_path / "out")


def test_what_cannot_be_written_is_told_before_anything_is_read(tmp_path):
    source = drives(tmp_path / "src", "time,image,steer,gas", lambda i: ("x", "y", "z", i))  # would be refused
    with pytest.raises(OutputError, match="a part of the path is a file"):
        convert_recordings(source, source / "log.csv" / "out")
    with pytest.raises(DatasetError, match="the frame codec 'gif' is unknown"):
        convert_recordings(source, tmp_path / "out", codec="gif")


def test_rewards_by_a_formula(tmp_path):
    source = udacity(tmp_path / "src")
    dataset = convert_recordings(source, tmp_path / "out", reward="speed * 0.1 - abs(steering) + (throttle > 0.25)")
    episode = dataset.read_episode(0)
    wanted = np.arange(7) * 0.1 - np.abs(episode.actions[:, 0]) + (np.arange(7) >= 3)
    np.testing.assert_allclose(episode.rewards, wanted, atol=1e-5)
    with pytest.raises(ConfigError, match=r"names 'sped', which is no column .*did you mean 'speed'"):
        convert_recordings(source, tmp_path / "no", reward="sped")
    with pytest.raises(DatasetError, match="reward that is not finite in row 1"):
        convert_recordings(source, tmp_path / "no", reward="1 / speed")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    "text",
    [
        *("", "1 +", "__import__('os')", "speed.real", "abs(1, 2)", "[1]", "True", "'a'", "x if y else z", "max(*x)"),
        *("x or y", "lambda: 1", "speed := 1", "x[0]", "clip(1, 2)", "1 in x", "abs(x=1)", "1j", "~x", "x // y"),
        *("(" * 500 + "1" + ")" * 500, "-" * 999, "9" * 400, "speed + 0x" + "f" * 900),
    ],
)
def test_what_is_no_formula_is_refused(text):
    with pytest.raises(ConfigError, match=r"--reward"):
        RewardExpression(text)


def test_formulas_compute():
    columns = {"a": np.array([1.0, 2.0, 3.0])}
    with pytest.raises(ConfigError, match="no column"):
        RewardExpression("abs")(columns)
    for text, wanted in (
        ("-a ** 2 / 2", [-0.5, -2, -4.5]),
        ("1 < a <= 2", [0, 1, 0]),
        ("clip(a, 1.5, 2.5) + min(a, 2, 9) - max(a, 2)", [0.5, 2, 1.5]),
        ("3", [3, 3, 3]),
    ):
        np.testing.assert_allclose(RewardExpression(text)(columns), wanted)


def test_letterbox_and_crop():
    frame = np.full((20, 40, 3), 200, np.uint8)
    frame[:, :10] = 50
    boxed = fit_frame(frame, 16, 16, "letterbox")
    assert (boxed[:4] == 0).all()
    assert (boxed[-4:] == 0).all()
    assert boxed[8, 1, 0] == 50
    assert (fit_frame(frame, 16, 16, "crop") == 200).all()
    assert fit_frame(frame, 10, 20, "letterbox").min() == 50


def test_the_command_and_its_options(tmp_path, capsys):
    source = str(udacity(tmp_path / "src"))
    command = ["dataset", "convert", source, "--out", str(tmp_path / "out"), "--frame-size", "16x24", "--crop"]
    assert main([*command, "--from", "udacity", "--camera", "left", "--reward", "speed"]) == 0
    assert "1 episodes, 7 steps" in capsys.readouterr().out
    assert Dataset.open(tmp_path / "out").metadata.simulator.frame_size == (16, 24)
    for wrong, message in (
        (["--from", "table", "--camera", "left"], "--camera belongs to --from udacity"),
        (["--frame-size", "16x"], "--frame-size"),
        (["--fill", "throttle"], "not of the form NAME=NUMBER"),
        (["--cut-gap", "-1"], "--cut-gap"),
        (["--from", "folder", "--reward", "speed"], "--reward has no use in a conversion from the layout folder"),
        (["--from", "donkey"], "holds no recording of the layout donkey"),
    ):
        assert main(["dataset", "convert", source, "--out", str(tmp_path / "no"), *wrong]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
    assert not (tmp_path / "no").exists()


def test_a_table_beside_a_folder_of_frames_is_no_folder_of_episodes(tmp_path):
    for name in ("b10", "b9"):
        source = table(tmp_path / "src" / name)
        (source / "pics").rename(source / "frames")
        rows = (source / "log.csv").read_text().replace("pics/", "frames/")
        (source / "log.csv").write_text(rows if name == "b10" else "\n".join(rows.splitlines()[:5]))
    assert guess_layout(tmp_path / "src") == "table"
    assert [h.length for h in convert_recordings(tmp_path / "src", tmp_path / "out").episodes] == [3, 7]
    picture(tmp_path / "own" / "monday" / "frames" / "0.png", 1)
    (tmp_path / "own" / "monday" / "actions.csv").write_text("steering,acceleration\n0,0\n")
    assert guess_layout(tmp_path / "own") == "folder"
    (tmp_path / "empty").mkdir()
    assert guess_layout(tmp_path / "empty") == "folder"


def test_two_layouts_in_one_folder_are_not_guessed(tmp_path):
    udacity(tmp_path / "src" / "a")
    donkey(tmp_path / "src" / "b")
    with pytest.raises(DatasetError, match="may be udacity or donkey; say which by --from"):
        guess_layout(tmp_path / "src")


def test_info_warns_of_swapped_pedals_and_wrong_steps(tmp_path):
    source = tmp_path / "src"
    source.mkdir()
    rng, speed, lines = np.random.default_rng(0), 10.0, ["time,image,steer,throttle,brake,speed"]
    for row in range(150):
        throttle, brake = rng.uniform(0, 1, 2)
        picture(source / f"{row}.png", 9, (4, 4))
        lines.append(f"{row / 10},{row}.png,0.1,{throttle},{brake},{speed}")
        speed += brake - throttle
    (source / "log.csv").write_text("\n".join(lines))
    warnings = " ".join(describe(convert_recordings(source, tmp_path / "out", step_s=0.05)).warnings)
    assert "drives backwards by its pedals" in warnings
    assert "says 0.05 s a step, but by the recorded times it is 0.1 s" in warnings
    assert "'steering' never changes" in warnings


@pytest.mark.slow
@pytest.mark.parametrize("layout", MAKERS)
def test_each_layout_trains_and_dreams(layout, tmp_path):
    import gymnasium as gym

    import wm_gym  # noqa: F401  # registers the dream

    source, data, model = MAKERS[layout](tmp_path / "src", rows=24), tmp_path / "data", tmp_path / "model"
    convert = ["dataset", "convert", str(source), "--out", str(data), "--frame-size", "64", "--cut-seconds"]
    assert main([*convert, str(11 * STEPS[layout]), "--reward", "speed" if layout != "donkey" else "throttle"]) == 0
    train = ["train-model", "--data", str(data), "--config", "debug", "--out", str(model), "--device", "cpu", "--quiet"]
    assert main([*train, "--set", "training.steps=3", "--set", "training.validate_every=3"]) == 0
    env = gym.make("DreamDriving-v0", model=str(model), horizon=5)
    env.reset(seed=0)
    _, reward, *_ = env.step(env.action_space.sample())
    assert math.isfinite(reward)
    env.close()
