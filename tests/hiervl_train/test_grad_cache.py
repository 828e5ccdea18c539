"""Cached gradients: micro-batches have the loss and the gradient of the whole batch, dropout included."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hiervl_train.grad_cache import cached_backward
from hiervl_train.models import AggregatorConfig, HierVL
from hiervl_train.models.speed import SpeedConfig, autocast, compile_blocks
from hiervl_train.objectives import ObjectiveConfig, child_loss, parent_loss
from tests.hiervl_train.tiny import random_text, random_video, tags_of, tiny_config, tiny_model, tiny_text

OBJECTIVE = ObjectiveConfig()


def model_with(dropout: float) -> HierVL:
    aggregator = AggregatorConfig(depth=2, num_heads=2, tokens=6, drop_path=dropout)
    return tiny_model(tiny_config(text=tiny_text(dropout), aggregator=aggregator)).train()


def clips(count: int, size: int) -> list[tuple[torch.Tensor, ...]]:
    video, (ids, mask) = random_video(count, 2, 3, 16, 16), random_text(count, 7)
    return list(zip(video.split(size), ids.split(size), mask.split(size), strict=True))


def gradients(model: HierVL) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(
            ours[name], theirs[name], rtol=1e-9, atol=1e-9, msg=lambda t, name=name: f"{name} {t}"
        )


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_without_dropout_micro_batches_equal_the_whole_batch(size):
    tags = tags_of(8)
    big = model_with(0.0)
    (video, ids, mask) = clips(8, 8)[0]
    expected = child_loss(*big(video, ids, mask), tags, OBJECTIVE)
    expected.backward()

    small = model_with(0.0)
    loss = cached_backward(clips(8, size), lambda part: small(*part), lambda v, t: child_loss(v, t, tags, OBJECTIVE))
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    assert_same_gradients(gradients(small), gradients(big))


def test_with_dropout_micro_batches_equal_one_graph_over_them():
    tags = tags_of(6)
    whole = model_with(0.3)
    torch.manual_seed(5)
    encoded = [whole(*part) for part in clips(6, 2)]
    video, text = (torch.cat(rows) for rows in zip(*encoded, strict=True))
    expected = child_loss(video, text, tags, OBJECTIVE)
    expected.backward()
    follows = torch.rand(1)

    parts = model_with(0.3)
    torch.manual_seed(5)
    loss = cached_backward(clips(6, 2), lambda part: parts(*part), lambda v, t: child_loss(v, t, tags, OBJECTIVE))
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    assert_same_gradients(gradients(parts), gradients(whole))
    assert torch.equal(torch.rand(1), follows), "the next step's random numbers are not this step's again"


def summaries(count: int, size: int) -> list[tuple[torch.Tensor, ...]]:
    """Windows, narrations and summaries of `count` summaries with 3 windows and 4 narrations each."""
    windows = random_video(count, 3, 2, 3, 16, 16)
    ids, mask = random_text(count * 4, 6)
    own_ids, own_mask = random_text(count, 5, seed=8)
    whole = (windows, ids.unflatten(0, (count, 4)), mask.unflatten(0, (count, 4)), own_ids, own_mask)
    return list(zip(*(tensor.split(size) for tensor in whole), strict=True))


def encode_summaries(model: HierVL, part: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    windows, ids, mask, own_ids, own_mask = part
    return (
        model.encode_video(windows.flatten(0, 1)).unflatten(0, windows.shape[:2]),
        model.encode_text(ids.flatten(0, 1), mask.flatten(0, 1)).unflatten(0, ids.shape[:2]),
        model.encode_text(own_ids, own_mask),
    )


@pytest.mark.parametrize("objective", ["both", "video_to_summary", "video_to_narrations"])
def test_parents_aggregate_in_the_loss_with_drop_path(objective):
    tags = tags_of(4)
    config = ObjectiveConfig(parent=objective)
    whole = model_with(0.3)
    torch.manual_seed(6)
    encoded = [encode_summaries(whole, part) for part in summaries(4, 2)]
    joined = [torch.cat(rows) for rows in zip(*encoded, strict=True)]
    expected = parent_loss(*joined, tags, whole.aggregate, config)
    expected.backward()
    follows = torch.rand(1)

    parts = model_with(0.3)
    torch.manual_seed(6)
    loss = cached_backward(
        summaries(4, 2),
        lambda part: encode_summaries(parts, part),
        lambda *embeddings: parent_loss(*embeddings, tags, parts.aggregate, config),
    )
    assert torch.equal(torch.rand(1), follows), "the next step does not repeat the loss's random numbers"
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    theirs = gradients(whole)
    assert any(name.startswith("aggregator.") for name in theirs)
    assert_same_gradients({name: gradients(parts)[name] for name in theirs}, theirs)


def test_inside_an_autocast_the_weights_get_gradients():
    """Autocast keeps a weight's bfloat16 copy, and the first encoding makes it without a graph."""
    tags = tags_of(4)
    model = model_with(0.0).float()
    parts = [(video.float(), *text) for video, *text in clips(4, 2)]
    with autocast("cpu", SpeedConfig(bf16=True)):
        cached_backward(parts, lambda part: model(*part), lambda v, t: child_loss(v, t, tags, OBJECTIVE))
    named = dict(model.named_parameters())
    without = [name for name, p in named.items() if p.grad is None and not name.startswith("aggregator.")]
    assert without == []
    assert float(named["video.blocks.0.mlp.fc1.weight"].grad.abs().sum()) > 0


