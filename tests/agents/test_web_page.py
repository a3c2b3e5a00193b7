"""``wm-gym export --format web`` in a real browser: Debian's Chromium computes what PyTorch computes, and is driven."""

import functools
import http.server
import shutil
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch

pytest.importorskip("playwright", reason="playwright is not installed")

from serving import standing_steps, steps, unnamed_elements, wait_for, wait_for_controls

from wm_gym.actions import ActionFormat
from wm_gym.agents.bundles.driver import Driver
from wm_gym.agents.bundles.export import export_agent
from wm_gym.agents.play.controls import HandControls
from wm_gym.config import DynamicsConfig, load_config
from wm_gym.envs.car_racing.env import VECTOR_FIELDS
from wm_gym.errors import ExportError
from wm_gym.export.folder import ExportSettings, export_parts
from wm_gym.export.parts import model_parts
from wm_gym.export.web import START_STATES, read_runtime
from wm_gym.observation import Observation
from wm_gym.world_model import WorldModel

pytestmark = pytest.mark.slow

STEPS = 20
MOST_BYTES = 20_000_000


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture(scope="module")
def settings(browser, tmp_path_factory):
    """Of exports with the real runtime, which npm gives once."""
    if shutil.which("npm") is None:
        pytest.skip("there is no npm here to get ONNX Runtime Web with")
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runtime")
    try:
        runtime = read_runtime(None)
    except ExportError as error:
        if "npm did not give" not in str(error):
            raise
        pytest.skip(f"npm reaches no registry: {error}")
    for name, content in runtime.items():
        (folder / name).write_bytes(content)
    return ExportSettings(formats=("web",), repeats=1, web_runtime=folder)


@pytest.fixture(scope="module")
def site(settings, tmp_path_factory):
    """The bundled agent's folder."""
    return export_agent("bundled", tmp_path_factory.mktemp("web") / "site", settings, progress=False).path


@contextmanager
def served(folder):
    """Where a plain static server shows a folder."""
    handler = functools.partial(QuietHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join(30)


@pytest.fixture(scope="module")
def address(site):
    with served(site) as url:
        yield url


@contextmanager
def opened_page(browser, address):
    """A page that is ready; afterwards there was no error, and nothing was asked of another host."""
    opened = browser.new_page()
    requests, errors = [], []
    opened.on("request", lambda request: requests.append(request.url))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda message: message.type == "error" and errors.append(message.text))
    opened.goto(address)
    opened.wait_for_selector("body[data-waits=true]")
    yield opened
    assert errors == []
    assert len(requests) > 10
    assert all(url.startswith(address) for url in requests)
    opened.close()


@pytest.fixture
def page(browser, address):
    with opened_page(browser, address) as opened:
        yield opened


def picture(page):
    return page.evaluate("document.querySelector('#figure-dream canvas').toDataURL()")


def drive_on(page, count=4):
    before = steps(page)
    wait_for(lambda: page.wait_for_timeout(30) or steps(page) >= before + count)


def test_the_folder_is_small(site):
    size = sum(file.stat().st_size for file in site.rglob("*") if file.is_file())
    print(f"\n{size / 1e6:.1f} MB")
    assert size <= MOST_BYTES


@pytest.mark.parametrize("driver", ["hand", "agent"])
@torch.no_grad()
def test_steps_are_those_of_pytorch(page, driver):
    agent, start = Driver.load("bundled"), 5
    model = agent.model
    generator = np.random.default_rng(0)
    noises = generator.random((STEPS, model.noise_dim), np.float32)
    wanted = np.concatenate([generator.uniform((-0.5, 0, 0), (0.5, 1, 0.3), (STEPS, 3)), np.ones((STEPS, 1))], axis=1)
    actions = [None] * STEPS if driver == "agent" else wanted.tolist()
    given = page.evaluate(
        "([start, actions, noises]) => dream.run(start, actions, noises)", [start, actions, noises.tolist()]
    )
    place = torch.linspace(0, model.start_states.batch_size - 1, START_STATES).round().long()[start]
    state, differences = model.start_states.select(place[None]), []
    for t in range(STEPS):
        action = wanted[t] if driver == "hand" else agent.act_on_features(model.features(state)[0].numpy())
        action = torch.as_tensor(action, dtype=torch.float32)
        state, reward, continuation = model.imagine(state, action[None], torch.from_numpy(noises[t : t + 1]))
        expected = {
            "action": action,
            "latent": state.latent,
            "memory": state.memory,
            "features": model.features(state),
            "reward": reward,
            "continuation": continuation,
            "frames": model.decode(state),
        }
        assert given[t].keys() == expected.keys()
        differences += [
            np.abs(np.ravel(given[t][name]) - tensor.numpy().ravel()).max() for name, tensor in expected.items()
        ]
    print(f"\nlargest difference: {max(differences):.1e}")
    assert max(differences) <= 1e-3


