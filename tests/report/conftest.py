"""What tests of the report share."""

import threading

import pytest

from budgetlm.report.live import make_server


@pytest.fixture
def server(searched):
    made = make_server("tiny", 0)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()
