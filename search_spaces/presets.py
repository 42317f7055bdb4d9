"""Search spaces by name: ranges and starting points that are known to be sensible."""

from collections.abc import Mapping

_SPLINE: Mapping[str, object] = {"map": "depth_spline", "knots": 3, "low": -0.2, "high": 1.5}
_DEPTH: Mapping[str, object] = {**_SPLINE, "multipliers": {"low": 0.5, "high": 1.5}}

_GLOBAL: Mapping[str, object] = {"map": "global", "low": 0.0, "high": 1.5}

# De-conflicted deltas (merged by count, or disjoint) are added whole where plain ones are at 0.4:
# with these strengths one coordinate means about the same in every variant.
_WHOLE, _BEYOND = 2.5, 3.0

PRESETS: dict[str, Mapping[str, object]] = {
    "ta": {"coefficients": {**_GLOBAL, "start": ["average", 0.4]}},
    "ta-depth": {"coefficients": _DEPTH},
    "lines": {"coefficients": {"map": "lines", "low": -0.2, "high": 1.5}},
    "gated": {"coefficients": _DEPTH, "gates": {"per": ["expert", "layer"]}},
    "simplex": {"coefficients": {"map": "simplex"}},
    "swap": {"coefficients": {"map": "layer_swap"}},
    "split": {"coefficients": {"map": "split_point", "low": 0.0, "high": 1.0}},
    "pool": {"coefficients": {"map": "global", "low": -0.5, "high": 1.5, "start": "average"}},
    "mwa": {"coefficients": {"map": "metric_weighted"}},
    "wsm": {"coefficients": {"map": "decay"}},
    "model-stock": {
        "operator": "model_stock",
        "coefficients": {**_GLOBAL, "high": 2.0, "start": 1.0},
        "genes": {"blend": {"low": 0.0, "high": 1.0, "start": 1.0}},
    },
    "ties": {
        "operator": "ties",
        "coefficients": {**_GLOBAL, "high": 2.0, "start": [1.0, "average"]},
        "genes": {"density": {"low": 0.05, "high": 1.0, "start": 0.3}},
    },
    "ties-exact": {
        "operator": "ties_exact",
        "coefficients": {**_GLOBAL, "start": ["average", 1.0]},
        "genes": {
            "density": {"low": 0.05, "high": 1.0, "start": 0.3},
            "scale": {"low": 0.2, "high": 2.0, "start": 1.0},
        },
    },
    "pcb": {
        "operator": "pcb",
        "coefficients": {"map": "global", "low": 0.8, "high": 1.3, "start": 1.0},
    },
    "tsv": {
        "operator": "tsv_merge",
        "coefficients": {**_GLOBAL, "high": 2.0, "start": 1.0},
        "genes": {"strength": {"low": 0.3, "high": 3.0, "start": 1.0, "scale": "log"}},
    },
    "dare": {
        "operator": "dare",
        "coefficients": {**_GLOBAL, "start": ["average", 0.4]},
        "genes": {"drop_rate": {"low": 0.1, "high": 0.95, "start": 0.5}},
    },
    "della": {
        "operator": "della",
        "coefficients": {**_GLOBAL, "high": 2.0, "start": [1.0, "average"]},
        "genes": {
            "density": {"low": 0.15, "high": 0.85, "start": 0.7},
            "epsilon": {"low": 0.0, "high": 0.14, "start": 0.07},
        },
    },
    "breadcrumbs": {
        "operator": "breadcrumbs",
        "coefficients": {**_GLOBAL, "start": [0.4, "average"]},
        "genes": {
            "density": {"low": 0.05, "high": 0.9, "start": 0.2},
            "gamma": {"low": 0.0, "high": 0.1, "start": 0.1},
        },
    },
    "variants": {
        "coefficients": {**_SPLINE, "start": 0.4},
        "variants": [
            {"operator": "task_arithmetic"},
            {"operator": "ties", "prepare": {"density": 0.1}, "strength": _WHOLE},
            {"operator": "ties", "prepare": {"density": 0.3}, "strength": _WHOLE},
            {"operator": "pcb", "strength": _WHOLE},
            {"operator": "tsv_merge", "strength": _WHOLE},
            {"operator": "iso_c", "strength": _WHOLE},
            {"operator": "drm", "strength": _WHOLE},
            {"operator": "cabs", "strength": _BEYOND},
        ],
    },
}
"""Name -> options of `merge_space`, which the user's own override."""
