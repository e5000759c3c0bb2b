"""What tests of the report share."""

import pytest

from budgetlm.report.live import make_server
from tests.serving import serving


@pytest.fixture
def server(searched):
    with serving(make_server("tiny", 0)) as made:
        yield made
