"""All simulated kernels once more, under AddressSanitizer and UndefinedBehaviorSanitizer."""

import re

import pytest


def test_simulated_kernels_under_sanitizers(sanitized):
    """The tests of the simulated kernels pass, and faults committed on purpose are noticed."""
    if sanitized is None:
        pytest.skip("no g++ with libasan: install it (it comes with g++ on most systems)")
    process, log = sanitized
    status, output = process.wait(), log.read_text()
    assert status == 0, output[-10000:]
    passed = re.search(r"(\d+) passed", output)
    assert passed and int(passed[1]) >= 200 and "skipped" not in output
