"""Metrics of latent-variable sequence models. A model is known here by its methods alone: `encode`, `prior`,
`log_importance_weights`, `evaluation_terms`, `teacher_forced`, `generate`, and `infer_labels` where it has labels."""
