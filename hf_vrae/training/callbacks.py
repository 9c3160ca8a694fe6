"""KL annealing for users of transformers' Trainer and Seq2SeqTrainer."""

from transformers import TrainerCallback

from .schedules import KLSchedule


class KLAnnealingCallback(TrainerCallback):
    """Sets `model.kl_weight` before every update, and 1 between updates, so that evaluation gives the bound.

    The schedule is a function of Trainer's global step: a resumed run goes on where it stood.

    Args:
        kind, weight, start, warmup, cycles: as in [`KLSchedule`].

    Example:

    ```python
    >>> trainer = Trainer(model, args, train_dataset=data, data_collator=collator,
    ...                   callbacks=[KLAnnealingCallback("cyclical", cycles=4)])
    ```
    """

    def __init__(self, kind="linear", weight: float = 1.0, start: float = 0.0, warmup: float = 0.5, cycles: int = 4):
        self.options = {"kind": kind, "weight": weight, "start": start, "warmup": warmup, "cycles": cycles}

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        model.kl_weight = KLSchedule(total_steps=state.max_steps, **self.options)(state.global_step)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        model.kl_weight = 1.0
