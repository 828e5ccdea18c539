"""Random damage, with and without correct hashes, through verify, the loader and inspect: no crash, no hang."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from shards.files import TEMPORARY
from tests.shards.verify import forgery
from tests.shards.verify.boundary import found_by_verify, inspected, load

SEED = 20261130


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fuzzed") / "shards"
    forgery.make(root)
    return root


def mutate(root: Path, rng: random.Random) -> str:
    """Damage one or two random files in a random way; return what was done."""
    done = []
    for _ in range(rng.choice((1, 1, 2))):
        names = sorted(path for path in root.rglob("*") if path.is_file() and not path.name.startswith(TEMPORARY))
        path, other = rng.choice(names), rng.choice(names)
        data = bytearray(path.read_bytes())
        kind = rng.choice(("bit", "bits", "byte", "cut", "grow", "zero", "splice", "swap", "delete", "copy", "number"))
        at = rng.randrange(max(1, len(data)))
        if kind in ("bit", "bits"):
            for _ in range(1 if kind == "bit" else rng.randrange(2, 40)):
                if data:
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == "byte":
            data[at : at + 1] = rng.choice((b"\0", b"\xff", b"-", b"9", b'"', b"{"))
        elif kind == "cut":
            del data[at:]
        elif kind == "grow":
            data[at:at] = rng.randbytes(rng.randrange(1, 600))
        elif kind == "zero":
            data[at : at + 64] = bytes(len(data[at : at + 64]))
        elif kind == "splice":
            size = rng.randrange(1, 300)
            data[at : at + size] = other.read_bytes()[:size]
        elif kind == "number":  # the last digit of a random number in a text file
            digits = [i for i, byte in enumerate(data) if 48 <= byte < 58]
            if digits:
                data[rng.choice(digits)] = 48 + rng.randrange(10)
        elif kind == "swap":
            path.write_bytes(other.read_bytes())
            other.write_bytes(data)
        elif kind == "delete":
            path.unlink()
        if kind not in ("swap", "delete"):
            (other if kind == "copy" else path).write_bytes(data)
        done.append(f"{kind} {path.relative_to(root)} {other.relative_to(root)} {at}")
    return "; ".join(done)


def is_changed(root: Path, sound: Path) -> bool:
    files = {path.relative_to(sound) for path in sound.rglob("*") if path.is_file()}
    if files != {path.relative_to(root) for path in root.rglob("*") if path.is_file()}:
        return True
    return any((root / name).read_bytes() != (sound / name).read_bytes() for name in files)


def fuzz(sound: Path, folder: Path, rounds: int, seed: int) -> Counter[str]:
    """Damage the dataset `rounds` times, every second time with correct hashes; return how often what came out."""
    counts: Counter[str] = Counter()
    for number in range(rounds):
        rng = random.Random(seed + number)
        root = folder / "shards"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(sound, root)
        done = mutate(root, rng)
        signed = False
        if number % 2:
            try:
                forgery.resign(root)
                signed = True
            except (ValueError, OSError, LookupError, TypeError, AttributeError):
                pass  # too damaged to be signed, which is a case of its own
        try:
            findings = found_by_verify(root)
            if not signed and is_changed(root, sound):
                assert findings, "not found"
            counts["found" if findings else "sound"] += 1
            counts["signed"] += signed
            counts.update(load(root))
            inspected(root, folder / "page.html")
        except BaseException as error:
            error.add_note(f"seed {seed + number}, signed {signed}: {done}")
            raise
    return counts


def test_random_damage(sound: Path, tmp_path: Path) -> None:
    counts = fuzz(sound, tmp_path, 16, SEED)
    assert counts["found"] >= 12, counts


@pytest.mark.slow
def test_much_random_damage(sound: Path, tmp_path: Path) -> None:
    counts = fuzz(sound, tmp_path, 400, SEED + 1000)
    print(dict(counts))
    assert counts["found"] >= 300, counts
