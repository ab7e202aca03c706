"""Small models and tokenizers with random weights, built on the fly: nothing is downloaded, nothing is stored."""

from __future__ import annotations

import functools
import re
from collections import Counter
from pathlib import Path
from typing import Literal

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

Kind = Literal["llama", "llama-untied", "bert"]

SENTENCES = (
    "Genes encode proteins, and mutations in genes change the proteins that a cell makes.",
    "The genome of a mouse is about as long as the genome of a human.",
    "Gene expression differs between tissues, although every cell carries the same genome.",
    "Sequencing the whole genome of a patient finds rare variants that cause disease.",
    "Vaccines teach the immune system to recognise a virus before an infection.",
    "Antibodies bind to proteins on the surface of the virus and block infection.",
    "The patients in the trial received either the vaccine or a placebo.",
    "Insulin lowers the concentration of glucose in the blood of diabetic patients.",
    "A high dose of the drug reduced the risk of heart disease in older patients.",
    "Heart disease remains the most common cause of death in many countries.",
    "Stars form when clouds of gas and dust collapse under their own gravity.",
    "The telescope measured the light of distant galaxies and of nearby stars.",
    "Dark matter holds galaxies together, but nobody has measured a particle of it.",
    "A black hole bends light so strongly that no light escapes from it.",
    "The planets move around the Sun, and the Moon moves around the Earth.",
    "Quantum computers use the interference of waves to solve certain problems faster.",
    "The electron has a negative charge, the proton has a positive charge.",
    "Superconductors carry an electric current without any loss of energy.",
    "The laser cools the atoms to a temperature close to absolute zero.",
    "Heat flows from the warm body to the cold body until both are equally warm.",
    "Neural networks learn to recognise images from millions of labelled examples.",
    "A language model predicts the next word from all of the words before it.",
    "The search engine ranks documents by the words that they share with the query.",
    "Sparse vectors store only the few weights that are not zero.",
    "An index maps every word to the documents in which the word occurs.",
    "The algorithm sorts a list of numbers in time proportional to its length.",
    "Compilers translate a program into instructions for the machine.",
    "Databases keep records safe even when the power fails.",
    "Every even number is divisible by two, and every prime number is not.",
    "The theorem holds for every finite group, but the proof is long.",
    "Geometry studies shapes, and algebra studies the symmetries of shapes.",
    "Rivers carry sand and stones from the mountains down to the sea.",
    "Rain falls on the hills, and the water flows into the rivers and lakes.",
    "The climate warms because carbon dioxide keeps heat in the atmosphere.",
    "Forests take carbon dioxide out of the air and store carbon in wood.",
    "Bees carry pollen from flower to flower, and without bees there is little fruit.",
    "Wolves hunt deer in packs, and the deer hide from the wolves in the forest.",
    "Whales sing songs that other whales hear across a whole ocean.",
    "Farmers plant wheat in autumn and harvest the wheat in summer.",
    "Bread is baked from flour, water, salt and yeast.",
    "The city built a new bridge over the river for trains and bicycles.",
    "Trains are faster than buses, but buses stop in more villages.",
    "The court decided that the contract was not valid.",
    "Parliament passed the law after a long debate about taxes.",
    "Prices rise when demand grows faster than supply.",
    "Banks lend money to companies, and companies pay interest to the banks.",
    "The teacher reads a story to the children every morning.",
    "Children learn a second language more easily than adults do.",
    "The painter mixed blue and yellow to paint the green hills.",
    "The orchestra played the symphony in the old hall of the city.",
)


@functools.cache
def build_byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 600 tokens, cased, that adds no special tokens to a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|pad|>", model_max_length=256
    )


@functools.cache
def build_wordpiece_tokenizer() -> PreTrainedTokenizerFast:
    """An uncased WordPiece tokenizer of 600 tokens that puts [CLS] and [SEP] around a text."""
    names = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    words = Counter(word for sentence in SENTENCES for word in re.findall(r"\w+|[^\w\s]", sentence.lower()))
    pieces = Counter(words)
    for word, count in words.items():
        pieces.update({"##" + word[-length:]: count for length in (1, 2, 3) if length < len(word)})
    alphabet = "abcdefghijklmnopqrstuvwxyz0123456789.,"
    tokens = [*names.values(), *alphabet, *("##" + character for character in alphabet)]
    tokens += sorted(pieces.keys() - set(tokens), key=lambda piece: (-pieces[piece], piece))
    vocabulary = {
        token: number for number, token in enumerate(tokens[:600])
    }  # the trainer's order changes with each run
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=256, **names)


def build_llama(*, is_tied: bool = True, seed: int = 0) -> LlamaForCausalLM:
    """A two-layer Llama of 32 dimensions; 640 rows, 40 more than its tokenizer has tokens."""
    tokenizer = build_byte_level_tokenizer()
    config = LlamaConfig(
        vocab_size=640,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=is_tied,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _random(LlamaForCausalLM, config, seed)


def build_bert(*, seed: int = 0) -> BertForMaskedLM:
    """A two-layer BERT of 32 dimensions with its masked-language-model head."""
    tokenizer = build_wordpiece_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _random(BertForMaskedLM, config, seed)


def build_language_model(kind: Kind) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The language model of a kind, and its tokenizer."""
    if kind == "bert":
        return build_bert(), build_wordpiece_tokenizer()
    return build_llama(is_tied=kind == "llama"), build_byte_level_tokenizer()


def save_language_model(folder: str | Path, kind: Kind = "llama") -> None:
    """Save the language model of a kind, head included, and its tokenizer as a transformers checkpoint."""
    model, tokenizer = build_language_model(kind)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def build_sentence_transformer(
    folder: str | Path,
    kind: Kind = "llama",
    pooling: str = "mean",
    normalize: bool = False,
    prompts: dict[str, str] | None = None,
) -> SentenceTransformer:
    """Save a language model into ``folder``, and load an embedder from it, without the head, as embedders are."""
    save_language_model(folder, kind)
    model_kwargs = {"add_pooling_layer": False} if kind == "bert" else {}
    transformer = Transformer(str(folder), model_kwargs=model_kwargs)
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), pooling_mode=pooling)]
    if normalize:
        modules.append(Normalize())
    return SentenceTransformer(modules=modules, prompts=prompts, device="cpu")


def _random(model_class: type[PreTrainedModel], config: LlamaConfig | BertConfig, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_class(config).eval()
