"""The video tower equals a slow reference and timm's ViT, and names unsuitable input."""

from __future__ import annotations

import pytest
import timm
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hiervl_train.models import HierVL
from hiervl_train.models.layers import TimeAttention, block_masks
from tests.hiervl_train import reference
from tests.hiervl_train.tiny import parameters, random_video, tiny_config, tiny_model


@pytest.mark.parametrize("pairwise", [False, True])
@pytest.mark.parametrize(
    ("frames", "img_size"),
    [(1, 16), (4, 16), (3, (8, 24)), (2, (24, 16)), (4, (40, 8)), (1, (56, 56)), (4, (32, 32))],
)
def test_video_tower_equals_the_slow_reference_in_values_and_gradients(frames, img_size, pairwise):
    config = tiny_config(img_size=img_size)
    tower = tiny_model(config).video
    for module in tower.modules():
        if isinstance(module, TimeAttention):
            module.pairwise = pairwise
    video = random_video(2, frames, 3, *config.image_hw).requires_grad_()
    again = video.detach().clone().requires_grad_()
    weights = random_video(2, config.embed_dim, seed=9)

    ours = tower(video)
    theirs = reference.video_tower(again, parameters(tower), patch=8, heads=2, depth=2)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)

    named = parameters(tower)
    mine = torch.autograd.grad((ours * weights).sum(), [video, *named.values()], allow_unused=True)
    slow = torch.autograd.grad((theirs * weights).sum(), [again, *named.values()], allow_unused=True)
    for name, a, b in zip(["video", *named], mine, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("checkpointed", [False, True])
def test_activation_checkpointing_keeps_the_gradients(checkpointed):
    tower = tiny_model().video
    tower.checkpoint_activations = checkpointed
    tower(random_video(2, 3, 3, 16, 16)).square().sum().backward()
    total = sum(float(parameter.grad.abs().sum()) for parameter in tower.parameters())
    assert total == pytest.approx(_plain_gradient_total(), rel=1e-12)


def _plain_gradient_total() -> float:
    tower = tiny_model().video
    tower(random_video(2, 3, 3, 16, 16)).square().sum().backward()
    return sum(float(parameter.grad.abs().sum()) for parameter in tower.parameters())


def test_one_frame_with_new_time_attention_equals_timms_vit():
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=32, depth=3, num_classes=0).eval()
    torch.nn.init.normal_(vit.pos_embed)
    config = tiny_config(img_size=32, patch_size=16, embed_dim=192, depth=3, num_heads=3)
    tower = HierVL(config).video.eval()
    kept = {name: value for name, value in vit.state_dict().items() if name in tower.state_dict()}
    tower.load_state_dict(kept, strict=False)
    image = random_video(2, 3, 32, 32, dtype=torch.float32)
    torch.testing.assert_close(tower(image[:, None]), vit(image), rtol=1e-4, atol=1e-5)


def test_new_time_attention_processes_each_frame_by_itself():
    """CLS attends to all frames, so only the first block's patches are those of single frames."""
    tower = HierVL(tiny_config(depth=1)).double().video
    video = random_video(2, 4, 3, 16, 16)
    block, patches = tower.blocks[0], tower.config.patches
    for parameter in block.timeattn.parameters():
        assert torch.equal(parameter, torch.full_like(parameter, float(parameter is block.timeattn.proj.weight)))
    _, together = block(*tower._embed(video), 4, block_masks(4, patches, video.device), False)
    masks = block_masks(1, patches, video.device)
    for frame in range(4):
        _, alone = block(*tower._embed(video[:, frame : frame + 1]), 1, masks, False)
        mine = together[:, frame * patches : (frame + 1) * patches]
        torch.testing.assert_close(mine, alone, rtol=1e-9, atol=1e-9)


class Copies(TorchDispatchMode):
    """Counts the bytes that are copied without being computed: copies, clones and concatenations."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function.__name__.split(".")[0] in ("cat", "clone", "copy_", "contiguous"):
            self.bytes += out.nbytes
        return out


def test_keys_and_values_are_never_copied():
    """Each attention copies its input once to join CLS to the groups, and in time once more to change the order."""
    config = tiny_config(img_size=64, embed_dim=64, depth=3)
    tower = tiny_model(config, dtype=torch.float32).video
    video = random_video(2, 4, 3, 64, 64, dtype=torch.float32)
    tokens = 2 * 4 * config.patches * config.embed_dim * 4  # bytes of a tensor of all patches
    with Copies() as copies:
        tower(video)
    # Two full blocks of (time 2, space 1), the last of (time 2, keys of CLS 1), and what CLS and the masks add.
    assert copies.bytes < 1.15 * 3 * (2 + 1) * tokens
    for module in tower.modules():
        if isinstance(module, TimeAttention):
            module.pairwise = True
    with Copies() as copies:
        tower(video)
    assert copies.bytes < 1.5 * 3 * tokens


@pytest.mark.parametrize(
    ("video", "error", "match"),
    [
        (torch.zeros(1, 5, 3, 16, 16), ValueError, "5 frames.*num_frames = 4"),
        (torch.zeros(1, 2, 3, 16, 24), ValueError, r"expected \(batch, frames, 3, 16, 16\)"),
        (torch.zeros(1, 2, 3, 16, 16, dtype=torch.uint8), TypeError, "normalise"),
    ],
)
def test_unsuitable_video_is_an_error_that_names_what_is_expected(video, error, match):
    with pytest.raises(error, match=match):
        tiny_model(dtype=torch.float32).encode_video(video)
