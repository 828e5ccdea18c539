"""Every variant is a YAML file that loads and builds its objective; wrong combinations are errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from configs import loading
from configs.loading import ConfigError
from hiervl_train.config import PretrainConfig
from hiervl_train.models import HierVL
from hiervl_train.models.aggregator import AverageAggregator, SelfAttentionAggregator
from hiervl_train.objectives import child_loss, parent_loss
from tests.hiervl_train import reference
from tests.hiervl_train.tiny import random_video, tags_of, tiny_model

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "pretrain"
# file: aggregator, child objective, parent objective, steps of one period (c for child, p for parent)
VARIANTS = {
    "hiervl_sa": (SelfAttentionAggregator, "egonce", "both", "cccccp"),
    "hiervl_avg": (AverageAggregator, "egonce", "both", "cccccp"),
    "without_joint": (SelfAttentionAggregator, None, "both", "pppppp"),
    "without_hierarchy": (None, "egonce", None, "cccccc"),
    "without_summary": (SelfAttentionAggregator, "egonce", "video_to_narrations", "cccccp"),
    "without_summary_narrations": (SelfAttentionAggregator, "egonce", "video_to_summary", "cccccp"),
    "narrations_only": (None, "egonce", None, "cccccc"),
    "from_egovlp": (SelfAttentionAggregator, "egonce", "both", "cccccp"),
    "joint": (SelfAttentionAggregator, "egonce", "both", "cccccp"),
    "small": (SelfAttentionAggregator, "egonce", "both", "cccccp"),
    "custom": (SelfAttentionAggregator, "egonce", "both", "cccccp"),
    "hiervl_sa_features": (SelfAttentionAggregator, "egonce", "both", "cccccp"),
}


def load(name: str, *overrides: str) -> PretrainConfig:
    return loading.load(PretrainConfig, FOLDER / f"{name}.yaml", overrides)


def test_every_file_is_a_known_variant():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(VARIANTS)


@pytest.mark.parametrize("name", list(VARIANTS))
def test_a_file_builds_the_model_and_the_objective_that_it_names(name):
    aggregator, child, parent, steps = VARIANTS[name]
    config = load(name)
    assert (config.objective.child, config.objective.parent) == (child, parent)
    assert "".join(config.step_type(step)[0] for step in range(12)) == steps * 2
    with torch.device("meta"):
        built = HierVL(config.model).aggregator
    assert built is None if aggregator is None else isinstance(built, aggregator)
    assert loading.from_dict(PretrainConfig, loading.to_dict(config)) == config


@pytest.mark.parametrize("name", list(VARIANTS))
def test_the_losses_of_a_file_equal_the_formulas_of_its_variant(name):
    config = load(name)
    tags = tags_of(6)
    mask = reference.tag_mask(tags.verbs_BV, tags.nouns_BO)
    video, text = random_video(6, 8), random_video(6, 8, seed=5)
    if config.objective.child is None:
        with pytest.raises(ValueError, match="child is null"):
            child_loss(video, text, tags, config.objective)
    else:
        expected = reference.egonce(reference.cosine(text, video), mask, 0.05)
        torch.testing.assert_close(child_loss(video, text, tags, config.objective), expected)

    average = torch.nn.Identity() if config.model.aggregator is None else tiny_model().aggregate
    windows, narrations, summary = random_video(6, 4, 8), random_video(6, 5, 8, seed=6), random_video(6, 8, seed=7)
    if config.objective.parent is None:
        with pytest.raises(ValueError, match="parent is null"):
            parent_loss(windows, narrations, summary, tags, average, config.objective)
        return
    v, n, s = average(windows), average(narrations), summary
    pairs = {"both": [(n, s), (v, s)], "video_to_summary": [(v, s)], "video_to_narrations": [(v, n)]}
    expected = sum(reference.egonce(reference.cosine(a, b), mask, 0.05) for a, b in pairs[config.objective.parent])
    ours = parent_loss(windows, narrations, summary, tags, average, config.objective)
    torch.testing.assert_close(ours, expected)


def test_the_published_values_are_the_defaults():
    config = load("hiervl_sa")
    assert config == PretrainConfig()
    assert (config.optim.lr, config.optim.eps, config.optim.weight_decay) == (3e-5, 1e-6, 0.0)
    assert (config.sample.frames, config.sample.windows, config.sample.narrations) == (4, 16, 16)
    assert (config.schedule.clips, config.schedule.summaries) == (512, 32)
    assert config.init.video == "vit_base_patch16_224.orig_in21k_ft_in1k"


def test_compatibility_switches_are_off_everywhere():
    for name in VARIANTS:
        config = load(name)
        compat = config.compat
        assert (compat.channel_order, compat.released_eps, compat.dual_softmax) == ("rgb", False, False)
        assert config.optim.apply_zero_grads is False


def test_variants_set_what_only_they_need():
    assert load("without_hierarchy").sample.summaries_as_clips
    assert load("from_egovlp").init_from == Path("checkpoints/egovlp.pth")
    assert not load("narrations_only").sample.summaries_as_clips
    assert load("without_joint", "init_from=runs/narrations").init_from == Path("runs/narrations")


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("objective.temprature=0.1", r"objective\.temprature.*did you mean objective\.temperature"),
        ("objective.parent=all", r"objective\.parent"),
        ("objective.temperature=0", r"objective\.temperature = 0.*greater than 0"),
        ("objective={child: null, parent: null}", "nothing to train"),
        ("model.aggregator=null", r"model\.aggregator is null"),
        ("sample.windows=17", r"sample\.windows = 17"),
        ("sample.frames=17", "16 slots"),
        ("sample.summary_clip_seconds=[3.0, 1.5]", "summary_clip_seconds"),
        ("schedule.clips=0", r"clips = 0"),
        ("schedule.summaries=1", "no negative"),
        ("schedule.max_clips_per_epoch=100", "less than one batch"),
        ("sample.summaries_as_clips=512", "leaves no clips"),
        ("tokenizer.buckets=[]", r"tokenizer\.buckets"),
        ("optim.final_lr=1.0", "final_lr"),
        ("optim.ema=1.0", "ema"),
        ("model.embed_dim=100", "embed_dim = 100 is not a multiple of num_heads = 12"),
        ("model.img_size=100", "img_size = 100"),
        ("model.aggregator.num_heads=7", r"projection_dim = 256.*aggregator\.num_heads = 7"),
        ("model.text.dropout=1.0", "dropout"),
        ("optim.lr=0.0", "lr"),
        ("speed.bf16=yes please", r"speed\.bf16"),
        ("compat.channel_order=gbr", r"compat\.channel_order"),
    ],
)
def test_wrong_values_are_errors_that_name_the_key(override, match):
    with pytest.raises(ConfigError, match=match):
        load("hiervl_sa", override)
