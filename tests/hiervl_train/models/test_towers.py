"""The towers and the aggregator compute their formulas, whatever the shapes, in every way they can be run."""

from __future__ import annotations

import pytest
import timm
import torch
from transformers import DistilBertModel

from configs import loading
from hiervl_train.models import AggregatorConfig, HierVL, ModelConfig
from hiervl_train.models.initialise import load_vit
from hiervl_train.models.layers import TILE, packing, packing_mask
from hiervl_train.models.speed import SpeedConfig, autocast
from hiervl_train.models.text import transformers_config
from tests.hiervl_train import reference
from tests.hiervl_train.tiny import random_text, random_video, tiny_config, tiny_model, tiny_text


def parts(module: torch.nn.Module) -> reference.State:
    return dict(module.named_parameters())


@pytest.mark.parametrize(
    ("frames", "img_size"),
    [(1, 16), (4, 16), (3, (8, 24)), (2, (24, 16)), (4, (40, 8)), (1, (56, 56)), (4, (32, 32))],
)
def test_video_tower_equals_the_slow_reference_in_values_and_gradients(frames, img_size):
    config = tiny_config(img_size=img_size)
    tower = tiny_model(config).video
    video = random_video(2, frames, 3, *config.image_hw).requires_grad_()
    again = video.detach().clone().requires_grad_()
    weights = random_video(2, config.embed_dim, seed=9)

    ours = tower(video)
    theirs = reference.video_tower(again, parts(tower), patch=8, heads=2, depth=2)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)

    named = parts(tower)
    mine = torch.autograd.grad((ours * weights).sum(), [video, *named.values()], allow_unused=True)
    slow = torch.autograd.grad((theirs * weights).sum(), [again, *named.values()], allow_unused=True)
    for name, a, b in zip(["video", *named], mine, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("checkpointed", [False, True])
def test_activation_checkpointing_changes_no_gradient(checkpointed):
    tower = tiny_model().video
    tower.checkpoint_activations = checkpointed
    tower(random_video(2, 3, 3, 16, 16)).square().sum().backward()
    total = sum(float(parameter.grad.abs().sum()) for parameter in tower.parameters())
    assert total == pytest.approx(_plain_gradient_total(), rel=1e-12)


def _plain_gradient_total() -> float:
    tower = tiny_model().video
    tower(random_video(2, 3, 3, 16, 16)).square().sum().backward()
    return sum(float(parameter.grad.abs().sum()) for parameter in tower.parameters())


def test_a_tile_is_filled_with_as_many_positions_as_fit_and_divide():
    assert packing(4, 196) == 14
    assert packing(16, 196) == 2
    assert packing(1, 196) == 49
    assert packing(4, 197) == 1  # a prime number of patches: nothing to share
    assert packing(100, 196) == 1  # more frames than a tile has keys
    for frames in range(1, 20):
        for patches in (1, 4, 49, 196, 256):
            packed = packing(frames, patches)
            assert patches % packed == 0
            assert packed == 1 or packed * frames + 1 <= TILE


def test_the_mask_of_shared_tiles_keeps_positions_apart():
    mask = packing_mask(2, 3, torch.device("cpu"))
    assert packing_mask(2, 1, torch.device("cpu")) is None
    assert mask.tolist()[1] == [True, False, True, False, False, True, False]  # CLS, and position 1 of both frames


@pytest.mark.parametrize("count", [1, 3, 6])
def test_aggregator_equals_the_slow_reference(count):
    aggregator = tiny_model().aggregator
    x = random_video(3, count, 8)
    expected = reference.aggregator(x, parts(aggregator), heads=2, depth=2)
    torch.testing.assert_close(aggregator(x), expected, rtol=1e-9, atol=1e-9)


def test_aggregator_knows_the_order_and_refuses_more_than_its_slots():
    model = tiny_model()
    x = random_video(2, 4, 8)
    assert not torch.allclose(model.aggregate(x), model.aggregate(x.flip(1)))
    with pytest.raises(ValueError, match=r"7 embeddings.*aggregator\.tokens = 6"):
        model.aggregate(random_video(2, 7, 8))


def test_average_is_the_mean_of_any_number_and_none_says_so():
    x = random_video(2, 9, 8)
    average = tiny_model(tiny_config(aggregator=AggregatorConfig(kind="average")))
    torch.testing.assert_close(average.aggregate(x), x.mean(1))
    with pytest.raises(ValueError, match="no aggregator"):
        tiny_model(tiny_config(aggregator=None)).aggregate(x)


def test_initial_positions_of_the_aggregator_have_the_configured_scale():
    for std in (0.0, 0.02, 0.5):
        config = tiny_config(projection_dim=256, aggregator=AggregatorConfig(depth=1, tokens=16, position_std=std))
        positions = HierVL(config).aggregator.pos_embed
        assert float(positions.detach().std()) == pytest.approx(std, rel=0.1, abs=1e-9)


def test_drop_path_rises_to_its_rate_and_keeps_the_mean():
    config = tiny_config(aggregator=AggregatorConfig(depth=3, num_heads=2, tokens=6, drop_path=0.4))
    blocks = HierVL(config).aggregator.blocks
    assert [round(block.drop_path.rate, 6) for block in blocks] == [0.0, 0.2, 0.4]
    drop = blocks[2].drop_path
    dropped = drop.train()(torch.ones(20000, 1, 1))
    assert sorted({round(value, 4) for value in dropped.flatten().tolist()}) == [0.0, round(1 / 0.6, 4)]
    assert float(dropped.mean()) == pytest.approx(1, abs=0.03)
    assert torch.equal(drop.eval()(torch.ones(4, 1, 1)), torch.ones(4, 1, 1))


def test_text_tower_equals_transformers_with_materialised_scores():
    model = tiny_model()
    ids, mask = random_text(5, 11)
    settings = transformers_config(model.config.text)
    settings._attn_implementation = "eager"
    eager = DistilBertModel(settings).double().eval()
    eager.load_state_dict(model.text.encoder.state_dict())
    assert model.text.encoder.config._attn_implementation == "sdpa"
    expected = eager(ids, attention_mask=mask).last_hidden_state[:, 0]
    torch.testing.assert_close(model.eval().text(ids, mask), expected, rtol=1e-9, atol=1e-9)


def test_padding_changes_nothing_whatever_it_holds():
    model = tiny_model().eval()
    ids, mask = random_text(6, 9)
    plain = model.encode_text(ids, mask)
    longer = torch.cat([ids.where(mask.bool(), 7), torch.full((6, 4), 13)], dim=1)
    padded = model.encode_text(longer, torch.cat([mask, torch.zeros(6, 4, dtype=torch.long)], dim=1))
    torch.testing.assert_close(padded, plain, rtol=1e-9, atol=1e-9)


def test_the_order_of_a_batch_and_its_company_change_nothing():
    model = tiny_model().eval()
    video = random_video(5, 3, 3, 16, 16)
    ids, mask = random_text(5, 8)
    order = torch.tensor([3, 0, 4, 1, 2])
    both = model(video, ids, mask)
    for a, b in zip(both, model(video[order], ids[order], mask[order]), strict=True):
        torch.testing.assert_close(a[order], b, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.encode_video(video[2:3]), both[0][2:3], rtol=1e-9, atol=1e-9)


def test_a_video_of_one_frame_through_fresh_time_attention_is_the_image_transformer():
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=32, depth=3, num_classes=0).eval()
    torch.nn.init.normal_(vit.pos_embed)
    config = tiny_config(img_size=32, patch_size=16, embed_dim=192, depth=3, num_heads=3)
    tower = HierVL(config).video.eval()
    kept = {name: value for name, value in vit.state_dict().items() if name in tower.state_dict()}
    tower.load_state_dict(kept, strict=False)
    image = random_video(2, 3, 32, 32, dtype=torch.float32)
    torch.testing.assert_close(tower(image[:, None]), vit(image), rtol=1e-4, atol=1e-5)


