"""Search algorithms behind one ask/tell contract, one file each."""

from evomerge.datatypes import Problem

SAMPLERS: dict[str, str] = {
    "sobol": "evomerge.samplers.sobol:SobolSampler",
    "uniform": "evomerge.samplers.uniform:UniformSampler",
    "surrogate": "evomerge.samplers.surrogate.sampler:SurrogateSampler",
    "cma_es": "evomerge.samplers.cma_es:CmaEsSampler",
    "nsga2": "evomerge.samplers.nsga2:Nsga2Sampler",
    "nsga3": "evomerge.samplers.nsga3:Nsga3Sampler",
    "genetic": "evomerge.samplers.genetic:GeneticSampler",
    "greedy": "evomerge.samplers.greedy:GreedySampler",
    "tpe": "evomerge.samplers.tpe:TpeSampler",
    "gaussian_process": "evomerge.samplers.gaussian_process:GaussianProcessSampler",
    "m2n2": "evomerge.samplers.m2n2:M2n2Sampler",
    "cycle_qd": "evomerge.samplers.cycle_qd:CycleQdSampler",
    "map_elites": "evomerge.samplers.map_elites:MapElitesSampler",
    "map": "evomerge.samplers.map.one_shot:MapSampler",
    "bayesian_map": "evomerge.samplers.map.bayesian:BayesianMapSampler",
}
"""Short name -> import path of every sampler that comes with evomerge."""


def auto(problem: Problem) -> tuple[str, str]:
    """Choose a sampler: `(short name, reason)`."""
    if problem.n_objectives == 1:
        return "cma_es", "one objective: CMA-ES adapts its steps to the problem"
    return "nsga2", f"{problem.n_objectives} objectives: NSGA-II spreads over the Pareto front"
