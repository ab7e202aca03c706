from __future__ import annotations

import torch

from st_keytokens.fingerprint import fingerprint, weights_hash


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


class TestFingerprint:
    def test_changes_with_every_value(self):
        assert len({fingerprint({"a": v}) for v in (1, 2, None, "1", 1.5)}) == 5
