"""Compares embedding each distinct clip once with embedding every option of every question: encodings and time.

    python benchmarks/eval.py [--root data/embedded/shards] [--set clips --split val] [--checkpoint C] [--repeats 3]

The questions are generated from the split (`eval.mcq_builder`), an inter- and an intra-video one for each clip if
possible, so each clip is an option several times. The arms are interleaved, decode in one process and encode up to 32
clips at once: `every option` reads, decodes and encodes five clips and a text for each question, like the published
evaluation; `each once` embeds distinct clips and texts once; `cached` starts with all embeddings in the cache. The
answers must be equal.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from measuring import interleave, show

sys.path.remove(str(Path(__file__).resolve().parent))  # this file has the name of the package that it measures

from configs import loading
from eval.embed import EmbedSettings, embed_split, embed_texts
from eval.mcq import answer_questions
from eval.mcq_builder import McqConfig, build_from
from eval.metrics.similarity import cosine
from hiervl_train.checkpoint.open import open_checkpoint
from hiervl_train.config import PretrainConfig
from hiervl_train.distributed import DistributedContext
from hiervl_train.models import HierVL
from hiervl_train.models.pixels import normalise
from hiervl_train.tokenizer import Tokenizer
from shards.companions import Question
from shards.dataset import open_dataset
from shards.reading import SampleReader
from shards.sources import open_source
from shards.stats import ShardError

HERE = Path(__file__).resolve().parents[1]
QUESTIONS_PER_PASS = 6  # of five clips each


def main(argv: Sequence[str] | None = None) -> int:
    """Run the arms and print; return 1 if their answers differ and 2 if there are no questions."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--root", default=str(HERE / "data" / "embedded" / "shards"))
    parser.add_argument("--set", default="clips")
    parser.add_argument("--split", default="val")
    parser.add_argument("--checkpoint", type=Path, help="default: random weights of configs/pretrain/small.yaml")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args(argv)
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    try:
        questions = build_from(arguments.root, arguments.set, arguments.split, McqConfig(), name="benchmark").questions
    except ShardError as error:
        print(f"{error}; `make demo` builds the embedded dataset", file=sys.stderr)
        return 2
    asked = questions.questions
    if not asked:
        print(f"{arguments.root}: {arguments.set}/{arguments.split} is too small for questions", file=sys.stderr)
        return 2
    ranks = DistributedContext(device=torch.device(arguments.device))
    model, tokenizer = _model(arguments.checkpoint, [question.text for question in asked], ranks.device)
    settings = EmbedSettings(frames=min(4, model.config.num_frames))
    place = (arguments.root, arguments.set, arguments.split)
    found: dict[str, tuple[np.ndarray, int, int]] = {}
    with tempfile.TemporaryDirectory() as cache:
        arms: dict[str, Callable[[], None]] = {
            "every option": lambda: found.update(every=_every_option(model, tokenizer, place, asked, settings, ranks)),
            "each once": lambda: found.update(once=_each_once(model, tokenizer, place, asked, settings, ranks, None)),
            "cached": lambda: found.update(
                cached=_each_once(model, tokenizer, place, asked, settings, ranks, Path(cache))
            ),
        }
        arms["cached"]()  # fills the cache
        taken = interleave(arms, arguments.repeats)
    options = sum(len(question.choices) for question in asked)
    distinct = len(questions.keys())
    repeats = options / distinct
    (every, clips_every, _), (once, clips_once, texts_once), (cached, clips_cached, _) = (
        found[name] for name in ("every", "once", "cached")
    )
    is_same = bool((every == once).all() and (once == cached).all())
    fewer, faster = clips_every / clips_once, taken["every option"].wall / taken["each once"].wall
    rows = [
        ("questions, options, distinct clips", f"{len(asked):,}, {options:,}, {distinct:,}", "", ""),
        ("options per distinct clip", f"{repeats:.2f}", "", ""),
        ("clips encoded, every option ÷ each once", f"{fewer:.2f} ×", f"{repeats:.2f} ×", "options per distinct clip"),
        ("time, every option ÷ each once", f"{faster:.2f} ×", f"{repeats:.2f} ×", "decoding and the video tower"),
        ("time, every option", f"{taken['every option'].wall:.2f} s", "", ""),
        ("time, each once", f"{taken['each once'].wall:.2f} s", "", ""),
        ("time, cached", f"{taken['cached'].wall:.2f} s", "", "reading the shards' indexes, scoring"),
        ("clips encoded, cached", f"{clips_cached}", "0", ""),
        ("equal answers", "yes" if is_same else "NO", "yes", ""),
    ]
    figures = {
        "device": str(ranks.device),
        "questions": len(asked),
        "options": options,
        "distinct_clips": distinct,
        "repeats": repeats,
        "clips_encoded": {"every option": clips_every, "each once": clips_once, "cached": clips_cached},
        "texts_encoded": {"every option": len(asked), "each once": texts_once},
        "seconds": {name: time.wall for name, time in taken.items()},
        "cpu_seconds": {name: time.cpu for name, time in taken.items()},
        "same_answers": is_same,
    }
    show("eval", rows, figures)
    return 0 if is_same else 1


