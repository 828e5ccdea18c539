"""The joint tower equals a slow reference and timm's ViT; patches are left out in training only, and repeatably."""

from __future__ import annotations

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from hiervl_train.grad_cache import cached_backward
from hiervl_train.models import HierVL, ModelConfig, flops
from hiervl_train.models.convert import convert
from hiervl_train.models.errors import CheckpointError
from hiervl_train.models.speed import SpeedConfig, autocast, prepare
from hiervl_train.models.storage import save
from hiervl_train.objectives import ObjectiveConfig, child_loss
from tests.hiervl_train import reference
from tests.hiervl_train.made_up import MODEL, batch_of, config_of, steps_of
from tests.hiervl_train.tiny import parameters, random_text, random_video, tags_of, tiny_config, tiny_model


def slow(video: torch.Tensor, state: dict[str, torch.Tensor], *, patch: int, heads: int, depth: int) -> torch.Tensor:
    batch, frames, _, height, width = video.shape
    weight = state["patch_embed.proj.weight"].flatten(1)
    tokens = [(state["cls_token"] + state["pos_embed"][:, :1]).expand(batch, 1, -1)]
    for frame in range(frames):
        for number in range((height // patch) * (width // patch)):
            row, column = divmod(number, width // patch)
            area = video[:, frame, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            token = area.flatten(1) @ weight.T + state["patch_embed.proj.bias"]
            tokens.append((token + state["pos_embed"][:, 1 + number] + state["temporal_embed"][:, frame])[:, None])
    x = torch.cat(tokens, 1)
    everything = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool)
    for index in range(depth):
        name = f"blocks.{index}."
        normed = reference.layer_norm(x, state, name + "norm1", 1e-6)
        x = x + reference.masked_attention(normed, state, name + "attn", heads, everything)
        x = x + reference.mlp(reference.layer_norm(x, state, name + "norm2", 1e-6), state, name + "mlp")
    return reference.layer_norm(x, state, "norm", 1e-6)[:, 0]


@pytest.mark.parametrize(("frames", "img_size"), [(1, 16), (4, 16), (3, (8, 24)), (2, (32, 32))])
def test_the_joint_tower_equals_the_slow_reference_in_values_and_gradients(frames, img_size):
    config = tiny_config(img_size=img_size, attention="joint")
    tower = tiny_model(config).video
    video = random_video(2, frames, 3, *config.image_hw)
    weights = random_video(2, config.embed_dim, seed=9)
    ours, theirs = tower(video), slow(video, parameters(tower), patch=8, heads=2, depth=2)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    mine = torch.autograd.grad((ours * weights).sum(), list(tower.parameters()))
    other = torch.autograd.grad((theirs * weights).sum(), list(tower.parameters()))
    for (name, _), a, b in zip(tower.named_parameters(), mine, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


def test_one_frame_equals_timms_vit():
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=32, depth=3, num_classes=0).eval()
    config = tiny_config(img_size=32, patch_size=16, embed_dim=192, depth=3, num_heads=3, attention="joint")
    tower = HierVL(config).video.eval()
    missing, unexpected = tower.load_state_dict(vit.state_dict(), strict=False)
    assert missing == ["temporal_embed"] and unexpected == []
    image = random_video(2, 3, 32, 32, dtype=torch.float32)
    torch.testing.assert_close(tower(image[:, None]), vit(image), rtol=1e-4, atol=1e-5)


def seen_tokens(tower: torch.nn.Module, video: torch.Tensor) -> torch.Tensor:
    """Return what the first block gets."""
    seen = []
    with tower.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        tower(video)
    return seen[0]


def test_patches_are_left_out_in_training_only_and_differently_in_every_clip():
    config = tiny_config(img_size=32, attention="joint", patch_dropout=0.75)
    tower = tiny_model(config).video
    video = random_video(1, 4, 3, 32, 32).expand(3, -1, -1, -1, -1)
    everything = seen_tokens(tower.eval(), video)
    assert everything.shape[1] == 1 + 64
    torch.manual_seed(0)
    kept = seen_tokens(tower.train(), video)
    assert kept.shape[1] == 1 + 16
    assert torch.equal(kept[:, 0], everything[:, 0]), "CLS is never left out"
    chosen = []
    for clip in range(3):
        distances = torch.cdist(kept[clip, 1:], everything[clip, 1:])
        assert (distances.min(dim=1).values < 1e-5).all()
        chosen.append(tuple(sorted(distances.argmin(dim=1).tolist())))
        assert len(set(chosen[-1])) == 16
    assert len(set(chosen)) == 3
    assert torch.equal(tower.eval()(video), tower(video))


def test_cached_gradients_leave_out_the_same_patches_twice():
    config, tags, objective = tiny_config(attention="joint", patch_dropout=0.5), tags_of(6), ObjectiveConfig()
    video, (ids, mask) = random_video(6, 2, 3, 16, 16), random_text(6, 7)
    parts = list(zip(video.split(2), ids.split(2), mask.split(2), strict=True))
    whole, cached = tiny_model(config).train(), tiny_model(config).train()
    torch.manual_seed(5)
    embeddings = [torch.cat(rows) for rows in zip(*(whole(*part) for part in parts), strict=True)]
    child_loss(*embeddings, tags, objective).backward()
    torch.manual_seed(5)
    cached_backward(parts, lambda part: cached(*part), lambda v, t: child_loss(v, t, tags, objective))
    for (name, a), b in zip(whole.named_parameters(), cached.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-9, atol=1e-9, msg=lambda t, n=name: f"{n}: {t}")


@pytest.mark.parametrize("style", ["vit", "clip", "siglip"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_operations_equal_torchs_count(style, dropout):
    config = tiny_config(img_size=32, depth=3, attention="joint", style=style, patch_dropout=dropout)
    with torch.device("meta"):
        model = HierVL(config).train()
        ids, mask = torch.zeros(1, 8, dtype=torch.long), torch.ones(1, 8, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, 3, 32, 32), ids, mask)
    ours = flops.clip(config, frames=3, text_tokens=8, executed=True, training=True)
    assert ours.forward == counter.get_total_flops()


def test_half_the_patches_cost_less_than_half_in_the_tower():
    whole, half = (ModelConfig(attention="joint", patch_dropout=share) for share in (0.0, 0.5))
    figures = [flops.clip(config, training=True).video for config in (whole, half)]
    assert figures[1] / figures[0] < 0.5
    assert flops.clip(half, training=False).video == figures[0]


@pytest.mark.parametrize("style", ["vit", "clip", "siglip"])
@pytest.mark.parametrize("step_type", ["child", "parent"])
def test_both_steps_train_every_weight_and_a_checkpoint_keeps_the_model(tmp_path, style, step_type):
    changes = {"attention": "joint", "style": style, "activation": "quick_gelu", "patch_dropout": 0.5}
    model, steps = steps_of(config_of(model=MODEL | changes))
    steps.by_type[step_type](batch_of(step_type, 4))
    without = [name for name, p in model.video.named_parameters() if p.grad is None]
    assert without == []
    save(model, tmp_path / "model")
    again = HierVL.from_checkpoint(tmp_path / "model")
    assert again.config == model.config
    video = random_video(2, 2, 3, 16, 16, dtype=torch.float32)
    assert torch.equal(again.encode_video(video), model.eval().encode_video(video))


def test_the_released_layout_has_no_joint_tower(tmp_path):
    save(HierVL(tiny_config(attention="joint")), tmp_path / "model")
    with pytest.raises(CheckpointError, match="divided attention only"):
        convert(tmp_path / "model", tmp_path / "released.pth")


@pytest.mark.parametrize("changes", [{"style": "clip"}, {"activation": "quick_gelu"}, {"patch_dropout": 0.5}])
def test_what_only_a_joint_tower_has_is_an_error_for_a_divided_one(changes):
    with pytest.raises(ValueError, match=f"{next(iter(changes))} = .* needs attention = joint"):
        tiny_config(**changes)


@pytest.mark.parametrize("attention", ["divided", "joint"])
def test_a_bfloat16_residual_stream_keeps_half_the_bytes_and_most_of_the_precision(attention):
    config = tiny_config(depth=6, embed_dim=64, num_heads=4, img_size=32, attention=attention)
    model = tiny_model(config, dtype=torch.float32).eval()
    video = random_video(4, 4, 3, 32, 32, dtype=torch.float32)
    with torch.no_grad():
        exact = model.encode_video(video)
        outputs, dtypes = [], []
        for bf16_residual in (False, True):
            prepare(model, SpeedConfig(compile=False, bf16_residual=bf16_residual))
            hook = model.video.blocks[2].register_forward_pre_hook(lambda _, inputs: dtypes.append(inputs[0].dtype))
            with hook, autocast("cpu", SpeedConfig()):
                outputs.append(model.encode_video(video).float())
    assert dtypes == [torch.float32, torch.bfloat16]
    for output, least in zip(outputs, (0.999, 0.995), strict=True):
        assert float(torch.nn.functional.cosine_similarity(output, exact).min()) > least
    assert not torch.equal(*outputs)
