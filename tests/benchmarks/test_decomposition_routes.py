"""All routes give the truncated factors of least error, as far as their precision goes."""

import pytest
import torch

from benchmarks.decomposition_routes import case, relative_error, routes


@pytest.mark.parametrize("spectrum", ["flat", "steep"])
def test_routes_agree(spectrum):
    weight, moment = case(spectrum, 32, 48)
    root = torch.linalg.cholesky(moment)
    values = torch.linalg.svdvals(weight @ root).square()
    least = (values[8:].sum() / values.sum()).sqrt().item()
    for name, route in routes(weight, moment).items():
        if name.startswith("gesvd"):
            pytest.importorskip("scipy")
        above = relative_error(weight, root, route(8)) / least - 1
        assert -1e-9 <= above < (1e-3 if "float32" in name else 1e-6), name
