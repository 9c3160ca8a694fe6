"""Metrics of latent-variable sequence models. A model is known here by five methods only: `encode`, `prior`,
`log_importance_weights`, `evaluation_terms` and `generate`."""
