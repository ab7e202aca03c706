"""What the command sparsify shows while it runs on a terminal, and at its end."""

from __future__ import annotations

import contextlib
import os
import re
import struct
import subprocess
import sys

import numpy as np
import pytest

fcntl = pytest.importorskip("fcntl", reason="needs a terminal of POSIX")
termios = pytest.importorskip("termios", reason="needs a terminal of POSIX")
pytest.importorskip("pyarrow", reason="the contract on disk needs pyarrow")


def test_progress_and_throughput(encoder, dense, tmp_path):
    encoder.save_pretrained(tmp_path / "model")
    np.save(tmp_path / "dense.npy", dense)
    words = ["sparsify", str(tmp_path / "model"), str(tmp_path / "dense.npy"), "--output", str(tmp_path / "out")]
    leader, follower = os.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))  # a bar needs columns
    try:
        run = subprocess.run(
            [sys.executable, "-m", "st_keytokens.cli", *words],
            stdout=subprocess.PIPE,
            stderr=follower,
            text=True,
            check=True,
        )
        os.set_blocking(leader, False)
        shown = ""
        with contextlib.suppress(BlockingIOError):  # all has been read
            while True:
                shown += os.read(leader, 1 << 16).decode()
    finally:
        os.close(leader)
        os.close(follower)
    assert "Sparsifying: 100%" in shown
    assert "50/50" in shown
    saved, throughput = run.stdout.splitlines()
    assert saved.startswith("Saved 50 rows of ")
    assert re.fullmatch(r"50 rows in \d+\.\d s, [\d,]+ a second\.", throughput)
