"""All methods on the same prompts with the same seed: what `fedhlm compare` runs."""

from fedhlm_app.compare.comparison import Comparison, Plan
from fedhlm_app.compare.methods import DEFAULT_METHODS, METHODS, Method, chosen_methods

__all__ = ["DEFAULT_METHODS", "METHODS", "Comparison", "Method", "Plan", "chosen_methods"]
