"""Which image runs what."""

from __future__ import annotations

import pytest

from windlass import images
from windlass.errors import InvalidInput


@pytest.mark.parametrize(
    ("image", "server"),
    [
        ("763104351884.dkr.ecr.us-east-1.amazonaws.com/vllm:0.11-gpu-py312", "vLLM"),
        ("public.ecr.aws/deep-learning-containers/vllm@sha256:abc", "vLLM"),
        ("vllm/vllm-openai:latest", "vLLM"),
        ("763104351884.dkr.ecr.eu-west-1.amazonaws.com/djl-inference:0.36.0-lmi18", "DJL Serving (LMI)"),
        ("1.dkr.ecr.us-east-1.amazonaws.com/huggingface-pytorch-tgi-inference:2.7", "Text Generation Inference"),
        ("nvcr.io/nvidia/tritonserver:25.01-py3", "Triton Inference Server"),
        ("763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-inference:2.6.0-vllm", ""),
        ("localhost:5000/mine", ""),
        ("123456789012.dkr.ecr.us-east-1.amazonaws.com/denim-classifier:1", ""),
    ],
)
def test_a_vendors_image_is_told_by_its_repository(image: str, server: str) -> None:
    assert images.vendor_server(image) == server


@pytest.mark.parametrize(
    ("region", "instance_type", "image"),
    [
        ("us-east-1", "ml.m5.large", "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-inference:2.6.0-cpu-py312"),
        ("il-central-1", "ml.g5.xlarge", "780543022126.dkr.ecr.il-central-1.amazonaws.com/pytorch-inference:2.6.0-gpu"),
        ("cn-north-1", "ml.p3.2xlarge", "727897471807.dkr.ecr.cn-north-1.amazonaws.com.cn/pytorch-inference:2.6.0-gpu"),
    ],
)
def test_aws_publishes_its_images_in_an_account_of_each_region(region: str, instance_type: str, image: str) -> None:
    assert images.aws_image("inference", region, instance_type).startswith(image)


def test_a_region_that_aws_publishes_nothing_in_needs_an_image_of_ones_own() -> None:
    with pytest.raises(InvalidInput, match=r"no AWS image is known for region 'mars-1'.*image="):
        images.aws_image("inference", "mars-1", "ml.m5.large")
