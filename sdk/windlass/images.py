"""Container images: AWS's own for a Region, and which server a vendor's image holds. Pure.

images.aws_image("inference", "eu-west-1", "ml.m5.large")
images.vendor_server("vllm/vllm-openai:latest")  # 'vLLM'
"""

from __future__ import annotations

import re

from windlass.errors import InvalidInput

# Which account holds AWS's images, by Region, as the SageMaker SDK's image_uri_config/*.json has it. CDK's region facts lack
# ten of these Regions, and a Region without an entry could not deploy the stack at all.
_COMMON = (
    *("ap-northeast-1", "ap-northeast-2", "ap-south-1", "ap-southeast-1", "ap-southeast-2", "ca-central-1"),
    *("eu-central-1", "eu-north-1", "eu-west-1", "eu-west-2", "eu-west-3", "sa-east-1"),
    *("us-east-1", "us-east-2", "us-west-1", "us-west-2"),
)
ACCOUNTS = dict.fromkeys(_COMMON, "763104351884") | {
    "af-south-1": "626614931356",
    "ap-east-1": "871362719292",
    "ap-east-2": "975050140332",
    "ap-northeast-3": "364406365360",
    "ap-south-2": "772153158452",
    "ap-southeast-3": "907027046896",
    "ap-southeast-4": "457447274322",
    "ap-southeast-5": "550225433462",
    "ap-southeast-6": "633930458069",
    "ap-southeast-7": "590183813437",
    "ca-west-1": "204538143572",
    "cn-north-1": "727897471807",
    "cn-northwest-1": "727897471807",
    "eu-central-2": "380420809688",
    "eu-south-1": "692866216735",
    "eu-south-2": "503227376785",
    "il-central-1": "780543022126",
    "me-central-1": "914824155844",
    "me-south-1": "217643126080",
    "mx-central-1": "637423239942",
    "us-gov-east-1": "446045086412",
    "us-gov-west-1": "442386744353",
}


def aws_image(kind: str, region: str, instance_type: str) -> str:
    """AWS's PyTorch image for a region: ``kind`` is ``training`` or ``inference``.

    Raises:
        InvalidInput: AWS publishes no images there that we know of.
    """
    if region not in ACCOUNTS:
        hint = "Pass image= with one that you publish there."
        raise InvalidInput(f"no AWS image is known for region {region!r}", where="Choosing an image", hint=hint)
    family = instance_type.split(".")[1]
    device = "gpu-py312-cu124" if family.startswith(("p", "g")) else "cpu-py312"
    host = f"{ACCOUNTS[region]}.dkr.ecr.{region}.amazonaws.com" + (".cn" if region.startswith("cn-") else "")
    return f"{host}/pytorch-{kind}:2.6.0-{device}-ubuntu22.04-sagemaker"


# Servers of others, by what their repositories are called: AWS's deep learning containers and the vendors' own.
_VENDORS = {
    "vllm": "vLLM",
    "djl-inference": "DJL Serving (LMI)",
    "sglang": "SGLang",
    "tgi-inference": "Text Generation Inference",
    "text-generation-inference": "Text Generation Inference",
    "tei": "Text Embeddings Inference",
    "text-embeddings-inference": "Text Embeddings Inference",
    "tritonserver": "Triton Inference Server",
    "tensorflow-inference": "TensorFlow Serving",
    "nim": "NVIDIA NIM",
}


def vendor_server(image: str) -> str:
    """The server in a vendor's image, which reads no ``inference.py``; empty for any other image.

    >>> vendor_server("763104351884.dkr.ecr.us-east-1.amazonaws.com/vllm:0.11-gpu-py312")
    'vLLM'
    """
    named = image.partition("@")[0]
    repository = named.rpartition(":")[0] if ":" in named.rpartition("/")[2] else named
    words = "/".join(repository.split("/")[1:]) or repository
    return next((server for name, server in _VENDORS.items() if re.search(rf"(^|[/_-]){name}($|[/_-])", words)), "")
