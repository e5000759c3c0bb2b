import pytest


@pytest.fixture
def clock(fast_clock):
    """The clock of these tests: they are about searches, not about what their runs learn."""
    return fast_clock
