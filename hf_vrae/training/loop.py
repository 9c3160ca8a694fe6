"""The training loop: Accelerate around a VRAE, exact under accumulation, several processes and resumption."""

import contextlib
import dataclasses
import itertools
import json
import logging
import math
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import Dataset
from torch import nn
from tqdm.auto import tqdm

from ..evaluation.likelihood import evaluate
from .arguments import TrainArguments
from .batches import UpdateBatches
from .checkpoints import (
    damage_named,
    find_checkpoint,
    load_weights,
    remove_old_checkpoints,
    save_checkpoint,
    use_plain_model_files,
)
from .optimization import learning_rate_schedule, make_optimizer
from .schedules import KLSchedule
from .tasks import FrameTask, TextTask, lengths

logger = logging.getLogger(__name__)

COLLAPSED = 0.1  # nats per sequence: below, z says next to nothing about x
COLLAPSE_WARNING = """The posterior has collapsed: at step %d %s, so the decoder ignores z and all latents decode \
alike. What helps: %s; less --dropout."""
NEVER_ARRIVES = """The KL schedule rises for %g updates (`kl_warmup_steps`), and the run has %d. Until it has arrived \
no model is judged: the last one is kept, and neither `early_stopping_patience` nor a plateau of the learning rate \
counts."""
# Aggressive training (He et al. 2019, released code): the encoder's loss is compared over windows of 15 updates, of
# which there are fewer than 100 before each of the decoder's.
ENCODER_WINDOW, MAX_ENCODER_UPDATES = 15, 99
HEARD_EVERY = 10  # updates, after which several processes ask one another whether to stop
MULTIPLIER_STEP = 0.003  # of gradient ascent, a nat below or above the minimum rate


def remedies_of(config, args: TrainArguments) -> Iterator[str]:
    """What may keep the posterior of this model from collapsing, without what a run of it would refuse."""
    if config.posterior == "vmf":
        yield "spread its posterior less (--concentration)"
    elif args.num_train_samples > 1:
        yield "train with one sample (--num_train_samples 1), whose KL can be weighed and left free"
    else:
        yield (
            "let the KL weight rise more slowly (--kl_warmup_steps) or in cycles (--kl_schedule cyclical), for a "
            "larger --kl_weight makes it worse"
        )
        prescribed = args.minimum_rate or args.kl_schedule == "capacity" or args.svi_steps
        if not (prescribed or config.label_classifier):
            yield "leave some of the KL free (--free_bits)"
    if config.model_type == "vrnn":
        yield "let the posterior begin at the prior (--residual_posterior) and see what comes (--smoothing_posterior)"
        return
    if config.reads_the_past:
        yield "drop more of the decoder's words or frames (--word_dropout)"
    if config.model_type == "hierarchical_vrae":
        yield "leave some of the segments' KL free (--segment_free_bits) or charge less (--segment_kl_weight)"
        yield "make segments shorter (--segment_length)"
    elif "output" not in config.latent_conditioning:
        places = " ".join([*config.latent_conditioning, "output"])
        yield f"show z beside the decoder's output too (--latent_conditioning {places})"


class Interrupted(Exception):
    """The run was asked to stop, and has saved itself; the message says how to go on."""

    def __init__(self, signal_number: int, message: str):
        super().__init__(message)
        self.signal_number = signal_number


@dataclass
class TrainingState:
    """What changes in a run beside tensors and random states; all else is a function of the step.

    `pending` holds the terms of each update since the last line of metrics, summed over all processes: loss,
    reconstruction, KL, sequences, tokens or frames, gradient norm; they took `pending_seconds`. `aggressive` training
    ends when `mutual_information` falls. `judged_by` is what `best_metric` is of: a metric, and the validation data.
    Of data the fingerprint and the number of tokens or frames are kept, which a limit of the length changes.
    """

    step: int = 0
    batch_size: int = 0  # sequences per update, over all processes
    training_seconds: float = 0.0
    best_step: int | None = None
    best_metric: float = math.inf
    judged_by: str = ""
    evaluations_without_improvement: int = 0
    lr_decays: int = 0
    aggressive: bool = False
    mutual_information: float = 0.0
    encoder_updates: int = 0
    rate_multiplier: float = 0.0
    pending: list[list[float]] = field(default_factory=list)
    pending_seconds: float = 0.0
    fingerprint: str = ""


