"""Route files: the forms that people use, and what is wrong with others."""

from __future__ import annotations

from itertools import pairwise

import pytest

from wm_gym.envs.carla.route import RoutePlanner
from wm_gym.envs.carla.route_files import DEFAULT_WEATHER, choose_routes, read_routes
from wm_gym.envs.carla.town import same_roads
from wm_gym.errors import ConfigError, SimulatorError

from .real_maps import FOLDER, load_map

FILES = FOLDER.parent / "carla-routes"

OLD = """<?xml version='1.0' encoding='UTF-8'?>
<routes><route id="4" town="Town02">
  <waypoint pitch="0.0" roll="0.0" x="1.5" y="-2" yaw="89.9" z="0.0"/>
  <waypoint pitch="0.0" roll="0.0" x="10" y="20" yaw="89.9" z="0.0"/>
  <weather cloudiness="80.0" precipitation="30.0" sun_altitude_angle="5.0" id="3"/>
</route></routes>
"""
NEW = """<routes>
  <route id="7" town="Town10HD_Opt">
    <!-- a remark -->
    <weathers>
      <weather route_percentage="100" cloudiness="90"/>
      <weather route_percentage="0" cloudiness="5" fog_density="2"/>
    </weathers>
    <waypoints><position x="85.7" y="66.4" z="371"/><position x="-2" y="6"/><position x="1" y="2" z="3"/></waypoints>
    <scenarios>
      <scenario name="ControlLoss_1" type="ControlLoss"><trigger_point x="71.0" y="66.3" z="0.0" yaw="9"/></scenario>
      <scenario name="ControlLoss_2" type="ControlLoss"><trigger_point x="19.4" y="66.3" z="0.0" yaw="9"/></scenario>
    </scenarios>
  </route>
</routes>
"""


def write(folder, text):
    path = folder / "routes.xml"
    path.write_text(text, encoding="utf-8")
    return path


def route_in(town, number, places='<waypoint x="0" y="0" z="0"/><waypoint x="1" y="0" z="0"/>'):
    return f'<route id="{number}" town="{town}">{places}</route>'


def with_places(places):
    return f"<routes>{route_in('T', 5, places)}</routes>"


def test_the_old_form(tmp_path):
    (route,) = read_routes(write(tmp_path, OLD))
    assert (route.route_id, route.town) == ("4", "Town02")
    assert route.places == ((1.5, -2.0, 0.0), (10.0, 20.0, 0.0))
    assert route.weather == {"cloudiness": 80.0, "precipitation": 30.0, "sun_altitude_angle": 5.0}
    assert (route.num_weathers, route.num_scenarios) == (1, 0)


def test_the_new_form(tmp_path):
    (route,) = read_routes(write(tmp_path, NEW))
    assert (route.route_id, route.town) == ("7", "Town10HD_Opt")
    assert route.places == ((85.7, 66.4, 371.0), (-2.0, 6.0, 0.0), (1.0, 2.0, 3.0))
    assert route.weather == {**DEFAULT_WEATHER, "cloudiness": 5.0, "fog_density": 2.0}  # the first along the route
    assert (route.num_weathers, route.num_scenarios) == (2, 2)
    assert route.reset_options()["weather"] == route.weather
    assert set(route.reset_options(weather=False)) == {"town", "waypoints"}


def test_routes_are_chosen_by_id_and_town(tmp_path):
    text = "".join(route_in("Town01" if number < 3 else "Town02", number) for number in range(6))
    routes = read_routes(write(tmp_path, f"<routes>{text}</routes>"))

    def ids(**given):
        return [route.route_id for route in choose_routes(routes, **given)]

    assert ids() == list("012345")
    assert ids(ids="4, 0,1-3") == list("01234")
    assert ids(towns=["Town02"]) == list("345")
    assert ids(ids="2-4", towns=["Town02"]) == list("34")
    for given, message in (
        ({"ids": "0,6"}, "has no route '6'"),
        ({"ids": "1-9"}, "has no route '9'"),
        ({"ids": ""}, "has no route ''"),
        ({"ids": "3-1"}, "ends before it begins; write it as 1-3"),
        ({"towns": ["Town2"]}, "did you mean 'Town02'"),
        ({"ids": "0", "towns": ["Town02"]}, "none of the routes"),
    ):
        with pytest.raises(ConfigError, match=message) as error:
            choose_routes(routes, **given)
        assert "\n" not in str(error.value)


def test_an_id_may_have_a_dash(tmp_path):
    routes = read_routes(write(tmp_path, f"<routes>{route_in('T', 'a-1')}{route_in('T', 'b')}</routes>"))
    assert [route.route_id for route in choose_routes(routes, ids="a-1")] == ["a-1"]


