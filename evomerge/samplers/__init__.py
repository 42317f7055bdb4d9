"""Search algorithms behind one ask/tell contract, one file each."""

from evomerge.datatypes import Problem

SAMPLERS: dict[str, str] = {
    "sobol": "evomerge.samplers.sobol:SobolSampler",
    "uniform": "evomerge.samplers.uniform:UniformSampler",
    "surrogate": "evomerge.samplers.surrogate.sampler:SurrogateSampler",
    "cma_es": "evomerge.samplers.cma_es:CmaEsSampler",
    "nsga2": "evomerge.samplers.nsga2:Nsga2Sampler",
    "nsga3": "evomerge.samplers.nsga3:Nsga3Sampler",
    "moead": "evomerge.samplers.moead:MoeadSampler",
    "genetic": "evomerge.samplers.genetic:GeneticSampler",
    "genome": "evomerge.samplers.genome:GenomeSampler",
    "model_swarms": "evomerge.samplers.model_swarms:ModelSwarmsSampler",
    "lorahub": "evomerge.samplers.lorahub:LorahubSampler",
    "evo_merging": "evomerge.samplers.evo_merging:EvoMergingSampler",
    "greedy": "evomerge.samplers.greedy:GreedySampler",
    "tpe": "evomerge.samplers.tpe:TpeSampler",
    "gaussian_process": "evomerge.samplers.gaussian_process:GaussianProcessSampler",
    "m2n2": "evomerge.samplers.m2n2:M2n2Sampler",
    "cycle_qd": "evomerge.samplers.cycle_qd:CycleQdSampler",
    "map_elites": "evomerge.samplers.map_elites:MapElitesSampler",
    "map": "evomerge.samplers.map.one_shot:MapSampler",
    "nested_map": "evomerge.samplers.map.nested:NestedMapSampler",
    "bayesian_map": "evomerge.samplers.map.bayesian:BayesianMapSampler",
}
"""Short name -> import path of every sampler that comes with evomerge."""


MODELLED_UP_TO = 400
"""Evaluations up to which a surrogate is worth its time: it leads the bench at 30 to 100, and its
models know no more points than that (docs/samplers.md)."""

MODELLED_DIMENSIONS = 128
"""Dimensions up to which proposals stay below some seconds."""


def auto(problem: Problem) -> tuple[str, str]:
    """Choose a sampler and its design: `(short name, reason)`.

    Noise needs no rule: the surrogate is told the standard error of every score, and CMA-ES doubles
    its population where the budget allows.
    """
    d, m, budget = len(problem.dimensions), problem.n_objectives, problem.budget
    goals = "one objective" if m == 1 else f"{m} objectives"
    if budget <= MODELLED_UP_TO and d <= MODELLED_DIMENSIONS:
        return "surrogate", (
            f"{budget} evaluations in {d} dimensions, {goals}: a surrogate on a centred design "
            "finds more with so few"
        )
    why = f"{budget} evaluations in {d} dimensions are too many for a surrogate"
    if m == 1:
        return "cma_es", f"{why}; {goals}: CMA-ES adapts its steps to the problem"
    return "m2n2", f"{why}; {goals}: M2N2 keeps merges that are good at different items or tasks"
