"""Launches a run from its configuration: joins the ranks, opens the folder, trains, records how the run ended.

Pretraining and fine-tuning share this code before and after the loop.
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

from configs.cli import ExitCode, bugs_logged
from hiervl_train.collectives import all_true
from hiervl_train.config import RunConfig, RunSettings
from hiervl_train.distributed import DistributedContext, distributed_context
from hiervl_train.monitor.page import write_page
from hiervl_train.monitor.run_folder import RunFolder
from hiervl_train.monitor.run_logger import Status, write_status
from hiervl_train.preemption import StopRequest, clear_stop_file
from hiervl_train.task import Task
from hiervl_train.trainer import train

logger = logging.getLogger(__name__)
Settings = TypeVar("Settings", bound=RunSettings)


def launch(settings: Settings, make_task: Callable[[Settings, DistributedContext], Task]) -> int:
    """Run a configuration on this rank; return the exit code, with which the process is to exit.

    Signals to stop are requests from the first step to the end of the process: whoever asks may repeat itself, and a
    rank that died of it would take down others that still save.
    """
    with distributed_context(settings.distributed) as context:
        code = run(settings, context, make_task)
        if code != ExitCode.OK and context.world > 1:
            sys.exit(code)  # the other ranks exit likewise, or the launcher ends them
    return code


def run(
    settings: Settings, context: DistributedContext, make_task: Callable[[Settings, DistributedContext], Task]
) -> int:
    """Train in the configured folder; return 0 if the run is done and 85 if it was stopped earlier."""
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    folder = RunFolder(settings.run.folder)
    with ExitStack() as stack:
        if context.is_main:
            stack.enter_context(folder.exclusive())
            clear_stop_file(folder.stop)
        stack.enter_context(folder.logged(rank=context.rank))
        stack.enter_context(bugs_logged())
        _use_deterministic_kernels(settings.run)
        task = make_task(settings, context)
        stop = stack.enter_context(StopRequest(settings.preemption, folder.stop, checks_file=context.is_main))
        outcome = train(task, settings, folder, context, console, stop)
        if context.is_main:
            state: Status = "done" if outcome.reason is None else "stopped"
            total = min(task.total_steps, settings.run.max_steps or task.total_steps)
            write_status(folder, state, outcome.step, total, reason=outcome.reason)
            write_page(folder.path)
            if outcome.reason is None:
                console.print(f"done after {outcome.step:,} steps: {folder.page}")
            else:
                console.print(f"stopped after {outcome.step:,} of {total:,} steps ({outcome.reason}) and saved; ")
                console.print("rerun the same command to resume")
        # Launchers end all ranks when one exits with a non-zero code: no rank exits before everything is written.
        all_true(True, context.control)
        if outcome.reason is not None or context.world > 1:
            stop.ignore_until_exit()
    return ExitCode.OK if outcome.reason is None else ExitCode.STOPPED


def _use_deterministic_kernels(config: RunConfig) -> None:
    """Choose kernels that sum in a fixed order, if configured."""
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it on first use
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
