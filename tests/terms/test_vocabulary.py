from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from st_keytokens.terms.vocabulary import Vocabulary

TEXTS = [
    "The gene encodes a protein. Gene expression, GENE expression; gene, genes and the GENOME.",
    "Größe, Straße, café, naïve, Ångström: accents in words.",
    "基因编码蛋白质。基因组很大。基因 表达。",
    "Emoji 🙂 and 🧬 are four bytes each. 🙂🙂 🧬🧬",
    "def gene(name):\n    return name\n",
] * 3


@pytest.fixture(scope="module")
def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens(["<think>", "Ġtag", AddedToken("   ", normalized=False), "|||PHONE|||"])
    return tokenizer


@pytest.fixture(scope="module")
def wordpiece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


@pytest.fixture(scope="module")
def unigram():
    """A trained Unigram with the 256 byte tokens that SentencePiece models with byte fallback have."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=130, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    settings = json.loads(tokenizer.to_str())
    pieces = settings["model"]["vocab"]
    settings["model"]["vocab"] = pieces[:3] + [[f"<0x{byte:02X}>", -20.0] for byte in range(256)] + pieces[3:]
    settings["model"]["byte_fallback"] = True
    return Tokenizer.from_str(json.dumps(settings))


class SlowTokenizer(PreTrainedTokenizer):
    """A tokenizer without a Rust backend, over a fixed list of tokens."""

    def __init__(self, tokens, **kwargs):
        self.tokens = tokens
        super().__init__(**kwargs)

    @property
    def vocab_size(self):
        return len(self.tokens)

    def get_vocab(self):
        return {token: number for number, token in enumerate(self.tokens)} | self.added_tokens_encoder

    def _tokenize(self, text, **kwargs):
        return text.split()

    def _convert_token_to_id(self, token):
        return self.tokens.index(token)

    def _convert_id_to_token(self, index):
        return self.tokens[index]


def shown(vocabulary, tokenizer, text):
    return [vocabulary.strings[token] for token in tokenizer.encode(text, add_special_tokens=False).ids]


class TestByteLevel:
    def test_strings_are_what_the_tokenizer_decodes(self, byte_level):
        vocabulary = Vocabulary.from_tokenizer(byte_level)
        assert vocabulary.kind == "byte-level"
        complete = 0
        for row, string in enumerate(vocabulary.strings):
            decoded = byte_level.decode([row], skip_special_tokens=False)
            if "\ufffd" not in decoded and not vocabulary.is_masked[row] and string != "Ġtag":
                assert string == decoded.strip()
                complete += 1
        assert complete > 200

    def test_words_and_cjk(self, byte_level):
        vocabulary = Vocabulary.from_tokenizer(byte_level)
        for word in ("gene", "Gene", "基因", "🙂", "ß"):
            assert word in vocabulary.strings

    def test_incomplete_characters_show_their_bytes(self):
        # 基 is E5 9F BA, an emoji F0 9F 99 82
        tokens = ["åŁº", "åŁ", "Ł", "Ġåľ", "aå", "åŁºå", "ðŁĻĤ", "ðŁ"]
        vocabulary = Vocabulary(tokens, kind="byte-level")
        assert vocabulary.strings == [
            "基", "<0xE5><0x9F>", "<0x9F>", "<0xE5><0x9C>", "a<0xE5>", "基<0xE5>", "🙂", "<0xF0><0x9F>",
        ]  # fmt: skip
        assert not vocabulary.is_masked.any()

    def test_every_byte(self, byte_level):
        vocabulary = Vocabulary.from_tokenizer(byte_level)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        seen = {vocabulary.strings[byte_level.token_to_id(character)] for character in alphabet}
        assert len(seen) == 256
        assert {f"<0x{byte:02X}>" for byte in range(0x80, 0x100)} <= seen
        assert set(map(chr, range(0x80))) <= seen

    def test_added_tokens_are_literal(self, byte_level):
        vocabulary = Vocabulary.from_tokenizer(byte_level)
        row = byte_level.token_to_id("Ġtag")
        assert vocabulary.strings[row] == "Ġtag"
        assert not vocabulary.is_masked[row]

    def test_white_space_around_is_not_shown(self):
        assert Vocabulary(["ĠĠgene", ".ĊĊ", "aĠb"], kind="byte-level").strings == ["gene", ".", "a b"]

    def test_a_token_outside_the_alphabet_is_literal(self):
        assert Vocabulary(["基因", "a b"], kind="byte-level").strings == ["基因", "a b"]


class TestWordPiece:
    def test_continuations_are_kept(self, wordpiece):
        vocabulary = Vocabulary.from_tokenizer(wordpiece)
        assert vocabulary.kind == "wordpiece"
        assert shown(vocabulary, wordpiece, "genes 基因 café") == wordpiece.encode("genes 基因 café").tokens
        assert any(string.startswith("##") for string in vocabulary.strings)

    def test_the_mark_alone_is_a_token(self):
        vocabulary = Vocabulary(["##", "###", "##ing"], kind="wordpiece")
        assert vocabulary.strings == ["##", "###", "##ing"]
        assert not vocabulary.is_masked.any()


class TestSentencePiece:
    def test_words_cjk_and_bytes(self, unigram):
        vocabulary = Vocabulary.from_tokenizer(unigram)
        assert vocabulary.kind == "metaspace"
        pieces = unigram.encode("The gene ☂").tokens
        assert pieces[-3:] == ["<0xE2>", "<0x98>", "<0x82>"]
        assert shown(vocabulary, unigram, "The gene ☂") == [piece.replace("▁", "") or " " for piece in pieces]
        assert shown(vocabulary, unigram, "基因")[-1] in {"基因", "因"}
        assert not any("▁" in string for string in vocabulary.strings)

    def test_byte_tokens_are_terms_except_white_space_and_control(self, unigram):
        vocabulary = Vocabulary.from_tokenizer(unigram)
        masked = {byte for byte in range(256) if vocabulary.is_masked[unigram.token_to_id(f"<0x{byte:02X}>")]}
        assert masked == {*range(0x21), 0x7F}

    def test_byte_tokens_fold_with_nothing(self):
        vocabulary = Vocabulary(["<0x41>", "A", "a", "<0xC4>"], kind="metaspace")
        assert vocabulary.terms.tolist() == [0, 1, 1, 3]

    def test_inner_space(self):
        assert Vocabulary(["▁of▁the"], kind="metaspace").strings == ["of the"]


class TestKind:
    @pytest.mark.parametrize(
        ("parts", "kind"),
        [
            ({"pre_tokenizer": pre_tokenizers.ByteLevel()}, "byte-level"),
            ({"decoder": decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])}, "byte-level"),
            (
                {"pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel()])},
                "byte-level",
            ),
            ({"pre_tokenizer": pre_tokenizers.Metaspace()}, "metaspace"),
            ({"decoder": decoders.Metaspace()}, "metaspace"),
            ({"normalizer": normalizers.Replace(" ", "▁")}, "metaspace"),
            ({"decoder": decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])}, "metaspace"),
            ({"decoder": decoders.WordPiece()}, "wordpiece"),
            ({"normalizer": normalizers.Lowercase()}, "plain"),
            ({}, "plain"),
        ],
    )
    def test_parts_of_a_fast_tokenizer(self, parts, kind):
        tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
        for name, part in parts.items():
            setattr(tokenizer, name, part)
        assert Vocabulary.from_tokenizer(tokenizer).kind == kind

    @pytest.mark.parametrize(
        ("tokens", "kind", "strings"),
        [
            (["##", "Ġgene", "Ġa", "åŁº"], "byte-level", ["##", "gene", "a", "基"]),
            (["##", "▁gene", "▁a", "<0xE4>"], "metaspace", ["##", "gene", "a", "<0xE4>"]),
            (["gene", "##s", "##ing", "▁"], "wordpiece", ["gene", "##s", "##ing", "▁"]),
            (["gene", "a"], "plain", ["gene", "a"]),
        ],
    )
    def test_most_frequent_marker_where_nothing_else_tells(self, tokens, kind, strings):
        bare = Tokenizer(models.WordLevel({token: row for row, token in enumerate(tokens)}, unk_token="a"))
        for tokenizer in (bare, SlowTokenizer(tokens)):
            vocabulary = Vocabulary.from_tokenizer(tokenizer)
            assert vocabulary.kind == kind
            assert vocabulary.strings[: len(tokens)] == strings

    def test_fast_wrapper_equals_bare_tokenizer(self, byte_level, wordpiece, unigram):
        for bare in (byte_level, wordpiece, unigram):
            wrapped = PreTrainedTokenizerFast(tokenizer_object=bare)
            one, other = Vocabulary.from_tokenizer(bare, 700), Vocabulary.from_tokenizer(wrapped, 700)
            assert one.hash == other.hash
            assert one.strings == other.strings
            assert_array_equal(one.is_masked, other.is_masked)
            assert_array_equal(one.terms, other.terms)

    def test_saved_and_loaded_tokenizer_is_the_same(self, byte_level, tmp_path):
        PreTrainedTokenizerFast(tokenizer_object=byte_level).save_pretrained(tmp_path)
        loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
        assert Vocabulary.from_tokenizer(loaded).hash == Vocabulary.from_tokenizer(byte_level).hash

    def test_slow_tokenizer_with_special_tokens(self):
        tokenizer = SlowTokenizer(["▁gene", "▁Gene", "pad", "▁the"], pad_token="pad", eos_token="<end>")
        vocabulary = Vocabulary.from_tokenizer(tokenizer, vocab_size=6)
        assert vocabulary.strings == ["gene", "Gene", "pad", "the", "<end>", "<unassigned 5>"]
        assert vocabulary.is_masked.tolist() == [False, False, True, False, True, True]
        assert vocabulary.terms.tolist() == [0, 0, 2, 3, 4, 5]


class TestMask:
    @pytest.mark.parametrize(
        "token",
        [
            "<|endoftext|>", "<|im_start|>", "<|reserved_special_token_12|>", "reserved_special_token_3",
            "<\uff5cbegin▁of▁sentence\uff5c>", "[unused12]", "<unused3>", "<pad>", "<s>", "</s>", "[PAD]", "[MASK]",
            "<unk>", "<extra_id_5>", "▁<extra_id_5>", "<SPECIAL_12>", "[control_8]", "<reserved_7>", "<reserved106>",
            "madeupword0001", "<madeupword3>", "<bos>", "<eos>", "", "▁", "▁▁▁", "\t", "\n\n", "\u200b", "\ufeff",
            "\u3000", "\x00", "▁\u2060",
        ],
    )  # fmt: skip
    def test_masked_without_being_declared(self, token):
        vocabulary = Vocabulary([token, "a"], kind="metaspace")
        assert vocabulary.is_masked.tolist() == [True, False]

    @pytest.mark.parametrize(
        "token",
        [".", ",", "▁-", "<", "<>", "|", "[", "[]", "[1]", "<s", "</", "unused", "▁pad", "s", "1", "基", "🙂",
         "<0xE4>", "<0x41>", "special_3", "▁the", "é", "\u0301", "\ufffd"],
    )  # fmt: skip
    def test_content_and_punctuation_stay(self, token):
        assert not Vocabulary([token], kind="metaspace").is_masked[0]

    def test_white_space_and_control_bytes_of_byte_level(self):
        assert Vocabulary(["Ġ", "ĠĠ", "Ċ", "ĠĊ", "ĉ", "Ā", "Ġ.", "Ń"], kind="byte-level").is_masked.tolist() == (
            [True] * 6 + [False] * 2
        )

    def test_special_and_added(self, byte_level):
        vocabulary = Vocabulary.from_tokenizer(byte_level, vocab_size=430)
        masked = {token: bool(vocabulary.is_masked[row]) for token, row in byte_level.get_vocab().items()}
        assert masked["<|endoftext|>"] and masked["<think>"] and masked["   "] and masked["|||PHONE|||"]
        assert not masked["Ġtag"]

    def test_markup_is_masked_only_where_it_was_added(self):
        vocabulary = Vocabulary(["<br>", "<think>", "[INST]", "word"], kind="plain", added_ids=[1, 2, 3])
        assert vocabulary.is_masked.tolist() == [False, True, True, False]

    def test_added_special_token_of_any_look(self):
        tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
        tokenizer.add_special_tokens(["END"])
        assert Vocabulary.from_tokenizer(tokenizer).is_masked.tolist() == [False, False, True]

    def test_special_tokens_of_the_wrapper(self):
        tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
        wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="b")
        assert Vocabulary.from_tokenizer(wrapped).is_masked.tolist() == [False, True]

    def test_rows_without_a_token(self, byte_level):
        size = byte_level.get_vocab_size()
        vocabulary = Vocabulary.from_tokenizer(byte_level, vocab_size=size + 8)
        assert len(vocabulary) == vocabulary.vocab_size == len(vocabulary.strings) == size + 8
        assert vocabulary.is_masked[size:].all()
        assert vocabulary.strings[-1] == f"<unassigned {size + 7}>"

    def test_holes_between_ids(self):
        tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 3}, unk_token="a"))
        assert Vocabulary.from_tokenizer(tokenizer).is_masked.tolist() == [False, True, True, False]


class TestFolding:
    def test_smallest_id_with_a_space_represents(self):
        tokens = ["gene", "GENE", "ĠGene", "Ġgene", "genes"]
        assert Vocabulary(tokens, kind="byte-level").terms.tolist() == [2, 2, 2, 2, 4]

    def test_smallest_id_where_no_variant_has_a_space(self):
        assert Vocabulary(["a", "GENE", "gene", "Gene"], kind="byte-level").terms.tolist() == [0, 1, 1, 1]

    def test_without_folding(self):
        vocabulary = Vocabulary(["gene", "GENE", "ĠGene"], kind="byte-level", fold=False)
        assert vocabulary.terms.tolist() == [0, 1, 2]
        assert vocabulary.terms.dtype == np.int64

    def test_wordpiece_continuations_fold_among_themselves(self):
        tokens = ["gene", "##gene", "Gene", "##Gene"]
        assert Vocabulary(tokens, kind="wordpiece").terms.tolist() == [0, 1, 0, 1]

    def test_sentencepiece(self):
        assert Vocabulary(["基因", "▁基因", "Gene", "▁gene"], kind="metaspace").terms.tolist() == [1, 1, 3, 3]

    def test_unicode_case_but_no_compatibility(self):
        tokens = ["STRASSE", "straße", "ΣΊΣΥΦΟΣ", "σίσυφος", "x²", "x2", "\uff21", "A", "é", "e"]
        assert Vocabulary(tokens, kind="plain").terms.tolist() == [0, 0, 2, 2, 4, 5, 6, 7, 8, 9]

    def test_masked_and_incomplete_tokens_fold_with_nothing(self):
        tokens = ["<PAD>", "<pad>", "å", "Ġå", "Ġ", "ĠĠ", "Gene", "gene"]
        vocabulary = Vocabulary(tokens, kind="byte-level", special_ids=[7])
        assert vocabulary.terms.tolist() == list(range(8))

    def test_white_space_around_folds(self):
        assert Vocabulary([".", "Ġ.", ".Ċ"], kind="byte-level").terms.tolist() == [1, 1, 1]

    @given(
        st.lists(st.text("aAbBßÅ▁Ġ#<>", max_size=4) | st.none(), min_size=1, max_size=30, unique=True),
        st.sampled_from(["byte-level", "metaspace", "wordpiece", "plain"]),
    )
    def test_properties(self, tokens, kind):
        vocabulary = Vocabulary(tokens, kind=kind)
        terms, masked = vocabulary.terms, vocabulary.is_masked
        assert terms.dtype == np.int64
        assert_array_equal(terms[terms], terms)
        assert_array_equal(masked[terms], masked)
        assert_array_equal(terms[masked], np.flatnonzero(masked))
        for row in np.flatnonzero(terms != np.arange(len(tokens))):
            assert vocabulary.strings[row].casefold() == vocabulary.strings[terms[row]].casefold()

    def test_trained_tokenizers(self, byte_level, wordpiece, unigram):
        for tokenizer in (byte_level, wordpiece, unigram):
            vocabulary = Vocabulary.from_tokenizer(tokenizer)
            assert_array_equal(vocabulary.terms[vocabulary.terms], vocabulary.terms)
            assert len(np.unique(vocabulary.terms)) < len(vocabulary)


class TestTermIds:
    vocabulary = Vocabulary(["<s>", "gene", "Ġgene", "Ġ", "ĠGene", "."], kind="byte-level")

    def test_folded_in_order_with_repetition(self):
        ids = np.array([0, 1, 5, 2, 3, 4, 0], dtype=np.int32)
        kept = ids.copy()
        terms = self.vocabulary.term_ids(ids)
        assert terms.dtype == np.int64
        assert terms.tolist() == [2, 5, 2, 2]
        assert_array_equal(ids, kept)

    @pytest.mark.parametrize("ids", [[], [0], [3, 0]])
    def test_nothing_left(self, ids):
        terms = self.vocabulary.term_ids(ids)
        assert terms.shape == (0,)
        assert terms.dtype == np.int64

    def test_wrong_input(self):
        with pytest.raises(ValueError, match=r"ids must be in 0\.\.5, got 1 to 6"):
            self.vocabulary.term_ids([1, 6])
        with pytest.raises(ValueError, match=r"ids must be in 0\.\.5, got -1 to 2"):
            self.vocabulary.term_ids([2, -1])
        with pytest.raises(TypeError, match="ids must be integers, got dtype float64"):
            self.vocabulary.term_ids([1.0])
        with pytest.raises(ValueError, match=r"ids must have one dimension, got shape \(1, 2\)"):
            self.vocabulary.term_ids([[1, 2]])


class TestHash:
    tokens = ("<s>", "基", "b", None)

    def test_known_value(self):
        # Saved indexes hold this hash: a change here makes every one of them unreadable.
        expected = "193bde0a31c5de2427b248a88889790807422e82e1346d6e69d77565217f929a"
        assert Vocabulary(self.tokens, kind="plain", special_ids=[0]).hash == expected

    def test_same_in_another_process(self, tmp_path):
        code = (
            "from st_keytokens import Vocabulary;"
            "print(Vocabulary(['<s>', '\\u57fa', 'b', None], kind='plain', special_ids={0}).hash)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONPATH": ":".join(sys.path)},
        )
        assert done.stdout.strip() == Vocabulary(self.tokens, kind="plain", special_ids=[0]).hash

    def test_any_change_changes_it(self):
        variants = [
            Vocabulary(self.tokens, kind="plain"),
            Vocabulary(self.tokens, kind="plain", special_ids=[0]),
            Vocabulary(self.tokens, kind="plain", added_ids=[0]),
            Vocabulary(self.tokens, kind="plain", fold=False),
            Vocabulary(self.tokens, kind="metaspace"),
            Vocabulary(self.tokens[:3], kind="plain"),
            Vocabulary((*self.tokens, None), kind="plain"),
            Vocabulary(("<s>", "b", "基", None), kind="plain"),
            Vocabulary(("<s>", "基", "B", None), kind="plain"),
        ]
        assert len({vocabulary.hash for vocabulary in variants}) == len(variants)

    def test_vocab_size_and_fold_of_a_tokenizer(self, byte_level):
        hashes = {
            Vocabulary.from_tokenizer(byte_level).hash,
            Vocabulary.from_tokenizer(byte_level, 500).hash,
            Vocabulary.from_tokenizer(byte_level, 500, fold=False).hash,
        }
        assert len(hashes) == 3

    def test_pickle_keeps_everything(self, byte_level):
        vocabulary = Vocabulary.from_tokenizer(byte_level)
        restored = pickle.loads(pickle.dumps(vocabulary))
        assert repr(restored) == repr(vocabulary)
        assert restored.strings == vocabulary.strings


class TestValidation:
    def test_tokens_beyond_the_matrix_are_left_out_and_said(self, byte_level, caplog):
        size = byte_level.get_vocab_size()
        vocabulary = Vocabulary.from_tokenizer(byte_level, vocab_size=300)
        assert len(vocabulary) == 300
        lost = size - 300 - sum(row >= 300 for row in byte_level.get_added_tokens_decoder())
        assert f"{lost} tokens of the tokenizer lie beyond the 300 rows" in caplog.text
        assert vocabulary.strings == Vocabulary.from_tokenizer(byte_level).strings[:300]
        assert len(Vocabulary.from_tokenizer(byte_level, vocab_size=size)) == size

    @pytest.mark.parametrize("is_special", [True, False])
    def test_added_tokens_beyond_the_matrix_are_left_out_silently(self, byte_level_tokenizer, is_special, caplog):
        tokenizer = copy.deepcopy(byte_level_tokenizer)  # as Gemma 3's image token
        size = len(tokenizer)
        tokenizer.add_tokens(["<image_soft_token>"], special_tokens=is_special)
        assert len(tokenizer) == size + 1
        vocabulary = Vocabulary.from_tokenizer(tokenizer, size)
        assert vocabulary.hash == Vocabulary.from_tokenizer(byte_level_tokenizer, size).hash
        assert not caplog.text

    def test_not_a_tokenizer(self):
        with pytest.raises(TypeError, match="tokenizer must be a transformers or tokenizers tokenizer, got str"):
            Vocabulary.from_tokenizer("gpt2")

    def test_arguments(self):
        with pytest.raises(ValueError, match="tokens must hold at least one token, got none"):
            Vocabulary([], kind="plain")
        with pytest.raises(ValueError, match="kind must be one of byte-level, metaspace, wordpiece, plain, got 'bpe'"):
            Vocabulary(["a"], kind="bpe")
        with pytest.raises(ValueError, match=r"special_ids must be in 0\.\.0, got 1 to 1"):
            Vocabulary(["a"], kind="plain", special_ids=[1])
        with pytest.raises(ValueError, match=r"added_ids must be in 0\.\.0, got -1 to 0"):
            Vocabulary(["a"], kind="plain", added_ids=[-1, 0])

    def test_empty_tokenizer(self):
        with pytest.raises(ValueError, match="tokens must hold at least one token"):
            Vocabulary.from_tokenizer(Tokenizer(models.BPE()))


class TestSpeed:
    def test_takes_time_by_the_number_of_tokens_not_by_its_square(self):
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        letters = sorted(alphabet)
        generator = np.random.default_rng(0)
        tokens = list({"".join(letters[i] for i in row) for row in generator.integers(0, 256, (160_000, 6))})[:151_936]
        seconds = []
        for size in (37_984, 151_936):
            tokenizer = Tokenizer(models.BPE({token: row for row, token in enumerate(tokens[:size])}, []))
            tokenizer.decoder = decoders.ByteLevel()
            times = []
            for _ in range(3):  # the best: other work and collections of garbage come between
                start = time.process_time()
                vocabulary = Vocabulary.from_tokenizer(tokenizer, size + 128)
                times.append(time.process_time() - start)
                assert len(vocabulary) == size + 128
            seconds.append(min(times))
        assert seconds[1] < 10 * seconds[0]
