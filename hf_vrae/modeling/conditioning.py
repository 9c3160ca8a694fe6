"""Conditions c, what a sequence stands under: labels, real-valued attributes, a vector from anywhere, made one vector.

A part that is missing is told apart from every value by a vector of its own, so that c is there for every sequence.

Letters in shapes: B batch, L labels, A attributes, V numbers of a given vector, C dimensions of c.
"""

import operator

import torch
from torch import nn

from .kernels import float_dtype, weights_of

MISSING = -100  # a label that is not there; an attribute or a number of a vector is NaN then


class ConditionEmbedding(nn.Module):
    """c = [embedding of each label; of all attributes; of a vector], of `config.condition_embedding_size` each."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.names = config.condition_labels or {}
        size, attributes = config.condition_embedding_size, config.condition_attributes or []
        # Behind the values of a label the vector for none.
        self.labels = nn.ModuleList(nn.Embedding(len(values) + 1, size) for values in self.names.values())
        # Beside each number whether it is missing.
        self.attributes = nn.Linear(2 * len(attributes), size, bias=False) if attributes else None
        self.vector = nn.Linear(config.condition_size + 1, size, bias=False) if config.condition_size else None

    def forward(
        self,
        class_ids: torch.LongTensor | None = None,
        attributes: torch.FloatTensor | None = None,
        condition: torch.FloatTensor | None = None,
    ) -> torch.Tensor:
        """c of what is given, [B, C]; of nothing, [C].

        In training each row loses all of it with probability `config.condition_dropout` (Ho & Salimans 2022).

        Args:
            class_ids: ids, [B, L], or of one label [B]; -100 where missing.
            attributes: in their own units, [B, A]; NaN where missing.
            condition: [B, V]; a row with a NaN is missing.
        """
        parts = self._checked(class_ids, attributes, condition)
        rows = max((len(part) for part in parts if part is not None), default=1)
        class_ids, attributes, condition = parts
        device, dtype = next(weights_of(self)).device, float_dtype(self)
        lost = torch.zeros(rows, 1, dtype=torch.bool, device=device)
        if self.training and self.config.condition_dropout:
            lost = torch.rand(rows, 1, device=device) < self.config.condition_dropout
        embedded = []
        for i, table in enumerate(self.labels):
            none = table.num_embeddings - 1
            ids = torch.full_like(lost, none, dtype=torch.long) if class_ids is None else class_ids[:, i : i + 1]
            embedded.append(table(ids.masked_fill((ids == MISSING) | lost, none)).squeeze(1))
        if self.attributes is not None:
            embedded.append(self.attributes(self._attribute_features(attributes, lost).to(dtype)))
        if self.vector is not None:
            embedded.append(self.vector(self._vector_features(condition, lost).to(dtype)))
        c = torch.cat(embedded, dim=-1)  # [B, C]
        return c[0] if all(part is None for part in parts) else c

    def _attribute_features(self, attributes: torch.Tensor | None, lost: torch.Tensor) -> torch.Tensor:
        count = len(self.config.condition_attributes)
        if attributes is None:
            attributes = lost.new_full((len(lost), count), torch.nan, dtype=torch.float32)
        attributes = attributes.to(torch.promote_types(attributes.dtype, torch.float32))  # an integer's mean is none
        if self.config.attribute_mean is not None:
            attributes = attributes - attributes.new_tensor(self.config.attribute_mean)
        if self.config.attribute_scale is not None:
            attributes = attributes / attributes.new_tensor(self.config.attribute_scale)
        missing = attributes.isnan() | lost
        return torch.cat([attributes.masked_fill(missing, 0), missing.to(attributes.dtype)], dim=-1)  # [B, 2 A]

    def _vector_features(self, vector: torch.Tensor | None, lost: torch.Tensor) -> torch.Tensor:
        if vector is None:
            vector = lost.new_full((len(lost), self.config.condition_size), torch.nan, dtype=torch.float32)
        missing = vector.isnan().any(-1, keepdim=True) | lost
        return torch.cat([vector.masked_fill(missing, 0), missing.to(vector.dtype)], dim=-1)  # [B, V + 1]

    def _checked(self, class_ids, attributes, condition) -> list[torch.Tensor | None]:
        """The three on the model's device, two-dimensional, and as the configuration says."""
        config, device = self.config, next(weights_of(self)).device
        for name, values in (("class_ids", class_ids), ("attributes", attributes), ("condition", condition)):
            if values is not None and not isinstance(values, torch.Tensor):
                raise ValueError(
                    f"`{name}` must be a tensor, got {type(values).__name__}. Use `torch.tensor({name})`."
                )
        if class_ids is not None and class_ids.dim() == 1:
            class_ids = class_ids.unsqueeze(1)
        given = {
            "class_ids": (class_ids, len(self.names), "`condition_labels`"),
            "attributes": (attributes, len(config.condition_attributes or ()), "`condition_attributes`"),
            "condition": (condition, config.condition_size, "`condition_size`"),
        }
        for name, (tensor, width, said) in given.items():
            if tensor is not None and (tensor.dim() != 2 or tensor.shape[1] != width or width == 0):
                raise ValueError(
                    f"`{name}` must be [batch, {width}] for the model's {said}, got {list(tensor.shape)}."
                )
        rows = {name: len(tensor) for name, (tensor, _, _) in given.items() if tensor is not None}
        if len(set(rows.values()) - {1}) > 1:
            raise ValueError(f"All parts of a condition must have as many rows, or one for all; got {rows}.")
        for name in ("attributes", "condition"):
            values = given[name][0]
            if values is not None and values.device.type == "cpu" and not torch.compiler.is_compiling():
                if values.isinf().any():
                    raise ValueError(f"`{name}` must be finite, or NaN where missing.")
        if class_ids is not None:
            check_label_ids(class_ids, self.names)
        most = max(rows.values(), default=1)
        return [None if tensor is None else tensor.to(device).expand(most, -1) for tensor, _, _ in given.values()]


