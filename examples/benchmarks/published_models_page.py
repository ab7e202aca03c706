"""The page of published_models.py's figures."""

from __future__ import annotations

from typing import Any

from st_keytokens.shared.markdown import preformatted_table

AIM = 1.03  # both vectors in so much of the dense vector's time
DECODERS = {"ridge_decoder": "fitted to the corpus", "lm_head": "LM head, not calibrated"}
TEXT = """\
# What published models cost

Loading, memory, both vectors beside the dense one alone, decoding, and a calibration, on one core. All figures:
[published-models.json](published-models.json).

{summary}

## Both vectors from one pass

Texts of 256 tokens, 8 a batch, put together from those of dbpedia-entity-sub. *Both* is `KeyTokenEncoder.encode`,
*dense* the model's own `encode_document` with as many texts in a pass. The ratio is the median over rounds, in which
one follows the other on the same new texts, with the lowest and the highest. *Decoding* takes a batch of vectors to
its terms, without the words of the text.

{ratios}

## A whole call

128 documents of dbpedia-entity-sub as they come, with the default batch size of each. `KeyTokenEncoder` has on a CPU
at most some 1,000 tokens for each thread in a pass, and decodes the whole batch at once; sentence-transformers has 32
texts in a pass, padded to the longest.

{calls}

## Loading and memory

Loading: seconds of the processor without imports, median of fresh processes, from files in the system's cache.
Memory: MB that are resident, of the whole process: with its imports and no model, with the encoder loaded, with it
calibrated and used, and the most that it ever had. Pages of a weights file that is mapped count as resident.

{loading}

## A calibration on 1,000 texts

Seconds of the processor, for the short texts of dbpedia-entity-sub. *Passes* embed them; *known items* embeds up to
600 sentences and remainders, by which the calibration learns how far to trust the embedder; *statistics* counts
terms and sums moments; *solve* is the ridge decoder. With vectors that are stored, the passes fall away.

{calibration}

## Made again

With one model or several; the collection is made by `examples/benchmarks/prepare_collections.py`
([collections.md](../collections.md)):

```bash
python examples/benchmarks/published_models.py NAME=FOLDER:DTYPE --texts dbpedia-entity-sub
```

{where}
"""


def page(results: dict[str, Any]) -> str:
    """Markdown; what misses the aim first."""
    models = results["models"]
    parts = {
        "summary": _summary,
        "ratios": _ratios,
        "calls": _calls,
        "loading": _loading,
        "calibration": _calibration,
        "where": _where,
    }
    return TEXT.format(**{name: part(models).strip() for name, part in parts.items()})


def _summary(models: dict[str, Any]) -> str:
    ratios = sorted(((m["ridge_decoder"]["both_over_dense"], name) for name, m in models.items()), reverse=True)
    return "\n".join(
        f"- {name}: both vectors take {ratio:.3f} times as long as the dense one, "
        f"{'more than' if ratio > AIM else 'within'} the {AIM} that we aim at."
        for ratio, name in ratios
    )


def _ratios(models: dict[str, Any]) -> str:
    rows = [
        [
            name,
            words,
            f"{run['dense_s']:.2f} s",
            f"{run['both_over_dense']:.3f}",
            f"{run['lowest_ratio']:.3f} to {run['highest_ratio']:.3f}",
            f"{1e3 * run['decode_s']:.0f} ms",
            f"{run['decode_s'] / run['dense_s']:.1%}",
        ]
        for name, model in models.items()
        for decoder, words in DECODERS.items()
        if (run := model.get(decoder)) is not None
    ]
    head = ["model", "decoder", "dense", "both / dense", "range", "decoding", "decoding / dense"]
    return preformatted_table(head, rows, left=2)


def _calls(models: dict[str, Any]) -> str:
    rows = [
        [
            name,
            *(f"{1e3 * run[f'{part}_s'] / run['texts']:.0f} ms" for part in ("dense", "both")),
            f"{run['both_over_dense']:.2f}",
            f"{run['lowest_ratio']:.2f} to {run['highest_ratio']:.2f}",
        ]
        for name, model in models.items()
        if (run := model.get("whole_calls")) is not None
    ]
    head = ["model", "a text, sentence-transformers, dense", "KeyTokenEncoder, both", "both / dense", "range"]
    return preformatted_table(head, rows)


def _loading(models: dict[str, Any]) -> str:
    rows = []
    for name, model in models.items():
        loading, sizes = model["loading"], model["memory_mb"]
        rows.append(
            [
                name,
                model["dtype"],
                f"{model['weights_mb']:,} MB",
                f"{model['vocab_size']:,}",
                *(f"{loading[part]['processor_s']:.1f} s" for part in ("model", "encoder")),
                *(f"{sizes[moment]['VmRSS']:,}" for moment in ("imported", "loaded", "used")),
                f"{max(size['VmHWM'] for size in sizes.values()):,}",
            ]
        )
    head = ["model", "loaded as", "file", "tokens", "model alone", "with encoder", "imports", "loaded", "used", "most"]
    return preformatted_table(head, rows, left=2)


def _calibration(models: dict[str, Any]) -> str:
    rows = []
    for name, model in models.items():
        cost = model["calibration"]
        parts = ("embedding_s", "known_items_s", "statistics_s", "solve_s")
        seconds = [f"{cost[part]:.1f}" for part in parts]
        rows.append([name, f"{cost['tokens_a_text']:.0f}", *seconds, f"{cost['terms']:,}", f"{cost['trust']:.2f}"])
    head = ["model", "tokens per text", "passes", "known items", "statistics", "solve", "terms", "trust"]
    return preformatted_table(head, rows)


def _where(models: dict[str, Any]) -> str:
    lines = []
    for name, model in models.items():
        env = model["env"]
        lines.append(
            f"- {name}: {env['date']} at commit {env['commit']}, one core of {env['processor']} (load average "
            f"{env['load_average']}), torch {env['versions']['torch']}; {model['clock_s'] / 60:.0f} minutes."
        )
    return "\n".join(lines)
