"""The model and its losses once more, written plainly and slowly from their formulas: what the tests compare with."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]


def linear(x: Tensor, state: State, name: str) -> Tensor:
    out = x @ state[f"{name}.weight"].T
    return out + state[f"{name}.bias"] if f"{name}.bias" in state else out


def layer_norm(x: Tensor, state: State, name: str, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def mlp(x: Tensor, state: State, name: str) -> Tensor:
    hidden = linear(x, state, f"{name}.fc1")
    return linear(hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))), state, f"{name}.fc2")


def masked_attention(x: Tensor, state: State, name: str, heads: int, visible: Tensor) -> Tensor:
    """Attention with the whole score matrix, of which `visible` (tokens × tokens) says who sees whom."""
    q, k, v = linear(x, state, f"{name}.qkv").chunk(3, dim=-1)
    size = q.shape[-1] // heads
    outs = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = q[..., part] @ k[..., part].transpose(-1, -2) / math.sqrt(size)
        weights = scores.masked_fill(~visible, -math.inf).softmax(-1)
        outs.append(weights @ v[..., part])
    return linear(torch.cat(outs, -1), state, f"{name}.proj")


def visibility(frames: int, patches: int) -> tuple[Tensor, Tensor]:
    """Who sees whom in time and in space attention, token by token; token 0 is CLS."""
    count = 1 + frames * patches
    time, space = torch.zeros(count, count, dtype=torch.bool), torch.zeros(count, count, dtype=torch.bool)
    for query in range(count):
        for key in range(count):
            if query == 0 or key == 0:
                time[query, key] = space[query, key] = True
                continue
            frame_q, position_q = divmod(query - 1, patches)
            frame_k, position_k = divmod(key - 1, patches)
            time[query, key] = position_q == position_k
            space[query, key] = frame_q == frame_k
    return time, space


def video_tower(video: Tensor, state: State, *, patch: int, heads: int, depth: int) -> Tensor:
    batch, frames, _, height, width = video.shape
    rows, columns = height // patch, width // patch
    weight = state["patch_embed.proj.weight"].flatten(1)
    tokens = [(state["cls_token"] + state["pos_embed"][:, :1]).expand(batch, 1, -1)]
    for frame in range(frames):
        for row in range(rows):
            for column in range(columns):
                area = video[:, frame, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
                token = area.flatten(1) @ weight.T + state["patch_embed.proj.bias"]
                token = token + state["pos_embed"][:, 1 + row * columns + column] + state["temporal_embed"][:, frame]
                tokens.append(token[:, None])
    x = torch.cat(tokens, 1)
    time, space = visibility(frames, rows * columns)
    for index in range(depth):
        name = f"blocks.{index}."
        t = masked_attention(layer_norm(x, state, name + "norm3", 1e-6), state, name + "timeattn", heads, time)
        s = masked_attention(layer_norm(x + t, state, name + "norm1", 1e-6), state, name + "attn", heads, space)
        x = x + s
        x = x + mlp(layer_norm(x, state, name + "norm2", 1e-6), state, name + "mlp")
    return layer_norm(x, state, "norm", 1e-6)[:, 0]


def aggregator(x: Tensor, state: State, *, heads: int, depth: int) -> Tensor:
    x = x + state["pos_embed"][:, : x.shape[1]]
    x = torch.cat([state["cls_token"].expand(x.shape[0], 1, -1), x], 1)
    everything = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool)
    for index in range(depth):
        name = f"blocks.{index}."
        x = x + masked_attention(layer_norm(x, state, name + "norm1", 1e-5), state, name + "attn", heads, everything)
        x = x + mlp(layer_norm(x, state, name + "norm2", 1e-5), state, name + "mlp")
    return layer_norm(x, state, "norm", 1e-5)[:, 0]


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([torch.stack([(x * y).sum() / (x.norm() * y.norm()) for y in b]) for x in a])


def tag_mask(verbs: Tensor, nouns: Tensor) -> Tensor:
    """As published: the product of the cosines of the tag vectors is positive, or it is the same row."""
    count = len(verbs)
    mask = torch.zeros(count, count, dtype=torch.bool)
    for i in range(count):
        for j in range(count):
            similar_v = F.cosine_similarity(verbs[i].double(), verbs[j].double(), dim=0)
            similar_n = F.cosine_similarity(nouns[i].double(), nouns[j].double(), dim=0)
            mask[i, j] = (similar_v * similar_n > 0) or i == j
    return mask


def egonce(sim: Tensor, mask: Tensor, temperature: float) -> Tensor:
    total = sim.new_zeros(())
    for scores, positive in ((sim, mask), (sim.T, mask.T)):
        soft = (scores / temperature).softmax(1)
        for i in range(len(scores)):
            mass = sum(soft[i, j] for j in range(len(scores)) if positive[i, j] or i == j)
            total = total - torch.log(torch.as_tensor(mass)) / len(scores)
    return total


def margin(sim: Tensor, weights: Tensor, size: float) -> Tensor:
    count = len(sim)
    terms = []
    for i in range(count):
        for j in range(count):
            if i != j:
                terms.append(torch.relu(weights[i] * size - sim[i, i] + sim[i, j]))
                terms.append(torch.relu(weights[i] * size - sim[i, i] + sim[j, i]))
    return torch.stack(terms).mean()


def dual_softmax(text: Tensor, video: Tensor, temperature: float = 500.0) -> Tensor:
    """The released EPIC test's scores of every sentence against every video, of unnormalised embeddings.

    S = T·Vᵀ; softmax over videos of S / 500, times S; then softmax over sentences.
    """
    scores = text.double() @ video.double().T
    return ((scores / temperature).softmax(dim=1) * scores).softmax(dim=0)
