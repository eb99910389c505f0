"""Serves one folder as AWS's inference containers do, for `test_toolkits`: run in the toolkits' own environment.

    python toolkit.py pytorch /opt/ml/model < requests

A request is a line of JSON, {"headers": {...}, "body": base64}; so is each answer, {"status", "content_type", "body"}. What
answers is Multi Model Server's own worker code around the toolkit's own handler: all of the container but its Java front.
"""

from __future__ import annotations

import base64
import json
import os
import struct
import sys
from typing import Any

from mms.service import Service


def handler(toolkit: str) -> Any:
    if toolkit == "pytorch":
        from sagemaker_pytorch_serving_container.handler_service import HandlerService

        return HandlerService()
    from sagemaker_huggingface_inference_toolkit.handler_service import HuggingFaceHandlerService

    return HuggingFaceHandlerService()


class Message:
    """What the worker sends to the front: lengths and bytes."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def number(self) -> int:
        (value,) = struct.unpack_from("!i", self._data, self._at)
        self._at += 4
        return int(value)

    def bytes(self) -> bytes:
        size = self.number()
        self._at += size
        return self._data[self._at - size : self._at]


def answer(message: Message) -> dict[str, Any]:
    message.number()  # of the whole batch
    message.bytes()
    message.bytes()  # the request's id
    content_type = message.bytes().decode()
    status = message.number()
    message.bytes()
    headers = {message.bytes().decode(): message.bytes().decode() for _ in range(message.number())}
    body = base64.b64encode(message.bytes()).decode()
    return {"status": status, "content_type": content_type, "headers": headers, "body": body}


def main() -> None:
    toolkit, folder = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the toolkit and the model print
    service_handler = handler(toolkit)
    service = Service("model", folder, None, service_handler.handle, None, 1)
    service_handler.initialize(service.context)
    for line in sys.stdin:
        request = json.loads(line)
        headers = [{"name": name.encode(), "value": value.encode()} for name, value in request["headers"].items()]
        content_type = request["headers"].get("Content-Type", "")
        body = {"name": "body", "value": base64.b64decode(request["body"]), "contentType": content_type}
        reply = service.predict([{"requestId": b"r-1", "headers": headers, "parameters": [body]}])
        print(json.dumps(answer(Message(bytes(reply)))), file=answers, flush=True)


if __name__ == "__main__":
    main()
