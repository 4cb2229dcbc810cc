"""A model that sees, in transformers: its rotary positions have three numbers, and its codec is calibrated on text.

What is stored is turned already, so a codec sees no positions but a token's number in its text.
"""

import pytest
import torch
from transformers import AutoModelForImageTextToText

from offline_compress.codec.options import CalibrateOptions
from offline_compress.codec.pipeline import run
from palu_vllm.format.codec.file import load_codec
from palu_vllm.huggingface import PaluCache
from tests.support.codecs.models import write_codec, write_exact_codec
from tests.support.seeing import IDS, build_seeing
from tests.support.serving import prompts

PATCHES, PATCH = (1, 4, 6), 3 * 2 * 14 * 14  # time, height and width of a picture; numbers of a patch
PLACES = 4 * 6 // 4  # tokens of a picture: two by two patches are one


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    return build_seeing(tmp_path_factory.mktemp("seeing"))


def seen(picture: torch.Tensor) -> dict[str, torch.Tensor]:
    """A prompt with a picture in its middle."""
    before, after = prompts(20, 30)
    image = [IDS["vision_start_token_id"], *[IDS["image_token_id"]] * PLACES, IDS["vision_end_token_id"]]
    ids = torch.tensor([[*before, *image, *after]])
    return {
        "input_ids": ids,
        "mm_token_type_ids": (ids == IDS["image_token_id"]).long(),
        "pixel_values": picture,
        "image_grid_thw": torch.tensor([PATCHES]),
    }


def scores(model, inputs, codec=None) -> torch.Tensor:
    """Of twelve greedy tokens."""
    cache = None if codec is None else PaluCache.from_pretrained(codec)
    asked = {"do_sample": False, "max_new_tokens": 12, "output_logits": True, "return_dict_in_generate": True}
    return torch.cat(model.generate(**inputs, past_key_values=cache, **asked).logits)


def test_pictures_are_read_through_a_codec(seeing, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(seeing, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    exact, coarse = write_exact_codec(tmp_path / "16", seeing), write_codec(tmp_path / "4", seeing)
    one, other = (seen(torch.randn(24, PATCH, generator=torch.Generator().manual_seed(seed))) for seed in range(2))
    dense = scores(model, one)
    assert (scores(model, other) - dense).abs().max() > 0.1, "a picture says nothing"
    assert torch.equal(scores(model, one, exact).argmax(-1), dense.argmax(-1))
    assert (scores(model, one, exact) - dense).abs().max() < 0.01
    assert (scores(model, one, coarse) - dense).abs().max() > 0.1


def test_it_is_calibrated_on_text(seeing, tmp_path):
    made = CalibrateOptions(
        model=str(seeing), out=tmp_path / "codec", no_data=True, samples=3, held_out=1, seqlen=48, context=64
    )
    run(made, lambda event: None)
    assert set(load_codec(tmp_path / "codec").layers) == {0, 1}