BOMB = """<!DOCTYPE routes [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<routes><route id="0" town="&b;"/></routes>"""
OUTSIDE = """<!DOCTYPE routes [<!ENTITY a SYSTEM "file:///etc/passwd">]><routes><route id="0" town="&a;"/></routes>"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no XML in line 1: no element found"),
        ("<routes>\n<route>", "is no XML in line 2"),
        ("town: Town01", "is no XML in line 1"),
        (BOMB, "document type"),
        (OUTSIDE, "document type"),
        ("<routes>&nothing;</routes>", "is no XML in line 1: undefined entity"),
        ("<a>" * 40 + "</a>" * 40, "deep"),
        ("<routes/>", "has no <route>"),
        ("<routes><route town='T'/></routes>", "a <route> without id"),
        ("<routes><route id='5'/></routes>", "route 5 of .* names no town"),
        (with_places(""), "route 5 of .* has no waypoints"),
        (with_places('<waypoint x="0" y="0"/>'), "has 1 waypoints"),
        (with_places('<waypoint x="0"/>' * 2), "y=None, which is no finite number"),
        (with_places('<waypoint x="0" y="nan"/>' * 2), "y='nan'"),
        (with_places('<waypoint x="0" y="1e300"/>' * 2), "on no map"),
        (f"<routes>{route_in('T', 5)}{route_in('T', 5)}</routes>", "two routes with the id '5'"),
        (OLD.replace("80.0", "much"), "cloudiness='much'"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as error:
        read_routes(write(tmp_path, text))
    assert "\n" not in str(error.value)
    assert ";" in str(error.value)  # what to do


def test_no_file_or_another_kind_of_file(tmp_path):
    with pytest.raises(ConfigError, match="there is no such file"):
        read_routes(tmp_path / "none.xml")
    with pytest.raises(ConfigError, match="is no regular file"):
        read_routes(tmp_path)
    (tmp_path / "binary.xml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_routes(tmp_path / "binary.xml")


def test_a_town_in_layers_has_the_roads_of_the_plain_one():
    assert same_roads("Town10HD_Opt", ["Town01", "Town10HD"]) == "Town10HD"
    assert same_roads("Town10HD", ["Town10HD_Opt"]) == "Town10HD_Opt"
    assert same_roads("Town10HD", ["Town10HD_Opt", "Town10HD"]) == "Town10HD"
    assert same_roads("Town12", ["Town01"]) is None


def people_use(name):
    path = FILES / name
    if not path.exists():
        pytest.skip(f"there is no {path}")
    return read_routes(path)


def test_files_that_people_use():
    longest = people_use("longest6.xml")
    assert [len(choose_routes(longest, towns=[f"Town0{number}"])) for number in range(1, 7)] == [6] * 6
    assert all("sun_altitude_angle" in route.weather and route.num_scenarios == 0 for route in longest)
    (town10,) = people_use("routes_town10.xml")
    assert (town10.town, len(town10.places), town10.num_scenarios) == ("Town10HD_Opt", 6, 9)
    devtest = people_use("routes_devtest.xml")
    assert [route.num_weathers for route in devtest] == [2, 2]
    assert len(devtest[0].places) == 35


@pytest.mark.parametrize("town", ["Town01", "Town02", "Town04", "Town06"])
def test_routes_of_longest6_lead_along_their_waypoints(town):
    carla = pytest.importorskip("carla")
    planner = RoutePlanner(load_map(town), 1.0)
    for given in choose_routes(people_use("longest6.xml"), towns=[town]):
        places = [carla.Location(*place) for place in given.places]
        route = planner.plan_through(places)
        chords = sum(before.distance(after) for before, after in pairwise(places))
        assert chords < 1.01 * route.length
        assert route.length < 1.13 * chords  # hardly any leg goes around a block
        # The towns with several lanes a way have places from which a lane cannot be changed in time.
        aside = [((route.points - place[:2]) ** 2).sum(axis=1).min() ** 0.5 for place in given.places]
        assert max(aside) < (1.0 if town in ("Town01", "Town02") else 8.0)
        assert sum(aside) / len(aside) < 1.0
        assert abs((route.headings[1:] - route.headings[:-1] + 180) % 360 - 180).max() < 25.0


def test_a_place_that_is_on_no_road_is_refused():
    carla = pytest.importorskip("carla")
    planner = RoutePlanner(load_map("Town01"), 1.0)
    start = carla.Location(334.7, 288.9)
    with pytest.raises(SimulatorError, match=r"the place \(5000.0, 0.0\) is \d+ m from the nearest lane"):
        planner.plan_through([start, carla.Location(5000.0, 0.0)])
    with pytest.raises(SimulatorError, match="has no length"):
        planner.plan_through([start, start])
