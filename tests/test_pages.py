"""Every Python snippet of the pages in docs/ runs, in the order of its page, and prints what the page says."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import io
import json
import os
import re
import shlex
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.append(str(REPOSITORY / "tests" / "engines"))  # the engines' stand-ins

FENCE = re.compile(r"^(?:<!-- not run: (?P<reason>.+?) -->\n)?```(?P<kind>\w*)\n(?P<body>.*?)^```$", re.M | re.S)
README = REPOSITORY / "README.md"
NOT_RUN = {  # what cannot run here, by its page; each is marked there with the reason
    "embedders.md": 3,
    "README.md": 3,
    "extending.md": 2,
    "own_model.md": 2,
    "ray.md": 1,
    "spark.md": 1,
}
ELSEWHERE = {"langchain.md", "llama_index.md"}  # by the suites in integrations/
SERVERS = {"pgvector.md": "POSTGRES_URL", "opensearch.md": "OPENSEARCH_URL", "elasticsearch.md": "ELASTICSEARCH_URL"}
MODULES = {  # of the packages that are not named as what they bring
    "elasticsearch": "elasticsearch",
    "langchain_classic": "langchain-classic",
    "langchain_core": "langchain-core",
    "langchain_keytokens": "langchain-keytokens",
    "langchain_milvus": "langchain-milvus",
    "langchain_qdrant": "langchain-qdrant",
    "llama_index.core": "llama-index-core",
    "llama_index.retrievers.keytokens": "llama-index-retrievers-keytokens",
    "llama_index.vector_stores.qdrant": "llama-index-vector-stores-qdrant",
    "opensearchpy": "opensearch-py",
    "psycopg": "psycopg",
    "qdrant_client": "qdrant-client",
    "sentence_transformers": "sentence-transformers",
}
NEEDED_BY = {  # what our own names need besides, loaded where they are used
    "ElasticsearchEngine": "elasticsearch",
    "MilvusEngine": "pymilvus",
    "OpenSearchEngine": "opensearch-py",
    "PgVectorEngine": "psycopg",
    "QdrantEngine": "qdrant-client",
    "st_keytokens.bulk": "pyarrow",
    "st_keytokens.evaluation": "ir-measures",
    "plots": "matplotlib",
}
IMPORT_OF = {"opensearch-py": "opensearchpy", "qdrant-client": "qdrant_client", "milvus-lite": "milvus_lite"}


@dataclass(frozen=True)
class Snippet:
    """A fenced block: its kind, its text, and why it does not run if it does not."""

    kind: str
    body: str
    reason: str | None


def snippets_of(page):
    return [Snippet(m["kind"], m["body"], m["reason"]) for m in FENCE.finditer(page.read_text(encoding="utf-8"))]


def pages():
    return sorted((REPOSITORY / "docs").glob("*.md"))


PAGES = [page for page in pages() if any(snippet.kind == "python" for snippet in snippets_of(page))]


def run(page):
    """Runs a page's snippets in one namespace: pairs of what was printed and what the page says."""
    names, printed, compared, last = {"__name__": "snippets"}, "", [], None
    for number, snippet in enumerate(snippets_of(page)):
        if snippet.kind == "python" and snippet.reason is None:
            assert not printed, f"{page.name} does not say what this prints: {printed}"
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(snippet.body, f"{page.name}[{number}]", "exec", dont_inherit=True), names)
            printed = output.getvalue()
        elif snippet.kind == "text":
            assert last == "python", f"{page.name}: a block of what is printed must follow the snippet that prints it"
            compared.append((printed, snippet.body))
            printed = ""
        last = snippet.kind
    assert not printed, f"{page.name} does not say what its last snippet prints: {printed}"
    return compared


@pytest.fixture
def server(request, monkeypatch):
    """What stands for the server of an engine, at the address in the variable that its page reads."""
    name = request.param
    with contextlib.ExitStack() as stack:
        if name == "pgvector.md":
            from postgres_server import running_postgres

            monkeypatch.setenv(SERVERS[name], stack.enter_context(running_postgres()))
        elif name in SERVERS:
            from fake_search_server import FakeSearchServer

            found = stack.enter_context(FakeSearchServer(name.removesuffix(".md")))
            monkeypatch.setenv(SERVERS[name], found.url)
        yield


RUN_HERE = [page for page in PAGES if page.name not in ELSEWHERE]


@pytest.mark.parametrize(
    ("page", "server"),
    [(page, page.name) for page in RUN_HERE],
    indirect=["server"],
    ids=lambda value: getattr(value, "name", ""),
)
def test_snippets_print_what_the_page_says(page, server, tmp_path, monkeypatch):
    for package in packages_needed(page):
        pytest.importorskip(IMPORT_OF.get(package, package.replace("-", "_")))
    if "milvus-lite" in install_line(page):
        pytest.importorskip("milvus_lite")
    monkeypatch.chdir(tmp_path)
    os.symlink(REPOSITORY / "examples", "examples")
    for printed, said in run(page):
        assert printed == said


