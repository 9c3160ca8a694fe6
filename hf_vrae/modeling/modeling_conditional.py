"""One z for the whole sequence, under a condition: p(x|z, c), q(z|x, c) and a learnt p(z|c) (Sohn et al. 2015).

    log p(x|c) >= E_q(z|x,c)[log p(x|z, c)] - KL(q(z|x, c) || p(z|c))

A single label may be missing from some rows: with `config.label_classifier` q(c|x) is learnt, and such a row is one of
p(x) = sum_c p(c) p(x|c) (Kingma et al. 2014, M2).

Letters in shapes: B batch, K samples, D latent size, C dimensions of c.
"""

import torch
from torch.distributions import Categorical

from .conditioning import MISSING, check_label_ids, join, label_ids
from .kernels import at_least_float32
from .modeling_latent import OneLatentModel, check_latents

# What a batch has of them. No name holds "label": Trainer would take that argument of `forward` for a target.
CONDITIONS = ("class_ids", "attributes", "condition")


class ConditionalModel(OneLatentModel):
    """What is [`OneLatentModel`] without a condition. A subclass has in `model` a `VRAEModel`, and gives

    - `_encoder_outputs(condition, **batch)`: the encoder's output for a batch, under c;
    - `_rows_of(target, rows)`: a target's rows, [N], by index.
    """

    def condition(self, class_ids=None, attributes=None, condition=None, labels=None, **batch) -> torch.Tensor | None:
        """c of a batch, [B, C], or where nothing is said [C]; None of a model without.

        A label that is missing, in a model with `label_classifier`, is the likeliest one of q(c|x).

        Args:
            class_ids: ids, [B] or of several labels [B, L], -100 where missing.
            attributes: [B, A], NaN where missing.
            condition: a vector, [B, V]; a row with a NaN is missing.
            labels: by name or id, as in `generate`, in place of `class_ids`. A tensor of more than one dimension is
                a batch's target.
        """
        named = None if is_target(labels) else labels
        given = {"class_ids": class_ids, "attributes": attributes, "condition": condition}
        if not self.config.condition_width:
            for name, value in (given | {"labels": named}).items():
                if value is not None:
                    raise ValueError(f"`{name}` says something to a conditional model, and this one has no condition.")
            return None
        if named is not None:
            given["class_ids"] = self.label_ids(named)
        if self.config.label_classifier:
            given["class_ids"] = self.infer_labels(given["class_ids"], **batch)
        return self.model.embed_condition(**given)

    def _check_decoded_as_is(self, *conditions: torch.Tensor | None) -> None:
        """Refuse conditions beside `encoder_outputs`, in which c is already."""
        if any(condition is not None for condition in conditions):
            raise ValueError("`encoder_outputs` are decoded as they are, c included: leave the conditions out.")

    @property
    def _names(self) -> dict[str, list[str]]:
        if not self.config.condition_labels:
            raise ValueError(
                "`labels` are of a model with `condition_labels`, which this one has not. Leave them out."
            )
        return self.config.condition_labels

    def label_ids(self, labels) -> torch.LongTensor:
        """Labels, by name or id as `generate` takes them, as `class_ids` [B, L], or [1, L] where said once."""
        return label_ids(labels, self._names)

    def infer_labels(self, class_ids: torch.LongTensor | None = None, **batch) -> torch.LongTensor:
        """Ids [B, 1] of a batch's label, and where it is missing of the likeliest one of q(c|x)."""
        if class_ids is not None:
            check_label_ids(class_ids.view(-1, 1), self._names)
            class_ids = class_ids.view(-1, 1).to(self.device)
            if not (class_ids == MISSING).any():
                return class_ids
        if all(batch.get(name) is None for name in ("input_ids", "inputs_embeds", "input_features")):
            raise ValueError(
                f"A label is missing, and there is no input to tell it from: say one of {list(self._names)} in "
                "`labels`, or in `class_ids`."
            )
        likeliest = self.classify(**batch).probs.argmax(-1)  # [B]
        known = self.known_labels(class_ids, len(likeliest))
        return torch.where(known == MISSING, likeliest, known).unsqueeze(1)

    def _prior(self, condition: torch.Tensor | None) -> torch.distributions.Distribution:
        """p(z|c), batch shape [B], or [] where all rows have the same; without a learnt one as of no condition."""
        if condition is None or not self.config.learn_prior or not self.config.latent_size:
            return super()._prior(condition)
        return self.model.conditional_prior(condition)

    def classify(self, **batch) -> Categorical:
        """q(c|x), batch shape [B], over the values of the label.

        Args:
            batch: what [`encode`] takes; its `class_ids` are not looked at.
        """
        if not self.config.label_classifier:
            raise ValueError("`classify` needs a model with `label_classifier`, which this one has not.")
        batch = {name: value for name, value in batch.items() if name not in (*CONDITIONS, "labels")}
        return self._class_posterior(self._encoder_outputs(self.model.embed_condition(), **batch).summary)

    def _class_posterior(self, summary: torch.Tensor) -> Categorical:
        return Categorical(logits=at_least_float32(self.model.classifier(summary)), validate_args=False)

    def _log_label_prior(self) -> torch.Tensor:
        """log p(c), [values]."""
        counts = [1.0] * self.config.num_labels
        return torch.tensor(self.config.label_frequencies or counts, device=self.device).log().log_softmax(0)

    def _log_joint_of(self, latents, target, posterior, class_ids=None, **batch) -> torch.Tensor:
        """As in [`OneLatentModel`]; with `label_classifier` log sum_c p(c) p(x, z_k|c) where c is missing.

        Importance weights, over q(z|x, c') of the likeliest label c', are then of log p(x): the sum over c is exact.
        """
        if not self.config.label_classifier:
            return super()._log_joint_of(latents, target, posterior, class_ids=class_ids, **batch)
        known = self.known_labels(class_ids, latents.shape[1])
        missing = known == MISSING  # [B]
        others = {name: batch.get(name) for name in ("attributes", "condition")}
        log_joint = []
        for value, log_p in enumerate(self._log_label_prior()):
            ids = torch.where(missing, value, known)
            c = self.model.embed_condition(ids, **others)
            of_value = self._log_joint(latents, target, c, self._prior_beside(posterior, c))  # [K, B]
            log_joint.append(of_value + torch.where(missing, log_p, 0))
            if not missing.any():
                break
        summed = torch.stack(log_joint)  # [values, K, B]
        return torch.where(missing, summed.logsumexp(0), summed[0])

    def known_labels(self, class_ids: torch.LongTensor | None, rows: int) -> torch.LongTensor:
        """Ids of the single label, [B], -100 where missing, of ids of each row or of one for all."""
        if class_ids is None:
            return torch.full((rows,), MISSING, device=self.device)
        check_label_ids(class_ids.view(-1, 1), self._names)
        if class_ids.numel() not in (1, rows):
            raise ValueError(
                f"`class_ids` must be one label, or one per row of the {rows}; got {class_ids.numel()} of them."
            )
        return class_ids.view(-1).to(self.device).expand(rows)

    def evaluation_terms(self, num_samples, generators=None, svi_steps=0, **batch):
        """As in [`OneLatentModel`], and with `label_classifier` `label_known` and `label_right` [B]: whether the row
        has a label, and whether that is the likeliest of q(c|x)."""
        terms = super().evaluation_terms(num_samples, generators, svi_steps, **batch)
        if self.config.label_classifier:
            known = self.known_labels(batch.get("class_ids"), len(terms["kl"]))
            right = self.classify(**batch).probs.argmax(-1) == known
            terms |= {"label_known": known != MISSING, "label_right": right}
        return terms

    def _semi_supervised_loss(self, target, class_ids=None, attributes=None, condition=None, **batch) -> dict:
        """The loss of rows with and without their label (Kingma et al. 2014, eq. 6 to 9), as the fields of an output.

            labelled    -ELBO(x, c) - log p(c) - alpha log q(c|x)
            unlabelled  sum_c q(c|x) (-ELBO(x, c) + log q(c|x) - log p(c))

        An unlabelled row costs a pass of the decoder for each value, and one of the encoder.
        """
        self._check_schedules("the loss of `label_classifier`", "learn no classifier")
        summary = self._encoder_outputs(self.model.embed_condition(), **batch).summary  # [B, H]
        known = self.known_labels(class_ids, len(summary))
        missing, values = known == MISSING, torch.arange(self.config.num_labels, device=self.device)
        wanted = missing.unsqueeze(1) | (known.unsqueeze(1) == values)
        rows, ids = wanted.nonzero(as_tuple=True)  # [N], N the labelled rows and so many times the others
        log_q = self._class_posterior(summary).logits[rows, ids]  # [N]
        log_p = self._log_label_prior()[ids]
        others = {"attributes": attributes, "condition": condition}
        others = {name: value if value is None or len(value) == 1 else value[rows] for name, value in others.items()}
        c = self.model.embed_condition(ids, **others)  # [N, C]
        posterior = self.model.encoder.distribution(*self.model.encoder.moments(summary[rows], c))
        z = posterior.rsample()
        nll = -self._log_likelihood(join(z, c).unsqueeze(0), self._rows_of(target, rows))[0]  # [N]
        kl = self._kl(posterior, self._prior_beside(posterior, c), z.unsqueeze(0))
        weight = torch.where(missing[rows], log_q.exp(), 1.0)
        of_label = torch.where(missing[rows], weight * (log_q - log_p), -log_p - self.config.classifier_weight * log_q)
        count = len(summary)
        return {
            "loss": (weight * (nll + self.kl_weight * kl) + of_label).sum() / count,
            "reconstruction_loss": (weight * nll).sum().detach() / count,
            "kl": (weight * kl).sum().detach() / count,
        }

    def _seen(self, latents: torch.Tensor, batch: dict) -> torch.Tensor:
        """What the decoder is given for z [B, D] of a batch: z, and behind it the batch's c."""
        return join(latents, self.condition(**batch))

    def _split(self, seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """z and c of what [`join`] made of them, [B, D + C]."""
        if not self.config.condition_width:
            return seen, None
        size = self.config.latent_size
        return seen[:, :size], seen[:, size:]

    def _posterior_of(self, outputs) -> torch.distributions.Distribution | None:
        """q(z|x) of the encoder's outputs; None where z was given in place of x."""
        if outputs is None or outputs.mean is None:
            return None
        return self.model.encoder.distribution(outputs.mean, outputs.logvar)

    def _without_condition(self, seen: torch.Tensor, scale: float) -> torch.Tensor:
        """What is decoded, [B, D + C], with its c missing: for guidance by `scale` away from it."""
        if not self.config.condition_dropout:
            raise ValueError(
                "`guidance_scale` needs a model that has learnt to go without its condition: train it with "
                f"`condition_dropout` above 0; got {self.config.condition_dropout}."
            )
        if scale <= 0:
            raise ValueError(f"`guidance_scale` must be above 0 (1 guides nowhere), got {scale}.")
        return join(seen[:, : self.config.latent_size], self.model.embed_condition())

    def _decoded_of(self, labels, latents: torch.Tensor | None, batch: dict, num_rows: int = 1) -> torch.Tensor:
        """What `generate` decodes: z and behind it c, [B, D + C].

        Args:
            labels: what to decode under, by name or id; what is not said here is as in the batch, or
                else inferred or missing.
            latents: z, [B, D]; by default the mode of q(z|x, c) of the batch, or where it has no input z ~ p(z|c).
            batch: the input, if any, with its own conditions.
            num_rows: so many z are drawn where one condition stands for all.
        """
        has_input = any(batch.get(name) is not None for name in ("input_ids", "inputs_embeds", "input_features"))
        if latents is None and has_input:
            latents = self.encode(**batch).mode
        labels = None if has_input and is_target(labels) else labels  # which trainers hand on
        under = {name: batch.get(name) for name in CONDITIONS}
        if labels is not None:
            wanted, own = self.label_ids(labels), under["class_ids"]
            if own is not None:
                own = own.cpu().reshape(len(own), -1)
                if own.shape[1] != wanted.shape[1] or len({len(own), len(wanted)} - {1}) > 1:
                    raise ValueError(
                        f"`class_ids` must be [batch, {wanted.shape[1]}] with a row for each of the {len(wanted)} of "
                        f"`labels`, or one for all, got {list(under['class_ids'].shape)}."
                    )
                wanted = torch.where(wanted == MISSING, own, wanted)
            under["class_ids"] = wanted
        inputs = {name: value for name, value in batch.items() if name not in CONDITIONS} if has_input else {}
        c = self.condition(**under, **inputs)
        if latents is None:
            p = self._prior(c)
            rows = len(c) if c.dim() == 2 and len(c) > 1 else num_rows
            latents = p.sample() if p.batch_shape not in ((), (1,)) else p.sample((rows,)).view(rows, -1)
        check_latents(latents, self.config.latent_size)
        if len(latents) == 1 and c.dim() == 2:  # the same z under several labels
            latents = latents.expand(len(c), -1)
        return join(latents.to(self.device), c)


def is_target(labels) -> bool:
    """Whether `labels` are what of a batch is scored, not what it stands under."""
    return isinstance(labels, torch.Tensor) and labels.dim() > 1


__all__ = ["CONDITIONS", "ConditionalModel"]