def _each_once(
    model: HierVL,
    tokenizer: Tokenizer,
    place: tuple[str, str, str],
    asked: Sequence[Question],
    settings: EmbedSettings,
    ranks: DistributedContext,
    cache: Path | None,
) -> tuple[np.ndarray, int, int]:
    """Return the answers, (Q,), and the numbers of clips and texts that were encoded for them."""
    keys = {key for question in asked for key in question.choices}
    clips = embed_split(model, *place, settings, ranks=ranks, keys=keys, cache=cache)
    texts = embed_texts(model, tokenizer, [question.text for question in asked], settings, ranks=ranks, cache=cache)
    assert clips is not None and texts is not None and not clips.failed
    found = answer_questions(asked, texts, clips.vectors, clips.index)
    return found.scores.predicted_Q, clips.encoded, len(texts.index)


def _every_option(
    model: HierVL,
    tokenizer: Tokenizer,
    place: tuple[str, str, str],
    asked: Sequence[Question],
    settings: EmbedSettings,
    ranks: DistributedContext,
) -> tuple[np.ndarray, int, int]:
    """Return the same as `_each_once`, but encode five clips and a text for each question."""
    root, set_name, split = place
    source = open_source(root, settings.source)
    entry = open_dataset(root).split(set_name, split)
    config = settings.loader_config(is_long=False, size=model.config.image_hw[0])
    reader = SampleReader(source, entry, config, is_training=False)
    where = {
        key: (number, row)
        for number, shard in enumerate(entry.shards)
        for row, key in enumerate(shard.rows(["key"])["key"].to_pylist())
    }
    predicted, encoded = [], 0
    for start in range(0, len(asked), QUESTIONS_PER_PASS):
        part = asked[start : start + QUESTIONS_PER_PASS]
        frames = [reader.read(0, *where[key]).frames for question in part for key in question.choices]
        video_BTCHW = torch.from_numpy(np.stack(frames)).to(ranks.device).movedim(-1, -3)
        ids_BL, mask_BL = tokenizer([question.text for question in part])
        with torch.inference_mode():
            video_BD = model.encode_video(normalise(video_BTCHW)).cpu().numpy()
            text_BD = model.encode_text(ids_BL.to(ranks.device), mask_BL.to(ranks.device)).cpu().numpy()
        encoded += len(video_BD)
        at = 0
        for question, text_D in zip(part, text_BD, strict=True):
            sim_K = cosine(text_D[None], video_BD[at : at + len(question.choices)])[0]
            predicted.append(int(sim_K.argmax()))
            at += len(question.choices)
    return np.array(predicted), encoded, len(asked)


def _model(checkpoint: Path | None, texts: Sequence[str], device: torch.device) -> tuple[HierVL, Tokenizer]:
    if checkpoint is not None:
        opened = open_checkpoint(checkpoint, device=device)
        return opened.model, opened.tokenizer
    config = loading.load(PretrainConfig, HERE / "configs" / "pretrain" / "small.yaml").model
    torch.manual_seed(0)
    model = HierVL(config).eval().to(device)
    return model, Tokenizer.build(texts, vocab_size=config.text.vocab_size, max_length=model.text.max_length)


if __name__ == "__main__":
    sys.exit(main())
