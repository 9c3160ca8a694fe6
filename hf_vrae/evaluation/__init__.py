"""Metrics of latent-variable sequence models. A model is known here by four methods only: `encode`, `prior`,
`log_importance_weights` and `generate`."""
