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
