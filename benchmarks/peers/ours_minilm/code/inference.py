"""The MiniLM classifier for `windlass.runtime.server`."""

import json
import os

from classifier import Classifier


def model_fn(model_dir):
    return Classifier(os.environ["FOLDER"])


def input_fn(body, content_type):
    return json.loads(body)["text"]


def predict_batch_fn(texts, model):
    return model.predict(texts)


def output_fn(scores, accept):
    return json.dumps(scores)
