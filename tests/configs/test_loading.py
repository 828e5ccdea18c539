"""YAML and `key=value` become typed configurations, and what is wrong is named with its key, value and bound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
from pydantic import Field, PositiveFloat, PositiveInt

from configs.loading import ConfigError, from_dict, load, to_yaml


@dataclass(frozen=True, kw_only=True)
class Optim:
    lr: PositiveFloat = 1e-3
    steps: PositiveInt | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    folder: Path = Path("runs/a")
    seed: Annotated[int, Field(ge=0)] = 0

    def __post_init__(self) -> None:
        if self.folder == Path("/"):
            raise ValueError(f"folder = {self.folder}: not the root")


@dataclass(frozen=True, kw_only=True)
class Config:
    OTHER_NAMES: ClassVar[Mapping[str, str]] = {"weights": "run.folder (of a run)"}

    pattern: str = "*"
    image: int | tuple[int, int] = 224
    order: Literal["rgb", "bgr"] = "rgb"
    optim: Optim = field(default_factory=Optim)
    run: Run = field(default_factory=lambda: Run(folder=Path("runs/b")))
    other: Run | None = None


@pytest.mark.parametrize("text", ["3e-5", "3.0e-5", "0.00003"])
def test_a_number_without_a_point_is_a_number_on_the_command_line_and_in_files(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"optim: {{lr: {text}}}\n")
    assert load(Config, None, [f"optim.lr={text}"]).optim.lr == 3e-5
    assert load(Config, tmp_path / "c.yaml").optim.lr == 3e-5


@pytest.mark.parametrize(
    "text",
    ["*.mp4", "&a", "!x", "%d", "{a", "[ab]*", "12:30:00", "2024-01-01", "yes", "1e5", "010", "a #b", "a: b", "@"],
)
def test_text_is_taken_literally_on_the_command_line(text: str) -> None:
    assert load(Config, None, [f"pattern={text}"]).pattern == text
    assert load(Config, None, [f"run.folder={text}"]).run.folder == Path(text)


def test_quotes_and_null_mean_what_they_mean_in_yaml() -> None:
    assert load(Config, None, ["pattern='null'"]).pattern == "null"
    assert load(Config, None, ['pattern="a\\tb"']).pattern == "a\tb"
    with pytest.raises(ConfigError, match="pattern = None"):
        load(Config, None, ["pattern=null"])


def test_invalid_yaml_is_an_error_for_a_key_that_holds_no_text() -> None:
    with pytest.raises(ConfigError, match=r"optim.steps=\*all.*not valid YAML"):
        load(Config, None, ["optim.steps=*all"])


@pytest.mark.parametrize(
    "text", ["3e-5", "yes", "12:30:00", "010", "null", "true", "1_0", ".inf", "2024-01-01", "", "~"]
)
def test_text_that_looks_like_something_else_survives_being_written(text: str, tmp_path: Path) -> None:
    config = Config(pattern=text, optim=Optim(lr=1e-6))
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    assert load(Config, tmp_path / "c.yaml") == config


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("lr=1", "unknown key lr = 1; did you mean optim.lr?"),
        ("optim.lrr=1", "unknown key optim.lrr = 1; did you mean optim.lr?"),
        ("seed=1", "unknown key seed = 1; did you mean run.seed or other.seed?"),
        ("stepz=1", "unknown key stepz = 1; did you mean optim.steps?"),
        ("weights=1", "unknown key weights = 1; did you mean run.folder (of a run)?"),
        ("zzz=1", "unknown key zzz = 1; known here: image, optim, order, other, pattern, run"),
        ("optim.lr=0", "optim.lr = 0: Input should be greater than 0"),
        ("optim.steps=0", "optim.steps = 0: Input should be greater than 0"),
        ("optim.steps=1.5", "optim.steps = 1.5: Input should be a valid integer"),
        ("order=grb", "order = 'grb': Input should be 'rgb' or 'bgr'"),
        ("image=big", "image = 'big': Input should be a valid integer"),
        ("run.folder=/", "run: folder = /: not the root"),
        ("optim=3", "optim = 3: "),
        ("optim.lr.x=3", "optim.lr = {'x': 3}"),
        ("other.seed=-1", "other.seed = -1: Input should be greater than or equal to 0"),
        ("word", "'word': an override has the form key=value"),
    ],
)
def test_what_is_wrong_is_named(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(Config, None, [override])
    assert said in str(caught.value)


def test_a_section_keeps_the_defaults_of_its_field_where_only_some_keys_are_given(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("run: {seed: 3}\n")
    assert load(Config, tmp_path / "c.yaml").run == Run(folder=Path("runs/b"), seed=3)
    assert from_dict(Config, {"other": {"seed": 1}}).other == Run(seed=1)
    assert load(Config, None, ["run.folder=x"]).run == Run(folder=Path("x"))


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("[1]")
    (tmp_path / "bad.yaml").write_text("a: [")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xfa")
    for name, said in (("none", "there is no such"), ("list", "mapping"), ("bad", "not valid"), ("bytes", "read")):
        with pytest.raises(ConfigError, match=f"{name}.yaml: .*{said}"):
            load(Config, tmp_path / f"{name}.yaml")
