"""What a linear classifier reads off a model's latents."""

from collections.abc import Sequence

import numpy as np
import torch

from .information import encoded_batches


def representations(model, dataset, collator, batch_size: int = 64) -> np.ndarray:
    """What stands for each sequence, [N, D]: the posterior mean (of a vMF posterior its direction).

    Of one latent per step it is the mean of the posterior means over the real steps, and beside it the last one's,
    [N, 2 D].

    Args:
        model: has `encode`; it is put into evaluation mode and back.
        dataset, collator, batch_size: as in [`encode_dataset`].
    """
    parts = []
    for batch, q in encoded_batches(model, dataset, collator, batch_size):
        means = q.mode.cpu()
        if means.dim() == 3:
            # Of tokens the first, a mark, has no latent.
            real = batch["attention_mask"][:, -means.shape[1] :].bool()
            last = means[torch.arange(len(means)), real.sum(1) - 1]
            means = torch.cat([(means * real.unsqueeze(-1)).sum(1) / real.sum(1, keepdim=True), last], dim=1)
        parts.append(means.float().numpy())
    return np.concatenate(parts)


def probe(train: np.ndarray, train_labels: Sequence, test: np.ndarray, test_labels: Sequence) -> dict[str, float]:
    """Logistic regression, with the L2 penalty of scikit-learn (C = 1), from standardised representations to labels.

    Args:
        train, test: [N, D] and [M, D].
        train_labels, test_labels: N and M.

    Returns:
        `accuracy` on the test part, `majority`, that of always saying its commonest label, `num_train`, `num_test`.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise ValueError("A probe needs scikit-learn: pip install 'hf_vrae[metrics]'") from error
    train_labels, test_labels = (np.array([str(label) for label in labels]) for labels in (train_labels, test_labels))
    if len(set(train_labels)) < 2:
        raise ValueError(f"A probe needs two labels at least to tell apart, got {sorted(set(train_labels))}.")
    if not set(train_labels) & set(test_labels):
        raise ValueError(
            f"The probe has learnt the labels {sorted(set(train_labels))[:9]}, and is to be tested on others, "
            f"{sorted(set(test_labels))[:9]}."
        )
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(train, train_labels)
    _, counts = np.unique(test_labels, return_counts=True)
    return {
        "accuracy": float((classifier.predict(test) == test_labels).mean()),
        "majority": float(counts.max() / len(test_labels)),
        "num_train": len(train_labels),
        "num_test": len(test_labels),
    }
