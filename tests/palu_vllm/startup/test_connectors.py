"""What connectors that may move latents are told: a folder for every checkpoint and form of latents."""

import json
import shutil
from pathlib import Path

from vllm.engine.arg_utils import EngineArgs

from palu_vllm.startup.connectors import separate_files
from palu_vllm.startup.served import served_config


def configured(model, **options):
    return EngineArgs(str(model), **({"dtype": "float32"} | options)).create_engine_config()


def files(folder) -> dict:
    return {"kv_connector": "ExampleConnector", "kv_role": "kv_both"} | {
        "kv_connector_extra_config": {"shared_storage_path": str(folder)}
    }


def folder(model, **options) -> str:
    """Where the files of a model go, the same however often it is asked."""
    config = configured(model, kv_transfer_config=files("files"), **options)
    path = config.kv_transfer_config.kv_connector_extra_config["shared_storage_path"]
    separate_files(config, {"palu_config": served_config(config).palu.model_dump()})
    assert config.kv_transfer_config.kv_connector_extra_config["shared_storage_path"] == path
    assert Path(path).parent == Path("files")
    return path


def test_a_folder_for_every_checkpoint_and_form_of_latents(palu, tmp_path):
    copy = shutil.copytree(palu(), tmp_path / "copy")
    assert folder(palu()) == folder(copy), "the name of the directory does not count"
    bits, ranks = ({"additional_config": {"palu": asked}} for asked in ({"latent_bits": 4}, {"rank_ratio": 0.25}))
    half = {"dtype": "float16"}
    others = {folder(palu(seed=1)), folder(palu(), **bits), folder(palu(), **ranks), folder(copy, **half)}
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    assert len({folder(palu()), folder(copy)} | others) == 6


def test_host_memory_is_left_alone(palu):
    config = configured(palu(), kv_offloading_size=1.0)
    assert config.kv_transfer_config.kv_connector == "OffloadingConnector"
