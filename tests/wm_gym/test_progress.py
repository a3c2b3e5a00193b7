"""Progress where standard error is no terminal: lines, and few of them."""

from __future__ import annotations

import time

from wm_gym import progress


def test_a_log_gets_a_line_now_and_then(capsys, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: now[0])
    with progress.progress_bar(1000, "step", "work") as bar:
        for _ in range(1000):
            now[0] += 0.1
            bar.set_postfix(loss=1.0)
            bar.refresh()
            bar.update()
    shown = capsys.readouterr().err
    lines = shown.splitlines()
    assert 4 <= len(lines) <= 6  # 100 s: at the start, every half minute, at the end
    assert "1000/1000" in lines[-1] and "loss=1" in lines[-1]
    assert "\r" not in shown


def test_quiet_is_quiet(capsys):
    with progress.progress_bar(3, "step", "work", enabled=False) as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""
