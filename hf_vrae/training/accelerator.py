"""The Accelerator of a run, and what a CPU gives only where it is asked to."""

import contextlib
import ctypes
import logging
import os
import platform
import sys
from collections.abc import Iterator
from datetime import timedelta

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import parse_flag_from_env

from ..modeling.kernels import PACKED_DTYPES
from .arguments import TrainArguments

logger = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def make_accelerator(args: TrainArguments) -> Accelerator:
    """The Accelerator of a run; the launcher's own settings win over defaults."""
    precision = precision_here(args.mixed_precision)
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()  # a process keeps its first one, but rows of a comparison may have others
    accelerator = Accelerator(
        mixed_precision=precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        log_with=trackers_of(args.report_to),
        project_dir=args.output_dir,
    )
    use_all_of_the_cpu(accelerator)
    return accelerator


def process_state() -> PartialState:
    """Which process this is, and on what. Only `Accelerator` would look at the variable itself, and each process would
    train on its own. While the main one tokenizes the others wait, and NCCL gives up after ten minutes.

    On a Mac it is the CPU: its GPU has no float64 and no second derivative of an LSTM, its random state is in no
    checkpoint of accelerate's, and nothing was tried there.
    """
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or torch.backends.mps.is_available()
    return PartialState(cpu=cpu, timeout=timedelta(hours=2))


def trackers_of(report_to: str) -> list[str] | None:
    """The trackers that a run reports to; accelerate passes over those that are not installed."""
    if report_to == "none":
        return None
    names, known = [name.strip() for name in report_to.split(",")], list(map(str, get_available_trackers()))
    for name in names:
        if name != "all" and name not in known:
            raise ValueError(
                f"`report_to` names {name!r}, and of trackers there are {', '.join(known) or 'none'} here. "
                "Install it, or report to none."
            )
    return names


def precision_here(asked: str | None) -> str:
    """The mixed precision of this machine: what is asked for, by default by the launcher, but float32 on a CPU without
    bfloat16, so that a recipe runs everywhere. (accelerate does not look.)"""
    precision = asked or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if process_state().device.type == "cpu":
        if precision == "fp16":
            raise ValueError("`mixed_precision` fp16 needs a GPU; a CPU has bf16.")
        if precision == "bf16" and torch.bfloat16 not in PACKED_DTYPES:
            logger.warning("`mixed_precision` bf16: this processor has none (no AVX512), so it trains in float32")
            return "no"
    return precision


@contextlib.contextmanager
def main_process_first(state: PartialState | Accelerator) -> Iterator[None]:
    """What the main process does in here the others do after it. An error lets them go on too, which accelerate's own
    does not: they raise it for themselves, or the launcher ends them."""
    if not state.is_main_process:
        state.wait_for_everyone()
    try:
        yield
    finally:
        if state.is_main_process:
            state.wait_for_everyone()


def use_all_of_the_cpu(state: PartialState | Accelerator) -> None:
    """Use all cores and keep freed memory: on two cores a tenth of the speed, on more up to a quarter.

    A launcher gives each process a single core where nothing is said, by the variable that a user sets who wants one:
    behind a launcher the cores are shared among the processes, without one the variable is respected. And glibc hands
    each freed tensor above some megabytes back to the system, which then clears its pages for the next one, step after
    step: memory once taken is kept.
    """
    if state.device.type != "cpu":
        return
    launched = state.num_processes > 1 or "ACCELERATE_MIXED_PRECISION" in os.environ
    if launched and os.environ.get("OMP_NUM_THREADS") == "1":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        here = int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))  # processes of this machine
        torch.set_num_threads(max(1, cores // here))
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc, never = ctypes.CDLL(None), 2**31 - 1
        libc.mallopt(M_MMAP_THRESHOLD, never)
        libc.mallopt(M_TRIM_THRESHOLD, never)
