"""KL weight and KL capacity as pure functions of the step: nothing to save, nothing to restore."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from .arguments import TrainArguments

ScheduleKind = Literal["constant", "linear", "logistic", "geometric", "cyclical", "capacity"]


@dataclass(frozen=True)
class KLSchedule:
    """beta_t of `loss = reconstruction + beta_t * KL`, rising from `start` to `weight`.

    - constant: `weight` throughout (beta-VAE, Higgins et al. 2017);
    - linear: straight up within the warm-up (He et al. 2019: from 0.1 over 10 epochs);
    - logistic: an S around the middle of the warm-up (Bowman et al. 2016), whose slope is 12.5 / warm-up: the 0.0025
      that timbmg/Sentence-VAE uses with a middle at 2,500;
    - geometric: weight * (1 - r^t), which has risen by all but a hundredth when the warm-up ends (MusicVAE, Roberts et
      al. 2018, gives r: 0.99999 is a warm-up of 460,515 updates);
    - cyclical: `cycles` times linear and then constant (Fu et al. 2019: 4 cycles, warm-up half of each);
    - capacity: `weight` throughout, of |KL - C_t|, whose `target` C_t rises to `capacity` (Burgess et al. 2018).

    Args:
        kind: one of these.
        total_steps: updates of the whole run.
        weight: final value.
        start: first value; the logistic form begins near it.
        warmup: updates it takes, or, below 1, their share of the run (of a cycle where there are cycles).
        cycles: of the cyclical form.
        capacity: last C of the capacity form, nats per sequence.

    Raises:
        ValueError: for another kind, for a weight that would fall, and where no cycle is as long as its warm-up: the
            weight would never arrive.
    """

    kind: ScheduleKind
    total_steps: int
    weight: float = 1.0
    start: float = 0.0
    warmup: float = 0.5
    cycles: int = 4
    capacity: float = 0.0

    @classmethod
    def of_run(cls, args: "TrainArguments", steps_per_epoch: int) -> "KLSchedule":
        """That of a run whose epochs are so long."""
        steps = math.ceil(round(args.num_train_epochs * steps_per_epoch, 6))  # 1.1 * 50 is a little more than 55
        return cls(
            args.kl_schedule,
            args.max_steps if args.max_steps > 0 else steps,
            args.kl_weight,
            args.kl_start,
            args.kl_warmup_steps,
            args.kl_cycles,
            args.kl_capacity,
        )

    def __post_init__(self):
        if self.kind not in get_args(ScheduleKind):
            raise ValueError(f"`kind` must be one of {', '.join(get_args(ScheduleKind))}; got {self.kind!r}.")
        least = {"weight": 0, "start": 0, "warmup": 0, "cycles": 1}
        for name, bound in least.items():
            if not bound <= getattr(self, name) < math.inf:  # NaN is neither
                raise ValueError(
                    f"`{name}` of a KL schedule must be at least {bound}, and finite, got {getattr(self, name)}."
                )
        if self.kind not in ("constant", "capacity") and self.start > self.weight:
            raise ValueError(
                f"`kl_start` {self.start:g} is where the KL weight begins to rise, and `kl_weight` {self.weight:g}, "
                "where it ends, is below. Lower the one, raise the other, or set `kl_schedule` constant."
            )
        if self.kind == "cyclical" and self.warmup_steps >= self.period:
            raise ValueError(
                f"`kl_warmup_steps` {self.warmup:g} is as long as a cycle or longer: {self.total_steps} updates in "
                f"{self.cycles} cycles are {self.period:g} each, the KL weight would never arrive, and no model be "
                "judged. Give a share below 1, or fewer `kl_cycles`."
            )

    @property
    def period(self) -> float:
        """Updates from one rise to the next."""
        return self.total_steps / self.cycles if self.kind == "cyclical" else self.total_steps

    @property
    def warmup_steps(self) -> float:
        """Updates that a rise takes."""
        if self.kind == "constant":
            return 0
        return self.warmup * self.period if self.warmup < 1 else self.warmup

    def __call__(self, step: int) -> float:
        """KL weight of update number `step`, counted from 0."""
        if self.kind == "capacity":
            return self.weight
        if self.has_arrived(step) and (self.kind != "geometric" or self.warmup_steps == 0):
            return self.weight
        share = self.position(step) / self.warmup_steps
        if self.kind == "geometric":
            share = 1 - 0.01**share  # r = 0.01 ** (1 / warm-up)
        if self.kind == "logistic":
            share = 1 / (1 + math.exp(-12.5 * (share - 0.5)))
        return self.start + (self.weight - self.start) * share

    def target(self, step: int) -> float | None:
        """C of update number `step`, straight from 0 up to `capacity`; None where the form has none."""
        if self.kind != "capacity":
            return None
        return self.capacity if self.has_arrived(step) else self.capacity * step / self.warmup_steps

    def has_arrived(self, step: int) -> bool:
        """Whether weight and capacity are at their final values: only then does a loss say how good the model is."""
        is_constant = self.kind != "capacity" and self.start == self.weight
        return is_constant or self.position(step) >= self.warmup_steps

    def position(self, step: int) -> float:
        """Updates since the last rise began."""
        if self.kind != "cyclical":
            return step
        return step * self.cycles % self.total_steps / self.cycles  # step % period, exactly
