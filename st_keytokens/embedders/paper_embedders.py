"""The embedders of the paper, and the language models that its authors compare them with."""

from __future__ import annotations

from st_keytokens.embedders.embedder_recipe import EmbedderRecipe, Finding

_AUTHORS = "https://github.com/Arthurizijar/Text_aligns_tokens"
_SGPT = "https://github.com/Muennighoff/sgpt"
_PROMPTEOL = "https://github.com/kongds/scaling_sentemb"
_LLM2VEC = "https://github.com/McGill-NLP/llm2vec"
_MISTRAL_INSTRUCT = "mistralai/Mistral-7B-Instruct-v0.2"
_MNTP = "McGill-NLP/LLM2Vec-Mistral-7B-Instruct-v2-mntp"
_EOL = {"document": ('This sentence : "', '" means in one word:"')}
_EOL_NOTES = "One template for queries and documents; the text stays as it is, as in the paper's code"
_WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"


def _eol(
    name: str, *, base: str = "", is_tied: bool = False, finding: Finding = "aligned", notes: str = ""
) -> EmbedderRecipe:
    return EmbedderRecipe(
        name=name,
        backbone="" if is_tied else base or name,
        pooling="lasttoken",
        source=_PROMPTEOL if base else _AUTHORS,
        base=base,
        adapters=(name,) if base else (),
        templates=_EOL,
        finding=finding,
        notes=f"{_EOL_NOTES}{notes}",
    )


def _llm2vec(name: str) -> EmbedderRecipe:
    return EmbedderRecipe(
        name=name,
        backbone=_MISTRAL_INSTRUCT,
        pooling="mean",
        source=_LLM2VEC,
        attention="bidirectional",
        base=_MISTRAL_INSTRUCT,
        adapters=(_MNTP, name),
        prompts={"query": f"{_WEB_SEARCH}: ", "document": ""},
        templates={"document": ("[INST] ", " [/INST]")},
        pooled_tokens="after_prompt",
        max_seq_length=512,
        finding="aligned",
    )


def _gte_qwen2(name: str) -> EmbedderRecipe:
    return EmbedderRecipe(
        name=name,
        backbone=name,
        pooling="lasttoken",
        source=f"https://huggingface.co/{name}",
        attention="bidirectional",
        prompts={"query": f"Instruct: {_WEB_SEARCH}\nQuery: ", "document": ""},
        ends_with_eos=True,
        max_seq_length=8192,
        notes="In the authors' code, with its own LM head. The repository's own code is not run",
    )


PAPER: tuple[EmbedderRecipe, ...] = (
    EmbedderRecipe(
        name="Muennighoff/SGPT-1.3B-weightedmean-nli",
        backbone="EleutherAI/gpt-neo-1.3B",
        pooling="weightedmean",
        source=_SGPT,
        finding="aligned",
    ),
    EmbedderRecipe(
        name="Muennighoff/SGPT-1.3B-weightedmean-msmarco-specb-bitfit",
        backbone="EleutherAI/gpt-neo-1.3B",
        pooling="weightedmean",
        source=_SGPT,
        templates={"query": ("[", "]"), "document": ("{", "}")},
        joins_tokens=True,
        finding="aligned",
        notes="The paper's code leaves the brackets out",
    ),
    _eol("facebook/opt-1.3b", is_tied=True),
    _eol("royokong/prompteol-opt-1.3b", base="facebook/opt-1.3b", is_tied=True),
    _eol("huggyllama/llama-7b", notes=". LLaMA-1, of which the paper names no repository"),
    _eol("royokong/prompteol-llama-7b", base="huggyllama/llama-7b"),
    EmbedderRecipe(
        name="GritLM/GritLM-7B",
        backbone="GritLM/GritLM-7B",
        pooling="mean",
        source="https://github.com/ContextualAI/gritlm",
        attention="bidirectional",
        is_normalized=True,
        prompts={"query": f"<|user|>\n{_WEB_SEARCH}\n<|embed|>\n", "document": "<|embed|>\n"},
        pooled_tokens="after_prompt",
        max_seq_length=512,
        finding="aligned",
        notes="Its code has no instruction of its own; the query's is that of e5-mistral-7b-instruct",
    ),
    _llm2vec(f"{_MNTP}-supervised"),
    _llm2vec(f"{_MNTP}-unsup-simcse"),
    _eol("meta-llama/Llama-2-7b-hf", finding="not reported", notes=". In the authors' code, not among the eight"),
    EmbedderRecipe(
        name="intfloat/e5-mistral-7b-instruct",
        backbone="mistralai/Mistral-7B-v0.1",
        pooling="lasttoken",
        source="https://huggingface.co/intfloat/e5-mistral-7b-instruct",
        is_normalized=True,
        prompts={"query": f"Instruct: {_WEB_SEARCH}\nQuery: ", "document": ""},
        ends_with_eos=True,
        max_seq_length=4096,
        notes="In the authors' code. transformers 5 no longer adds the </s> that it pools; it is added here",
    ),
    _gte_qwen2("Alibaba-NLP/gte-Qwen2-7B-instruct"),
    _gte_qwen2("Alibaba-NLP/gte-Qwen2-1.5B-instruct"),
)
