"""The text tower: a transformers encoder (DistilBERT as published), read off its first token.

Shapes in names: B batch, L text tokens, D width.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, DistilBertConfig, PretrainedConfig

from hiervl_train.models.config import TextConfig


class MissingPretrained(RuntimeError):
    """Something pretrained is neither on this disk nor to be had from a hub; the message names it."""

    exit_code: ClassVar[int] = 2


class TextTower(nn.Module):
    """Token ids → the last hidden state of the first token."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        settings = transformers_config(config)
        self.width: int = settings.hidden_size
        self.max_length: int = settings.max_position_embeddings
        self.encoder: Any = AutoModel.from_config(settings, attn_implementation="sdpa")

    def forward(self, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        """Return (B, D); what the padding holds changes nothing."""
        batch, length = input_ids_BL.shape
        if length > self.max_length:
            raise ValueError(f"text of {length} tokens; the encoder has {self.max_length} positions: truncate it")
        # Given in its final form, so that transformers need not look whether any text is padded: that look
        # is a wait for the GPU, and its outcome would choose between two graphs.
        visible_B1LL = attention_mask_BL.bool()[:, None, None, :].expand(batch, 1, length, length)
        return self.encoder(input_ids_BL, attention_mask=visible_B1LL).last_hidden_state[:, 0]

    @property
    def blocks(self) -> nn.ModuleList:
        """The encoder's layers: the longest list of modules in it, wherever the architecture keeps it."""
        lists = [module for module in self.encoder.modules() if isinstance(module, nn.ModuleList)]
        if not lists:
            raise ValueError(f"{type(self.encoder).__name__} has no list of layers to compile or checkpoint")
        return max(lists, key=len)


def transformers_config(config: TextConfig) -> PretrainedConfig:
    """Return the transformers configuration that a text section stands for."""
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
    """Return the section with the configuration of its `source` filled in, so that it stands by itself."""
    if config.source is None or config.settings:
        return config
    try:
        found = AutoConfig.from_pretrained(config.source)
    except (OSError, ValueError) as error:
        raise missing("the configuration of text encoder", config.source, "model.text.source", error) from error
    return dataclasses.replace(config, settings=found.to_diff_dict())


def load_pretrained(source: str) -> nn.Module:
    """Return the encoder with its pretrained weights, by hub name or local folder."""
    try:
        return AutoModel.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise missing("the weights of text encoder", source, "init.text", error) from error


def load_tokenizer(source: str) -> Any:
    """Return the tokenizer of a text encoder, by hub name or local folder."""
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise missing("the tokenizer of", source, "init.text", error) from error


def missing(what: str, source: str, key: str, error: Exception) -> MissingPretrained:
    """Return the error that says what is missing, where it was looked for and what can be done."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return MissingPretrained(
        f"{what} {source!r} could not be loaded: there is no such local folder, and the hub did not give it "
        f"({reason}). On a machine with a network, `hf download {source} --local-dir FOLDER`; "
        f"then set {key} to FOLDER"
    )
