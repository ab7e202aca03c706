from __future__ import annotations

import copy

import torch
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from st_keytokens.shared.hashes import (
    fingerprint,
    is_same_sample,
    module_settings,
    tokenizer_hash,
    weights_hash,
    weights_sample,
)


class TestWeightsHash:
    def test_is_the_same_in_every_dtype_and_changes_with_a_weight(self):
        torch.manual_seed(0)
        layer = torch.nn.Linear(8, 4)
        name = weights_hash(layer)
        assert weights_hash(torch.nn.Linear(8, 4)) != name
        assert weights_hash(layer.to(torch.bfloat16)) == name
        with torch.no_grad():
            layer.weight[0, 0] += 1
        assert weights_hash(layer) != name

    def test_shape_counts(self):
        assert weights_hash(torch.nn.Linear(4, 1, bias=False)) != weights_hash(torch.nn.Linear(1, 4, bias=False))

    def test_a_weight_of_more_numbers_than_float32_counts(self):
        large = torch.nn.Module()
        large.register_buffer("weight", torch.ones(1).expand(151_936 * 1024))  # takes no memory
        assert weights_hash(large) != weights_hash(torch.nn.Module())


class TestWeightsSample:
    def test_tells_models_apart_but_not_roundings(self):
        torch.manual_seed(0)
        layer, other = torch.nn.Linear(8, 4), torch.nn.Linear(8, 4)
        sample = weights_sample(layer)
        assert not is_same_sample(sample, weights_sample(other))
        for dtype in (torch.float16, torch.bfloat16):
            assert is_same_sample(sample, weights_sample(copy.deepcopy(layer).to(dtype)))


class TestModuleSettings:
    def test_type_configuration_and_length(self, llama_embedder):
        transformer, pooling = copy.deepcopy(llama_embedder)
        found = module_settings([transformer, pooling, Normalize(), torch.nn.Linear(2, 2)])
        assert [name for name, _, _ in found] == ["Transformer", "Pooling", "Normalize", "Linear"]
        assert found[1][1] == pooling.get_config_dict()
        assert [length for _, _, length in found] == [256, None, None, None]
        transformer.max_seq_length = 9
        changed = module_settings([transformer, Pooling(32, pooling_mode="cls")])
        assert changed[0][2] == 9
        assert changed[1] != found[1]


class TestTokenizerHash:
    def test_use_does_not_change_it(self, byte_level_tokenizer, wordpiece_tokenizer):
        tokenizer = copy.deepcopy(byte_level_tokenizer)
        before = tokenizer_hash(tokenizer)
        tokenizer(["a", "a b c d"], truncation=True, max_length=2, padding=True)
        assert tokenizer_hash(tokenizer) == before
        assert tokenizer_hash(wordpiece_tokenizer) != before
        tokenizer.add_tokens(["wolf"])
        assert tokenizer_hash(tokenizer) != before


class TestFingerprint:
    def test_changes_with_every_value(self):
        assert len({fingerprint({"a": v}) for v in (1, 2, None, "1", 1.5)}) == 5
