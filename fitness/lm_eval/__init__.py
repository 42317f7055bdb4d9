"""Tasks of lm-evaluation-harness, asked of the live model: the only importer of `lm_eval`."""

from fitness.lm_eval.fitness import LmEvalFitness

__all__ = ["LmEvalFitness"]
