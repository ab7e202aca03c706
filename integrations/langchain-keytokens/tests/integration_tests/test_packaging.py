"""Installing into a fresh environment, editable and from wheels, beside the core packages of this one."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parents[2]
REPOSITORY = HERE.parents[1]
PROBE = """
import json, sys
from importlib import metadata, resources
import langchain_keytokens, st_keytokens
stores = [name for name in ("langchain_qdrant", "pymilvus") if name in sys.modules]
from st_keytokens import KeyTokenEncoder
encoder = KeyTokenEncoder(sys.argv[1])
retriever = langchain_keytokens.KeyTokensHybridRetriever.from_texts(["The zebra eats grass.", "Stars shine."], encoder)
print(json.dumps({
    "adapter": langchain_keytokens.__file__,
    "core": st_keytokens.__file__,
    "version": metadata.version("langchain-keytokens"),
    "requires": [line for line in metadata.requires("langchain-keytokens") if "extra ==" not in line],
    "extra": [line for line in metadata.requires("st-keytokens") if line.startswith("langchain-keytokens")],
    "is_typed": resources.files("langchain_keytokens").joinpath("py.typed").is_file(),
    "stores": stores,
    "found": retriever.invoke("zebra", k=1)[0].page_content,
}))
"""


@pytest.fixture(scope="module", autouse=True)
def _clone():
    for package in ("hatchling", "editables"):
        pytest.importorskip(package)
    if not (REPOSITORY / "st_keytokens").is_dir():
        pytest.skip("st-keytokens is built from a clone of the repository only")


@pytest.fixture
def python(tmp_path):
    """The interpreter of an environment that sees this one's packages, but not what is installed editable here."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    (Path(site) / "beside.pth").write_text(sysconfig.get_path("purelib"))  # its own .pth files are not read
    return python


def run(*command):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=Path(command[0]).anchor)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def probe(python):
    embedder = REPOSITORY / "examples" / "tiny-embedder" / "embedder"
    found = json.loads(run(python, "-c", PROBE, embedder).splitlines()[-1])
    assert found["found"] == "The zebra eats grass."
    assert [line.split(">")[0].split("<")[0] for line in found["requires"]] == ["langchain-core", "st-keytokens"]
    assert found["extra"] == ["langchain-keytokens>=0.1; extra == 'langchain'"]
    assert (found["version"], found["is_typed"], found["stores"]) == ("0.1.0", True, [])
    return Path(found["adapter"]), Path(found["core"])


def pip(python, *arguments):
    run(sys.executable, "-m", "pip", "--python", python, "--quiet", "--disable-pip-version-check", *arguments)


def test_from_wheels(python, tmp_path):
    wheels = tmp_path / "wheels"
    for project in (HERE, REPOSITORY):
        build = ("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", wheels, project)
        run(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *build)
    (wheel,) = wheels.glob("langchain_keytokens-*.whl")
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert sorted(names) == sorted(
        str(path.relative_to(HERE)) for path in (HERE / "langchain_keytokens").iterdir() if path.is_file()
    )
    pip(python, "install", "--no-deps", "--no-index", *wheels.iterdir())
    pip(python, "install", "--no-index", "st-keytokens[langchain]")  # nothing that it brings is missing
    adapter, core = probe(python)
    assert adapter.is_relative_to(tmp_path) and core.is_relative_to(tmp_path)


def test_editable(python):
    for project in (HERE, REPOSITORY):
        pip(python, "install", "--no-deps", "--no-build-isolation", "--no-index", "--editable", project)
    assert probe(python) == (HERE / "langchain_keytokens" / "__init__.py", REPOSITORY / "st_keytokens" / "__init__.py")
