import pytest
import torch

from benchmarks.methods.harness.attention import layers_of, methods_attention
from benchmarks.methods.harness.cache import MethodCache
from benchmarks.methods.harness.calibration import keys_and_values
from benchmarks.methods.shared.kvsharer import KVSharer


@pytest.fixture(scope="module")
def rows():
    return torch.randint(256, (2, 40), generator=torch.Generator().manual_seed(7))


@torch.inference_mode()
def test_shared_layers_hold_no_bytes_and_read_their_source(dense_model, rows):
    """Sharing equals a model whose layer computes the keys and values of the earlier one, in prompt and decoding."""
    cache = MethodCache(KVSharer(sharing=((2, 0),)), layers_of(dense_model, torch.float64))
    with methods_attention(dense_model):
        whole = dense_model(
            rows, past_key_values=MethodCache(KVSharer(sharing=((2, 0),)), layers_of(dense_model, torch.float64))
        ).logits
        prompt = dense_model(rows[:, :30], past_key_values=cache).logits
        steps = [dense_model(rows[:, at : at + 1], past_key_values=cache).logits for at in range(30, 40)]
    torch.testing.assert_close(torch.cat([prompt, *steps], 1), whole)
    assert [layer.stores for layer in cache.layers][2] == []
    assert cache.nbytes() == 2 * 40 * 2 * (2 * 2 * 16) * 8  # two layers of three
    own = dense_model(rows).logits
    assert not torch.allclose(own, whole)
    torch.testing.assert_close(own[:, 0], dense_model(rows[:, :1]).logits[:, 0])


def test_the_most_dissimilar_layers_are_shared_first(dense_model, rows):
    found = KVSharer(shared_layers=1, threshold=-1.0).calibrated(dense_model, rows).sharing
    means = [torch.cat([k.mean(0).flatten(), v.mean(0).flatten()]) for k, v in keys_and_values(dense_model, rows)]
    distances = {(j, i): (means[i] - means[j]).norm() for i in range(3) for j in range(i + 1, 3)}
    assert found == (max(distances, key=distances.get),)


def test_sources_hold_their_own(dense_model, rows):
    sharing = KVSharer(shared_layers=2, threshold=-1.0).calibrated(dense_model, rows).sharing
    shared = {layer for layer, _ in sharing}
    assert len(shared) == 2 and not shared & {source for _, source in sharing}


def test_a_threshold_that_no_sharing_meets_is_refused(dense_model, rows):
    with pytest.raises(ValueError, match="0 layers can be shared"):
        KVSharer(threshold=0.9999999).calibrated(dense_model, rows)
    with pytest.raises(ValueError, match="calibrated first"):
        MethodCache(KVSharer(), layers_of(dense_model, torch.float32))
