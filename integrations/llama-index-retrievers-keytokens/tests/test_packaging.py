"""The package as others install it: as a wheel and editable, beside the real LlamaIndex core."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

pytest.importorskip("llama_index.core")

PACKAGE = Path(__file__).resolve().parents[1]
REPOSITORY = PACKAGE.parents[1]

USE = """
import llama_index, llama_index.retrievers, llama_index.core
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.retrievers import keytokens
assert llama_index.__file__ is None and llama_index.retrievers.__file__ is None, "not a namespace"
assert issubclass(keytokens.KeyTokensRetriever, BaseRetriever)
print(keytokens.__file__)
"""


def pip(*arguments, python=sys.executable):
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "-q", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheels")
    pip("wheel", "--no-deps", "-w", folder, PACKAGE, REPOSITORY)
    return {path.name.split("-")[0]: path for path in folder.glob("*.whl")}


@pytest.fixture
def python(tmp_path):
    """A new environment that has what this one has, but neither of our packages."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def contents(wheel):
    """The files of a wheel, and what it requires."""
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        return names, Parser().parsestr(file.read(metadata).decode()).get_all("Requires-Dist")


def use(python, tmp_path):
    done = subprocess.run([python, "-c", USE], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.mark.slow
def test_what_the_wheel_holds(wheels):
    names, requirements = contents(wheels["llama_index_retrievers_keytokens"])
    assert "llama_index/__init__.py" not in names
    assert "llama_index/retrievers/__init__.py" not in names
    assert "llama_index/retrievers/keytokens/py.typed" in names
    modules = {path.name for path in (PACKAGE / "llama_index" / "retrievers" / "keytokens").glob("*.py")}
    assert {name.rpartition("/")[2] for name in names if name.endswith(".py")} == modules
    always = [value for value in requirements if "extra ==" not in value]
    assert sorted(value.split("<")[0].split(">")[0] for value in always) == ["llama-index-core", "st-keytokens"]


@pytest.mark.slow
def test_wheel_install(wheels, python, tmp_path):
    pip("install", "--no-deps", *wheels.values(), python=python)
    assert tmp_path in use(python, tmp_path).parents
    _, requirements = contents(wheels["st_keytokens"])
    assert "llama-index-retrievers-keytokens>=0.1; extra == 'llama-index'" in requirements


@pytest.mark.slow
def test_editable_install(python, tmp_path):
    pip("install", "--no-deps", "-e", PACKAGE, "-e", REPOSITORY, python=python)
    assert PACKAGE in use(python, tmp_path).parents