class TrainingLoop:
    """Trains a model; the result is in `model`, in `args.output_dir`, and in what [`run`] returns.

    Args:
        model: its forward returns `loss`, `reconstruction_loss` and `kl`, and it has a `kl_weight`.
        task: what the sequences are of.
        train, validation: splits that the task made; a resumption with other training data is refused.
        args: see [`TrainArguments`].
        accelerator: made from `args` by [`make_accelerator`].
    """

    def __init__(
        self,
        model: nn.Module,
        task: TextTask | FrameTask,
        train: Dataset,
        validation: Dataset,
        args: TrainArguments,
        accelerator: Accelerator,
    ):
        self.args, self.accelerator, self.task = args, accelerator, task
        self.validation, self.lengths = validation, lengths(train)
        self.output_dir = Path(args.output_dir)
        described = [f"{task.fingerprint(split)}, {lengths(split).sum()}" for split in (train, validation)]
        # What makes a bound tighter makes another metric of it.
        particles = args.num_train_samples if args.resampling else 1
        self.state = TrainingState(
            fingerprint=described[0],
            judged_by=f"{self.metric} of {described[1]}; particles {particles}, svi_steps {args.svi_steps}",
            aggressive=args.aggressive,
        )
        self.collator = task.collator()
        self.batches = UpdateBatches(train, self.lengths, self.collator, args, accelerator)
        self.state.batch_size, self.steps_per_epoch = self.batches.batch_size, self.batches.steps_per_epoch
        self.kl_schedule = KLSchedule.of_run(args, self.steps_per_epoch)
        self.total_steps = self.kl_schedule.total_steps
        # From the end: of all but the cyclical schedule the last step decides.
        if args.eval_strategy != "no" and not any(
            map(self.kl_schedule.has_arrived, reversed(range(self.total_steps)))
        ):
            logger.warning(NEVER_ARRIVES, self.kl_schedule.warmup_steps, self.total_steps)
        self.lr_schedule = learning_rate_schedule(args, self.total_steps)

        use_plain_model_files(accelerator)
        optimizer = make_optimizer(model, args)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.plain_model = accelerator.unwrap_model(self.model, keep_torch_compile=False)
        self.stop_signal = 0
        # From here on every process has noise of its own; the weights, made before, are the same everywhere.
        set_seed(args.seed, device_specific=True)
        if args.resume_from_checkpoint:
            self.resume()

    @property
    def metric(self) -> str:
        """Which number of the validation data says how good a model is."""
        # An autoencoder, whose KL costs nothing, has no bound to be judged by (Li et al. 2019); and of one trained as
        # the proposal of a particle filter the ELBO says little.
        bound = "nll_fivo" if self.args.resampling else "neg_elbo"
        return bound if self.args.kl_weight > 0 else "reconstruction"

    # One update.

    def update(self, micro_batches: Iterator[dict[str, torch.Tensor]], indices: np.ndarray, frozen=()) -> list:
        """Take one optimizer step for all parameters but the `frozen`, of which no gradient is formed; returns its row
        of terms, on the device."""
        step, model = self.state.step, self.plain_model
        model.kl_weight, model.kl_capacity = self.kl_weight(step), self.kl_schedule.target(step)
        model.sampling_probability = self.args.scheduled_sampling * step / self.total_steps
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        terms = []
        for i in range(self.batches.accumulation_steps):
            batch = self.task.augment(next(micro_batches))
            # DDP would wait for the gradients of all parameters.
            synchronize = i == self.batches.accumulation_steps - 1 and not frozen
            context = contextlib.nullcontext() if synchronize else self.accelerator.no_sync(self.model)
            with without_gradient(frozen), context:
                outputs = self.model(**batch)
                count = len(batch["labels"])
                # Mean over the sequences of the whole update: DDP averages over the processes, and `backward`
                # divides by the number of accumulation steps.
                self.accelerator.backward(outputs.loss * (count * self.batches.parts / len(indices)))
            terms.append(torch.stack([outputs.loss, outputs.reconstruction_loss, outputs.kl]).detach().float() * count)
        if frozen and self.accelerator.num_processes > 1:
            self.average_gradients()
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return [torch.stack(terms).sum(0), norm]

    def average_gradients(self) -> None:
        """Over the processes, as DDP does where every parameter has a gradient; in one message for them all."""
        trained = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        flat = self.accelerator.reduce(torch.cat([parameter.grad.flatten() for parameter in trained]), "mean")
        for parameter, part in zip(trained, flat.split([parameter.numel() for parameter in trained]), strict=True):
            parameter.grad = part.view_as(parameter)

    def learning_rate(self, step: int) -> float:
        """Learning rate of update number `step`."""
        return self.args.learning_rate * self.lr_schedule(step) * self.args.lr_decay_factor**self.state.lr_decays

    def kl_weight(self, step: int) -> float:
        """KL weight of update number `step`, less the multiplier of a minimum rate."""
        return max(0.0, self.kl_schedule(step) - self.state.rate_multiplier)

    def train_encoder(self, micro_batches: Iterator[dict[str, torch.Tensor]]) -> None:
        """Bring q(z|x) up to date with the decoder: steps of the encoder alone until its loss, the mean over a window
        of updates, falls no longer (He et al. 2019, algorithm 1)."""
        previous, loss, tokens = math.inf, 0.0, 0
        encoder = {id(parameter) for parameter in self.plain_model.get_encoder().parameters()}
        rest = [parameter for parameter in self.plain_model.parameters() if id(parameter) not in encoder]
        for update in range(1, MAX_ENCODER_UPDATES + 1):
            indices = self.batches.of_encoder(self.state.encoder_updates)
            terms, _ = self.update(micro_batches, indices, frozen=rest)
            self.state.encoder_updates += 1
            loss, tokens = loss + terms[0], tokens + self.task.num_scored(self.lengths[indices])
            if update % ENCODER_WINDOW == 0:
                mean = self.accelerator.reduce(loss, "sum").item() / tokens
                if mean > previous:
                    return
                previous, loss, tokens = mean, 0.0, 0

    def end_aggressive_training(self) -> None:
        self.state.aggressive = False
        logger.info("step %d: encoder and decoder train together from here on", self.state.step)

    def hold_rate(self, terms: torch.Tensor, count: int) -> None:
        """Gradient ascent on the multiplier u >= 0 of u (r - KL), r the minimum desired rate (Pelsmaeker & Aziz 2020,
        sec. 3.3): below the rate a nat of KL costs less and less. At u = beta it costs nothing and u stops: were KL to
        pay, q(z|x) would take it without telling anything.
        """
        kl = self.accelerator.reduce(terms[2], "sum").item() / count
        step = MULTIPLIER_STEP * (self.args.minimum_rate - kl)
        self.state.rate_multiplier = min(max(0.0, self.state.rate_multiplier + step), self.args.kl_weight)

    # The run.

    def run(self) -> dict:
        """Train to the end; the best model's weights are then in `model`. Returns the run's own numbers.

        Raises:
            Interrupted: after SIGINT or SIGTERM, with a checkpoint written.
            FloatingPointError: where the loss is not a number, naming the step, the batch and the last checkpoint.
        """
        first_step, self.started = self.state.step, time.perf_counter() - self.state.training_seconds
        with self.handle_signals(), self.progress_bar() as bar:
            self.recent, self.clock = [], time.perf_counter() - self.state.pending_seconds
            batches = self.batches
            micro_batches = batches.micro_batches(map(batches.of_step, range(first_step, self.total_steps)))
            encoder_micro_batches = batches.micro_batches(
                map(batches.of_encoder, itertools.count(self.state.encoder_updates))
            )
            encoder = list(self.plain_model.get_encoder().parameters())
            self.model.train()
            most = self.args.aggressive_max_epochs * self.steps_per_epoch
            while not self.is_over():
                if self.state.aggressive and self.state.step >= most:
                    self.end_aggressive_training()
                if self.state.aggressive:
                    self.train_encoder(encoder_micro_batches)
                indices = batches.of_step(self.state.step)
                self.recent.append(self.update(micro_batches, indices, encoder if self.state.aggressive else ()))
                if self.args.minimum_rate:
                    self.hold_rate(self.recent[-1][0], len(indices))
                self.state.step += 1
                bar.update()
                self.after_update(bar)
        self.state.training_seconds = time.perf_counter() - self.started
        if self.state.best_step is not None and self.state.best_step != self.state.step:
            load_weights(self.plain_model, self.output_dir / f"checkpoint-{self.state.best_step}")
        model = self.plain_model
        model.kl_weight, model.kl_capacity, model.sampling_probability = 1.0, None, 0.0
        return {
            "steps": self.state.step,
            "epochs": self.state.step / self.steps_per_epoch,
            "best_step": self.state.best_step,
            "resumed_from_step": first_step,
            "training_seconds": self.state.training_seconds,  # of the updates before a resumption too
            "steps_per_second": self.state.step / self.state.training_seconds,
        }

    def after_update(self, bar) -> None:
        """Log, evaluate, save and stop, each when due."""
        args, step = self.args, self.state.step
        at_end = step == self.total_steps
        evaluation_due = at_end or (
            step % args.eval_steps == 0 if args.eval_strategy == "steps" else step % self.steps_per_epoch == 0
        )
        evaluation_due = evaluation_due and args.eval_strategy != "no"
        save_due = step % args.save_steps == 0 or at_end
        due = step % args.logging_steps == 0 or evaluation_due or save_due
        stop_here = self.told_to_stop(due)
        if not (due or stop_here):
            return
        self.flush()
        if step % args.logging_steps == 0 or at_end:
            self.log_training(bar)
        if evaluation_due:
            improved, over = self.validate(), self.is_over()
            save_due, stop_here = save_due or improved or over, self.told_to_stop()  # evaluations are long
            if over and self.state.pending:
                self.log_training(bar)
        if save_due or stop_here:
            now = time.perf_counter()
            self.state.training_seconds, self.state.pending_seconds = now - self.started, now - self.clock
            save_checkpoint(self.accelerator, self.model, self.task, dataclasses.asdict(self.state), self.output_dir)
            if self.accelerator.is_main_process:
                remove_old_checkpoints(self.output_dir, args.save_total_limit, self.state.best_step, step)
        if stop_here:
            raise Interrupted(stop_here, self.how_to_resume(f"Interrupted at step {step}; the run is saved."))

    def is_over(self) -> bool:
        """Whether all updates are made, or early stopping or the last decay of the learning rate ends the run."""
        patience = self.args.early_stopping_patience
        stopped_early = patience is not None and self.state.evaluations_without_improvement >= patience
        return stopped_early or self.is_at_its_end(self.state)

    def is_at_its_end(self, state: TrainingState) -> bool:
        """The same but for early stopping, which another judge of what is best may take back."""
        decays = self.args.lr_scheduler_type == "reduce_lr_on_plateau"
        return state.step >= self.total_steps or (decays and state.lr_decays >= self.args.max_lr_decays)

    def told_to_stop(self, ask: bool = True) -> int:
        """The signal that this process got, or, of several, another one; these must `ask` one another."""
        if self.accelerator.num_processes == 1:
            return self.stop_signal
        # Launchers give some 30 s between SIGTERM and SIGKILL, and an update of aggressive training takes seconds.
        if not (ask or self.state.aggressive or self.state.step % HEARD_EVERY == 0):
            return 0
        told = torch.tensor(float(self.stop_signal), device=self.accelerator.device)
        return int(self.accelerator.reduce(told, "sum")) and (self.stop_signal or signal.SIGTERM)

    def flush(self) -> None:
        """Bring the recent terms to the host, and check them."""
        rows = [torch.cat([terms, norm.reshape(1)]) for terms, norm in self.recent]
        rows = self.accelerator.reduce(torch.stack(rows), "sum").tolist()
        steps = range(self.state.step - len(rows), self.state.step)
        self.recent = []
        for step, row in zip(steps, rows, strict=True):
            row[3] /= self.accelerator.num_processes  # all have the norm of the whole gradient
            # Float16's gradient scaler overflows by design, and then skips the update.
            checked = row[:3] if self.accelerator.scaler is not None else row[:4]
            if not all(map(math.isfinite, checked)):
                self.stop_for_nan(step, row)
            indices = self.batches.of_step(step)
            scored = self.task.num_scored(self.lengths[indices])
            self.state.pending.append([*row[:3], len(indices), scored, row[3]])

    def stop_for_nan(self, step: int, row: list[float]) -> None:
        indices = self.batches.of_step(step)
        path = self.output_dir / "nan_batch.json"
        if self.accelerator.is_main_process:
            sequences = self.task.readable(self.batches.rows.__getitems__(indices.tolist()))
            path.write_text(json.dumps({"step": step, "indices": indices.tolist(), **sequences}, indent=2))
        message = (
            f"The loss or its gradient is not finite at step {step} (epoch {step / self.steps_per_epoch:.2f}): loss "
            f"{row[0] / len(indices):g}, gradient norm {row[3]:g}. The batch (training sequences "
            f"{indices[:5].tolist()} and so on) is in {path}. Lower --learning_rate or --max_grad_norm."
        )
        raise FloatingPointError(self.how_to_resume(message))

    def check_finite(self, results: dict) -> None:
        """The last update before an evaluation may have broken the weights, which no loss has shown yet."""
        if not math.isfinite(results["neg_elbo"]):
            message = f"-ELBO is {results['neg_elbo']} after step {self.state.step}: lower --learning_rate."
            raise FloatingPointError(self.how_to_resume(message))

    def how_to_resume(self, message: str) -> str:
        try:
            checkpoint = find_checkpoint(self.output_dir, "latest")
        except ValueError:
            return f"{message} There is no checkpoint yet."
        recipe = self.output_dir / "recipe.yaml"
        for part, depth in (("autoencoder", 1), ("judges/*/model", 3)):  # of a run, which goes on with it
            if self.output_dir.match(part) and (whole := self.output_dir.parents[depth - 1] / "recipe.yaml").is_file():
                recipe = whole
        return (
            f"{message} The last checkpoint is {checkpoint}. Go on with: accelerate launch scripts/train.py "
            f"--config {recipe} --resume_from_checkpoint latest"
        )

    # What a run says.

    def log_training(self, bar) -> None:
        """A line of metrics for the updates since the last one, per sequence, and the same in the bar."""
        loss, reconstruction, kl, sequences, scored, _ = np.sum(self.state.pending, axis=0).tolist()
        norms = [row[-1] for row in self.state.pending if math.isfinite(row[-1])]  # of updates that were not skipped
        now, speed = time.perf_counter(), f"{self.task.unit}_per_second"
        step = self.state.step - 1  # the last update that was made
        values = {
            "loss": loss / sequences,
            "reconstruction": reconstruction / sequences,
            "kl": kl / sequences,
            "kl_weight": self.kl_weight(step),
            "learning_rate": self.learning_rate(step),
            "grad_norm": sum(norms) / max(len(norms), 1),
            speed: scored / (now - self.clock),
        }
        if self.args.aggressive:
            values["encoder_updates"] = self.state.encoder_updates
        if self.kl_schedule.kind == "capacity":
            values["kl_capacity"] = self.kl_schedule.target(step)
        self.state.pending, self.clock = [], now
        self.write("train", values)
        bar.set_postfix_str(
            f"loss {values['loss']:.2f}, rec {values['reconstruction']:.2f}, KL {values['kl']:.2f} x "
            f"{values['kl_weight']:.2f}, {values[speed]:,.0f} {self.task.unit}/s"
        )

    def validate(self) -> bool:
        """Evaluate at KL weight 1; returns whether the model is the best so far."""
        args, state, began = self.args, self.state, time.perf_counter()
        results = evaluate(
            self.plain_model,
            self.validation,
            self.collator,
            num_samples=args.num_train_samples if args.resampling else 1,
            batch_size=args.per_device_eval_batch_size,
            seed=args.seed,
            accelerator=self.accelerator,
            description="Validating",
            svi_steps=args.svi_steps,
        )
        self.check_finite(results)
        # One sample estimates no importance weight, and a particle filter's are judged by its own bound.
        of_weights = ("nll_iw", "ppl_iw", "bits_per", "num_samples")
        results = {name: value for name, value in results.items() if not name.startswith(of_weights)}
        self.write("eval", results)
        logger.info(
            "step %d: -ELBO %.2f nats (reconstruction %.2f + KL %.2f)%s%s, %d active units",
            *(state.step, results["neg_elbo"], results["reconstruction"], results["kl"]),
            f", {results['neg_elbo_per_step']:.3f} per step" if "neg_elbo_per_step" in results else "",
            f", MI {results['mutual_information']:.2f}" if "mutual_information" in results else "",
            results["active_units"],
        )
        self.warn_of_collapse(results)
        if state.aggressive:
            if results["mutual_information"] < state.mutual_information:
                self.end_aggressive_training()
            state.mutual_information = results["mutual_information"]
        self.show_samples()
        self.clock += time.perf_counter() - began  # tokens/s is that of training
        # Before the KL weight has arrived the bound still rises and falls with it (trap 9 of the field).
        if not self.kl_schedule.has_arrived(state.step - 1):
            return False
        metric = results[self.metric]
        if metric < state.best_metric:
            state.best_metric, state.best_step = metric, state.step
            state.evaluations_without_improvement = 0
            return True
        state.evaluations_without_improvement += 1
        self.decay_learning_rate()
        return False

    def warn_of_collapse(self, results: dict) -> None:
        """Say so where z tells nothing of x, and what helps this model."""
        config = self.plain_model.config
        found = f"the KL is {results['kl']:.3f} nats per sequence with {results['active_units']} active units"
        collapsed = results["kl"] < COLLAPSED
        if "mutual_information" in results and "kl_global" not in results:  # units are counted of all latents
            collapsed = collapsed or results["active_units"] == 0
        if config.posterior == "vmf":
            # Its KL is constant, and means on a sphere vary by 1 / latent_size at most: often no unit is ever active.
            found = f"the mutual information is {results['mutual_information']:.3f} nats per sequence"
            collapsed = results["mutual_information"] < COLLAPSED
        if collapsed and config.latent_size and results["num_sequences"] > 1:  # of one these say nothing
            remedies = remedies_of(config, self.args)
            logger.warning(COLLAPSE_WARNING, self.state.step, found, "; ".join(remedies))

    def decay_learning_rate(self) -> None:
        """On a plateau: decay the learning rate and go back to the best model (He et al. 2019, released code)."""
        args, state = self.args, self.state
        if (
            args.lr_scheduler_type != "reduce_lr_on_plateau"
            or state.step < args.lr_decay_start_epoch * self.steps_per_epoch
        ):
            return
        if state.evaluations_without_improvement >= args.lr_decay_patience:
            state.lr_decays += 1
            state.evaluations_without_improvement = 0
            load_weights(self.plain_model, self.output_dir / f"checkpoint-{state.best_step}")
            self.optimizer.state.clear()  # moments of the way that is left
            logger.info(
                "learning rate %g from the model of step %d on", self.learning_rate(state.step), state.best_step
            )

    @torch.no_grad()
    def show_samples(self) -> None:
        """Print and write reconstructions of validation sequences and samples of the prior."""
        if self.accelerator.is_main_process:
            self.plain_model.eval()
            args, step = self.args, self.state.step
            shown = self.task.show(self.plain_model, self.validation, step, args.seed, self.output_dir)
            self.plain_model.train()
            logger.info(shown)

    def write(self, kind: str, values: dict[str, float]) -> None:
        """Append a line to metrics.jsonl, and tell the trackers."""
        step = self.state.step
        if self.accelerator.is_main_process:
            line = {"kind": kind, "step": step, "epoch": round(step / self.steps_per_epoch, 4), **values}
            with open(self.output_dir / "metrics.jsonl", "a") as file:
                file.write(json.dumps(line) + "\n")
        self.accelerator.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)

    # Interruption and resumption.

    def is_judged_alike(self, state: TrainingState) -> bool:
        """Whether a checkpoint's best metric can be compared with this run's."""
        ours, args = self.state.judged_by, self.args
        if state.judged_by == ours:
            return True
        bare, more = ours.split(";")[0], ""  # as earlier checkpoints have it, and later ones behind it
        for name, is_read in (("num_train_samples", args.resampling), ("svi_steps", args.svi_steps)):
            more += f", {name} {getattr(args, name)}" if is_read else ""
        if more and state.judged_by == bare:
            logger.warning(
                "the checkpoint does not say of which %s its best metric is: taken as of this run's", more[2:]
            )
        return state.judged_by in (bare, bare + more)

    def resume(self) -> None:
        """Restore everything from a checkpoint but what the arguments say anew of the optimizer, and drop the lines
        that later steps wrote."""
        folder = find_checkpoint(self.output_dir, self.args.resume_from_checkpoint)
        anew = "weight_decay", "betas", "momentum", "decoupled_weight_decay"  # the last is all that adam has not
        said = [{name: group[name] for name in anew if name in group} for group in self.optimizer.param_groups]
        names = [set(group) for group in self.optimizer.param_groups]
        with damage_named(folder):
            state = TrainingState(**json.loads((folder / "state.json").read_text()))
            if state.fingerprint != self.state.fingerprint:
                raise ValueError(
                    f"The training data are not those of {str(folder)!r}, or cut elsewhere (`max_length`): a run "
                    f"resumes on its own data, {state.fingerprint}; these are {self.state.fingerprint}."
                )
            if state.batch_size != self.state.batch_size:
                raise ValueError(
                    f"An update of {str(folder)!r} was of {state.batch_size} sequences, and one of this run is of "
                    f"{self.state.batch_size}: steps and epochs would not be the same. With other processes set "
                    "--per_device_train_batch_size or --gradient_accumulation_steps to match, or begin anew at that "
                    "model: --model_name_or_path."
                )
            if self.accelerator.scaler is not None and not (folder / "scaler.pt").is_file():
                raise ValueError(
                    f"`mixed_precision` fp16 goes on with the gradients' scale of a checkpoint, and {str(folder)!r} "
                    "was not trained in fp16. Resume as it was, or begin anew at that model: --model_name_or_path."
                )
            self.accelerator.load_state(folder)
        for group, options, own in zip(self.optimizer.param_groups, said, names, strict=True):
            if group.keys() != own:
                raise ValueError(f"`optim` {self.args.optim} is not the optimizer of the checkpoint {str(folder)!r}.")
            group.update(options)
        reason = None
        ours = self.state.judged_by
        if not self.is_judged_alike(state):
            reason = f"judged otherwise, by {state.judged_by}, where this run is by {ours}"
        elif not (self.output_dir / f"checkpoint-{state.best_step}").is_dir():
            reason = "deleted"
        elif self.args.eval_strategy == "no" and not self.is_at_its_end(state):
            reason = "followed by no evaluation (`eval_strategy` no)"
        if state.best_step is not None and reason and self.is_at_its_end(state):
            raise ValueError(
                f"The run of {str(folder)!r} is at its end, and its best model, `checkpoint-{state.best_step}`, is "
                f"{reason}: there is nothing to go on with. Measure what it left by scripts/evaluate.py."
            )
        if state.best_step is not None and reason:
            logger.warning("the best model up to %s is %s: the best one from here on is taken", folder, reason)
            state.best_step, state.best_metric, state.evaluations_without_improvement = None, math.inf, 0
        state.judged_by = ours
        self.state = state
        # What was over stays over; what the arguments take away, or ask for first now, is theirs.
        state.aggressive = self.args.aggressive and (state.aggressive or state.encoder_updates == 0)
        state.rate_multiplier *= self.args.minimum_rate > 0
        state.lr_decays *= self.args.lr_scheduler_type == "reduce_lr_on_plateau"
        logger.info("going on from %s", folder)
        if self.accelerator.is_main_process:
            for name in ("metrics.jsonl", "samples.jsonl"):
                path = self.output_dir / name
                # Not `splitlines`: a text may hold other ends of lines.
                lines = path.read_text("utf-8", errors="replace").split("\n") if path.exists() else []
                path.write_text("".join(f"{line}\n" for line in lines if _step_of(line) <= state.step), "utf-8")

    @contextlib.contextmanager
    def handle_signals(self):
        """Turn the first SIGINT or SIGTERM into a wish that the loop grants after the update; a second one kills."""
        if threading.current_thread() is not threading.main_thread():  # which alone hears of signals
            yield
            return

        def wish(number, frame):
            self.stop_signal = number
            for kept, handler in previous.items():
                signal.signal(kept, handler)

        previous = {number: signal.signal(number, wish) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def progress_bar(self):
        return tqdm(
            total=self.total_steps,
            initial=self.state.step,
            desc="Training",
            disable=not self.accelerator.is_local_main_process,
            dynamic_ncols=True,
        )


@contextlib.contextmanager
def without_gradient(parameters: Iterable[nn.Parameter]):
    """In here none of these parameters has a gradient; those that had none before have none afterwards either."""
    frozen = [parameter for parameter in parameters if parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _step_of(line: str) -> float:
    """Of a line of metrics.jsonl or samples.jsonl; infinite where a crash or a full disk has cut it off."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf
