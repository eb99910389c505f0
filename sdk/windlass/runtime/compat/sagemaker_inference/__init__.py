"""What inference scripts import from AWS's `sagemaker-inference`, for environments that lack it.

    from sagemaker_inference import content_types, decoder, encoder, errors

Found at the end of ``sys.path`` by scripts that the model server runs: where the package itself is installed, it is used.
"""

from . import content_types, decoder, encoder, errors

__all__ = ["content_types", "decoder", "encoder", "errors"]
