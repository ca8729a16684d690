"""The tiny autoencoders: rebuilt from their weights, whatever these are for, and refused when they are for another."""

import pytest
import torch

from datasets.decoding.images import read_record
from datasets.listing.spec import open_records
from datasets.transforms import as_floats
from models.tiny_autoencoder import STRIDE, TinyAutoencoder, make_decoder, make_encoder
from utils.checkpoints.weights import read_weights_file
from utils.errors import UserError
from utils.files import ROOT

SHARED = ROOT.parent / "shared" / "weights"
WITH_POOLS = (11, 12, 13), (3, 4, 5)


def weights(width: int = 4, channels: int = 2, pools: tuple = ((), ())) -> tuple[dict, dict]:
    torch.manual_seed(0)
    return make_encoder(width, channels, pools[0]).state_dict(), make_decoder(width, channels, pools[1]).state_dict()


@pytest.mark.parametrize(("channels", "pools"), [(4, ((), ())), (16, ((), ())), (32, WITH_POOLS)])
def test_the_architecture_is_read_from_the_weights(channels, pools):
    encoder, decoder = weights(8, channels, pools)
    network = TinyAutoencoder(*({key: value.half() for key, value in part.items()} for part in (encoder, decoder)))
    assert {key.split(".", 1)[1] for key in network.state_dict() if ".pool.1." in key} == {
        f"{place}.pool.1.{name}" for part in pools for place in part for name in ("weight", "bias")
    }
    images = torch.rand(2, 3, 4 * STRIDE, 2 * STRIDE)
    assert network.encoder(images).shape == (2, channels, 4, 2)
    found = network(images)
    assert found.shape == images.shape and found.dtype == torch.float32
    assert found.min() >= 0 and found.max() <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda encoder, decoder: (decoder, decoder), "the encoder of a tiny autoencoder, .* got .*: 1.weight, "),
        (lambda encoder, decoder: (encoder, encoder), "the decoder of a tiny autoencoder, .* another architecture"),
        (lambda encoder, decoder: ({**encoder, "20.weight": torch.ones(1)}, decoder), "the encoder"),
        (lambda encoder, decoder: (encoder, {**decoder, "1.weight": torch.ones(4)}), "the decoder"),
        (lambda encoder, decoder: (encoder, weights(4, 3)[1]), "belong together, got 2 and 3 latent channels"),
    ],
)
def test_weights_of_something_else_are_refused(change, message):
    with pytest.raises(UserError, match=message) as caught:
        TinyAutoencoder(*change(*weights()))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not (SHARED / "taef2_encoder.pth").is_file(), reason="the published weights are not there")
def test_published_weights_reconstruct_a_portrait(tmp_path, monkeypatch):
    monkeypatch.setenv("DEMO_DIR", str(tmp_path))
    record = next(record for record in open_records("demo@n=60,size=96").records if record.label == 0)
    network = TinyAutoencoder(*(read_weights_file(SHARED / f"taef2_{part}.pth") for part in ("encoder", "decoder")))
    images = as_floats(torch.from_numpy(read_record(record)[None]))
    with torch.inference_mode():
        error = (network(images) - images).square().mean()
    assert -10 * torch.log10(error) > 22  # PSNR in dB; a wrong layer gives less than 15
    assert error > 0