def check_label_ids(ids: torch.LongTensor, names: dict[str, list[str]]) -> None:
    """Name the id [B, L] that is of no value. Not on an accelerator, where to look would cost a synchronisation."""
    if ids.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if ids.is_floating_point() or ids.is_complex():
        raise ValueError(f"`class_ids` must be integers, -100 where missing; got {ids.dtype}.")
    for column, (name, values) in zip(ids.unbind(1), names.items(), strict=True):
        wrong = column[(column != MISSING) & ((column < 0) | (column >= len(values)))]
        if wrong.numel():
            raise ValueError(
                f"Label {name!r} has the ids 0 to {len(values) - 1}, {_listed(values)}, and -100 where it is missing; "
                f"got {wrong[0].item()}."
            )


def label_ids(labels, names: dict[str, list[str]]) -> torch.LongTensor:
    """What a caller says of labels as ids, [B, L], of one row where all is said once; -100 where nothing is said.

    Args:
        labels: a value, by name (a string) or id, or one per row; of several labels a dictionary of these.
        names: of each label's values, `config.condition_labels`.

    Raises:
        ValueError: for an unknown label, name or id, naming those there are.
    """
    if not isinstance(labels, dict):
        if len(names) != 1:
            raise ValueError(
                f"`labels` must be a dictionary where there are several labels, {list(names)}; got {labels!r}."
            )
        labels = {next(iter(names)): labels}
    if unknown := sorted(map(str, labels.keys() - names.keys())):
        raise ValueError(f"`labels` must be of {list(names)}, got {unknown[0]!r}.")
    columns = []
    for name, values in names.items():
        said = labels.get(name, MISSING)
        said = said.tolist() if isinstance(said, torch.Tensor) else said
        rows = said if isinstance(said, (list, tuple)) else [said]
        columns.append(torch.tensor([_label_id(name, value, values) for value in rows]))
    rows = max(len(column) for column in columns)
    if wrong := [len(column) for column in columns if len(column) not in (1, rows)]:
        raise ValueError(f"`labels` must say one value for all rows, or one per row; got {wrong[0]} and {rows}.")
    ids = torch.stack([column.expand(rows) for column in columns], dim=1)  # [B, L]
    check_label_ids(ids, names)
    return ids


def _label_id(name: str, value: str | int, values: list[str]) -> int:
    if not isinstance(value, str):
        try:
            return operator.index(value)
        except TypeError as error:
            raise ValueError(
                f"A value of label {name!r} must be a name or an id, of several rows a list; got {value!r}."
            ) from error
    if value not in values:
        raise ValueError(f"Label {name!r} has the values {_listed(values)}; got {value!r}.")
    return values.index(value)


def _listed(values: list[str]) -> str:
    return ", ".join(values[:20]) + (", ..." if len(values) > 20 else "")


def join(latents: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
    """[z; c], [..., B, D + C], of z [..., B, D] and c [B, C] or [C]; z itself where there is no c."""
    if condition is None:
        return latents
    if condition.dim() == 2 and len(condition) not in (1, latents.shape[-2]):
        raise ValueError(
            f"There must be one condition, or one per row of the {latents.shape[-2]}; got {len(condition)} of them."
        )
    return torch.cat([latents, condition.to(latents.dtype).expand(*latents.shape[:-1], -1)], dim=-1)


__all__ = ["ConditionEmbedding", "check_label_ids", "join", "label_ids"]
