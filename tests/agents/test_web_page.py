"""``wm-gym export --format web`` in a real browser: Debian's Chromium computes what PyTorch computes, and is driven."""

import functools
import http.server
import shutil
import threading

import numpy as np
import pytest
import torch

pytest.importorskip("playwright", reason="playwright is not installed")

from serving import wait_for

from wm_gym.agents.bundles.driver import Driver
from wm_gym.agents.bundles.export import export_agent
from wm_gym.errors import ExportError
from wm_gym.export.folder import ExportSettings
from wm_gym.export.web import START_STATES

pytestmark = pytest.mark.slow

STEPS = 20
MOST_BYTES = 20_000_000


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture(scope="module")
def site(browser, tmp_path_factory):
    """The bundled agent's folder."""
    if shutil.which("npm") is None:
        pytest.skip("there is no npm here to get ONNX Runtime Web with")
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("web") / "site"
    try:
        return export_agent("bundled", out, ExportSettings(formats=("web",), repeats=1), progress=False).path
    except ExportError as error:
        if "npm did not give" not in str(error):
            raise
        pytest.skip(f"npm reaches no registry: {error}")


@pytest.fixture(scope="module")
def address(site):
    """Where a plain static server shows it."""
    handler = functools.partial(QuietHandler, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join(30)


@pytest.fixture
def page(browser, address):
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


def steps(page):
    return int(page.get_attribute("body", "data-steps"))


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
    assert (page.inner_text("#steering-text"), page.inner_text("#pedals-text")) == ("◀ 1.00", "gas 1.0")
    page.keyboard.up("KeyW")
    page.keyboard.up("ArrowLeft")
    page.keyboard.press("KeyC")
    drive_on(page, 30)
    assert page.is_checked("input[name=who][value=agent]")
    assert page.inner_text("#pedals-text") != "0"
    page.check("input[name=who][value=hand]")
    drive_on(page, 6)
    assert (page.inner_text("#steering-text"), page.inner_text("#pedals-text")) == ("0", "0")
    assert page.inner_text("#live") == "Your hand drives."


def test_pause_restart_and_another_start(page):
    page.keyboard.press("KeyC")
    drive_on(page)
    page.keyboard.press("KeyP")
    page.wait_for_selector("#pause[aria-pressed=true]")
    page.wait_for_timeout(300)
    before = steps(page)
    page.wait_for_timeout(400)
    assert steps(page) == before
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
    assert page.inner_text("#pedals-text") == "gas 1.0"
    page.mouse.up()
    assert "change between hand and agent" in page.inner_text("#keys dl")
    page.keyboard.press("KeyI")
    assert page.inner_text("#live").startswith("dream: step ")
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, input, select, canvas, [role=slider]')].filter(element => "
        "!(element.textContent.trim() || element.ariaLabel || element.labels?.length)).length"
    )
    assert unnamed == 0
