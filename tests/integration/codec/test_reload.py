"""A running server takes weights that its codec was made of, and refuses others before it loads them."""

import shutil

import pytest

from tests.integration.codec.families.test_families import options
from tests.support.codecs.models import write_codec
from tests.support.serving import engine, greedy, prompts

pytestmark = pytest.mark.serving

REQUESTS = prompts(5, 40)


def reload(llm, directory) -> None:
    llm.collective_rpc("reload_weights", kwargs={"weights_path": str(directory)})
    llm.reset_prefix_cache()


def test_weights_are_checked_before_they_are_loaded(dense, tmp_path):
    codec = write_codec(tmp_path / "codec", dense())
    copy = shutil.copytree(dense(), tmp_path / "copy")
    with engine(dense(), **options(codec)) as llm:
        expected = greedy(llm, REQUESTS, 12)
        with pytest.raises(ValueError, match="K and V projections are not those of .*; make one with `palu-calibrate"):
            reload(llm, dense(seed=1))
        assert greedy(llm, REQUESTS, 12) == expected
        reload(llm, copy)
        assert greedy(llm, REQUESTS, 12) == expected
        assert llm.reset_prefix_cache() and greedy(llm, REQUESTS, 12) == expected


def test_a_user_who_knows_better(dense, tmp_path):
    """Tokens are then those of the new weights with the old codec."""
    codec = write_codec(tmp_path / "codec", dense())
    asked = options(codec, codec_digest="ignore")
    with engine(dense(seed=1), **asked) as llm:
        expected = greedy(llm, REQUESTS, 12)
    with engine(dense(), **asked) as llm:
        reload(llm, dense(seed=1))
        assert greedy(llm, REQUESTS, 12) == expected
