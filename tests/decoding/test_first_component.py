"""First component and corrections against numpy's SVD and hand-worked cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from st_keytokens.calibration import moments as second_moments
from st_keytokens.calibration.moments import SecondMoments
from st_keytokens.decoding.first_component import FirstComponent, center, correct, remove, shift


def embeddings(count: int, dimension: int, seed: int = 0, offset: float = 3.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mean = offset * rng.standard_normal(dimension)
    return (mean + rng.standard_normal((count, dimension))).astype(np.float32)


def moments_of(rows: np.ndarray | torch.Tensor, batch_size: int | None = None) -> SecondMoments:
    moments = SecondMoments(rows.shape[1])
    size = batch_size or len(rows)
    for start in range(0, len(rows), size):
        moments.update(rows[start : start + size])
    return moments


def svd_component(rows: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Direction with a positive mean projection, that projection, and singular value: from the SVD, in float64."""
    _, values, directions = np.linalg.svd(rows.astype(np.float64), full_matrices=False)
    coefficient = float(rows.astype(np.float64).mean(axis=0) @ directions[0])
    return directions[0] * np.sign(coefficient), abs(coefficient), float(values[0])


class TestAgainstSvd:
    @pytest.mark.parametrize(
        ("count", "dimension"), [(200, 16), (16, 16), (5, 32), (1, 8), (40, 1)], ids=lambda value: str(value)
    )
    @pytest.mark.parametrize("seed", [0, 1])
    def test_equals_numpy(self, count, dimension, seed):
        rows = embeddings(count, dimension, seed)
        component = moments_of(rows).first_component()
        direction, coefficient, singular_value = svd_component(rows)
        np.testing.assert_allclose(component.direction, direction, atol=1e-6)
        assert component.coefficient == pytest.approx(coefficient, rel=1e-9)
        assert component.singular_value == pytest.approx(singular_value, rel=1e-9)

    def test_uncentred(self):
        # The variance lies along the second axis, but the mean along the first: uncentred, the first axis wins.
        rows = np.array([[10.0, 1.0], [10.0, -1.0], [10.0, 2.0], [10.0, -2.0]])
        component = moments_of(rows).first_component()
        np.testing.assert_allclose(component.direction, [1.0, 0.0], atol=1e-7)
        assert component.coefficient == pytest.approx(10.0)
        assert component.singular_value == pytest.approx(20.0)  # sqrt(4 · 10²)

    def test_rank_deficient(self):
        rows = np.outer(np.arange(1, 7), [1.0, -2.0, 2.0])  # rank 1, length 3 per unit
        component = moments_of(rows).first_component()
        np.testing.assert_allclose(component.direction, np.array([1.0, -2.0, 2.0]) / 3, atol=1e-7)
        assert component.coefficient == pytest.approx(3 * 3.5)
        assert component.singular_value == pytest.approx(3 * np.sqrt(91))

    def test_one_text(self):
        component = moments_of(np.array([[0.0, -3.0, 4.0]])).first_component()
        np.testing.assert_allclose(component.direction, [0.0, -0.6, 0.8], atol=1e-7)
        assert component.coefficient == pytest.approx(5.0)
        assert component.singular_value == pytest.approx(5.0)

    def test_identical_texts(self):
        component = moments_of(np.tile([[0.0, -3.0, 4.0]], (9, 1))).first_component()
        np.testing.assert_allclose(component.direction, [0.0, -0.6, 0.8], atol=1e-7)
        assert component.coefficient == pytest.approx(5.0)
        assert component.singular_value == pytest.approx(15.0)

    def test_large_mean_small_spread(self):
        rows = (1000 + embeddings(500, 8, offset=0)).astype(np.float32)
        moments = moments_of(rows, batch_size=7)
        np.testing.assert_allclose(
            moments.covariance, np.cov(rows.astype(np.float64), rowvar=False, bias=True), atol=1e-7
        )

    def test_direction_is_float32_unit_on_cpu(self):
        direction = moments_of(embeddings(30, 12)).first_component().direction
        assert direction.dtype == torch.float32
        assert direction.device.type == "cpu"
        assert direction.shape == (12,)
        assert float(direction.norm()) == pytest.approx(1.0, abs=1e-6)


