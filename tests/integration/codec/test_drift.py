"""A served model has the drift that transformers says of the same text; watching changes no token."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from offline_compress.codec.drift import usual_drift
from palu_vllm.attention_backend.codec.drift_files import DriftFiles
from palu_vllm.format.codec.file import DRIFT, Codec, load_codec, save_codec
from tests.integration.codec.families.test_families import options
from tests.support.codecs.models import EIGHT_TO_TWO, write_codec
from tests.support.serving import engine, greedy, prompts

pytestmark = pytest.mark.serving

[REQUEST] = prompts(120)
CLOSELY = {"seconds": 0, "tokens": 4096, "half_life": 10**6}


@pytest.fixture(scope="module")
def codec(dense, tmp_path_factory):
    """It says that twice the errors of ``REQUEST`` are usual in layer 1, and nothing of layer 0."""
    out = write_codec(tmp_path_factory.mktemp("codec"), dense(), EIGHT_TO_TWO, ((64, 3),))
    found = load_codec(out)
    layers = errors(dense(), found)
    save_codec(out, Codec(found.layers, found.model, {DRIFT: {"1": [2 * each for each in layers["1"]]}}))
    return out


def errors(model, codec: Codec) -> dict[str, list[float]]:
    """Of unit Gaussians' ones."""
    dense = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    return usual_drift(dense, torch.tensor([REQUEST]), codec.layers)


@pytest.mark.parametrize("drift", [CLOSELY, False])
def test_what_is_served_is_what_transformers_says(dense, codec, drift):
    """The codec rounds keys of the first layer only after they were computed, so those are the dense model's."""
    with engine(dense(), **options(codec, drift=drift)) as llm:
        greedy(llm, [REQUEST], 2)  # the second token's step takes in what was found in the prompt's
        found = DriftFiles(llm.llm_engine.vllm_config, 0).read()
    if drift is False:
        assert found is None
        return
    expected = errors(dense(), load_codec(codec))
    of = {name.split(".")[2]: pair for name, pair in found.layers.items()}
    assert found.tokens == len(REQUEST) - 1
    assert of["0"] == pytest.approx(expected["0"], rel=0.02)
    assert of["1"] == pytest.approx([0.5, 0.5], rel=0.3)


def test_watching_changes_no_token(dense, codec):
    answers = []
    for drift in (CLOSELY, False):
        with engine(dense(), **options(codec, drift=drift)) as llm:
            answers.append(greedy(llm, prompts(40, 7), 12))
    assert answers[0] == answers[1]
