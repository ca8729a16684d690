"""The foundation model: transformers of several families, what is read and tuned, the cached part, bad arguments."""

import pytest
import torch

from models.registry import create_model
from utils.errors import UserError
from utils.training.finetune import freeze, train_mode

# Each with other prefix tokens: class; a register and no class; none (as SigLIP); class and four registers (DINOv2,
# DINOv3 with rotary embeddings); class with rotary embeddings.
BACKBONES = {
    "test_vit": (6, 1, True),
    "test_vit2": (8, 1, False),
    "vit_pwee_patch16_reg1_gap_256": (16, 1, False),
    "vit_wee_patch16_reg1_gap_256": (14, 1, False),
    "vit_small_patch14_reg4_dinov2": (12, 5, True),
    "vit_small_patch16_dinov3": (12, 5, True),
    "eva02_tiny_patch14_224": (12, 1, True),
}


def build(backbone="test_vit", **args):
    torch.manual_seed(0)
    return create_model("foundation", backbone=backbone, **args)


def images(size=64, count=3):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def tuned(detector):
    """The parameters of the tower that train."""
    return {name.removeprefix("backbone.") for name, p in detector.backbone.named_parameters() if p.requires_grad}


@torch.no_grad()
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_transformer_of_any_family_is_read_where_timm_would_read_it(backbone):
    depth, prefix, has_class = BACKBONES[backbone]
    detector, batch = build(backbone, blocks=f"1,{depth - 1}", tokens="both", tune="norms_1").eval(), images(56)
    whole = create_model(backbone).backbone.eval()
    whole.load_state_dict(detector.backbone.state_dict(), strict=False)
    found = whole.forward_intermediates(
        detector.normalize(batch), [0, depth - 2], return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
    )
    wanted = [token for patches, before in found for token in ([before[:, 0]] if has_class else []) + [patches.mean(1)]]
    assert detector.prefix_tokens == prefix and len(detector.backbone.blocks) == depth - 1
    seen = []
    detector.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    detector(batch)
    wanted = torch.cat([token / token.norm(dim=1, keepdim=True) for token in wanted], dim=1)
    assert torch.allclose(seen[0], wanted, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("tune", ["none", "norms", "norms_1", "last_2", "norms_5"])
def test_the_frozen_part_and_the_rest_make_the_whole(tune):
    detector, batch = build(blocks="2,4-5", tokens="both", tune=tune).eval(), images()
    tokens = detector.frozen_tokens(batch)
    assert torch.equal(detector.from_tokens(tokens), detector(batch))
    rows = {"none": 6, "norms": 17, "norms_1": 17 + 4, "last_2": 17 + 2, "norms_5": 17}
    assert tokens.shape == (3, rows[tune], 64)
    assert torch.allclose(detector.from_tokens(tokens.half().float()), detector(batch), atol=2e-2)


def test_the_gradients_of_the_rest_do_not_need_the_images():
    detector, batch = build(tune="norms_2").train(), images()
    found = []
    for whole in (True, False):
        detector.zero_grad()
        logits = detector(batch) if whole else detector.from_tokens(detector.frozen_tokens(batch).detach())
        logits.square().sum().backward()
        found.append([p.grad.clone() for p in detector.parameters() if p.requires_grad])
    assert len(found[0]) > 4 and all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert all(p.grad is None for p in detector.parameters() if not p.requires_grad)
    assert not detector.frozen_tokens(batch).requires_grad  # no graph is recorded for it


@pytest.mark.parametrize(
    ("tune", "blocks", "names"),
    [
        ("none", "4-6", ()),
        ("norms", "4-6", ("0.norm1.weight", "5.norm2.bias")),
        ("norms_2", "4-6", ("4.norm1.weight", "5.norm2.bias")),
        ("norms_1", "2-5", ("4.norm1.weight", "4.norm2.bias")),
        ("last_1", "6", ("5.norm1.weight", "5.attn.qkv.weight", "5.mlp.fc2.bias")),
    ],
)
def test_tune_decides_what_trains_whatever_freeze_says(tune, blocks, names):
    detector = build(blocks=blocks, tune=tune)
    first = tuned(detector)
    assert {f"blocks.{name}" for name in names} <= first
    assert all("norm" in name for name in first) or tune.startswith("last")
    freeze(detector, "none")
    assert tuned(detector) == first
    freeze(detector, "backbone")
    assert not tuned(detector)
    assert all(p.requires_grad for p in detector.head_parameters())


def test_the_frozen_part_stays_in_evaluation_mode():
    detector = build(tune="norms_2")
    train_mode(detector)
    training = [block.training for block in detector.backbone.blocks]
    assert training == [False] * 4 + [True] * 2
    assert detector.norm.training and not detector.backbone.patch_embed.training
    assert not any(module.training for module in detector.eval().modules())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"tune": "bogus"}, "tune=none, norms, norms_K or last_K with K from 1 to 6, .* got 'bogus'"),
        ({"tune": "norms_0"}, "K from 1 to 6"),
        ({"tune": "norms_4", "blocks": "1-3"}, "K from 1 to 3, the last block read, got 'norms_4'"),
        ({"blocks": "13-20"}, "blocks=FIRST-LAST, .* from 1 to the 6 blocks of test_vit, got '13-20'"),
        ({"blocks": "4-2"}, "got '4-2'"),
        ({"blocks": 0}, "got '0'"),
        ({"blocks": "last"}, "got 'last'"),
        ({"tokens": "mean"}, "tokens=class or tokens=patch or tokens=both, got 'mean'"),
        ({"backbone": "resnet18"}, "plain vision transformer in timm, such as .*, got 'resnet18'"),
        ({"backbone": "swin_tiny_patch4_window7_224"}, "plain vision transformer in timm"),
        ({"backbone": "foundation"}, "plain vision transformer in timm"),
        ({"backbone": "vit_base_patch16_clip_224x"}, "did you mean .*vit_base_patch16_clip_224"),
    ],
)
def test_arguments_that_do_not_fit_are_one_line(args, message):
    with pytest.raises(UserError, match=message):
        build(**args)
