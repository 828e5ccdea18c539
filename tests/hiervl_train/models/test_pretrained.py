"""A joint tower that starts from CLIP or SigLIP gives, for one frame, what that model's image encoder gives."""

from __future__ import annotations

import json
import sys

import huggingface_hub.constants
import open_clip
import pytest
import timm
import torch
from transformers import BertConfig, CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from hiervl_train.models import HierVL
from hiervl_train.models.errors import CheckpointError, MissingPretrained
from hiervl_train.models.initialise import load_vit
from hiervl_train.models.pixels import normalise
from tests.hiervl_train.tiny import tiny_config

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIZES = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}


def tower(style: str, activation: str, source: str) -> torch.nn.Module:
    torch.manual_seed(1)
    made = HierVL(tiny_config(**SIZES, attention="joint", style=style, activation=activation)).video.eval()
    load_vit(made, source)
    return made


def frames() -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)


def pixels(mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """The frames as the other model takes them."""
    return (frames() / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(3)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_clip_of_transformers(tmp_path, act):
    theirs = randomised(CLIPVisionModel(CLIPVisionConfig(**SMALL, hidden_act=act)))
    theirs.save_pretrained(tmp_path / "clip")
    ours = tower("clip", act, f"transformers:{tmp_path}/clip")
    with torch.no_grad():
        expected = theirs(pixel_values=pixels(CLIP_MEAN, CLIP_STD)).pooler_output
        torch.testing.assert_close(ours(normalise(frames()[:, None])), expected, rtol=1e-4, atol=1e-4)


def test_siglip_of_transformers(tmp_path):
    theirs = randomised(SiglipVisionModel(SiglipVisionConfig(**SMALL)))
    theirs.save_pretrained(tmp_path / "siglip")
    ours = tower("siglip", "gelu_tanh", f"transformers:{tmp_path}/siglip")
    with torch.no_grad():
        expected = theirs(pixel_values=pixels((0.5,) * 3, (0.5,) * 3)).pooler_output
        torch.testing.assert_close(ours(normalise(frames()[:, None])), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("quick", [False, True])
def test_clip_of_open_clip(tmp_path, quick):
    name = f"tiny-clip-{quick}"
    config = {
        "embed_dim": 16,
        "quick_gelu": quick,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (tmp_path / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / f"{name}.json")
    theirs = randomised(open_clip.create_model(name, pretrained=None))
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    ours = tower("clip", "quick_gelu" if quick else "gelu", f"open_clip:{name}@{tmp_path}/weights.pt")
    theirs.visual.proj = None
    with torch.no_grad():
        expected = theirs.visual(pixels(CLIP_MEAN, CLIP_STD))
        torch.testing.assert_close(ours(normalise(frames()[:, None])), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["siglip", "clip_quickgelu"])
def test_siglip_and_clip_of_timm(monkeypatch, kind):
    """By name, with weights made here in place of the download."""
    sizes = {"depth": 2, "img_size": 32, "embed_dim": 32, "num_heads": 2}
    theirs = randomised(timm.create_model(f"vit_base_patch16_{kind}_224", pretrained=False, num_classes=0, **sizes))
    monkeypatch.setattr("hiervl_train.models.timm_vit.create_vit", lambda name, pretrained: theirs)
    style, act = ("siglip", "gelu") if kind == "siglip" else ("clip", "quick_gelu")
    mean, std = ((0.5,) * 3, (0.5,) * 3) if kind == "siglip" else (CLIP_MEAN, CLIP_STD)
    ours = tower(style, act, f"vit_base_patch16_{kind}_224.some_tag")
    with torch.no_grad():
        expected = theirs(pixels(mean, std))
        torch.testing.assert_close(ours(normalise(frames()[:, None])), expected, rtol=1e-4, atol=1e-4)


def test_another_style_or_size_is_an_error_that_says_what_to_set(tmp_path):
    CLIPVisionModel(CLIPVisionConfig(**SMALL)).save_pretrained(tmp_path / "clip")
    source = f"transformers:{tmp_path}/clip"
    with pytest.raises(CheckpointError, match=r"its style is clip.*model\.attention=joint and model\.style=clip"):
        tower("vit", "quick_gelu", source)
    with pytest.raises(CheckpointError, match=r"model\.activation=quick_gelu"):
        tower("clip", "gelu", source)
    deeper = HierVL(tiny_config(**SIZES | {"depth": 3}, attention="joint", style="clip", activation="quick_gelu"))
    with pytest.raises(CheckpointError, match=r"missing blocks\.2\.norm1\.weight"):
        load_vit(deeper.video, source)


def test_positions_of_another_image_size_are_resampled(tmp_path):
    for kind, settings, style, act in (
        (CLIPVisionModel, CLIPVisionConfig(**SMALL | {"image_size": 64}), "clip", "quick_gelu"),
        (SiglipVisionModel, SiglipVisionConfig(**SMALL | {"image_size": 64}), "siglip", "gelu_tanh"),
    ):
        kind(settings).save_pretrained(tmp_path / style)
        assert tower(style, act, f"transformers:{tmp_path}/{style}").pos_embed.shape[1] == 4 + (style == "clip")


def test_what_is_missing_or_unsuitable_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MissingPretrained, match=r"some/clip.*init\.video"):
        tower("clip", "gelu", "transformers:some/clip")
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="is a bert, not a clip or siglip"):
        tower("clip", "gelu", f"transformers:{tmp_path}/bert")
    with pytest.raises(MissingPretrained, match=r"no-such-model.*init\.video"):
        tower("clip", "gelu", "open_clip:no-such-model@nothing")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ValueError, match="pip install open_clip_torch"):
        tower("clip", "gelu", "open_clip:ViT-B-16@openai")
