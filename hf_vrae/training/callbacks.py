"""KL annealing for users of transformers' Trainer and Seq2SeqTrainer."""

from transformers import TrainerCallback

from .schedules import KLSchedule


class KLAnnealingCallback(TrainerCallback):
    """Sets `model.kl_weight`, and a capacity, before every update, and 1 between updates: evaluation gives the bound.

    The schedule is a function of Trainer's global step: a resumed run goes on where it stood.

    Args:
        kind, weight, start, warmup, cycles, capacity: as in [`KLSchedule`].

    Raises:
        ValueError: when training begins, where the loss would not read what this sets.

    Example:

    ```python
    >>> trainer = Trainer(model, args, train_dataset=data, data_collator=collator,
    ...                   callbacks=[KLAnnealingCallback("cyclical", cycles=4)])
    ```
    """

    def __init__(self, kind="linear", weight=1.0, start=0.0, warmup=0.5, cycles=4, capacity=0.0):
        self.options = {"kind": kind, "weight": weight, "start": start, "warmup": warmup, "cycles": cycles}
        self.options["capacity"] = capacity

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        config = model.config
        if getattr(config, "resampling", False):
            raise ValueError("`resampling` trains a particle filter's bound, which no KL weight is a part of.")
        several_kl = config.num_train_samples > 1 or getattr(config, "label_classifier", False)
        if self.options["capacity"] > 0 and several_kl:
            raise ValueError(
                f"`capacity` {self.options['capacity']:g} holds one KL, which neither the bound of several "
                "`num_train_samples` nor `label_classifier` has. Set it to 0."
            )
        if args.label_smoothing_factor > 0:
            raise ValueError(
                f"`label_smoothing_factor` {args.label_smoothing_factor:g} has Trainer make a loss of its own from "
                "the logits, without KL. Set it to 0."
            )

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        schedule = KLSchedule(total_steps=state.max_steps, **self.options)
        model.kl_weight, model.kl_capacity = schedule(state.global_step), schedule.target(state.global_step)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        model.kl_weight = 1.0
