"""The contrastive losses as pure functions of similarities (or embeddings) and masks.

Shapes in names: N rows (text or one side), M columns (video or the other side), D embedding width, V verb classes,
O noun classes. Where a function takes N×N, row i and column i are a pair. Everything is computed in at least float32,
whatever the inputs are; softmax masses are compared as logarithms, so that none can underflow.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

ParentObjective = Literal["both", "video_to_summary", "video_to_narrations"]


def similarity(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    """Return cosine similarities (N, M)."""
    return F.normalize(_precise(a_ND), dim=-1, eps=1e-8) @ F.normalize(_precise(b_MD), dim=-1, eps=1e-8).T


def tag_positives(verbs_NV: Tensor, nouns_NO: Tensor) -> Tensor:
    """Return which pairs (N, N) share at least one verb and at least one noun; the diagonal is always true.

    The tags are multi-hot. Equal to the published `cosine(verbs) · cosine(nouns) > 0` (EgoVLP, section 4.2).
    """
    shared = (_overlap(verbs_NV) > 0) & (_overlap(nouns_NO) > 0)
    return shared | _eye(shared)


def egonce(sim_NN: Tensor, positives_NN: Tensor, *, temperature: float) -> Tensor:
    """Return EgoNCE: −log of the softmax mass on the positives, mean over rows, both directions added.

    `positives_NN` is boolean; the diagonal is added to it (EgoVLP, equation 3; HierVL, equation 2).
    """
    _square(sim_NN)
    scaled = _precise(sim_NN) / temperature
    positives = positives_NN | _eye(positives_NN)
    return _mass(scaled, positives) + _mass(scaled.T, positives.T)


def info_nce(sim_NN: Tensor, *, temperature: float) -> Tensor:
    """Return InfoNCE, in which only the diagonal is positive, both directions added."""
    return egonce(sim_NN, torch.zeros_like(sim_NN, dtype=torch.bool), temperature=temperature)


def parent_loss(
    video_ND: Tensor,
    narrations_ND: Tensor | None,
    summary_ND: Tensor | None,
    positives_NN: Tensor,
    *,
    objective: ParentObjective,
    temperature: float,
) -> Tensor:
    """Return the summary-level loss over a global batch of N summaries (HierVL, section 3.3).

    `both`: aggregated narrations against summaries, plus aggregated video against summaries. The ablations are
    `video_to_summary` (w/o Summ↔Narr) and `video_to_narrations` (w/o Summ; aggregated against aggregated). The masks
    always come from the summaries' tags. Inputs that an objective does not use may be None.
    """
    count = video_ND.shape[0]
    if count < 2:
        raise ValueError(
            f"the global parent batch is {count} summary: with fewer than 2 there is no negative and the loss is "
            "zero; raise schedule.summaries"
        )
    pairs: dict[str, list[tuple[Tensor | None, Tensor | None]]] = {
        "both": [(narrations_ND, summary_ND), (video_ND, summary_ND)],
        "video_to_summary": [(video_ND, summary_ND)],
        "video_to_narrations": [(video_ND, narrations_ND)],
    }
    losses = []
    for a_ND, b_ND in pairs[objective]:
        if a_ND is None or b_ND is None:
            raise ValueError(f"objective {objective} needs an embedding that was not given")
        losses.append(egonce(similarity(a_ND, b_ND), positives_NN, temperature=temperature))
    return torch.stack(losses).sum()


def adaptive_max_margin(sim_NN: Tensor, relevancy_N: Tensor, *, margin: float) -> Tensor:
    """Return the mean over i ≠ j and both directions of relu(w_i · margin − S_ii + S_ij).

    w is the relevancy of each row's own pair (EPIC-KITCHENS multi-instance retrieval; EgoVLP, section 5).
    """
    count = _square(sim_NN)
    if count < 2:
        raise ValueError("a margin between pairs needs a batch of at least 2")
    sim = _precise(sim_NN)
    wanted_N1 = (relevancy_N.to(sim.dtype) * margin - sim.diagonal())[:, None]
    hinges = (wanted_N1 + sim).relu() + (wanted_N1 + sim.T).relu()
    others = ~_eye(hinges)
    return (hinges * others).sum() / (2 * count * (count - 1))


def _mass(scaled_NM: Tensor, positives_NM: Tensor) -> Tensor:
    return (scaled_NM.logsumexp(dim=1) - _masked_logsumexp(scaled_NM, positives_NM, dim=1)).mean()


def _masked_logsumexp(x: Tensor, mask: Tensor, *, dim: int) -> Tensor:
    return x.masked_fill(~mask, -torch.inf).logsumexp(dim=dim)


def _overlap(tags_NC: Tensor) -> Tensor:
    # float32 counts shared tags exactly; autocast would round.
    with torch.autocast(tags_NC.device.type, enabled=False):
        tags = (tags_NC != 0).float()
        return tags @ tags.T


def _precise(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _eye(like_NN: Tensor) -> Tensor:
    return torch.eye(like_NN.shape[0], dtype=torch.bool, device=like_NN.device)


def _square(sim_NN: Tensor) -> int:
    rows, columns = sim_NN.shape
    if rows != columns:
        raise ValueError(f"similarities are {rows}×{columns}: expected a square, row i and column i are a pair")
    return rows
