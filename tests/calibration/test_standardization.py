from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from st_keytokens.calibration import Calibration
from st_keytokens.calibration.standardization import STATISTICS_FILE, LogitStatistics, scale_and_offset
from st_keytokens.decoding.lm_head import LMHead


@pytest.fixture
def calibration():
    rows = np.random.default_rng(0).normal(1.0, 1.0, size=(40, 6)).astype(np.float32)
    return Calibration.fit_embeddings(rows, show_progress_bar=False)


@pytest.fixture
def lm_head():
    weight = torch.randn(11, 6, generator=torch.Generator().manual_seed(0))
    return LMHead(torch.nn.Embedding.from_pretrained(weight))


def get(statistics, calibration, lm_head, *, correction="none", shift=0.0):
    return statistics.get(calibration, lm_head, correction=correction, shift=shift)


class TestStatistics:
    def test_are_those_of_the_calibration(self, calibration, lm_head):
        for correction, shift in (("none", 0.0), ("remove", 0.0), ("shift", -2.0)):
            found = get(LogitStatistics(), calibration, lm_head, correction=correction, shift=shift)
            for ours, theirs in zip(
                found, calibration.logit_statistics(lm_head, correction=correction, shift=shift), strict=True
            ):
                assert torch.equal(ours, torch.from_numpy(theirs))

    def test_are_kept_for_all_that_they_depend_on(self, calibration, lm_head):
        statistics = LogitStatistics()
        first = get(statistics, calibration, lm_head)
        assert get(statistics, calibration, lm_head)[0] is first[0]
        assert get(statistics, calibration, lm_head, shift=3.0)[0] is first[0]  # which "none" does not look at
        rounded = lm_head.sharing(compute_dtype=torch.bfloat16)
        negative = LMHead(torch.nn.Embedding.from_pretrained(-lm_head.weight))
        others = [
            get(statistics, calibration, negative),
            get(statistics, calibration, rounded),
            get(statistics, calibration, lm_head, correction="remove"),
            get(statistics, calibration, lm_head, correction="shift", shift=1.0),
            get(statistics, calibration, lm_head, correction="shift", shift=2.0),
        ]
        calibration.update(np.ones((1, 6), dtype=np.float32))
        others.append(get(statistics, calibration, lm_head))
        assert len({id(mean) for mean, _ in (first, *others)}) == 7


class TestSaveLoad:
    def test_what_is_saved_is_used(self, calibration, lm_head, tmp_path):
        statistics = LogitStatistics()
        get(statistics, calibration, lm_head)
        statistics.save(tmp_path)
        changed = {name: tensor + 1 for name, tensor in load_file(tmp_path / STATISTICS_FILE).items()}
        save_file(changed, tmp_path / STATISTICS_FILE)
        loaded = LogitStatistics.load(tmp_path)
        for ours, theirs in zip(get(loaded, calibration, lm_head), get(statistics, calibration, lm_head), strict=True):
            assert torch.equal(ours, theirs + 1)

    def test_nothing_known(self, tmp_path):
        LogitStatistics().save(tmp_path)
        assert list(tmp_path.iterdir()) == []
        LogitStatistics.load(tmp_path).save(tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_damaged(self, calibration, lm_head, tmp_path):
        statistics = LogitStatistics()
        get(statistics, calibration, lm_head)
        statistics.save(tmp_path)
        file = tmp_path / STATISTICS_FILE
        tensors = load_file(file)
        save_file({name: tensor for name, tensor in tensors.items() if name.endswith(".0")}, file)
        with pytest.raises(ValueError, match=r"must hold pairs of tensors, got no '\w+\.1'"):
            LogitStatistics.load(tmp_path)
        file.write_bytes(file.read_bytes()[:-3])
        with pytest.raises(ValueError, match=r"must be a whole safetensors file"):
            LogitStatistics.load(tmp_path)

    def test_flipped_bits(self, calibration, lm_head, tmp_path):
        statistics = LogitStatistics()
        get(statistics, calibration, lm_head)
        statistics.save(tmp_path)
        file, num_found = tmp_path / STATISTICS_FILE, 0
        content = file.read_bytes()
        for place in range(len(content)):
            altered = bytearray(content)
            altered[place] ^= 1 << place % 8
            file.write_bytes(altered)
            try:
                loaded = LogitStatistics.load(tmp_path)
            except ValueError as err:
                assert str(err).endswith("Delete it.")
                num_found += 1
            else:
                pairs = zip(get(loaded, calibration, lm_head), get(statistics, calibration, lm_head), strict=True)
                assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
        assert num_found > 0.7 * len(content)


class TestScaleAndOffset:
    def test_against_numpy(self):
        generator = np.random.default_rng(1)
        mean, deviation = generator.normal(size=9), generator.random(9)
        is_masked = np.arange(9) < 2
        logits = generator.normal(size=9)
        typical = np.median(deviation[2:])
        expected = (logits - mean) / np.sqrt(deviation**2 + (2 * typical) ** 2)
        scale, offset = scale_and_offset(*map(torch.from_numpy, (mean, deviation, is_masked)))
        np.testing.assert_allclose(torch.from_numpy(logits) * scale + offset, expected)

    @pytest.mark.parametrize("is_masked", [[False, False], [True, True]])
    def test_logits_that_never_vary_score_nothing(self, is_masked):
        scale, offset = scale_and_offset(torch.ones(2), torch.zeros(2), torch.tensor(is_masked))
        assert (scale.tolist(), offset.abs().tolist()) == ([0, 0], [0, 0])
