"""One LLM for all tests of a serving device."""

from __future__ import annotations

import pytest

from fedhlm_app.hosting.llm import build_service
from tests.fedhlm_app.serve_device.devices import settings


@pytest.fixture(scope="session")
def llm():
    return build_service(settings())
