"""Metrics of latent-variable sequence models. A model is known here by its configuration and its methods: `encode`,
`prior`, `log_importance_weights`, `evaluation_terms`, `teacher_forced`, `generate`, and `infer_labels` where it has
labels."""
