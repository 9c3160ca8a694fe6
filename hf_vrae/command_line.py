"""What all scripts share: readable logs, and one clear line in place of a traceback."""

import logging
import sys
from collections.abc import Callable

from huggingface_hub.errors import StrictDataclassError
from tqdm.auto import tqdm


class _AboveTheBar(logging.Handler):
    """Prints a message without tearing a progress bar."""

    def emit(self, record):
        tqdm.write(self.format(record), file=sys.stderr)


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main`: bad input ends in one line and exit code 1, an interruption in 128 + its signal."""
    from accelerate import PartialState

    from .training.loop import Interrupted

    ours = logging.getLogger("hf_vrae")
    ours.addHandler(_AboveTheBar())
    ours.propagate = False
    try:
        state = PartialState()
        ours.setLevel(logging.INFO if state.is_main_process else logging.ERROR)
        main()
    except Interrupted as interruption:
        _say(interruption, state.is_local_main_process)
        sys.exit(128 + interruption.signal_number)
    except KeyboardInterrupt:
        _say("Interrupted.", state.is_local_main_process)
        sys.exit(130)
    except (ValueError, OSError, FloatingPointError, StrictDataclassError) as error:
        _say(f"error: {' '.join(str(error).split())}", state.is_local_main_process)
        sys.exit(1)


def _say(message, here: bool) -> None:
    if here:
        print(message, file=sys.stderr)
