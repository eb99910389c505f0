"""The echo model for `windlass.runtime.server`: the body that came, with batching on."""


def model_fn(model_dir):
    return None


def input_fn(body, content_type):
    return body


def predict_batch_fn(bodies, model):
    return bodies


def output_fn(body, accept):
    return body
