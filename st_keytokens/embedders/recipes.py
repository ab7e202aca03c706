"""The table of known embedders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

__all__ = ["RECIPES", "find_recipe", "known_embedders"]


Attention = Literal["causal", "bidirectional", "encoder"]
PooledTokens = Literal["all", "after_prompt", "mask"]
PoolingMode = Literal["lasttoken", "mean", "weightedmean", "cls", "pooler"]
Finding = Literal["aligned", "not aligned", "not reported"]
Verified = Literal["decoding parity", "facts only"]
Template = tuple[str, str]

_NO_TEMPLATES: Mapping[str, Template] = MappingProxyType({})
_NO_PROMPTS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class EmbedderRecipe:
    """How an embedder is built and which LM head decodes it.

    An embedder is either loaded as sentence-transformers saved it (``is_saved_whole``), or built from a language
    model, adapters, template and pooling.

    Attributes:
        name: Id on the Hub; the key of the table.
        backbone: Id of the checkpoint that holds the LM head. ``""``: the embedder's own input embeddings, to which
            its LM head is tied.
        pooling: How token embeddings become one vector; ``"pooler"`` is the model's own tanh pooler.
        source: Where these facts are written: a URL.
        attention: ``"bidirectional"`` where a model that was causal lets every token see all others; ``"encoder"``
            where it always did.
        is_normalized: Whether the vectors have length 1.
        is_saved_whole: Whether the repository has the modules, so that sentence-transformers alone builds it right.
        tensor_name: Name of the LM head's weight in the backbone, where it is not the usual one.
        base: Id of the language model that adapters belong to, or ``""`` for ``name`` itself.
        adapters: Ids of PEFT adapters, merged in this order.
        prompts: What is put before a text, by name; ``"document"`` without a name given.
        templates: What is around prompt and text, by task (``"query"``, ``"document"``); the document's without one.
        joins_tokens: Whether the template's parts are tokenised alone and joined as tokens, not as text.
        ends_with_eos: Whether an end-of-sequence token closes every text, also where the tokenizer does not add it.
        pooled_tokens: ``"all"``; ``"after_prompt"``: not those of template and prompt before the text; ``"mask"``:
            the last mask token alone.
        max_seq_length: Tokens of a text at most, where the tokenizer does not say.
        finding: What the paper's authors report of it.
        why_not: Why it cannot be decoded right; ``""`` where it can.
        needs_remote_code: Whether it loads only with ``trust_remote_code=True``.
        notes: What else a user should know.
        verified: ``"decoding parity"``: on a random checkpoint of its architecture and file layout, pooled vectors
            and decoded tokens are those of an independent computation. ``"facts only"``: nothing was run.
            The published weights were loaded for none.
    """

    name: str
    backbone: str
    pooling: PoolingMode
    source: str
    attention: Attention = "causal"
    is_normalized: bool = False
    is_saved_whole: bool = False
    tensor_name: str | None = None
    base: str = ""
    adapters: tuple[str, ...] = ()
    prompts: Mapping[str, str] = field(default_factory=lambda: _NO_PROMPTS)
    templates: Mapping[str, Template] = field(default_factory=lambda: _NO_TEMPLATES)
    joins_tokens: bool = False
    ends_with_eos: bool = False
    pooled_tokens: PooledTokens = "all"
    max_seq_length: int | None = None
    finding: Finding = "not reported"
    why_not: str = ""
    needs_remote_code: bool = False
    notes: str = ""
    verified: Verified = "decoding parity"

    @property
    def repositories(self) -> tuple[str, ...]:
        """Ids of all repositories that are read."""
        named = (self.base or self.name, *self.adapters, self.backbone)
        return tuple(dict.fromkeys(name for name in named if name))


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


_AUTHORS = "https://github.com/Arthurizijar/Text_aligns_tokens"
_BERT = "google-bert/bert-base-uncased"
_PROMPTBERT = {"document": ('This sentence : "', '" means [MASK].')}
_TANH = "The LM head reads hidden states; this vector went through a dense layer and tanh, which may be why"
_UNIT = "Normalised, which the head's bias does not know; the head decodes the vector before that"


def _promptbert(name: str) -> EmbedderRecipe:
    return EmbedderRecipe(
        name=name,
        backbone=_BERT,
        attention="encoder",
        pooling="mean",
        source=_AUTHORS,
        templates=_PROMPTBERT,
        pooled_tokens="mask",
        finding="aligned",
        notes="Give recipe= with google-bert/bert-base-uncased for the same prompt without training",
    )


ENCODERS: tuple[EmbedderRecipe, ...] = (
    _promptbert("royokong/unsup-PromptBERT"),
    _promptbert("royokong/sup-PromptBERT"),
    EmbedderRecipe(
        name="sentence-transformers/facebook-dpr-ctx_encoder-single-nq-base",
        backbone=_BERT,
        attention="encoder",
        pooling="cls",
        source="https://huggingface.co/sentence-transformers/facebook-dpr-ctx_encoder-single-nq-base",
        is_saved_whole=True,
        finding="aligned",
        notes="DPR's passage encoder as sentence-transformers ships it",
    ),
    EmbedderRecipe(
        name="sentence-transformers/facebook-dpr-question_encoder-single-nq-base",
        backbone=_BERT,
        attention="encoder",
        pooling="cls",
        source="https://huggingface.co/sentence-transformers/facebook-dpr-question_encoder-single-nq-base",
        is_saved_whole=True,
        finding="aligned",
        notes="DPR's question encoder as sentence-transformers ships it",
    ),
    EmbedderRecipe(
        name="sentence-transformers/all-mpnet-base-v2",
        backbone="microsoft/mpnet-base",
        attention="encoder",
        pooling="mean",
        source="https://huggingface.co/sentence-transformers/all-mpnet-base-v2",
        is_normalized=True,
        is_saved_whole=True,
        finding="aligned",
    ),
    EmbedderRecipe(
        name=_BERT,
        backbone=_BERT,
        attention="encoder",
        pooling="pooler",
        source=_AUTHORS,
        finding="not aligned",
        notes=_TANH,
    ),
    EmbedderRecipe(
        name="princeton-nlp/sup-simcse-bert-base-uncased",
        backbone=_BERT,
        attention="encoder",
        pooling="pooler",
        source=_AUTHORS,
        finding="not aligned",
        notes=_TANH,
    ),
    EmbedderRecipe(
        name="facebook/contriever",
        backbone=_BERT,
        attention="encoder",
        pooling="mean",
        source="https://huggingface.co/facebook/contriever",
        finding="not aligned",
    ),
    EmbedderRecipe(
        name="thenlper/gte-base",
        backbone=_BERT,
        attention="encoder",
        pooling="mean",
        source="https://huggingface.co/thenlper/gte-base",
        is_normalized=True,
        finding="not aligned",
        notes=_UNIT,
    ),
    EmbedderRecipe(
        name="intfloat/e5-base-v2",
        backbone=_BERT,
        attention="encoder",
        pooling="mean",
        source="https://huggingface.co/intfloat/e5-base-v2",
        is_normalized=True,
        prompts={"query": "query: ", "document": "passage: "},
        max_seq_length=512,
        finding="not aligned",
        notes=_UNIT,
    ),
    EmbedderRecipe(
        name="sentence-transformers/sentence-t5-base",
        backbone="",
        attention="encoder",
        pooling="mean",
        source=_AUTHORS,
        is_normalized=True,
        is_saved_whole=True,
        finding="not aligned",
        why_not=(
            "T5's LM head reads the decoder's hidden states and never meets the encoder's, and a dense layer follows "
            "pooling"
        ),
        verified="facts only",
    ),
)


_HUB = "https://huggingface.co"
_MISTRAL = "mistralai/Mistral-7B-v0.1"
_MODERNBERT = "answerdotai/ModernBERT-base"
_WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"
_E5_PROMPTS = {"query": f"Instruct: {_WEB_SEARCH}\nQuery: ", "document": ""}


def _of_e5_mistral(name: str) -> EmbedderRecipe:
    return EmbedderRecipe(
        name=name,
        backbone=_MISTRAL,
        pooling="lasttoken",
        source=f"{_HUB}/{name}",
        is_normalized=True,
        prompts=_E5_PROMPTS,
        ends_with_eos=True,
        max_seq_length=4096,
        notes="Tuned from e5-mistral-7b-instruct, whose closing </s> it keeps",
    )


def _qwen3(size: str, backbone: str = "", notes: str = "") -> EmbedderRecipe:
    return EmbedderRecipe(
        name=f"Qwen/Qwen3-Embedding-{size}",
        backbone=backbone,
        pooling="lasttoken",
        source=f"{_HUB}/Qwen/Qwen3-Embedding-{size}",
        is_normalized=True,
        is_saved_whole=True,
        notes=notes,
    )


def _kalm(name: str, *, is_bidirectional: bool, source: str, is_card_normalizing: bool = False) -> EmbedderRecipe:
    return EmbedderRecipe(
        name=name,
        backbone="",
        pooling="mean",
        source=source,
        attention="bidirectional" if is_bidirectional else "causal",
        is_normalized=True,
        max_seq_length=512,
        notes="Made from Qwen2-0.5B, whose input embeddings are its LM head. The repository's own code is not run"
        + ("" if is_card_normalizing else ". Not confirmed: that vectors are normalised, as v1's card has it"),
    )


CURRENT: tuple[EmbedderRecipe, ...] = (
    _qwen3("0.6B"),
    _qwen3("4B"),
    _qwen3("8B", "Qwen/Qwen3-8B-Base", "The only size whose LM head is not tied to its input embeddings"),
    EmbedderRecipe(
        name="google/embeddinggemma-300m",
        backbone="",
        pooling="mean",
        source="https://ai.google.dev/gemma/docs/embeddinggemma/model_card",
        attention="bidirectional",
        is_normalized=True,
        is_saved_whole=True,
        notes="Two dense layers follow pooling; the head decodes the vector before them",
    ),
    _of_e5_mistral("Linq-AI-Research/Linq-Embed-Mistral"),
    _of_e5_mistral("Salesforce/SFR-Embedding-Mistral"),
    EmbedderRecipe(
        name="BAAI/bge-en-icl",
        backbone=_MISTRAL,
        pooling="lasttoken",
        source="https://github.com/FlagOpen/FlagEmbedding",
        is_normalized=True,
        prompts={"query": f"<instruct>{_WEB_SEARCH}\n<query>", "document": ""},
        templates={"query": ("", "\n<response>"), "document": ("", "")},
        ends_with_eos=True,
        max_seq_length=512,
        notes="Without examples. Its added tokens have no row in the backbone's LM head and are never decoded. Not "
        "confirmed: the backbone's version; the configuration is that of Mistral 7B v0.1",
    ),
    EmbedderRecipe(
        name="BAAI/bge-multilingual-gemma2",
        backbone="",
        pooling="lasttoken",
        source="https://github.com/FlagOpen/FlagEmbedding",
        is_normalized=True,
        is_saved_whole=True,
        notes="Made from Gemma 2 9B. Not confirmed: that its modules normalise, as its authors' code does",
    ),
    _kalm(
        "HIT-TMG/KaLM-embedding-multilingual-mini-instruct-v1",
        is_bidirectional=False,
        source=f"{_HUB}/HIT-TMG/KaLM-embedding-multilingual-mini-instruct-v1",
        is_card_normalizing=True,
    ),
    _kalm(
        "HIT-TMG/KaLM-embedding-multilingual-mini-instruct-v2",
        is_bidirectional=True,
        source="https://arxiv.org/abs/2506.20923",
    ),
    _kalm(
        "KaLM-Embedding/KaLM-embedding-multilingual-mini-instruct-v2.5",
        is_bidirectional=True,
        source="https://arxiv.org/abs/2506.20923",
    ),
    EmbedderRecipe(
        name="jinaai/jina-embeddings-v5-text-small-retrieval",
        backbone="Qwen/Qwen3-0.6B-Base",
        pooling="lasttoken",
        source="https://jina.ai/models/jina-embeddings-v5-text-small",
        is_normalized=True,
        is_saved_whole=True,
        notes="The retrieval adapter, merged; prompts Query: and Document:. Not confirmed: that its modules normalise",
    ),
    EmbedderRecipe(
        name="nvidia/llama-embed-nemotron-8b",
        backbone="meta-llama/Llama-3.1-8B",
        pooling="mean",
        source="https://docs.nvidia.com/nemo/automodel/model-coverage/embedding-models/nvidia/llama-embed-nemotron-8b",
        attention="bidirectional",
        is_normalized=True,
        is_saved_whole=True,
        needs_remote_code=True,
        notes="Not confirmed: that its modules normalise",
        verified="facts only",
    ),
    EmbedderRecipe(
        name="Alibaba-NLP/gte-modernbert-base",
        backbone=_MODERNBERT,
        pooling="cls",
        source=f"{_HUB}/Alibaba-NLP/gte-modernbert-base",
        attention="encoder",
        is_saved_whole=True,
    ),
    EmbedderRecipe(
        name="nomic-ai/modernbert-embed-base",
        backbone=_MODERNBERT,
        pooling="mean",
        source=f"{_HUB}/nomic-ai/modernbert-embed-base",
        attention="encoder",
        is_normalized=True,
        is_saved_whole=True,
        notes="Prompts search_query: and search_document:",
    ),
    EmbedderRecipe(
        name="nvidia/NV-Embed-v2",
        backbone=_MISTRAL,
        pooling="mean",
        source="https://arxiv.org/abs/2405.17428",
        attention="bidirectional",
        is_normalized=True,
        is_saved_whole=True,
        why_not=(
            "it pools what a latent attention layer makes of the hidden states, and no LM head ever read that; it "
            "needs trust_remote_code as well"
        ),
        needs_remote_code=True,
        verified="facts only",
    ),
)


RECIPES: Mapping[str, EmbedderRecipe] = MappingProxyType(
    {recipe.name: recipe for recipe in (*PAPER, *ENCODERS, *CURRENT)}
)


def known_embedders(*, is_decodable: bool | None = None) -> tuple[EmbedderRecipe, ...]:
    """The embedders that :func:`load_embedder` builds by their ids.

    Args:
        is_decodable: Only those that an LM head decodes right, or only those that none does; None for all.

    Returns:
        Their recipes, in the order of the documentation.

    >>> "GritLM/GritLM-7B" in {recipe.name for recipe in known_embedders(is_decodable=True)}
    True
    """
    return tuple(recipe for recipe in RECIPES.values() if is_decodable in (None, not recipe.why_not))


def find_recipe(name: str, *, is_needed: bool = False) -> EmbedderRecipe | None:
    """The recipe of an id.

    Args:
        name: The id, in any case.
        is_needed: Whether an unknown one is an error.

    Returns:
        The recipe, or None.

    Raises:
        ValueError: If an unknown one is needed, or the known one cannot be decoded right.
    """
    recipe = RECIPES.get(name) or next((each for each in RECIPES.values() if each.name.lower() == name.lower()), None)
    if recipe is None and is_needed:
        raise ValueError(
            f"recipe must be the id of a known embedder, got {name!r}. known_embedders() lists them; leave it out, "
            "and name the backbone, for any other."
        )
    if recipe is not None and recipe.why_not:
        raise ValueError(
            f"name_or_path must be an embedder that an LM head decodes right, got {recipe.name}: {recipe.why_not}."
        )
    return recipe
