"""Unit tests reach no network."""

from __future__ import annotations

import pytest
import pytest_socket


@pytest.fixture(autouse=True)
def no_sockets():
    pytest_socket.disable_socket(allow_unix_socket=True)  # an event loop has a pair of these
    yield
    pytest_socket.enable_socket()
