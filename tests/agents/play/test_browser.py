"""The page in a real browser: Debian's Chromium."""

import pytest

pytest.importorskip("playwright", reason="playwright is not installed")
pytest.importorskip("uvicorn", reason="the server needs the extra play")

from own_page import serving
from playwright.sync_api import TimeoutError as PlaywrightTimeoutError
from serving import standing_steps, steps, unnamed_elements, wait_for, wait_for_controls

from wm_gym.data_collection import Dataset, verify


@pytest.fixture
def served(setup):
    with serving(setup) as (server, log):
        yield server, log


@pytest.fixture
def page(browser, served):
    opened = browser.new_page()
    opened.requests = []
    opened.errors = []
    opened.on("request", lambda request: opened.requests.append(request.url))
    opened.on("websocket", lambda socket: opened.requests.append(socket.url))
    opened.on("pageerror", lambda error: opened.errors.append(str(error)))
    opened.on("console", lambda message: message.type == "error" and opened.errors.append(message.text))
    opened.goto(served[0].url)
    wait_until_ready(opened, served[1])
    yield opened
    assert opened.errors == []
    assert opened.requests
    assert all(url.split("/")[2].startswith("127.0.0.1:") for url in opened.requests)
    opened.close()


def wait_until_ready(page, log):
    """Wait until a drive has begun and stands still."""
    try:
        page.wait_for_selector("body[data-waits=true][data-steps]")
    except PlaywrightTimeoutError as error:
        shown = page.evaluate("({ ...document.body.dataset, live: document.getElementById('live').textContent })")
        raise AssertionError(f"page: {shown}; its errors: {page.errors}; log: {log}") from error


def picture(page, world="dream"):
    return page.evaluate(f"document.querySelector('#figure-{world} canvas').toDataURL()")


def drive_on(page, count=4):
    """Wait for some more steps."""
    before = steps(page)
    wait_for(lambda: page.wait_for_timeout(30) or steps(page) >= before + count)


def test_a_key_sets_the_car_going_and_turns_it(page):
    still = picture(page)
    page.wait_for_timeout(400)
    assert picture(page) == still, "nothing moves before a key is pressed"
    page.keyboard.down("ArrowUp")
    drive_on(page)
    assert picture(page) != still
    wait_for_controls(page, "0", "gas 1.0")
    page.keyboard.up("ArrowUp")
    page.keyboard.down("KeyA")
    drive_on(page, 6)
    wait_for_controls(page, "◀ 1.00", "0")
    page.keyboard.up("KeyA")


def test_nothing_moves_where_the_first_frame_began_before_the_page_was_ready(browser, served):
    """A browser hands the page the time at which a frame began; that may lie before the page's own first look."""
    page = browser.new_page()
    page.add_init_script(
        """
        const ask = window.requestAnimationFrame.bind(window);
        let isFirst = true;
        window.requestAnimationFrame = (act) => {
          if (!isFirst) return ask(act);
          isFirst = false;
          const began = performance.now() - 15;
          const late = () => document.body.dataset.steps ? act(began) : setTimeout(late, 10);
          late();
          return 0;
        };
        """
    )
    page.goto(served[0].url)
    page.wait_for_selector("body[data-steps]")
    page.wait_for_timeout(400)
    assert (page.get_attribute("body", "data-waits"), steps(page)) == ("true", 1)
    page.close()


def test_hand_and_agent_change_at_the_wheel(page):
    page.keyboard.press("KeyC")
    page.wait_for_selector("body[data-who=agent]")
    assert page.inner_text("#live") in ("The agent drives.", "It goes.")
    drive_on(page, 8)
    assert page.is_checked("input[name=who][value=agent]")
    at_rest = "document.querySelector('#steering-text').innerText + document.querySelector('#pedals-text').innerText"
    wait_for(lambda: page.wait_for_timeout(30) or page.evaluate(at_rest) != "00")  # it may coast for a moment
    page.click("input[name=who][value=hand]")
    page.wait_for_selector("body[data-who=hand]")
    drive_on(page, 3)
    wait_for_controls(page, "0", "0")


def test_both_side_by_side_are_recorded_as_an_episode(page, tmp_path):
    page.click("input[name=mode][value=both]")
    page.wait_for_selector("body[data-mode=both]")
    page.wait_for_selector("#figure-simulator:visible")
    page.keyboard.press("KeyV")
    page.wait_for_selector("#record[aria-pressed=true]")
    page.keyboard.press("KeyC")
    drive_on(page, 6)
    assert picture(page, "simulator") != picture(page, "dream")
    page.keyboard.press("KeyV")
    page.wait_for_selector("#record[aria-pressed=false]")
    folder = tmp_path / "drives" / "simulator"
    assert verify(folder).problems == []
    assert Dataset.open(folder).episodes[0].length >= 6