COMMANDS = [
    (page.name, *block.split("\n", 1))
    for page in pages()
    for block in re.findall(
        r"^```\n\$ (st-keytokens (?!.*MODEL).+?)^```$", page.read_text("utf-8").replace("\\\n", ""), re.M | re.S
    )
]


@pytest.mark.parametrize(("page", "command", "said"), COMMANDS, ids=[command[:40] for _, command, _ in COMMANDS])
def test_commands_print_what_the_page_says(page, command, said, monkeypatch, capsys):
    """From the beginning; a page may leave out the rest."""
    from st_keytokens.cli import main

    monkeypatch.chdir(REPOSITORY)
    assert main(shlex.split(command)[1:]) == 0
    assert capsys.readouterr().out.startswith(said)


def test_the_readme_prints_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.symlink(REPOSITORY / "examples", "examples")
    ((printed, said),) = run(README)
    assert printed == said


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_what_is_not_run_is_known():
    found = Counter(page.name for page in [README, *pages()] for snippet in snippets_of(page) if snippet.reason)
    assert found == NOT_RUN


def test_marks_stand_before_snippets():
    """A mark anywhere else marks nothing."""
    for page in pages():
        marks = page.read_text(encoding="utf-8").count("<!-- not run")
        assert marks == sum(snippet.reason is not None for snippet in snippets_of(page)), page.name


# -- what a page installs ---------------------------------------------------------------------------------------------


def install_line(page):
    lines = re.findall(r"^pip install .*$", page.read_text(encoding="utf-8"), re.M)
    assert lines, f"{page.name} has no install line"
    return lines[0]


def project(folder):
    """A project's name, its dependencies and its extras, from its pyproject.toml."""
    text = (folder / "pyproject.toml").read_text(encoding="utf-8")
    name = re.search(r'^name = "(.+?)"', text, re.M)[1]
    dependencies = ast.literal_eval(re.search(r"^dependencies = (\[.*?^\])", text, re.M | re.S)[1])
    extras = text.split("[project.optional-dependencies]\n")[1].split("\n[")[0]
    found = re.findall(r"^([\w-]+) = (\[.*?\])(?: *#.*)?$", extras, re.M | re.S)
    return name, bare(dependencies), {extra: bare(ast.literal_eval(listed)) for extra, listed in found}


def bare(requirements):
    return {re.match(r"[\w-]+", requirement)[0].lower() for requirement in requirements}


def brought_by(line):
    """The packages that an install line names or that one of our projects in it depends on."""
    brought = set()
    for argument in re.findall(r'"[^"]+"|\S+', line.removeprefix("pip install ")):
        target = argument.strip('"')
        folder, _, extras = target.partition("[")
        if target == "-e":
            continue
        if not (REPOSITORY / folder / "pyproject.toml").is_file():
            brought |= bare([target])
            continue
        name, dependencies, known = project(REPOSITORY / folder)
        brought |= {name} | dependencies
        for extra in filter(None, extras.rstrip("]").split(",")):
            brought |= known[extra]
    if any(package.startswith("llama-index-vector-stores") for package in brought):
        brought.add("qdrant-client")
    return brought


def imports_of(page):
    """Modules and names that a page's snippets import, as ``module`` and ``module.name``."""
    for snippet in snippets_of(page):
        if snippet.kind == "python":
            for node in ast.walk(ast.parse(snippet.body)):
                if isinstance(node, ast.Import):
                    yield from (alias.name for alias in node.names)
                elif isinstance(node, ast.ImportFrom):
                    yield from (f"{node.module}.{alias.name}" for alias in node.names)


def packages_needed(page):
    needed = set()
    for path in imports_of(page):
        top, _, _ = path.partition(".")
        if top == "st_keytokens":
            needed |= {package for key, package in NEEDED_BY.items() if f"{key}." in f"{path}."}
        elif top not in sys.stdlib_module_names:
            named = [module for module in MODULES if f"{path}.".startswith(f"{module}.")]
            needed.add(MODULES[max(named, key=len)] if named else top)
    return needed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_install_line_brings_what_the_page_uses(page):
    assert packages_needed(page) - brought_by(install_line(page)) == set()


# -- the site ---------------------------------------------------------------------------------------------------------


def test_the_reference_has_every_public_name():
    """Each name in the ``__all__`` of a package with a page is on one page, once."""
    found = [
        name
        for page in pages()
        if page.name.startswith("api")
        for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.M)
    ]
    assert max(Counter(found).values()) == 1
    for module in sorted({name.rpartition(".")[0] for name in found}):
        public = set(importlib.import_module(module).__all__) - {"__version__"}
        here = {name.rpartition(".")[2] for name in found}
        assert public - here == set(), module


