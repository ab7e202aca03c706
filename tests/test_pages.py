"""Every Python snippet of the pages in docs/ runs, in the order of its page, and prints what the page says."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import os
import re
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


def test_the_readme_prints_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.symlink(REPOSITORY / "examples", "examples")
    ((printed, said),) = run(README)
    assert printed == said


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
    listed = set(re.findall(r"[\w/-]+\.md", navigation)) - {"changelog.md"}
    there = {page.relative_to(REPOSITORY / "docs").as_posix() for page in (REPOSITORY / "docs").rglob("*.md")}
    assert listed == there


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
