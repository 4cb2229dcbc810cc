"""What two servers compare before one reads the other's blocks, by vLLM's own function."""

import shutil

import pytest
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.metadata import compute_nixl_compatibility_hash
from vllm.engine.arg_utils import EngineArgs

from palu_vllm.attention_backend.codec.peers import with_codec_digest
from tests.support.codecs.models import write_codec


@pytest.fixture(scope="module")
def compared(dense):
    """The digest of a server with the codec in a directory, or with none."""
    compare = with_codec_digest(compute_nixl_compatibility_hash)

    def of(codec) -> str:
        settings = {} if codec is None else {"palu": {"codec": str(codec)}}
        config = EngineArgs(str(dense()), dtype="float32", additional_config=settings).create_engine_config()
        return compare(config, "PALU")

    return of


def test_blocks_of_another_codec_are_other_blocks(dense, compared, tmp_path):
    one = write_codec(tmp_path / "one", dense())
    same, other = shutil.copytree(one, tmp_path / "same"), write_codec(tmp_path / "other", dense(), seed=5)
    assert compared(one) == compared(same), "where a codec lies does not count"
    assert len({compared(None), compared(one), compared(other)}) == 3


def test_servers_without_a_codec_compare_what_vllm_compares(dense, compared):
    config = EngineArgs(str(dense()), dtype="float32").create_engine_config()
    assert compared(None) == compute_nixl_compatibility_hash(config, "PALU")