def test_every_page_is_in_the_navigation():
    navigation = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]
    listed = set(re.findall(r"[\w/-]+\.md", navigation))
    there = {page.relative_to(REPOSITORY / "docs").as_posix() for page in (REPOSITORY / "docs").rglob("*.md")}
    made = {f"notebooks/{path.stem}.md" for path in (REPOSITORY / "examples" / "notebooks").glob("*.ipynb")}
    assert listed == there | made | {"changelog.md"}


def test_a_notebook_as_a_page():
    """With its text, its code, what that prints, and its pictures; docs/site_hooks.py makes it."""
    pytest.importorskip("mkdocs")
    hooks = load("docs/site_hooks.py")
    path = REPOSITORY / "examples" / "notebooks" / "reading_an_embedding.ipynb"
    page, pictures = hooks.notebook_page(path)
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert page.startswith(
        "# Reading an embedding\n\n*This page is a notebook: [reading_an_embedding.ipynb](../../examples/"
    )
    assert page.count("```python\n") == sum(cell["cell_type"] == "code" for cell in cells)
    shown = [output for cell in cells for output in cell.get("outputs", [])]
    assert page.count("```text\n") == sum(output["output_type"] == "stream" for output in shown)
    assert (
        len(pictures) == page.count("](reading_an_embedding-") == sum("image/png" in o.get("data", {}) for o in shown)
    )
    assert all(picture.startswith(b"\x89PNG") for picture in pictures.values())
    (view,) = ("".join(output["data"]["text/html"]) for output in shown if "text/html" in output.get("data", {}))
    assert "\n\n" not in page[page.index("<div>\n<style>") : page.index("</div>", page.index("Key tokens of a pair"))]
    assert view.split("\n")[0] in page


def load(path):
    """A script as a module."""
    folder = (REPOSITORY / path).parent
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location(f"script_{Path(path).stem}", REPOSITORY / path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    return module


# -- results ----------------------------------------------------------------------------------------------------------

RESULTS = REPOSITORY / "docs" / "results"
MADE_AGAIN = sorted(page for page in RESULTS.glob("*.md") if "\n## Made again\n" in page.read_text(encoding="utf-8"))


def test_results_say_how_they_are_made_again():
    assert {page.name for page in RESULTS.glob("*.md")} == {page.name for page in MADE_AGAIN}


@pytest.mark.parametrize("page", MADE_AGAIN, ids=lambda page: page.name)
def test_what_makes_a_page_again_is_there(page):
    section = page.read_text(encoding="utf-8").split("\n## Made again\n")[1]
    scripts = re.findall(r"examples/[\w/-]+\.py", section)
    assert scripts or "st-keytokens evaluate" in section
    assert [script for script in scripts if not (REPOSITORY / script).is_file()] == []
    assert "commit" in section or page.name.startswith("quality-tokens-")  # these have it in the line before


def test_pages_that_scripts_make_from_files_are_as_they_make_them():
    for path in ("published_elsewhere", "published_models", "spectrum"):
        text = (RESULTS / f"{path}.md").read_text(encoding="utf-8")
        if path == "published_elsewhere":
            made = load(f"examples/benchmarks/{path}.py").page()
        elif path == "published_models":
            results = json.loads((RESULTS / "published-models.json").read_text(encoding="utf-8"))
            made = load(f"examples/benchmarks/{path}_page.py").page(results)
        else:
            results = json.loads((RESULTS / "spectrum.json").read_text(encoding="utf-8"))
            script, ending = load("examples/analysis/spectrum_page.py"), load("examples/benchmarks/environment.py")
            command = script.COMMAND.format(
                results["collection"], results["tiny-embedder"]["texts"], results["aligned_texts"]
            )
            made = script.page(results, ending.made_again(command, results["env"]))
        assert text == made, path


def test_the_page_of_the_collections_has_their_checksums():
    page = (REPOSITORY / "docs" / "collections.md").read_text(encoding="utf-8")
    found = {(name, part): checksum for checksum, name, part in re.findall(r"^(\w{64})  (\S+) (\w+)$", page, re.M)}
    script = load("examples/benchmarks/prepare_collections.py")
    assert found == {
        (name, part): checksum
        for name, collection in script.COLLECTIONS.items()
        for part, checksum in collection.checksums.items()
    }


LINK = re.compile(r"\]\(([^)\s:#]+)(?:#[^)\s]*)?\)")


@pytest.mark.parametrize("folder", [".", "docs", "docs/results", "examples", "integrations"])
def test_links_between_files_hold(folder):
    """On GitHub too, where pages are read as they are."""
    found = (
        (REPOSITORY / folder).rglob("*.md")
        if folder in ("examples", "integrations")
        else (REPOSITORY / folder).glob("*.md")
    )
    broken = [
        f"{page.relative_to(REPOSITORY)}: {link}"
        for page in found
        for link in LINK.findall(page.read_text(encoding="utf-8"))
        if not page.name.startswith(("quality_", "scale_"))  # of which a script makes a page of docs/results
        if not (page.parent / link).exists()
    ]
    assert broken == []
