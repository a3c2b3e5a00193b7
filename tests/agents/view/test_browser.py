"""The page in a real browser: Debian's Chromium."""

import pytest

pytest.importorskip("uvicorn", reason="the server needs the extra play")

from serving import running, unnamed_elements, wait_for

from wm_gym.agents.view.loading import load_view
from wm_gym.agents.view.server import ViewServer
from wm_gym.agents.web.listening import listen


@pytest.fixture
def open_page(browser, dataset, model, tmp_path):
    """Opens the page of a dataset; at the end nothing may have gone wrong in it, nor left the machine."""
    made, pages = [], []

    def start(path=dataset.path, *, with_model=True, allow=0):
        setup = load_view(path, str(model.save_pretrained(tmp_path / "model")) if with_model else "none")
        server = ViewServer(setup, listen("127.0.0.1", 0), lambda line: None)
        context = running(server)
        context.__enter__()
        made.append(context)
        page = browser.new_page()
        page.errors, page.requests, page.allow = [], [], allow
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("console", lambda message: message.type == "error" and page.errors.append(message.text))
        page.goto(server.url)
        page.wait_for_selector("#count:text('of')")
        pages.append(page)
        return page

    yield start
    for page in pages:
        page.close()
    for context in made:
        context.__exit__(None, None, None)
    for page in pages:
        assert len(page.errors) <= page.allow, page.errors
        local = [url for url in page.requests if url.split("/")[2].startswith("127.0.0.1:") or url.startswith("blob:")]
        assert page.requests == local


def shown(page):
    """Numbers of the episodes in the list, in its order."""
    return [int(item.get_attribute("data-episode")) for item in page.query_selector_all("#cards li")]


def picture(page, kind="recorded"):
    return page.evaluate(f"document.querySelector('#figure-{kind} canvas').toDataURL()")


def look_at(page, episode, frame=0):
    page.click(f"#cards li[data-episode='{episode}'] a")
    page.wait_for_selector(f"body[data-open='{episode}'][data-plots]")
    page.wait_for_selector(f"body[data-frame='{frame}']")


def test_the_list_is_filtered_and_ordered(open_page):
    page = open_page()
    assert page.inner_text("#count") == "4 of 4 episodes"
    page.wait_for_selector("#cards li[data-episode='0'][data-state=shown]")
    assert page.evaluate("document.querySelector('#cards .strip').naturalWidth") == 8 * 64 + 7 * 2
    assert shown(page) == [0, 1, 2, 3]
    page.select_option("#behaviour", "wild")
    assert shown(page) == [1, 3]
    page.select_option("#end", "truncated")
    assert shown(page) == [1]
    page.select_option("#behaviour", "")
    page.select_option("#end", "")
    page.fill("#lowest", "40")
    page.fill("#highest", "100")
    assert shown(page) == [1, 3]  # 96 and 42 of 35, 96, 157.5 and 42
    assert page.inner_text("#count") == "2 of 4 episodes"
    page.fill("#lowest", "")
    page.fill("#highest", "")
    page.select_option("#order", "best")
    assert shown(page) == [2, 1, 3, 0]
    page.select_option("#order", "shortest")
    assert shown(page) == [3, 2, 1, 0]
    # The next episode is the next one of the list.
    look_at(page, 2)
    page.click("#next")
    page.wait_for_selector("body[data-open='1'][data-plots]")
    page.keyboard.press("KeyK")
    page.wait_for_selector("body[data-open='2'][data-plots]")
    page.keyboard.press("Escape")
    page.wait_for_selector("#list:visible")
    assert shown(page) == [3, 2, 1, 0]


def test_frames_numbers_and_plots_go_together(open_page):
    page = open_page(with_model=False)
    look_at(page, 0)
    first = picture(page)
    assert page.inner_text("#place") == "frame 0 of 70, 0.00 s"
    assert page.inner_text("[data-name=reward] figcaption span") == "\N{EN DASH}"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    page.wait_for_selector("body[data-frame='11']")
    assert picture(page) != first
    assert page.inner_text("#place") == "frame 11 of 70, 0.55 s"
    assert page.inner_text("[data-name=reward] figcaption span") == "0.50"
    assert page.inner_text("[data-name=speed] figcaption b").startswith("speed (m/s)")
    assert page.inner_text("[data-name=speed] figcaption span") == "1.57"
    assert page.inner_text("[data-name=light] figcaption span") == "green"
    page.keyboard.press("End")
    page.wait_for_selector("body[data-frame='70']")
    assert page.inner_text("[data-name=steering] figcaption span") == "\N{EN DASH}"
    page.click("#further summary")
    assert page.inner_text("[data-name=progress] figcaption span") == "0.25"
    # A click in the middle of a plot goes to the middle of the episode.
    page.click("[data-name=steering] .area")
    page.wait_for_selector("body[data-frame='35']")
    page.locator("#frame").fill("64")
    page.wait_for_selector("body[data-frame='64']")
    page.keyboard.press("KeyI")
    assert page.inner_text("#live").startswith("frame 64 of 70, 3.20 s: return so far 32.0; steering")
    assert page.is_disabled("#dream")
    page.keyboard.press("KeyD")
    assert page.inner_text("#live").startswith("There is no world model here")


