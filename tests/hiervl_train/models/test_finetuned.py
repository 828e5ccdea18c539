"""The model of a fine-tuning run: frozen parts neither learn nor drop out."""

from __future__ import annotations

from dataclasses import replace

import torch

from hiervl_train.models.finetuned import FineTuned
from tests.hiervl_train.tiny import random_text, random_video, tiny_config


def test_frozen_parts_have_no_gradient_and_no_dropout() -> None:
    text = replace(tiny_config().text, dropout=0.5, attention_dropout=0.5)
    model = FineTuned(tiny_config(text=text), trained=["video_projection"], classes=3).train()
    ids, mask = random_text(4, 6)
    assert torch.equal(model.encode_text(ids, mask), model.encode_text(ids, mask))
    assert not model.encode_text(ids, mask).requires_grad
    model.classify(model.encode_video(random_video(2, 2, 3, 16, 16, dtype=torch.float32))).sum().backward()
    with_gradient = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {"video_projection", "head"}
    learning = FineTuned(tiny_config(text=text), trained=["text"]).train()
    assert not torch.equal(learning.encode_text(ids, mask), learning.encode_text(ids, mask))
