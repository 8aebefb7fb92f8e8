"""ddgd-ray: ablation and hyperparameter engine for diversity-driven generative dataset distillation."""

__version__ = "0.1.0"
