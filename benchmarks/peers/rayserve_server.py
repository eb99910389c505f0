"""Ray Serve: batches of 16 within 2 ms as in its documents, or none; the classifier in two replicas of one thread, as ours.

python benchmarks/peers/rayserve_server.py echo|minilm FOLDER PORT BATCH
"""

import signal
import sys
import threading

import ray
from ray import serve
from starlette.responses import JSONResponse

kind, folder, port, batch = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
replicas = 1 if kind == "echo" else 2


@serve.deployment(
    num_replicas=replicas, ray_actor_options={"num_cpus": 1}, max_ongoing_requests=64, max_queued_requests=-1
)
class Model:
    def __init__(self):
        from classifier import Classifier

        self.model = Classifier(folder) if kind == "minilm" else None

    def predict(self, bodies):
        return bodies if self.model is None else self.model.predict([body["text"] for body in bodies])

    @serve.batch(max_batch_size=max(2, batch), batch_wait_timeout_s=0.002)
    async def batched(self, bodies):
        return self.predict(bodies)

    async def __call__(self, request):
        body = await request.json()
        return JSONResponse(await self.batched(body) if batch > 1 else self.predict([body])[0])


if __name__ == "__main__":
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    ray.init(num_cpus=replicas, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Model.bind(), route_prefix="/predict", logging_config={"enable_access_log": False})
    stop.wait()
    serve.shutdown()
    ray.shutdown()
