"""KL annealing for users of transformers' Trainer and Seq2SeqTrainer."""

from transformers import TrainerCallback

from .arguments import TrainArguments
from .combinations import check_model
from .models import OF_THE_LOSS
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
        if not hasattr(_without_adapters(model), "kl_weight"):
            raise ValueError(f"The callback sets the KL weight of a model of hf_vrae; got {type(model).__name__}.")
        options = {f"kl_{name}": value for name, value in self.options.items() if name not in ("kind", "warmup")}
        of_the_loss = {name: getattr(model.config, name) for name in OF_THE_LOSS if hasattr(model.config, name)}
        try:
            KLSchedule(total_steps=state.max_steps, **self.options)
            as_flags = TrainArguments("", kl_schedule=self.options["kind"], **options, **of_the_loss)
            check_model(as_flags, model.config)
        except ValueError as error:
            raise ValueError(f"By the names that scripts/train.py has for this: {error}") from None
        if args.label_smoothing_factor > 0:
            raise ValueError(
                f"`label_smoothing_factor` {args.label_smoothing_factor:g} has Trainer make a loss of its own from "
                "the logits, without KL. Set it to 0."
            )

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        schedule, model = KLSchedule(total_steps=state.max_steps, **self.options), _without_adapters(model)
        model.kl_weight, model.kl_capacity = schedule(state.global_step), schedule.target(state.global_step)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        model = _without_adapters(model)
        model.kl_weight, model.kl_capacity = 1.0, None


def _without_adapters(model):
    """The model itself, where it is within one of peft's, which would keep for itself what is set on it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
