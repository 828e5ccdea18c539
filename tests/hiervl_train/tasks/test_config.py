"""The configurations of fine-tuning: the published ones, and meaningless ones."""

from __future__ import annotations

import pytest

from configs.loading import ConfigError
from hiervl_train.optim import learning_rate
from tests.hiervl_train.tasks.configs import FOLDER, TASKS, config_of


@pytest.mark.parametrize(
    ("name", "task", "epochs", "frames", "lr"),
    [
        ("charades_ego", "charades_ego", 20, 16, 3e-5),
        ("epic_mir", "epic_mir", 100, 16, 1e-6),
        ("howto100m_probe", "howto100m", 100, 4, 1e-3),
        ("howto100m_full", "howto100m", 100, 4, 3e-5),
    ],
)
def test_configuration_files_have_the_published_settings(
    name: str, task: str, epochs: int, frames: int, lr: float
) -> None:
    config = config_of(name)
    assert (config.task.name, config.schedule.epochs, config.sample.frames) == (task, epochs, frames)
    rates = [learning_rate(config.optim, 0, total=1, epoch=epoch) for epoch in range(20)]
    assert rates == pytest.approx([lr] * 10 + [lr / 10] * 10 if name == "charades_ego" else [lr] * 20)
    assert config.task.classes == (100 if task == "howto100m" else None)
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(TASKS)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.margin=0.4"], "margin = 0.4 means nothing to charades_ego"),
        (["task.name=egomcq"], "task.name = 'egomcq'"),
        (["freeze=[head]"], "freeze.0 = 'head'"),
        (["schedule.batch=1"], "charades_ego compares pairs"),
        (["task.temprature=1"], "did you mean task.temperature?"),
        (["task.temperature=0"], "task.temperature = 0: Input should be greater than 0"),
    ],
)
def test_a_meaningless_configuration_is_an_error(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of("charades_ego", *overrides)
    assert message in str(caught.value)
