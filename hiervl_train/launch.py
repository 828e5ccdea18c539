"""From a configuration to a finished or stopped run: joins the ranks, opens the folder, trains, says how it ended.

What pretraining and fine-tuning share before and after the loop.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar

import torch
from rich.console import Console

from configs.cli import ExitCode
from hiervl_train.distributed import DistributedContext, all_true, distributed_context
from hiervl_train.monitor.page import write_page
from hiervl_train.monitor.run_folder import RunFolder
from hiervl_train.monitor.run_logger import Status, write_status
from hiervl_train.preemption import clear_stop_file
from hiervl_train.settings import RunConfig, RunSettings
from hiervl_train.trainer import Task, train

logger = logging.getLogger(__name__)
Settings = TypeVar("Settings", bound=RunSettings)


def launch(settings: Settings, make_task: Callable[[Settings, DistributedContext], Task]) -> int:
    """Run a configuration on this rank; return the exit code."""
    with distributed_context(settings.distributed) as here:
        code = run(settings, here, make_task)
        if code != ExitCode.OK and here.world > 1:
            sys.exit(code)  # the other ranks do the same, or are ended by the launcher
    return code


def run(settings: Settings, here: DistributedContext, make_task: Callable[[Settings, DistributedContext], Task]) -> int:
    """Train in the configured folder; return 0 where the run is done and 85 where it was stopped before."""
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    folder = RunFolder(settings.run.folder)
    with ExitStack() as stack:
        if here.is_main:
            stack.enter_context(folder.exclusive())
            clear_stop_file(folder.stop)
        stack.enter_context(folder.logged(rank=here.rank))
        _be_reproducible(settings.run)
        task = make_task(settings, here)
        outcome = train(task, settings, folder, here, console)
        if here.is_main:
            state: Status = "done" if outcome.reason is None else "stopped"
            total = min(task.total_steps, settings.run.max_steps or task.total_steps)
            write_status(folder, state, outcome.step, total, reason=outcome.reason)
            write_page(folder.path)
            if outcome.reason is None:
                console.print(f"done after {outcome.step:,} steps: {folder.page}")
            else:
                console.print(f"stopped after {outcome.step:,} of {total:,} steps ({outcome.reason}) and saved; ")
                console.print("the same command goes on from there")
    # Launchers end all ranks as soon as one has left with another code than 0: nobody leaves before all is written.
    all_true(True, here.control)
    return ExitCode.OK if outcome.reason is None else ExitCode.STOPPED


def _be_reproducible(config: RunConfig) -> None:
    """Choose kernels whose sums have one order, where that is asked for."""
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
