"""The losses equal their formulas in values and gradients, also where a softmax would underflow."""

from __future__ import annotations

import math

import pytest
import torch

from hiervl_train import losses
from tests.hiervl_train import reference
from tests.hiervl_train.tiny import random_tags

T = 0.05


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same(ours, theirs, *inputs):
    """The two losses agree, and so do their gradients with respect to the inputs."""
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    mine, slow = torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs)
    for a, b in zip(mine, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_egonce_is_the_log_of_the_softmax_mass_on_shared_verbs_and_nouns(count):
    text, video = randn(count, 7).requires_grad_(), randn(count, 7, seed=1).requires_grad_()
    verbs, nouns = random_tags(count)
    positives = losses.tag_positives(verbs, nouns)
    expected = reference.tag_mask(verbs, nouns)
    assert torch.equal(positives, expected)
    ours = losses.egonce(losses.similarity(text, video), positives, temperature=T)
    same(ours, reference.egonce(reference.cosine(text, video), expected, T), text, video)


def test_positives_share_a_verb_and_a_noun():
    verbs = torch.tensor([[1, 0], [1, 1], [1, 0], [0, 0]])
    nouns = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 0]])
    assert losses.tag_positives(verbs, nouns).tolist() == [
        [True, True, False, False],
        [True, True, False, False],
        [False, False, True, False],
        [False, False, False, True],
    ]


def test_tags_are_counted_exactly_under_autocast():
    verbs, nouns = random_tags(32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(losses.tag_positives(verbs, nouns), losses.tag_positives(verbs, nouns))


def test_info_nce_counts_only_the_diagonal():
    sim = randn(6, 6).requires_grad_()
    same(losses.info_nce(sim, temperature=T), reference.egonce(sim, torch.eye(6, dtype=torch.bool), T), sim)


def test_egonce_is_finite_where_the_softmax_underflows():
    """A positive 2 / 0.001 below its negatives: its softmax mass is exp(−2000), which is 0 even in float64."""
    sim = torch.ones(4, 4, dtype=torch.float64)
    sim.fill_diagonal_(-1.0)
    sim.requires_grad_()
    loss = losses.egonce(sim, torch.zeros(4, 4, dtype=torch.bool), temperature=0.001)
    assert loss.item() == pytest.approx(2 * (2 / 0.001 + math.log(3)), rel=1e-12)
    loss.backward()
    assert torch.isfinite(sim.grad).all()
    assert torch.isinf(reference.egonce(sim.detach(), torch.eye(4, dtype=torch.bool), 0.001))


def test_egonce_computes_bfloat16_embeddings_in_float32():
    text, video = randn(64, 32).bfloat16().requires_grad_(), randn(64, 32, seed=1).bfloat16().requires_grad_()
    verbs, nouns = random_tags(64)
    positives = losses.tag_positives(verbs, nouns)
    low = losses.egonce(losses.similarity(text, video), positives, temperature=T)
    high = losses.egonce(losses.similarity(text.double(), video.double()), positives, temperature=T)
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(high.item(), rel=1e-5)
    low.backward()
    assert torch.isfinite(text.grad).all() and torch.isfinite(video.grad).all()


def test_without_other_positives_egonce_equals_info_nce():
    sim = randn(5, 5)
    alone = losses.egonce(sim, torch.zeros(5, 5, dtype=torch.bool), temperature=T)
    assert torch.equal(alone, losses.info_nce(sim, temperature=T))


def test_zero_embeddings_have_no_nan():
    zero = torch.zeros(3, 4, requires_grad=True)
    losses.info_nce(losses.similarity(zero, zero), temperature=T).backward()
    assert torch.isfinite(zero.grad).all()


@pytest.mark.parametrize("objective", ["both", "video_to_summary", "video_to_narrations"])
def test_parent_objectives_equal_their_formulas(objective):
    video, narrations, summary = (randn(6, 5, seed=seed).requires_grad_() for seed in range(3))
    verbs, nouns = random_tags(6)
    mask = reference.tag_mask(verbs, nouns)
    pairs = {
        "both": [(narrations, summary), (video, summary)],
        "video_to_summary": [(video, summary)],
        "video_to_narrations": [(video, narrations)],
    }[objective]
    expected = sum(reference.egonce(reference.cosine(a, b), mask, T) for a, b in pairs)
    ours = losses.parent_loss(video, narrations, summary, mask, objective=objective, temperature=T)
    used = [x for x in (video, narrations, summary) if any(x is side for pair in pairs for side in pair)]
    same(ours, expected, *used)


def test_parent_objectives_need_only_the_embeddings_they_use():
    video, other, mask = randn(3, 5), randn(3, 5, seed=1), torch.eye(3, dtype=torch.bool)
    losses.parent_loss(video, None, other, mask, objective="video_to_summary", temperature=T)
    losses.parent_loss(video, other, None, mask, objective="video_to_narrations", temperature=T)
    with pytest.raises(ValueError, match="not given"):
        losses.parent_loss(video, None, other, mask, objective="both", temperature=T)


def test_a_global_batch_of_one_summary_is_an_error():
    one = randn(1, 5)
    with pytest.raises(ValueError, match="fewer than 2"):
        losses.parent_loss(one, one, one, torch.ones(1, 1).bool(), objective="both", temperature=T)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_margins_are_hinges_over_other_pairs_in_both_directions(count):
    sim, weights = randn(count, count).requires_grad_(), torch.rand(count, dtype=torch.float64)
    same(losses.adaptive_max_margin(sim, weights, margin=0.4), reference.margin(sim, weights, 0.4), sim)


def test_a_margin_needs_two_pairs_and_a_square():
    with pytest.raises(ValueError, match="at least 2"):
        losses.adaptive_max_margin(randn(1, 1), torch.ones(1), margin=0.2)
    with pytest.raises(ValueError, match="2×3"):
        losses.adaptive_max_margin(randn(2, 3), torch.ones(2), margin=0.2)
