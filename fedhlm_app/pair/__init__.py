"""Training a model pair of one's own: three stages, distillation, figures, a model card."""
