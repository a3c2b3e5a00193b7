"""A real server in a thread, what asks it for something, and how to wait."""

import http.client
import threading
import time
from contextlib import contextmanager
from urllib.parse import urlsplit


@contextmanager
def running(server):
    """The server in a thread of its own."""
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()


def get(server, path, **headers):
    """Status, headers and body of a request to the server; a path that begins without a slash is below its token."""
    parts = urlsplit(server.url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    connection.request("GET", path if path.startswith("/") else parts.path + path, headers=headers)
    answer = connection.getresponse()
    found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    connection.close()
    return found


def unnamed_elements(page):
    """How many controls and pictures of a page say nothing to who cannot see them."""
    return page.evaluate(
        "[...document.querySelectorAll('button, input, select, canvas, a, [role=slider]')].filter(element => "
        "!(element.textContent.trim() || element.ariaLabel || element.labels?.length)).length"
    )


def steps(page):
    """How many steps a page that drives has shown."""
    return int(page.get_attribute("body", "data-steps"))


def standing_steps(page):
    """As :func:`steps` of a page that is paused, once what was under way has been shown; checks that it stands."""

    def stands():
        before = steps(page)
        page.wait_for_timeout(400)
        return steps(page) == before

    wait_for(stands)
    assert stands()
    return steps(page)


def wait_for_controls(page, steering, pedals):
    """Wait until wheel and pedals are shown where they stay."""
    fields = ("#steering-text", "#pedals-text")
    wait_for(lambda: page.wait_for_timeout(30) or [page.inner_text(field) for field in fields] == [steering, pedals])


def wait_for(condition, seconds=60.0):
    """Wait until something holds."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it did not come about in time"
        time.sleep(0.02)
