"""LitServe, batching 16 within 2 ms as its documents show; the classifier in two workers of one thread, as ours.

python benchmarks/peers/litserve_server.py echo|minilm FOLDER PORT
"""

import sys

import litserve


class Echo(litserve.LitAPI):
    def setup(self, device):
        pass

    def decode_request(self, request):
        return request

    def predict(self, bodies):
        return bodies

    def encode_response(self, output):
        return output


class MiniLm(litserve.LitAPI):
    def setup(self, device):
        from classifier import Classifier

        self.model = Classifier(sys.argv[2])

    def decode_request(self, request):
        return request["text"]

    def batch(self, inputs):
        return list(inputs)

    def predict(self, texts):
        return self.model.predict(texts)

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return output


if __name__ == "__main__":
    echo = sys.argv[1] == "echo"
    api = (Echo if echo else MiniLm)(max_batch_size=16, batch_timeout=0.002)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1 if echo else 2, fast_queue=True)
    server.run(
        host="127.0.0.1", port=int(sys.argv[3]), log_level="warning", generate_client_file=False, access_log=False
    )
