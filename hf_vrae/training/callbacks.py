"""KL annealing for users of transformers' Trainer and Seq2SeqTrainer."""

from transformers import TrainerCallback

from .schedules import KLSchedule


class KLAnnealingCallback(TrainerCallback):
    """Sets `model.kl_weight`, and a capacity, before every update, and 1 between updates: evaluation gives the bound.

    The schedule is a function of Trainer's global step: a resumed run goes on where it stood.

    Args:
        kind, weight, start, warmup, cycles, capacity: as in [`KLSchedule`].

    Example:

    ```python
    >>> trainer = Trainer(model, args, train_dataset=data, data_collator=collator,
    ...                   callbacks=[KLAnnealingCallback("cyclical", cycles=4)])
    ```
    """

    def __init__(self, kind="linear", weight=1.0, start=0.0, warmup=0.5, cycles=4, capacity=0.0):
        self.options = {"kind": kind, "weight": weight, "start": start, "warmup": warmup, "cycles": cycles}
        self.options["capacity"] = capacity

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        schedule = KLSchedule(total_steps=state.max_steps, **self.options)
        model.kl_weight, model.kl_capacity = schedule(state.global_step), schedule.target(state.global_step)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        model.kl_weight = 1.0