def test_fresh_time_attention_leaves_each_frame_to_the_image_transformer():
    """CLS sees all frames, so only the first block's patches are those of the frames by themselves."""
    tower = HierVL(tiny_config(depth=1)).double().video
    video = random_video(2, 4, 3, 16, 16)
    block, patches = tower.blocks[0], tower.config.patches
    for parameter in block.timeattn.parameters():
        assert torch.equal(parameter, torch.full_like(parameter, float(parameter is block.timeattn.proj.weight)))
    together = block(tower._embed(video), 4, packing_mask(4, packing(4, patches), video.device), False)
    mask = packing_mask(1, packing(1, patches), video.device)
    for frame in range(4):
        alone = block(tower._embed(video[:, frame : frame + 1]), 1, mask, False)
        mine = together[:, 1 + frame * patches : 1 + (frame + 1) * patches]
        torch.testing.assert_close(mine, alone[:, 1:], rtol=1e-9, atol=1e-9)


def test_any_timm_vit_by_name_gives_the_sizes_and_starts_the_tower(tmp_path):
    config = ModelConfig(vit="vit_tiny_patch16_224", img_size=(32, 48), text=tiny_text())
    assert (config.embed_dim, config.depth, config.num_heads, config.patch_size) == (192, 12, 3, 16)
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False)
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    tower = HierVL(config).video
    report = load_vit(tower, str(tmp_path / "vit.pth"))
    assert torch.equal(tower.blocks[3].attn.qkv.weight, vit.blocks[3].attn.qkv.weight)
    assert report.ignored == ("head.weight", "head.bias")
    assert "temporal_embed" in report.fresh and "blocks.0.timeattn.qkv.weight" in report.fresh
    assert report.resized == ("pos_embed to a grid of (2, 3) patches",)
    assert ModelConfig.from_dict(loading.to_dict(config)) == config
    with pytest.raises(loading.ConfigError, match="num_heads = 4, but vit = vit_tiny_patch16_224 has 3"):
        ModelConfig.from_dict({"vit": "vit_tiny_patch16_224", "num_heads": 4})


