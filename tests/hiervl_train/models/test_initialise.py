"""New models start from timm ViTs, any text encoder and other checkpoints; missing weights are named."""

from __future__ import annotations

import subprocess
import sys

import huggingface_hub.constants
import pytest
import timm
import torch
from transformers import BertConfig, BertModel, DistilBertModel, RobertaConfig, RobertaModel

from hiervl_train.models import HierVL, InitConfig, TextConfig
from hiervl_train.models.errors import CheckpointError, MissingPretrained
from hiervl_train.models.initialise import initialise, load_text, load_vit
from hiervl_train.models.storage import save
from hiervl_train.models.text import load_tokenizer, transformers_config
from hiervl_train.models.timm_vit import vit_sizes
from tests.hiervl_train.tiny import random_text, tiny_config, tiny_model, tiny_text


@pytest.fixture
def offline(monkeypatch):
    """Make the hub unreachable at once, in place of after its retries."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.medium
def test_timm_imports_without_torchvisions_compiled_operators():
    code = "import hiervl_train.models.torchvision_ops, timm, torchvision.transforms; print(timm.__name__)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "timm", run.stderr


def test_a_vits_name_gives_its_sizes():
    sizes = vit_sizes("vit_small_patch32_224")
    assert sizes == {"patch_size": 32, "embed_dim": 384, "depth": 12, "num_heads": 6}
    assert vit_sizes("vit_base_patch16_224.orig_in21k_ft_in1k")["embed_dim"] == 768


@pytest.mark.parametrize(("name", "match"), [("resnet18", "not a plain ViT"), ("vit_of_nobody", "vit_of_nobody")])
def test_names_of_other_architectures_are_errors(name, match):
    with pytest.raises(ValueError, match=match):
        vit_sizes(name)


def test_a_vit_file_of_another_shape_is_an_error_by_name(tmp_path):
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, depth=2, img_size=32)
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    tower = HierVL(tiny_config(img_size=32, patch_size=16, embed_dim=192, depth=3, num_heads=3)).video
    with pytest.raises(CheckpointError, match=r"missing blocks\.2\.norm1\.weight"):
        load_vit(tower, str(tmp_path / "vit.pth"))
    torch.save(vit.state_dict() | {"norm_pre.weight": torch.ones(192)}, tmp_path / "clip.pth")
    tower = HierVL(tiny_config(img_size=32, patch_size=16, embed_dim=192, depth=2, num_heads=3)).video
    with pytest.raises(CheckpointError, match=r"norm_pre\.weight is not in a plain ViT"):
        load_vit(tower, str(tmp_path / "clip.pth"))


def test_offline_errors_say_what_is_missing_and_what_to_do(offline):
    model = HierVL(tiny_config())
    with pytest.raises(MissingPretrained, match=r"vit_base_patch16_224\.orig_in21k_ft_in1k.*init\.video"):
        initialise(model, InitConfig(text=None))
    with pytest.raises(MissingPretrained, match=r"distilbert-base-uncased.*hf download.*init\.text"):
        initialise(model, InitConfig(video=None))
    with pytest.raises(MissingPretrained, match=r"tokenizer of 'distilbert-base-uncased'"):
        load_tokenizer("distilbert-base-uncased")
    with pytest.raises(MissingPretrained, match=r"some/encoder.*model\.text\.source"):
        HierVL(tiny_config(text=TextConfig(source="some/encoder")))


def test_text_weights_come_from_a_local_folder(tmp_path):
    theirs = DistilBertModel(transformers_config(tiny_text()))
    theirs.save_pretrained(tmp_path / "text")
    model = tiny_model(dtype=torch.float32)
    initialise(model, InitConfig(video=None, text=str(tmp_path / "text")))
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(model.text.encoder.state_dict()[name], tensor), name


def test_text_weights_of_another_size_are_an_error_by_name(tmp_path):
    DistilBertModel(transformers_config(TextConfig(n_layers=1, dim=24, n_heads=2, hidden_dim=8))).save_pretrained(
        tmp_path
    )
    with pytest.raises(CheckpointError, match=r"model\.text.*missing transformer\.layer\.1"):
        load_text(tiny_model(dtype=torch.float32).text.encoder, str(tmp_path))


@pytest.mark.parametrize(("kind", "config"), [(BertModel, BertConfig), (RobertaModel, RobertaConfig)])
def test_other_text_encoders_are_saved_with_the_model(tmp_path, kind, config):
    settings = config(vocab_size=40, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    kind(settings).save_pretrained(tmp_path / "encoder")
    source = str(tmp_path / "encoder")
    model = HierVL(tiny_config(text=TextConfig(source=source))).eval()
    assert model.text_projection.in_features == 24
    assert len(model.text.blocks) == 2
    load_text(model.text.encoder, source)
    ids, mask = random_text(3, 7)
    longer = (
        torch.cat([ids.where(mask.bool(), 9), ids[:, :2]], dim=1),
        torch.cat([mask, torch.zeros_like(mask[:, :2])], 1),
    )
    embedding = model.encode_text(ids, mask)
    torch.testing.assert_close(model.encode_text(*longer), embedding, rtol=1e-4, atol=1e-5)

    save(model, tmp_path / "run")
    for file in (tmp_path / "encoder").iterdir():
        file.unlink()
    assert torch.equal(HierVL.from_checkpoint(tmp_path / "run").encode_text(ids, mask), embedding)


def test_init_from_replaces_image_and_text_weights(tmp_path, offline):
    source = tiny_model(tiny_config(aggregator=None), seed=7, dtype=torch.float32)
    save(source, tmp_path / "run")
    model = tiny_model(dtype=torch.float32)
    (report,) = initialise(model, InitConfig(), init_from=tmp_path / "run")
    assert all(name.startswith("aggregator.") for name in report.fresh) and report.fresh
    assert torch.equal(model.video.pos_embed, source.video.pos_embed)


def test_gain_multiplies_only_new_matrices() -> None:
    def fresh(gain: float) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = HierVL(tiny_config())
        initialise(model, InitConfig(video=None, text=None, gain=gain))
        return dict(model.named_parameters())

    usual, larger = fresh(1.0), fresh(4.0)
    for name, parameter in larger.items():
        factor = 4.0 if parameter.ndim == 2 and "timeattn" not in name else 1.0
        assert torch.equal(parameter, usual[name] * factor), name
