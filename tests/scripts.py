"""Running the scripts inside the tests' process."""

import runpy
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState

ROOT = Path(__file__).parents[1]


def fresh_accelerator():
    """As at the start of a process: Accelerate keeps its state for the life of one."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def script(words):
    """Run a script as `__main__`; returns its exit code."""
    fresh_accelerator()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(ROOT / words[0]), *words[1:]])
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as exit:
            return exit.code or 0
    return 0
