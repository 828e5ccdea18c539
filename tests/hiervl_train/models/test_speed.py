"""Compiled blocks have no graph breaks, no recompiles after warm-up, and the same outputs; layouts, too."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch._dynamo.utils import counters

from hiervl_train.models import AggregatorConfig, HierVL
from hiervl_train.models.layers import block_masks
from hiervl_train.models.speed import SpeedConfig, autocast, compile_blocks, prepare, transformer_blocks
from tests.hiervl_train.tiny import random_text, random_video, tiny_config, tiny_model, tiny_text

pytestmark = pytest.mark.medium

LENGTHS = (8, 12)  # the buckets that text is padded to


def config():
    """Three blocks a tower, with dropout and drop-path of a different rate in each block."""
    aggregator = AggregatorConfig(depth=3, num_heads=2, tokens=6, drop_path=0.2)
    return tiny_config(depth=3, text=tiny_text(0.1), aggregator=aggregator)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def one_of_each(model: HierVL, seed: int) -> None:
    """A child and a parent batch, in training and in evaluation, with texts of every bucket."""
    batches = itertools.product(("child", "parent"), (True, False), LENGTHS)
    for number, (kind, training, length) in enumerate(batches):
        model.train(training)
        rows = 5 if kind == "child" else 2 * 3
        video = random_video(rows, 4, 3, 16, 16, seed=seed + number, dtype=torch.float32)
        ids, mask = random_text(rows, length, seed=seed + number)
        with torch.set_grad_enabled(training), autocast("cpu", SpeedConfig(bf16=True)):
            embeddings = model(video, ids, mask)
            if kind == "parent":
                embeddings = tuple(model.aggregate(x.unflatten(0, (2, 3))) for x in embeddings)
        if training:
            torch.stack([x.float().square().sum() for x in embeddings]).sum().backward()


@pytest.mark.parametrize(
    ("changes", "speed"),
    [
        ({}, {}),
        ({}, {"pairwise_time": True, "bf16_residual": True}),
        ({"attention": "joint", "patch_dropout": 0.5}, {}),
        ({"attention": "joint", "style": "siglip", "activation": "gelu_tanh"}, {"bf16_residual": True}),
    ],
    ids=["divided", "pairwise", "joint", "siglip"],
)
def test_no_graph_breaks_and_no_recompiles_after_warm_up(changes, speed):
    model = tiny_model(dataclasses.replace(config(), **changes), dtype=torch.float32)
    prepare(model, SpeedConfig(compile=False, **speed))
    compile_blocks(model, backend="eager")  # what is recompiled when does not depend on the code generator
    one_of_each(model, seed=0)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0 and not counters["graph_break"]
    # Fewer graphs than blocks × cases: all blocks of a tower share them, whatever their weights and drop-path rates.
    # Video: {last block or not} × {child, parent} × {training, evaluation}; text: those times lengths; aggregator: 2.
    assert graphs <= 8 + 8 + 2
    with torch._dynamo.config.patch(error_on_recompile=True):
        one_of_each(model, seed=100)
    assert counters["stats"]["unique_graphs"] == graphs


def test_each_block_is_one_graph():
    model = tiny_model(config(), dtype=torch.float32).eval()
    x = torch.randn(2, 5, 16)
    aggregated = torch.randn(2, 5, 8)
    video = model.video._embed(random_video(2, 4, 3, 16, 16, dtype=torch.float32))
    masks = block_masks(4, model.config.patches, torch.device("cpu"))
    visible = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    calls = [
        (model.video.blocks[0], (*video, 4, masks, False)),
        (model.video.blocks[2], (*video, 4, masks, True)),
        (model.text.blocks[0], (x, visible)),
        (model.aggregator.blocks[1], (aggregated,)),
    ]
    for block, arguments in calls:
        explained = torch._dynamo.explain(block.forward)(*arguments)
        assert explained.graph_count == 1 and explained.graph_break_count == 0, explained.break_reasons
    assert len(list(transformer_blocks(model))) == 3 + 2 + 3


def test_the_generated_code_of_a_video_block_has_the_eager_values_and_gradients():
    model = tiny_model(tiny_config(depth=1), dtype=torch.float32)
    video = random_video(2, 4, 3, 16, 16, dtype=torch.float32)
    eager = model.encode_video(video)
    eager.square().sum().backward()
    expected = {name: p.grad.clone() for name, p in model.video.named_parameters()}
    model.zero_grad()
    model.video.blocks[0].compile(fullgraph=True, dynamic=False)
    compiled = model.encode_video(video)
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)
    compiled.square().sum().backward()
    for name, parameter in model.video.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_generated_code_of_the_whole_model_has_the_eager_values():
    model = tiny_model(tiny_config(), dtype=torch.float32).eval()
    video = random_video(4, 4, 3, 16, 16, dtype=torch.float32)
    ids, mask = random_text(4, 8)
    with torch.no_grad():
        eager = model(video, ids, mask)
        pooled = model.aggregate(eager[0].unflatten(0, (2, 2)))
        prepare(model, SpeedConfig(compile=True, channels_last=True))
        compiled = model(video, ids, mask)
        for a, b in zip((*eager, pooled), (*compiled, model.aggregate(compiled[0].unflatten(0, (2, 2)))), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_channels_last_and_checkpointing_keep_the_outputs():
    plain, fast = tiny_model(), tiny_model()
    prepare(fast, SpeedConfig(compile=False, channels_last=True, checkpoint_activations=True))
    assert fast.video.checkpoint_activations
    assert fast.video.patch_embed.proj.weight.is_contiguous(memory_format=torch.channels_last)
    video = random_video(2, 3, 3, 16, 16)
    for model in (plain, fast):
        model.encode_video(video).square().sum().backward()
    for (name, a), b in zip(plain.video.named_parameters(), fast.video.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-9, atol=1e-9, msg=lambda t, n=name: f"{n}: {t}")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_has_the_values_of_the_cpu():
    model = tiny_model(dtype=torch.float32).eval()
    video, (ids, mask) = random_video(3, 4, 3, 16, 16, dtype=torch.float32), random_text(3, 8)
    with torch.no_grad():
        expected = model(video, ids, mask)
        model.cuda()
        ours = model(video.cuda(), ids.cuda(), mask.cuda())
    for a, b in zip(expected, ours, strict=True):
        torch.testing.assert_close(a, b.cpu(), rtol=1e-3, atol=1e-4)
