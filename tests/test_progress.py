"""What a loop says about itself, on a terminal and off one."""

import io

import pytest

from pxp_fast import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_items_pass_through_unchanged_and_the_title_is_shown(stream):
    out = stream()
    assert list(progress.tracker(out)(range(7), "scoring", None)) == list(range(7))
    assert "scoring" in out.getvalue()
    assert "7" in out.getvalue()


def test_lines_are_plain_and_rare():
    out = io.StringIO()
    list(progress.tracker(out)(iter(range(1000)), "judging", 1000))
    (line,) = out.getvalue().splitlines()
    assert line.startswith("judging: 1000 done in ")
    assert "\x1b" not in out.getvalue()


def test_a_long_loop_says_how_far_it_is(monkeypatch):
    clock = iter(range(0, 10_000, 4))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    out = io.StringIO()
    list(progress.tracker(out)(range(10), "judging", None))
    lines = out.getvalue().splitlines()
    assert lines[0] == "judging: 3/10 after 12 s, about 28 s left"
    assert lines[-1].startswith("judging: 10 done")


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_loop_within_a_loop_leaves_the_outer_one_its_place(stream):
    out = stream()
    track = progress.tracker(out)
    pairs = [(i, j) for i in track(range(2), "outer", None) for j in track(range(3), "inner", None)]
    assert pairs == [(i, j) for i in range(2) for j in range(3)]
    assert "inner" not in out.getvalue()
    assert list(track(range(2), "next", None)) == [0, 1]
    assert "next" in out.getvalue()


def test_a_loop_that_is_broken_off_leaves_the_tracker_usable():
    out = io.StringIO()
    track = progress.tracker(out)
    with pytest.raises(ZeroDivisionError):
        for i in track(range(3), "first", None):
            1 / i
    list(track(range(3), "second", None))
    assert "second: 3 done" in out.getvalue()
