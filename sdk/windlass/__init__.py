"""Windlass: haul a model from a training script to a watched SageMaker endpoint, and back when it goes bad.

    import windlass as wl

    run      = wl.train("train.py", data={"train": "data/train"}, hyperparameters={"epochs": 3})
    version  = wl.register(run, model="digits", approve=True)
    endpoint = wl.deploy(version, slos=[wl.Slo.accuracy(0.95)])
    endpoint.predict({"image": pixels}).output

Names are loaded when they are used, so ``import windlass`` costs next to nothing and a CLI command loads what it needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from windlass import errors as errors
    from windlass import metrics as metrics
    from windlass import monitor as monitor
    from windlass.endpoints import Endpoint as Endpoint
    from windlass.endpoints import deploy as deploy
    from windlass.errors import WindlassError as WindlassError
    from windlass.foundation import Contract as Contract
    from windlass.gates import Policy as Policy
    from windlass.jobs import Run as Run
    from windlass.jobs import evaluate as evaluate
    from windlass.jobs import train as train
    from windlass.plans import Plan as Plan
    from windlass.predictor import Pending as Pending
    from windlass.predictor import Prediction as Prediction
    from windlass.predictor import Stream as Stream
    from windlass.progress import JobProgress as JobProgress
    from windlass.registry import ModelVersion as ModelVersion
    from windlass.registry import import_version as import_version
    from windlass.registry import register as register
    from windlass.retries import Retry as Retry
    from windlass.specs import ServeSpec as ServeSpec
    from windlass.specs import Slo as Slo
    from windlass.specs import TrainSpec as TrainSpec

_EXPORTS = {
    "Contract": "foundation",
    "Endpoint": "endpoints",
    "JobProgress": "progress",
    "ModelVersion": "registry",
    "Pending": "predictor",
    "Plan": "plans",
    "Policy": "gates",
    "Prediction": "predictor",
    "Retry": "retries",
    "Run": "jobs",
    "ServeSpec": "specs",
    "Slo": "specs",
    "Stream": "predictor",
    "TrainSpec": "specs",
    "WindlassError": "errors",
    "deploy": "endpoints",
    "errors": None,
    "evaluate": "jobs",
    "import_version": "registry",
    "metrics": None,
    "monitor": None,
    "register": "registry",
    "train": "jobs",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'windlass' has no attribute {name!r}")
    home = _EXPORTS[name]
    module = importlib.import_module(f"windlass.{home or name}")
    value = module if home is None else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