class TestSign:
    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_mean_projects_positively(self, sign):
        rows = sign * embeddings(50, 6)
        component = moments_of(rows).first_component()
        assert component.coefficient > 0
        assert float(rows.mean(axis=0) @ component.direction.numpy()) == pytest.approx(component.coefficient, rel=1e-5)

    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_zero_mean_makes_the_largest_entry_positive(self, sign):
        row = sign * np.array([[1.0, -2.0, 0.5]])
        component = moments_of(np.concatenate([row, -row])).first_component()
        np.testing.assert_allclose(component.direction, np.array([-1.0, 2.0, -0.5]) / np.sqrt(5.25), atol=1e-7)
        assert component.coefficient == 0.0

    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_zero_mean_makes_the_first_of_equal_entries_positive(self, sign):
        row = sign * np.array([[0.0, -1.0, 1.0]])
        component = moments_of(np.concatenate([row, -row])).first_component()
        np.testing.assert_allclose(component.direction, np.array([0.0, 1.0, -1.0]) / np.sqrt(2), atol=1e-7)
        assert not np.signbit(component.direction.numpy()[0])


class TestStreaming:
    @pytest.mark.parametrize("batch_size", [1, 3, 64])
    def test_one_batch_equals_many(self, batch_size):
        rows = embeddings(100, 10)
        whole, parts = moments_of(rows), moments_of(rows, batch_size)
        assert parts.count == whole.count == 100
        np.testing.assert_allclose(parts.sum, whole.sum, rtol=1e-12)
        np.testing.assert_allclose(parts.second_moment, whole.second_moment, rtol=1e-12, atol=1e-10)
        np.testing.assert_allclose(
            parts.first_component().direction, whole.first_component().direction, rtol=0, atol=1e-7
        )

    def test_blocks_inside_a_batch(self, monkeypatch):
        rows = embeddings(100, 10)
        whole = moments_of(rows)
        monkeypatch.setattr(second_moments, "_BLOCK_ROWS", 7)
        np.testing.assert_allclose(moments_of(rows).second_moment, whole.second_moment, rtol=1e-12, atol=1e-10)

    def test_mean_and_covariance(self):
        rows = embeddings(60, 5)
        moments = moments_of(rows, 8)
        np.testing.assert_allclose(moments.mean, rows.astype(np.float64).mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(
            moments.covariance, np.cov(rows.astype(np.float64), rowvar=False, bias=True), atol=1e-12
        )

    @given(cut=st.integers(0, 40), seed=st.integers(0, 5))
    @settings(max_examples=30)
    def test_merge_equals_one_stream(self, cut, seed):
        rows = embeddings(40, 6, seed)
        left, right = SecondMoments(6), SecondMoments(6)
        left.update(rows[:cut])
        right.update(rows[cut:])
        kept = right.second_moment.clone()
        left.merge(right)
        whole = moments_of(rows)
        assert left.count == 40
        np.testing.assert_allclose(left.second_moment, whole.second_moment, rtol=1e-11, atol=1e-10)
        np.testing.assert_allclose(left.sum, whole.sum, rtol=1e-11)
        assert torch.equal(right.second_moment, kept)
        assert right.count == 40 - cut

    def test_merge_with_itself_doubles(self):
        moments = moments_of(np.array([[1.0, 2.0]]))
        moments.merge(moments)
        assert moments.count == 2
        assert moments.second_moment.tolist() == [[2.0, 4.0], [4.0, 8.0]]

    def test_empty_batch_changes_nothing(self):
        moments = moments_of(embeddings(5, 3))
        before = moments.to_tensors()
        moments.update(np.zeros((0, 3), dtype=np.float32))
        after = moments.to_tensors()
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_updates_across_inference_mode(self):
        rows = torch.from_numpy(embeddings(6, 3))
        with torch.inference_mode():
            moments = SecondMoments(3)
            moments.update(rows[:2].clone())
        moments.update(rows[2:])
        np.testing.assert_allclose(moments.sum, rows.double().sum(0), rtol=1e-12)

    def test_autocast_does_not_lower_the_precision(self):
        rows = torch.from_numpy(embeddings(50, 8))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            moments = moments_of(rows)
        np.testing.assert_allclose(moments.second_moment, rows.double().T @ rows.double(), rtol=1e-12)


class TestInputs:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_tensor_dtypes_are_upcast_exactly(self, dtype):
        rows = torch.from_numpy(embeddings(20, 4)).to(dtype)
        moments = moments_of(rows)
        assert moments.sum.dtype == moments.second_moment.dtype == torch.float64
        np.testing.assert_allclose(moments.second_moment, rows.double().T @ rows.double(), rtol=1e-12)

    @pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8"])
    def test_array_dtypes_are_upcast_exactly(self, dtype):
        rows = embeddings(20, 4).astype(dtype)
        expected = rows.astype(np.float64).T @ rows.astype(np.float64)
        np.testing.assert_allclose(moments_of(rows).second_moment, expected, rtol=1e-12)

    def test_memory_mapped_read_only(self, tmp_path, recwarn):
        rows = embeddings(20, 4)
        np.save(tmp_path / "rows.npy", rows)
        mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
        assert torch.equal(moments_of(mapped).second_moment, moments_of(rows).second_moment)
        assert not recwarn.list

    def test_input_is_not_modified(self):
        rows = embeddings(20, 4)
        copy = rows.copy()
        moments_of(rows)
        moments_of(torch.from_numpy(rows))
        np.testing.assert_array_equal(rows, copy)

    def test_gradient_is_not_tracked(self):
        rows = torch.from_numpy(embeddings(3, 2)).requires_grad_()
        assert not moments_of(rows).second_moment.requires_grad

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("as_input", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
    def test_not_finite_names_the_row_and_adds_nothing(self, bad, as_input, monkeypatch):
        monkeypatch.setattr(second_moments, "_BLOCK_ROWS", 2)
        moments = moments_of(embeddings(10, 4))
        before = moments.second_moment.clone()
        rows = embeddings(5, 4)
        rows[3, 2] = bad
        with pytest.raises(ValueError, match=rf"got {bad} in row 3 of this batch \(embedding 13 of all"):
            moments.update(as_input(rows))
        assert moments.count == 10
        assert torch.equal(moments.second_moment, before)

    def test_float64_beyond_float32_is_refused(self):
        with pytest.raises(ValueError, match="must be finite in float32, got inf in row 0"):
            SecondMoments(2).update(np.array([[1e39, 0.0]]))

    @pytest.mark.parametrize("shape", [(3, 5), (4,), (2, 3, 4)])
    def test_wrong_shape(self, shape):
        with pytest.raises(ValueError, match=r"embeddings must have shape \(batch_size, 4\), got \("):
            SecondMoments(4).update(np.zeros(shape, dtype=np.float32))

    @pytest.mark.parametrize("rows", [np.zeros((2, 4), dtype=np.int8), torch.zeros(2, 4, dtype=torch.int64)])
    def test_integers(self, rows):
        with pytest.raises(TypeError, match="must be floating-point numbers, got"):
            SecondMoments(4).update(rows)

    def test_lists(self):
        with pytest.raises(TypeError, match="must be a torch tensor or a numpy array, got list"):
            SecondMoments(1).update([[1.0]])

    def test_nothing_seen(self):
        with pytest.raises(ValueError, match="must hold at least one embedding, got none"):
            SecondMoments(4).first_component()
        with pytest.raises(ValueError, match="must hold at least one embedding, got none"):
            _ = SecondMoments(4).mean

    def test_all_zero(self):
        with pytest.raises(ValueError, match="must not all be zero, got 3 zero vectors"):
            moments_of(np.zeros((3, 4))).first_component()

    def test_embedding_dimension(self):
        with pytest.raises(ValueError, match="embedding_dimension must be >= 1, got 0"):
            SecondMoments(0)

    def test_mps(self):
        with pytest.raises(ValueError, match="device must support float64, got 'mps'"):
            SecondMoments(4, device="mps")

    def test_merge_of_another_dimension(self):
        with pytest.raises(ValueError, match="other must have embedding_dimension 4, got 5"):
            SecondMoments(4).merge(SecondMoments(5))

    def test_merge_of_another_type(self):
        with pytest.raises(TypeError, match="other must be a SecondMoments, got dict"):
            SecondMoments(4).merge({})


class TestTensors:
    def test_round_trip_is_exact_and_independent(self):
        moments = moments_of(embeddings(20, 4))
        tensors = moments.to_tensors()
        restored = SecondMoments.from_tensors(tensors)
        moments.update(embeddings(3, 4))
        assert restored.count == 20
        assert torch.equal(restored.second_moment, tensors["second_moment"])
        restored.update(embeddings(3, 4))
        assert torch.equal(restored.second_moment, moments.second_moment)
        assert torch.equal(restored.sum, moments.sum)

    def test_missing(self):
        with pytest.raises(ValueError, match=r"got none named \['sum'\]"):
            SecondMoments.from_tensors({"count": torch.tensor(1), "second_moment": torch.zeros(2, 2)})

    @pytest.mark.parametrize(
        ("total", "second"),
        [
            (torch.zeros(2), torch.zeros(2, 2)),
            (torch.zeros(2).double(), torch.zeros(3, 3).double()),
            (torch.zeros(()).double(), torch.zeros(1, 1).double()),
        ],
    )
    def test_wrong_tensors(self, total, second):
        with pytest.raises(ValueError, match=r"must hold float64 sum \(d,\) and second_moment \(d, d\), got"):
            SecondMoments.from_tensors({"count": torch.tensor(1), "sum": total, "second_moment": second})


DIRECTION = torch.tensor([0.6, 0.8, 0.0])


class TestCorrections:
    def test_remove_by_hand(self):
        rows = torch.tensor([[5.0, 0.0, 1.0], [0.6, 0.8, 0.0]])
        expected = [[5 - 3 * 0.6, -3 * 0.8, 1.0], [0.0, 0.0, 0.0]]
        np.testing.assert_allclose(remove(rows, DIRECTION), expected, atol=1e-6)

    def test_shift_by_hand(self):
        expected = [[5 - 10 * 0.6, -10 * 0.8, 1.0]]
        np.testing.assert_allclose(shift(torch.tensor([[5.0, 0.0, 1.0]]), DIRECTION, -10.0), expected, atol=1e-6)

    def test_center_by_hand(self):
        assert center(torch.tensor([[5.0, 0.0]]), torch.tensor([1.0, 2.0])).tolist() == [[4.0, -2.0]]

    def test_removed_embeddings_are_orthogonal(self):
        rows = embeddings(50, 8)
        component = moments_of(rows).first_component()
        removed = remove(torch.from_numpy(rows), component.direction)
        np.testing.assert_allclose(removed @ component.direction, np.zeros(50), atol=1e-4)

    def test_removing_leaves_the_second_component_first(self):
        rows = embeddings(200, 8)
        component = moments_of(rows).first_component()
        rest = moments_of(remove(torch.from_numpy(rows), component.direction)).first_component()
        values = np.linalg.svd(rows.astype(np.float64), compute_uv=False)
        assert rest.singular_value == pytest.approx(values[1], rel=1e-5)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    @pytest.mark.parametrize("vector_dtype", [torch.bfloat16, torch.float32, torch.float64])
    def test_computed_in_float32_returned_in_the_input_dtype(self, dtype, vector_dtype):
        rows = torch.from_numpy(embeddings(10, 3)).to(dtype)
        vector = DIRECTION.to(vector_dtype)
        wide = torch.promote_types(dtype, torch.float32)
        for function, arguments in ((remove, (vector,)), (shift, (vector, -2.5)), (center, (vector,))):
            result = function(rows, *arguments)
            naive = function(rows.double(), *(a.double() if isinstance(a, torch.Tensor) else a for a in arguments))
            assert result.dtype == dtype
            tolerance = torch.finfo(dtype).eps + 4 * torch.finfo(wide).eps
            np.testing.assert_allclose(result.double(), naive, rtol=tolerance, atol=16 * torch.finfo(wide).eps)

    def test_autocast_does_not_lower_the_precision(self):
        rows = torch.from_numpy(embeddings(10, 3))
        expected = remove(rows, DIRECTION)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(remove(rows, DIRECTION), expected)

    @pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 4, 3), (0, 3)])
    def test_leading_dimensions(self, shape):
        rows = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        single = [remove(row, DIRECTION) for row in rows.reshape(-1, 3)]
        expected = torch.stack(single).reshape(shape) if single else rows
        torch.testing.assert_close(remove(rows, DIRECTION), expected)

    def test_input_is_not_modified(self):
        rows, vector = torch.from_numpy(embeddings(4, 3)), DIRECTION.clone()
        copy = rows.clone()
        for result in (remove(rows, vector), shift(rows, vector, 2.0), center(rows, vector)):
            result.zero_()
        assert torch.equal(rows, copy)
        assert torch.equal(vector, DIRECTION)

    def test_gradient_of_remove_is_the_projection(self):
        row = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
        remove(row, DIRECTION)[0].backward()
        np.testing.assert_allclose(row.grad, [1 - 0.36, -0.48, 0.0], atol=1e-6)

    @given(amount=st.floats(-100, 100), seed=st.integers(0, 20))
    @settings(max_examples=40)
    def test_shift_properties(self, amount, seed):
        rows = torch.from_numpy(embeddings(5, 3, seed)).double()
        shifted = shift(rows, DIRECTION, amount)
        torch.testing.assert_close(shift(shifted, DIRECTION, -amount), rows, atol=1e-10, rtol=0)
        assert torch.equal(shift(rows, -DIRECTION, -amount), shifted)
        torch.testing.assert_close(remove(shifted, DIRECTION), remove(rows, DIRECTION), atol=1e-5, rtol=0)
        assert torch.equal(remove(rows, -DIRECTION), remove(rows, DIRECTION))

    def test_wrong_dimension(self):
        with pytest.raises(ValueError, match=r"direction must have shape \(4,\) to fit embeddings of shape \(2, 4\)"):
            remove(torch.zeros(2, 4), DIRECTION)
        with pytest.raises(ValueError, match=r"mean must have shape \(4,\) to fit embeddings .*, got \(1, 4\)"):
            center(torch.zeros(2, 4), torch.zeros(1, 4))

    @pytest.mark.parametrize("factor", [0.0, 2.0, float("nan")])
    def test_direction_must_be_unit(self, factor):
        with pytest.raises(ValueError, match="direction must be of length 1, got length"):
            shift(torch.zeros(2, 3), factor * DIRECTION, 1.0)

    def test_amount_must_be_finite(self):
        with pytest.raises(ValueError, match="amount must be finite, got inf"):
            shift(torch.zeros(2, 3), DIRECTION, float("inf"))

    def test_types(self):
        with pytest.raises(TypeError, match=r"embeddings must be a floating-point tensor, got torch\.int64"):
            center(torch.zeros(2, 3, dtype=torch.int64), DIRECTION)
        with pytest.raises(TypeError, match="direction must be a floating-point tensor, got ndarray"):
            remove(torch.zeros(2, 3), DIRECTION.numpy())


