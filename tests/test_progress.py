import io

import pytest
from rich.console import Console

from noiseprop import progress


@pytest.fixture
def console(monkeypatch):
    """Replace the console by one without a terminal."""
    written = io.StringIO()
    monkeypatch.setattr(progress, "error_console", Console(file=written, width=200, soft_wrap=True))
    return written


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


def test_without_a_terminal_there_is_a_line_now_and_then_with_rate_and_time_left(console, clock):
    with progress.progress_bar("training") as show:
        for step in range(100):
            show(step, 200, 0.5)
            clock.now += 1.0
    assert console.getvalue().splitlines() == [
        f"training: {step} of 200, loss 0.5000, 1/s, 0:0{(200 - step) // 60}:{(200 - step) % 60:02} left"
        for step in range(15, 100, 15)
    ]


def test_a_resumed_training_s_rate_is_that_of_its_new_steps(console, clock):
    with progress.progress_bar("training") as show:
        show(1000, 1060, "x")
        clock.now += 20
        show(1020, 1060, "x")
    assert console.getvalue() == "training: 1020 of 1060, x, 1/s, 0:00:40 left\n"


def test_a_second_training_of_as_many_steps_has_a_rate_of_its_own(console, clock):
    with progress.progress_bar("training") as show:
        for done in (32, 1500, 32, 64):
            clock.now += 10 if done < 1500 else 1000
            show(done, 1565, "x")
    assert console.getvalue().splitlines() == [
        "training: 1500 of 1565, x, 1.47/s, 0:00:44 left",
        "training: 64 of 1565, x, 3.2/s, 0:07:49 left",
    ]


def test_quick_work_says_nothing(console, clock):
    assert list(progress.track_progress([1, 2, 3], "reading")) == [1, 2, 3]
    assert console.getvalue() == ""


def test_a_bar_fits_80_columns_and_shows_rate_and_time_left(monkeypatch):
    written = io.StringIO()
    console = Console(file=written, width=80, force_terminal=True, color_system=None, soft_wrap=True)
    monkeypatch.setattr(progress, "error_console", console)
    now = iter(range(1000))
    monkeypatch.setattr(console, "get_time", lambda: float(next(now)), raising=False)
    with progress.create_progress_bars(is_shown=True) as drawn:
        drawn.get_time = lambda: float(next(now))
        task = drawn.add_task("evaluating /a/long/path/" + 60 * "x", note="impulse noise 5", total=200)
        for step in range(60):
            drawn.update(task, completed=step)
        console.print(drawn.get_renderable())
    lines = [line for line in written.getvalue().splitlines() if "/200" in line]
    assert lines
    assert "impulse" in lines[-1]
    assert "/s" in lines[-1] or "s/it" in lines[-1]
    assert all(len(line.split("\r")[-1]) <= 80 + 20 for line in lines)  # with what moves the cursor
