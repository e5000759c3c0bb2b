import numpy as np
import pytest

from budgetlm.forecast.posterior import _determined


def matrices(smallest):
    chance = np.random.default_rng(0)
    turned = np.linalg.qr(chance.standard_normal((5, 8, 8)))[0]
    values = np.geomspace(1.0, 1e6, 8)
    values[0] = smallest
    return np.einsum("dij,j,dkj->dik", turned, values, turned), chance.standard_normal((5, 8))


@pytest.mark.parametrize("smallest", [1.0, -1e-3])  # rounding makes such of some
def test_determinant_and_fit_are_those_of_each_matrix(smallest):
    precision, pull = matrices(smallest)
    determinant, explained = _determined(precision, pull)
    for one, matrix, vector in zip(range(5), precision, pull, strict=True):
        assert determinant[one] == pytest.approx(np.linalg.slogdet(matrix)[1])
        assert explained[one] == pytest.approx(vector @ np.linalg.solve(matrix, vector))


def test_a_matrix_that_is_singular_is_not_believed_and_leaves_the_others_as_they_are():
    good = np.array([[2.0, 0.5], [0.5, 1.0]])
    precision, pull = np.stack([good, np.zeros((2, 2)), np.full((2, 2), np.nan), good]), np.ones((4, 2))
    determinant, explained = _determined(precision, pull)
    assert determinant[1] == determinant[2] == np.inf
    for number in (0, 3):
        assert determinant[number] == pytest.approx(np.log(np.linalg.det(good)))
        assert explained[number] == pytest.approx(pull[number] @ np.linalg.solve(good, pull[number]))
