"""Compares the loader on features with the loader on video, and the rate of extraction with that of the bare model.

    python benchmarks/features.py [--root data/embedded/shards] [--checkpoint RUN] [--workers 2] [--repeats 3]

The features are extracted into a temporary folder, before the projections. `video` and `features` load the same
training batches, in this process; the arms are interleaved. `forward` encodes frames that are decoded already,
`extraction` does all that the command does, with `--workers` decoding processes. Without a checkpoint the weights are
random, of the sizes of configs/pretrain/small.yaml.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from measuring import interleave, show

from configs import loading
from hiervl_train.config import PretrainConfig
from hiervl_train.distributed import DistributedContext
from hiervl_train.features import ExtractConfig, extract_on_ranks, open_extraction
from hiervl_train.features.extract import loader_config
from hiervl_train.models import HierVL
from hiervl_train.models.storage import save
from hiervl_train.tokenizer import Tokenizer
from shards.config import LoaderConfig
from shards.dataset import open_dataset
from shards.loader import Loader

HERE = Path(__file__).resolve().parents[1]
SET, SPLIT = "clips", "train"
FEATURE_EPOCHS = 50


def main(argv: Sequence[str] | None = None) -> int:
    """Run the arms and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--root", default=str(HERE / "data" / "embedded" / "shards"))
    parser.add_argument("--checkpoint", type=Path, help="default: random weights of configs/pretrain/small.yaml")
    parser.add_argument("--workers", type=int, default=2, help="decoding processes of the extraction")
    parser.add_argument("--batch", type=int, default=64, help="samples per batch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="of the JSON (default: benchmarks/results/features.json)")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = arguments.checkpoint or _random(arguments.root, Path(folder) / "checkpoint")
        tree = {
            "checkpoint": str(checkpoint),
            "output": f"{folder}/features",
            "data": {"root": arguments.root, "sets": [SET], "splits": [SPLIT], "workers": arguments.workers},
            "extractor": {"layer": "tower", "text": False},
            "batch": arguments.batch,
        }
        config = loading.from_dict(ExtractConfig, tree)
        ranks = DistributedContext(device=device)
        began = time.perf_counter()
        extract_on_ranks(config, ranks, on_start=lambda *_: None, on_samples=lambda _: None)
        extraction_seconds = time.perf_counter() - began
        figures = _forward(config, device) | {"extraction seconds": extraction_seconds}
        figures |= _loading(arguments.root, f"{folder}/features", config, arguments.batch, arguments.repeats)
    samples = figures["samples"]
    forward, extraction = samples / figures["forward seconds"], samples / extraction_seconds
    video, features = (figures["loaded"] / figures[f"{name} seconds"] for name in ("video", "features"))
    rows = [
        ("loader on video", f"{video:,.0f} samples/s", "", "decoding"),
        ("loader on features", f"{features:,.0f} samples/s", "", "reading keys and texts"),
        ("features / video", f"{features / video:,.0f} ×", "100 ×", ""),
        ("bare forward", f"{forward:,.0f} samples/s", "", "the model"),
        ("extraction", f"{extraction:,.0f} samples/s", "", "start of the model included"),
        ("extraction / forward", f"{extraction / forward:.2f}", "0.9", "decoding, where the cores are too few"),
    ]
    rates = {"video": video, "features": features, "forward": forward, "extraction": extraction}
    show("features", rows, {"samples per second": rates, **figures}, out=arguments.out)
    return 0


def _forward(config: ExtractConfig, device: torch.device) -> dict[str, float]:
    """Return the samples of the split, and the seconds that the bare model needs for as many, from decoded frames."""
    extraction = open_extraction(config, device)
    reads = extraction.extractor.reads
    assert reads is not None
    settings = dataclasses.replace(loader_config(reads, config, is_long=False), workers=0)
    with Loader(config.data.root, SET, SPLIT, settings, is_training=False) as loader:
        video = next(iter(loader)).video.to(device)
    samples = sum(split.samples for split in extraction.splits)
    extraction.extractor.encode_frames(video)  # warms up
    began, done = time.perf_counter(), 0
    while done < samples:
        done += len(video)
        found = extraction.extractor.encode_frames(video)
    found["video"].sum().item()
    return {"samples": samples, "forward seconds": (time.perf_counter() - began) * samples / done}


def _loading(root: str, features: str, config: ExtractConfig, batch: int, repeats: int) -> dict[str, float]:
    """Return the samples of an epoch, and the median seconds of the loader in this process on video and features."""
    plain = LoaderConfig(global_batch=batch, frames=config.sample.frames or 4, size=224, workers=0)
    loaded = 0

    def epochs(loader: Loader, count: int) -> None:
        nonlocal loaded
        for _ in range(count):
            loaded = sum(len(each.keys) for each in loader)

    # Of features many epochs, as one is too short to be measured; loaders stay open, as in training.
    counts = {"video": 1, "features": FEATURE_EPOCHS}
    with (
        Loader(root, SET, SPLIT, plain) as video,
        Loader(root, SET, SPLIT, dataclasses.replace(plain, features=features)) as stored,
    ):
        epochs(stored, 1)  # maps the files
        arms = {"video": lambda: epochs(video, 1), "features": lambda: epochs(stored, FEATURE_EPOCHS)}
        taken = interleave(arms, repeats)
    seconds = {f"{name} seconds": one.wall / counts[name] for name, one in taken.items()}
    return seconds | {f"{n} CPU seconds": one.cpu / counts[n] for n, one in taken.items()} | {"loaded": loaded}


def _random(root: str, folder: Path) -> Path:
    config = loading.load(PretrainConfig, HERE / "configs" / "pretrain" / "small.yaml").model
    torch.manual_seed(0)
    model = HierVL(config)
    words = open_dataset(root).split(SET, SPLIT).rows(["text"])["text"].to_pylist()
    save(model, folder)
    size = config.text.vocab_size
    Tokenizer.build(words, vocab_size=size, max_length=model.text.max_length).save(folder)
    return folder


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
