"""FastAPI as most write it: a plain function, which FastAPI runs in its pool of threads. No batches.

python benchmarks/peers/fastapi_threads.py echo|minilm FOLDER PORT
"""

import sys
from typing import Any

import fastapi
import uvicorn

app = fastapi.FastAPI()

if sys.argv[1] == "echo":

    @app.post("/predict")
    def predict(body: dict[str, Any]) -> dict[str, Any]:
        return body

else:
    from classifier import Classifier

    model = Classifier(sys.argv[2], streams=2)  # the pool's threads run side by side, two at a time

    @app.post("/predict")
    def predict(body: dict[str, str]) -> list[float]:
        return model.predict([body["text"]])[0]


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[3]), log_level="warning", access_log=False)