BF16_COSINE = 0.999  # stated in docs/model.md
BF16_RELATIVE = 0.02


def test_bfloat16_autocast_stays_within_the_stated_bounds():
    model = tiny_model(tiny_config(img_size=32, depth=6, embed_dim=64, num_heads=4), dtype=torch.float32).eval()
    video = random_video(8, 4, 3, 32, 32, dtype=torch.float32)
    ids, mask = random_text(8, 12)
    with torch.no_grad():
        full = model(video, ids, mask)
        with autocast("cpu", SpeedConfig(bf16=True)):
            half = model(video, ids, mask)
            pooled = model.aggregate(half[0].unflatten(0, (2, 4)))
        expected = model.aggregate(full[0].unflatten(0, (2, 4)))
    for a, b in zip((*full, expected), (*half, pooled), strict=True):
        b = b.float()
        assert torch.nn.functional.cosine_similarity(a, b).min() > BF16_COSINE
        assert float((a - b).norm() / a.norm()) < BF16_RELATIVE


@pytest.mark.parametrize(
    ("video", "error", "match"),
    [
        (torch.zeros(1, 5, 3, 16, 16), ValueError, "5 frames.*num_frames = 4"),
        (torch.zeros(1, 2, 3, 16, 24), ValueError, r"expected \(batch, frames, 3, 16, 16\)"),
        (torch.zeros(1, 2, 3, 16, 16, dtype=torch.uint8), TypeError, "normalise"),
    ],
)
def test_video_that_does_not_fit_is_an_error_that_says_what_fits(video, error, match):
    with pytest.raises(error, match=match):
        tiny_model(dtype=torch.float32).encode_video(video)


def test_text_longer_than_the_positions_is_an_error():
    with pytest.raises(ValueError, match=r"17 tokens.*16 positions"):
        tiny_model().encode_text(*random_text(2, 17))
