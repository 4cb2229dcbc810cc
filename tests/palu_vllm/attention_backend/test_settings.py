"""Settings for palu are found whatever else a server has."""

from types import SimpleNamespace

import pytest

from palu_vllm.attention_backend.settings import palu_settings


@pytest.mark.parametrize(
    ("additional", "expected"),
    [({"palu": {"codec": "x"}, "other": 1}, {"codec": "x"}), ({"other": 1}, {}), (None, {}), ({"palu": 4}, 4)],
)
def test_settings(additional, expected):
    assert palu_settings(SimpleNamespace(additional_config=additional)) == expected