def test_playing_goes_on_to_the_end(open_page):
    page = open_page(with_model=False)
    look_at(page, 3)
    page.select_option("#speed", "4")
    page.evaluate(  # it lasts for a moment only
        """() => {
          const [button, seen] = [document.getElementById("play"), (window.seen = [])];
          new MutationObserver(() => seen.push(button.ariaPressed)).observe(button, { attributes: true });
        }"""
    )
    page.keyboard.press("Space")
    page.wait_for_selector("body[data-frame='12']")
    page.wait_for_function("seen.length > 1")
    assert page.evaluate("[seen[0], seen.at(-1)]") == ["true", "false"]


def test_reconstruction_and_dream(open_page):
    page = open_page()
    look_at(page, 0)
    for _ in range(3):
        page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("KeyR")
    page.wait_for_selector("#figure-reconstruction:visible")
    page.wait_for_selector("[data-name=likeness] figcaption span:text('reconstruction')")
    page.fill("#steps", "20")
    page.click("#dream")
    page.wait_for_selector("body[data-dream='30 20 0']")
    page.wait_for_selector("body[data-frame='31']")
    assert page.inner_text("#figure-dream .caption") == "step 1 of 20"
    for name in ("reward", "speed", "likeness"):
        assert "dream" in page.inner_text(f"[data-name={name}] figcaption span")
    page.wait_for_selector("#moments:visible")
    assert page.inner_text("#moments figcaption") == (
        "Frames 31, 34, 36, 39, 42, 45, 47, 50: recorded, below it reconstruction, below it dream."
    )
    pictures = [picture(page, kind) for kind in ("recorded", "reconstruction", "dream")]
    assert len(set(pictures)) == 3
    page.click("#redraw")
    page.wait_for_selector("body[data-dream='30 20 1']")
    page.keyboard.press("Home")
    page.wait_for_selector("body[data-frame='0']")
    assert page.inner_text("#figure-dream .caption") == "it goes from frame 31 to 50"
    page.keyboard.press("KeyR")
    page.wait_for_selector("#figure-reconstruction", state="hidden")
    page.fill("#steps", "0")
    page.click("#dream")
    assert page.inner_text("#live").startswith("The steps are a whole number")
    # Another episode has no dream yet.
    page.click("#next")
    page.wait_for_selector("body[data-open='1'][data-plots]")
    assert page.is_hidden("#figure-dream")
    assert page.is_hidden("#moments")


def test_damaged_episodes_are_named_and_nothing_stops(open_page, dataset, damaged):
    cut, changed = damaged(dataset, 0, header=True), damaged(dataset, 1)
    page = open_page(allow=20)  # the browser's own lines about answers that are no success
    assert str(cut) in page.inner_text("#damaged")
    page.wait_for_selector("li[data-episode='1'][data-state=damaged]")
    assert str(changed) in page.inner_text("li[data-episode='1']")
    page.wait_for_selector("li[data-episode='2'][data-state=shown]")
    page.click("li[data-episode='1'] a")
    page.wait_for_selector("#problem:visible")
    assert f"{changed} is damaged" in page.inner_text("#problem")
    page.keyboard.press("KeyJ")
    page.wait_for_selector("body[data-open='2'][data-plots]")
    page.wait_for_selector("body[data-frame='0']")
    assert page.is_hidden("#problem")
    assert all("422" in error for error in page.errors)


def test_an_address_names_episode_and_frame(open_page):
    page = open_page(with_model=False)
    look_at(page, 2)
    page.keyboard.press("End")
    wait_for(lambda: page.wait_for_timeout(50) or page.url.endswith("#episode=2&frame=63"))
    page.reload()
    page.wait_for_selector("body[data-open='2'][data-frame='63']")
    page.evaluate("location.hash = 'episode=77'")
    page.wait_for_selector("#list:visible")
    assert page.inner_text("#live") == "There is no episode 77 here that can be read."


def test_a_small_screen_and_no_sight(open_page):
    page = open_page()
    page.set_viewport_size({"width": 375, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    look_at(page, 0)
    page.keyboard.press("KeyR")
    page.keyboard.press("KeyD")
    page.wait_for_selector("body[data-dream]")
    page.wait_for_selector("#moments:visible")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    page.click("#keys summary")
    assert "dream from this frame on" in page.inner_text("#keys dl")
    assert unnamed_elements(page) == 0
    assert page.get_attribute("#frame", "aria-valuetext") == "frame 1 of 70, 0.05 s"
    assert page.get_attribute("[data-name=speed] canvas", "aria-label").startswith("speed, ")