def test_how_fast_it_is(page):
    """Printed, not judged: step and picture, and with the agent's action before them."""
    for driver, action in (("hand", [0.0, 0.5, 0.0, 1.0]), ("agent", None)):
        rate = page.evaluate(
            """async (action) => {
              const count = 200;
              dream.start(0);
              const began = performance.now();
              for (let step = 0; step < count; step += 1) {
                await dream.step(action === null ? await dream.agentAction() : Float32Array.from(action));
                await dream.picture();
              }
              return (1000 * count) / (performance.now() - began);
            }""",
            action,
        )
        print(f"\n{driver}: {rate:.0f} frames/s")
        assert rate > 0


def test_a_key_drives_and_the_agent_takes_over(page):
    still = picture(page)
    page.wait_for_timeout(400)
    assert (picture(page), steps(page)) == (still, 0), "nothing moves before a key is pressed"
    page.keyboard.down("KeyW")
    page.keyboard.down("ArrowLeft")
    drive_on(page, 8)
    assert picture(page) != still
    wait_for_controls(page, "◀ 1.00", "gas 1.0")
    page.keyboard.up("KeyW")
    page.keyboard.up("ArrowLeft")
    page.keyboard.press("KeyC")
    drive_on(page, 30)
    assert page.is_checked("input[name=who][value=agent]")
    wait_for(lambda: page.wait_for_timeout(30) or page.inner_text("#pedals-text") != "0")  # it may coast for a moment
    page.check("input[name=who][value=hand]")
    drive_on(page, 6)
    wait_for_controls(page, "0", "0")
    assert page.inner_text("#live") == "Your hand drives."


def test_pause_restart_and_another_start(page):
    page.keyboard.press("KeyC")
    drive_on(page)
    page.keyboard.press("KeyP")
    page.wait_for_selector("#pause[aria-pressed=true]")
    before = standing_steps(page)
    page.keyboard.press("KeyN")
    wait_for(lambda: page.wait_for_timeout(30) or steps(page) == before + 1)
    page.keyboard.press("KeyB")
    page.wait_for_selector("body[data-steps='0'][data-start='0']")
    first = picture(page)
    page.keyboard.press("KeyJ")
    page.wait_for_selector("body[data-steps='0'][data-start='1']")
    assert picture(page) != first
    page.locator("#thumbnails button").nth(2).click()
    page.wait_for_selector("#thumbnails button:nth-child(3)[aria-pressed=true]")


def test_touch_drives_on_a_small_screen_and_all_is_named(page):
    page.set_viewport_size({"width": 375, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    gas = page.locator("#touch-throttle").bounding_box()
    page.mouse.move(gas["x"] + 5, gas["y"] + 5)
    page.mouse.down()
    drive_on(page)
    wait_for_controls(page, "0", "gas 1.0")
    page.mouse.up()
    assert "change between hand and agent" in page.inner_text("#keys dl")
    page.keyboard.press("KeyI")
    assert page.inner_text("#live").startswith("dream: step ")
    assert unnamed_elements(page) == 0


@pytest.mark.parametrize(
    "stored",
    [
        ActionFormat.driving(),
        ActionFormat(kind="native", low=(-1.0, 0.0, 0.0, -2.0), high=(1.0, 1.0, 0.5, 2.0)),
        ActionFormat(kind="native", low=(-2.0, -0.5), high=(3.0, 1.0)),
        ActionFormat(kind="native", low=(-2.0,), high=(2.0,)),
    ],
)
def test_wheel_and_pedals_are_the_action_that_play_takes(page, stored):
    for wheel, throttle, brake, reverse in ((0.5, 1.0, 0.0, False), (-1.0, 0.25, 1.0, True), (0.0, 0.0, 0.5, False)):
        controls = {"steering": wheel, "throttle": throttle, "brake": brake, "reverse": reverse}
        given = page.evaluate(
            "([controls, format]) => import('./dream.js').then(({ toAction }) => [...toAction(controls, format)])",
            [controls, stored.model_dump(mode="json")],
        )
        np.testing.assert_array_equal(np.float32(given), HandControls(**controls).to_action(stored))


@torch.no_grad()
def test_a_model_without_an_agent_shows_its_vector(browser, settings, driving_spec, tmp_path):
    dynamics = DynamicsConfig(kind="rssm", hidden_dim=8, groups=5, classes=4)
    fields = VECTOR_FIELDS
    torch.manual_seed(0)
    config = load_config("debug").model.model_copy(update={"dynamics": dynamics})
    model = WorldModel(config, driving_spec.model_copy(update={"vector": fields})).eval()
    torch.nn.init.constant_(model.continuation_head.mlp[-1].bias, 9.0)
    vectors = torch.tensor([[field.low for field in fields], [field.high for field in fields]])
    model.start_states = model.initial_state(Observation(torch.zeros(2, 3, 64, 64), vectors))
    out = export_parts(model_parts(model), model, tmp_path / "site", settings, progress=False).path
    with served(out) as url, opened_page(browser, url) as page:
        assert page.is_disabled("input[name=who][value=agent]")
        shown = {
            name: float(page.inner_text(f"#meters tr:has(th:text-is('{name}')) td[data-world=dream]").split()[0])
            for name in (field.name.replace("_", " ") for field in fields if not field.classes)
        }
        expected = model.decode_vector(model.start_states)[0].tolist()
        assert list(shown.values()) == pytest.approx(expected, abs=0.01)
        page.keyboard.down("ArrowUp")
        drive_on(page)