class TestCorrect:
    def test_by_name(self):
        rows, mean = torch.from_numpy(embeddings(4, 3)), torch.ones(3)
        arguments = {"direction": DIRECTION, "mean": mean, "amount": -2.0}
        assert correct(rows, "none", **arguments) is rows
        assert torch.equal(correct(rows, "remove", **arguments), remove(rows, DIRECTION))
        assert torch.equal(correct(rows, "shift", **arguments), shift(rows, DIRECTION, -2.0))
        assert torch.equal(correct(rows, "center", **arguments), center(rows, mean))

    @pytest.mark.parametrize(
        ("correction", "wanted"), [("remove", "direction"), ("shift", "direction and amount"), ("center", "mean")]
    )
    def test_missing(self, correction, wanted):
        with pytest.raises(ValueError, match=f"{wanted} must be given for correction='{correction}'"):
            correct(torch.zeros(2, 3), correction)

    def test_unknown(self):
        with pytest.raises(ValueError, match=r"correction must be one of .*, got 'whiten'"):
            correct(torch.zeros(2, 3), "whiten", direction=DIRECTION)


class TestFirstComponent:
    def test_is_frozen(self):
        component = FirstComponent(DIRECTION, 1.0, 2.0)
        with pytest.raises(AttributeError, match="cannot assign to field"):
            component.coefficient = 3.0


@pytest.mark.gpu
class TestGpu:
    def test_equals_the_cpu(self):
        rows = embeddings(500, 64)
        cpu, gpu = moments_of(rows), SecondMoments(64, device="cuda")
        gpu.update(torch.from_numpy(rows).to("cuda"))
        cpu_from_gpu = moments_of(torch.from_numpy(rows).to("cuda"))
        for moments in (gpu, cpu_from_gpu):
            np.testing.assert_allclose(moments.second_moment.cpu(), cpu.second_moment, rtol=1e-11)
            np.testing.assert_allclose(moments.first_component().direction, cpu.first_component().direction, atol=1e-6)
        gpu.merge(cpu)
        assert gpu.device.type == "cuda"
        assert gpu.count == 1000

    def test_corrections_stay_on_the_device(self):
        rows = torch.from_numpy(embeddings(5, 3)).to("cuda")
        removed = remove(rows, DIRECTION)
        assert removed.device == rows.device
        np.testing.assert_allclose(removed.cpu(), remove(rows.cpu(), DIRECTION), atol=1e-5)
