from __future__ import annotations

import json
import subprocess
from importlib.metadata import version

import pytest

from st_keytokens.evaluation.environment import _commit, describe_environment


@pytest.fixture
def checkout(tmp_path):
    """A git checkout with one commit of one package; and a function that runs git in it."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")

    def git(*words):
        options = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        found = subprocess.run(
            ["git", "-C", str(tmp_path), *options, *words], check=True, capture_output=True, text=True
        )
        return found.stdout.strip()

    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    return package, git


class TestCommit:
    def test_of_a_checkout(self, checkout):
        package, git = checkout
        assert _commit(package) == git("rev-parse", "HEAD")
        (package / "__init__.py").write_text("changed = True\n")
        assert _commit(package) == git("rev-parse", "HEAD") + "+"

    def test_installed_below_somebody_elses_checkout(self, checkout):
        package, _ = checkout
        other = package / "site-packages" / "other"
        other.mkdir(parents=True)
        (other / "__init__.py").write_text("")
        assert _commit(other) is None

    def test_no_checkout(self, tmp_path):
        (tmp_path / "__init__.py").write_text("")
        assert _commit(tmp_path) is None

    def test_no_git(self, checkout, monkeypatch):
        monkeypatch.setenv("PATH", "")
        assert _commit(checkout[0]) is None


class TestEnvironment:
    def test_is_ready_for_json(self):
        found = json.loads(json.dumps(describe_environment()))
        assert set(found) == {
            *("date", "commit", "python", "platform", "cpu", "cpu_count", "threads", "device", "packages")
        }
        assert found["packages"]["rank-bm25"] == version("rank-bm25")
