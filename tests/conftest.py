"""What every test relies on."""

import signal

import pytest

# A shell starts background jobs with SIGINT ignored, and children inherit that: the tests of Ctrl-C need the default.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add options for tests that may take longer than a suite has time for."""
    parser.addoption("--soak-seconds", type=float, default=4, help="how long tests/e2e/test_soak.py asks (default 4)")