@pytest.mark.medium
def test_both_compiled_encodings_have_the_same_dropout():
    tags = tags_of(6)
    model = tiny_model(tiny_config(depth=1, aggregator=None, text=tiny_text(0.3)), dtype=torch.float32).train()
    for block in model.text.blocks:
        block.compile(fullgraph=True, dynamic=False)
    seen: list[torch.Tensor] = []

    def encode(part):
        embeddings = model(*part)
        seen.append(embeddings[1].detach().clone())
        return embeddings

    parts = [(video.float(), *text) for video, *text in clips(6, 2)]
    cached_backward(parts, encode, lambda v, t: child_loss(v, t, tags, OBJECTIVE))
    first, second = seen[:3], seen[3:]  # the last one is encoded once
    for a, b in zip(first[:2], second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(first[0], model.eval()(*parts[0])[1], atol=1e-3), "dropout was on"


@pytest.mark.parametrize(("count", "cost"), [(1, 1.0), (2, 7 / 6), (4, 1.25)])
def test_the_last_micro_batch_is_encoded_once(count, cost):
    """A pass costs 1 forward and 2 backward; of m micro-batches m − 1 are encoded again: (3 + (m − 1) / m) / 3."""
    model, tags = model_with(0.0), tags_of(8)

    def operations(size):
        model.zero_grad()
        with FlopCounterMode(display=False) as counter:
            cached_backward(clips(8, size), lambda part: model(*part), lambda v, t: child_loss(v, t, tags, OBJECTIVE))
        return counter.get_total_flops()

    assert operations(8 // count) / operations(8) == pytest.approx(cost, rel=0.02)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_last_backward_passes_are_declared_once_for_every_parameter(count):
    """What the loss alone uses is complete in its stage, the towers in the last micro-batch's pass."""
    model, tags = model_with(0.0), tags_of(6)
    parts = summaries(6, 6 // count)
    declared = Declared()
    completed: list[str] = []
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda _, name=name: completed.append(name) if declared.is_last else None
        )
    cached_backward(
        parts,
        lambda part: encode_summaries(model, part),
        lambda *embeddings: parent_loss(*embeddings, tags, model.aggregate, OBJECTIVE),
        declared,
    )
    assert sorted(completed) == sorted(gradients(model))


class Declared:
    """A scope that remembers whether the last backward pass is under way."""

    is_last = False

    def phase(self, name):
        pass

    @contextmanager
    def last_backward(self):
        self.is_last = True
        yield
        self.is_last = False


def test_no_micro_batch_is_an_error():
    with pytest.raises(ValueError, match="no micro-batch"):
        cached_backward([], lambda part: (part,), lambda x: x.sum())


def test_compile_blocks_keeps_parameter_names():
    model = tiny_model(tiny_config(depth=1), dtype=torch.float32)
    compile_blocks(model, backend="eager")
    assert all(block._compiled_call_impl is not None for block in model.video.blocks)
    assert set(model.state_dict()) == set(HierVL(tiny_config(depth=1)).state_dict())
