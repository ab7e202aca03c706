from __future__ import annotations

import ast
import graphlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import st_keytokens
import st_keytokens.analysis
import st_keytokens.evaluation

NAMES = [
    "Calibration",
    "HybridEmbeddings",
    "HybridIndex",
    "KeyTokenEncoder",
    "KeyTokenHead",
    "LMHead",
    "SparseEmbeddings",
    "Vocabulary",
    "Weighting",
    "__version__",
    "adaptive_fusion",
    "reciprocal_rank_fusion",
    "score_fusion",
]
PACKAGES = [st_keytokens, st_keytokens.analysis, st_keytokens.evaluation]
HEAVY = ("torch", "transformers", "sentence_transformers", "scipy", "huggingface_hub")


def imported_by(code: str) -> list[str]:
    """Which of the heavy packages are imported in a fresh process that runs code."""
    script = f"{code}\nimport json, sys\nprint(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    return json.loads(found.stdout.splitlines()[-1])


ROOT = Path(__file__).parents[1]
VERSIONED = [
    "integrations/langchain-keytokens/langchain_keytokens/__init__.py",
    "integrations/llama-index-retrievers-keytokens/llama_index/retrievers/keytokens/__init__.py",
]


class TestVersion:
    """Every package has its version in one place, and all are released together, under the same one."""

    @pytest.mark.parametrize("path", VERSIONED)
    def test_of_the_adapters(self, path):
        assert f'\n__version__ = "{st_keytokens.__version__}"\n' in (ROOT / path).read_text(encoding="utf-8")

    def test_nothing_else_writes_it_down(self):
        for path in (ROOT / "pyproject.toml", *ROOT.glob("integrations/*/pyproject.toml")):
            text = path.read_text(encoding="utf-8")
            assert 'dynamic = ["version"]' in text
            assert "\nversion = " not in text

    def test_of_the_citation(self):
        assert f"\nversion: {st_keytokens.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")

    def test_of_the_changelog(self):
        """What is not released stands first, then this version, whose date is that of the citation."""
        sections = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
        (date,) = re.findall(r"^date-released: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M)
        assert sections[:2] == ["Unreleased", f"{st_keytokens.__version__} - {date}"]


class TestNames:
    def test_public_names_are_pinned(self):
        assert st_keytokens.__all__ == NAMES

    @pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
    def test_each_is_what_its_module_defines(self, package):
        for name in package.__all__:
            value = getattr(package, name)
            module = getattr(value, "__module__", None)
            assert module is None or getattr(sys.modules[module], name) is value
        assert set(package.__all__) <= set(dir(package))

    def test_a_star_imports_them_all(self):
        namespace: dict[str, object] = {}
        exec("from st_keytokens import *", namespace)
        assert set(NAMES) <= set(namespace)

    @pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
    def test_unknown(self, package):
        with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'nothing'"):
            package.nothing  # noqa: B018  # reading it is the test


def imports_of(body: list[ast.stmt]) -> set[str]:
    """What a module imports when it is imported, or for its types."""
    found = set()
    for node in body:
        if isinstance(node, ast.If):
            found |= imports_of([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            found |= imports_of(node.body)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


class TestImport:
    @pytest.mark.parametrize(
        ("folder", "package"),
        [
            (".", "st_keytokens"),
            ("integrations/langchain-keytokens", "langchain_keytokens"),
            ("integrations/llama-index-retrievers-keytokens", "llama_index"),
        ],
    )
    def test_makes_no_circle_not_of_types_either(self, folder, package):
        modules = {}
        for path in (ROOT / folder / package).rglob("*.py"):
            names = path.relative_to(ROOT / folder).with_suffix("").parts
            modules[".".join(names).removesuffix(".__init__")] = path
        assert len(modules) >= 8
        graph = {}
        for name, path in modules.items():
            found = {
                module for module in imports_of(ast.parse(path.read_text(encoding="utf-8")).body) if module in modules
            }
            for module in tuple(found):  # the packages above a module run before it
                parts = module.split(".")
                found |= {".".join(parts[:count]) for count in range(1, len(parts))} & modules.keys()
            graph[name] = {module for module in found if not f"{name}.".startswith(f"{module}.")}
        graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle

    def test_imports_nothing_heavy(self):
        assert (
            imported_by("import st_keytokens, st_keytokens.analysis, st_keytokens.evaluation, st_keytokens.cli") == []
        )

    def test_a_name_brings_what_it_needs(self):
        assert imported_by("from st_keytokens import reciprocal_rank_fusion") == []
        assert "torch" in imported_by("from st_keytokens import KeyTokenHead")

    @pytest.mark.parametrize(
        "words",
        [
            ["--help"],
            ["--version"],
            ["search"],
            ["index", "/none", "/none", "index", "--batch-size", "0"],
            ["index", ".", "/none", "index"],
            ["search", "/none", "query"],
            ["sparsify", ".", __file__, "--output", "a.txt"],
            ["evaluate", "/none", "--model", ".", "--output", "a.json"],
            ["analyze", "pair", "/none"],
        ],
        ids=" ".join,
    )
    def test_help_and_errors_in_the_arguments_do_not_wait_for_torch(self, words):
        assert imported_by(f"from st_keytokens.cli import main\nassert main({words!r}) in (0, 2)") == []
