"""The text tower: a transformers encoder (DistilBERT as published), of which the first token is the text's embedding.

Shapes in names: B batch, L text tokens, D width.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, DistilBertConfig, PretrainedConfig

from hiervl_train.models.config import TextConfig
from hiervl_train.models.errors import missing_pretrained


class TextTower(nn.Module):
    """Token ids → the last hidden state of the first token."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        settings = transformers_config(config)
        self.width: int = settings.hidden_size
        self.max_length: int = settings.max_position_embeddings
        self.encoder: Any = AutoModel.from_config(settings, attn_implementation="sdpa")

    @property
    def vocab_size(self) -> int:
        """The number of token embeddings: token ids are below it."""
        return int(self.encoder.get_input_embeddings().weight.shape[0])

    def forward(self, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        """Return (B, D); padding has no influence. Raises ValueError where L is more than `max_length`."""
        batch, length = input_ids_BL.shape
        if length > self.max_length:
            raise ValueError(f"text of {length} tokens; the encoder has {self.max_length} positions: truncate it")
        # In its final form, so that transformers does not check whether any text is padded: that check waits for the
        # GPU, and its outcome chooses between two compiled graphs.
        visible_B1LL = attention_mask_BL.bool()[:, None, None, :].expand(batch, 1, length, length)
        hidden_BLD: Tensor = self.encoder(input_ids_BL, attention_mask=visible_B1LL).last_hidden_state
        return hidden_BLD[:, 0]

    @property
    def blocks(self) -> nn.ModuleList:
        """The encoder's layers: its longest list of modules, wherever the architecture keeps it."""
        lists = [module for module in self.encoder.modules() if isinstance(module, nn.ModuleList)]
        if not lists:
            raise ValueError(f"{type(self.encoder).__name__} has no list of layers to compile or checkpoint")
        return max(lists, key=len)


def transformers_config(config: TextConfig) -> PretrainedConfig:
    """Return the transformers configuration of a text encoder."""
    config = resolve(config)
    if config.settings:
        settings = dict(config.settings)
        return AutoConfig.for_model(settings.pop("model_type"), **settings)
    return DistilBertConfig(
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        dim=config.dim,
        hidden_dim=config.hidden_dim,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
    )


def resolve(config: TextConfig) -> TextConfig:
    """Return the configuration with the settings of its `source` filled in, so that it needs no hub.

    Raises `MissingPretrained` where the source cannot be found.
    """
    if config.source is None or config.settings:
        return config
    try:
        pretrained = AutoConfig.from_pretrained(config.source)
    except (OSError, ValueError) as error:
        raise missing_pretrained(
            "the configuration of text encoder", config.source, "model.text.source", error
        ) from error
    return dataclasses.replace(config, settings=pretrained.to_diff_dict())


def load_pretrained(source: str) -> nn.Module:
    """Return an encoder with its pretrained weights, by hub name or local folder; raise `MissingPretrained`."""
    try:
        encoder: nn.Module = AutoModel.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise missing_pretrained("the weights of text encoder", source, "init.text", error) from error
    return encoder


def load_tokenizer(source: str) -> Any:
    """Return the tokenizer of a text encoder, by hub name or local folder; raise `MissingPretrained`."""
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise missing_pretrained("the tokenizer of", source, "init.text", error) from error
