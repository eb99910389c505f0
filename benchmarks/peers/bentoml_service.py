"""BentoML with its adaptive batching of up to 16; the classifier in two workers of one thread, as ours.

KIND=echo|minilm FOLDER=... bentoml serve bentoml_service:Service --port PORT
"""

import os
from typing import Any

import bentoml

if os.environ["KIND"] == "echo":

    @bentoml.service(workers=1, logging={"access": {"enabled": False}}, traffic={"timeout": 60})
    class Service:
        @bentoml.api(batchable=True, max_batch_size=16, max_latency_ms=60_000)
        def predict(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return inputs

else:
    from classifier import Classifier

    @bentoml.service(workers=2, logging={"access": {"enabled": False}}, traffic={"timeout": 60})
    class Service:
        def __init__(self) -> None:
            self.model = Classifier(os.environ["FOLDER"])

        @bentoml.api(batchable=True, max_batch_size=16, max_latency_ms=60_000)
        def predict(self, inputs: list[str]) -> list[list[float]]:
            return self.model.predict(inputs)