def test_pause_step_slow_motion_and_back(page):
    page.keyboard.press("KeyC")
    drive_on(page)
    page.click("#pause")
    page.wait_for_selector("#pause[aria-pressed=true]")
    before = standing_steps(page)
    page.keyboard.press("KeyN")
    wait_for(lambda: page.wait_for_timeout(30) or steps(page) == before + 1)
    page.keyboard.press("KeyM")
    wait_for(lambda: page.wait_for_timeout(30) or page.input_value("#speed") == "0.25")
    page.keyboard.press("KeyB")
    page.wait_for_selector("#figure-dream .caption:text('step 0 of')")


def test_a_start_state_is_chosen_by_its_picture(page):
    button = page.locator("#thumbnails button").nth(3)
    assert button.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 64
    button.click()
    page.wait_for_selector("#thumbnails button:nth-child(4)[aria-pressed=true]")
    first = page.get_attribute("#thumbnails button", "data-start")
    page.click("#more")
    page.wait_for_selector(f"#thumbnails:not(:has([data-start='{first}']))")


def test_the_temperature_of_the_dream_is_chosen(page):
    page.fill("#temperature", "7")
    page.press("#temperature", "Enter")
    assert "from 0.1 to 5" in page.inner_text("#live")
    page.fill("#temperature", "2.5")
    page.press("#temperature", "Enter")
    page.keyboard.press("KeyB")
    page.wait_for_selector("body[data-waits=true]")
    assert page.input_value("#temperature") == "2.5"
    # An answer on its way may still show the mode before for a moment, which `check` takes for a failure.
    page.click("input[name=mode][value=simulator]")
    page.wait_for_selector("#temperature-field", state="hidden")


def test_touch_steers_and_brakes_on_a_small_screen(page):
    page.set_viewport_size({"width": 375, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    wheel = page.locator("#wheel").bounding_box()
    page.mouse.move(wheel["x"] + wheel["width"] * 0.9, wheel["y"] + wheel["height"] / 2)
    page.mouse.down()
    drive_on(page)
    assert page.inner_text("#steering-text").startswith("▶")
    page.mouse.up()
    brake = page.locator("#touch-brake").bounding_box()
    page.mouse.move(brake["x"] + 5, brake["y"] + 5)
    page.mouse.down()
    drive_on(page)
    wait_for_controls(page, "0", "brake 1.0")
    page.mouse.up()


def test_a_gamepad_drives(browser, served):
    """No gamepad is at hand: what the browser's interface would tell of one comes from a script."""
    page = browser.new_page()
    page.add_init_script(
        """
        window.pad = { mapping: "standard", axes: [0.6, 0], buttons: Array.from({ length: 17 }, () => ({ value: 0 })) };
        window.pad.buttons[7].value = 0.8;
        navigator.getGamepads = () => [null, window.pad];
        """
    )
    page.goto(served[0].url)
    page.wait_for_selector("body[data-waits=false]")
    drive_on(page)
    wait_for_controls(page, "▶ 0.60", "gas 0.8")
    page.evaluate("window.pad.buttons[0].pressed = true")
    page.wait_for_selector("body[data-who=agent]")
    page.close()


def test_a_choice_of_speed_gives_the_arrow_keys_back(page):
    page.select_option("#speed", "2.5")
    page.keyboard.down("ArrowUp")
    drive_on(page)
    page.keyboard.up("ArrowUp")
    assert page.input_value("#speed") == "2.5"
    assert page.inner_text("#status").startswith("your hand drives")


def test_keys_are_listed_and_numbers_are_spoken(page):
    assert "change between hand and agent" in page.inner_text("#keys dl") or page.is_hidden("#keys dl")
    page.click("#keys summary")
    assert "change between hand and agent" in page.inner_text("#keys dl")
    page.keyboard.press("KeyI")
    assert page.inner_text("#live").startswith("dream: step 0, reward 0.0")
    assert unnamed_elements(page) == 0


def test_a_reload_and_a_second_tab(page, browser, served):
    server, log = served
    page.reload()
    page.wait_for_selector("body[data-waits=true][data-steps]")
    other = browser.new_page()
    other.goto(server.url)
    other.wait_for_selector("body[data-waits=true][data-steps]")
    other.close()
    page.keyboard.down("ArrowUp")
    drive_on(page)
    page.keyboard.up("ArrowUp")
    wait_for(lambda: page.wait_for_timeout(30) or len(log) == 5)
    assert sorted(log) == [
        "page 1 was closed.",
        "page 1 was opened.",
        "page 2 was opened.",
        "page 3 was closed.",
        "page 3 was opened.",
    ]
