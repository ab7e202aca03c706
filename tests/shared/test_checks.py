from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from st_keytokens.shared.checks import check_choice, checked_float, checked_int


class TestInt:
    @pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3)])
    def test_any_integer_type(self, value):
        number = checked_int("top_k", value, minimum=1)
        assert number == 3
        assert type(number) is int

    def test_bounds_are_allowed(self):
        assert [checked_int("n", value, -1, 1) for value in (-1, 0, 1)] == [-1, 0, 1]

    @pytest.mark.parametrize("value", [2.0, "2", True, None, np.float32(2), np.bool_(True), np.array([1, 2])])
    def test_other_types_are_refused(self, value):
        with pytest.raises(TypeError, match=rf"^top_k must be an integer, got {type(value).__name__} "):
            checked_int("top_k", value, minimum=1)

    def test_out_of_bounds(self):
        with pytest.raises(ValueError, match=r"^top_k must be >= 1, got 0\.$"):
            checked_int("top_k", 0, minimum=1)
        for value in (0, 10):
            with pytest.raises(ValueError, match=rf"^size must be between 1 and 9, got {value}\.$"):
                checked_int("size", value, minimum=1, maximum=9)

    def test_a_long_value_is_cut(self):
        with pytest.raises(TypeError) as caught:
            checked_int("top_k", "x" * 1000, minimum=1)
        assert len(str(caught.value)) < 120


class TestFloat:
    @pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.int64(2), Fraction(4, 2)])
    def test_any_number_type(self, value):
        number = checked_float("weight", value)
        assert number == 2.0
        assert type(number) is float

    @pytest.mark.parametrize("value", ["2", True, None, 1j, np.array([1.0, 2.0])])
    def test_other_types_are_refused(self, value):
        with pytest.raises(TypeError, match=rf"^weight must be a number, got {type(value).__name__} "):
            checked_float("weight", value)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_not_finite(self, value):
        with pytest.raises(ValueError, match=rf"^weight must be finite, got {value}\.$"):
            checked_float("weight", value)
        with pytest.raises(ValueError, match=rf"^weight must be finite and >= 0, got {value}\.$"):
            checked_float("weight", value, minimum=0)
        with pytest.raises(ValueError, match=rf"^b must be between 0 and 1, got {value}\.$"):
            checked_float("b", value, minimum=0, maximum=1)

    def test_out_of_bounds(self):
        assert [checked_float("b", value, 0, 1) for value in (0, 1)] == [0.0, 1.0]
        with pytest.raises(ValueError, match=r"^weight must be finite and >= 0, got -0\.5\.$"):
            checked_float("weight", -0.5, minimum=0)
        with pytest.raises(ValueError, match=r"^b must be between 0 and 1, got 1\.5\.$"):
            checked_float("b", 1.5, minimum=0, maximum=1)


class TestChoice:
    def test_one_of_the_choices(self):
        assert check_choice("mode", None, ("dense", None)) is None

    @pytest.mark.parametrize("value", ["Dense", None, ["dense"]])
    def test_others_are_refused(self, value):
        with pytest.raises(ValueError) as caught:
            check_choice("mode", value, ("dense", "sparse"))
        assert str(caught.value) == f"mode must be one of 'dense', 'sparse', got {value!r}."
