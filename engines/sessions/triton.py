"""A model on a Triton server, over HTTP: KServe's protocol, version 2, with binary tensors.

It uses only the standard library, and keeps one connection, because a session runs one call at a time. The server's answers are
checked before they are used. Source of the protocol: KServe's "Open Inference Protocol" and Triton's extensions for binary
tensor data and model configuration.
"""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np

from convnextpose.errors import ModelError, RuntimeUnavailableError
from convnextpose.files import MAX_JSON_BYTES, parse_json, show
from engines.session import Arrays, ArraySpec, SessionDescription
from engines.sessions.base import LockedSession

SCHEME = "triton://"
CONNECT_TIME_S, ANSWER_TIME_S = 5.0, 60.0

TYPES = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "INT8": "int8",
    "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip
"""The protocol's names of types, and numpy's."""

_NAMES = {ours: theirs for theirs, ours in TYPES.items()}
_ADDRESS = re.compile(rf"{SCHEME}(\[[0-9A-Fa-f:.]+\]|[^/:\[\]@?#]+):(\d+)/([^/?#]+)")
_LENGTH = "Inference-Header-Content-Length"


def is_served(runtime: str) -> bool:
    """Whether a runtime is the address of a model on a server."""
    return runtime.startswith(SCHEME)


@dataclass(frozen=True)
class ServedAddress:
    """The address of a served model.

    Attributes:
        host, port: the server's, for HTTP.
        name: the model's name.
    """

    host: str
    port: int
    name: str

    @classmethod
    def parse(cls, text: str) -> ServedAddress:
        """Read `triton://HOST:PORT/NAME`, an IPv6 address in brackets.

        Raises:
            RuntimeUnavailableError: it is not such an address.
        """
        found = _ADDRESS.fullmatch(text)
        if found is None or not 0 < int(found[2]) < 65536:
            raise RuntimeUnavailableError(
                f"expected a served model as {SCHEME}HOST:PORT/NAME, such as {SCHEME}127.0.0.1:8000/xs, received {show(text)}"
            )
        return cls(found[1].strip("[]"), int(found[2]), found[3])

    def __str__(self) -> str:
        """The address as it was given."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{SCHEME}{host}:{self.port}/{self.name}"


class TritonSession(LockedSession):
    """Runs a model on a Triton server.

    Args:
        address: the model's address.

    Attributes:
        parameters: the parameters in the model's configuration, by name.

    Raises:
        RuntimeUnavailableError: there is no server, or it has no such model ready.
        ModelError: its answers do not follow the protocol.
    """

    def __init__(self, address: ServedAddress) -> None:
        self._address = address
        self._connection = http.client.HTTPConnection(address.host, address.port, timeout=CONNECT_TIME_S)
        self._path = f"/v2/models/{quote(address.name, safe='')}"
        try:
            server, found, config = (self._ask(path) for path in ("/v2", self._path, f"{self._path}/config"))
            inputs, outputs = (tuple(_spec(tensor) for tensor in found[side]) for side in ("inputs", "outputs"))
            self.parameters = {str(key): str(value["string_value"]) for key, value in (config.get("parameters") or {}).items()}
            self._most = max(1, int(config.get("max_batch_size") or 1))
            version = show(server["version"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, ModelError):
                raise
            raise self._strange(f"its answer lacks a field or has a wrong value: {error}") from error
        description = SessionDescription("triton", version, f"{address.host}:{address.port}", "served", 1)
        super().__init__(f"model {address.name} of {address}", inputs, outputs, description)

    def described(self, precision: str) -> None:
        """Set the precision of the served model."""
        known = self._description
        self._description = SessionDescription(known.name, known.version, known.device, precision, known.threads)

    def _infer(self, arrays: Arrays, count: int) -> Arrays:
        parts = []
        for start in range(0, count, self._most):
            part = {name: array[start : start + self._most] for name, array in arrays.items()}
            parts.append(self._infer_part(part, min(self._most, count - start)))
        return {spec.name: np.concatenate([part[spec.name] for part in parts]) for spec in self._outputs}

    def _infer_part(self, arrays: Arrays, count: int) -> Arrays:
        data = [
            np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes() for array in arrays.values()
        ]
        head = json.dumps(
            {
                "inputs": [
                    {
                        "name": name,
                        "shape": list(array.shape),
                        "datatype": _NAMES[array.dtype.name],
                        "parameters": {"binary_data_size": array.nbytes},
                    }
                    for name, array in arrays.items()
                ],
                "outputs": [{"name": spec.name, "parameters": {"binary_data": True}} for spec in self._outputs],
            }
        ).encode()
        headers = {_LENGTH: str(len(head)), "Content-Type": "application/octet-stream"}
        most = MAX_JSON_BYTES + sum(_bytes_of(spec, count) for spec in self._outputs)
        answer, length = self._request("POST", f"{self._path}/infer", b"".join([head, *data]), headers, most)
        try:
            found = parse_json(answer[:length])
            return self._arrays(found["outputs"], memoryview(answer)[length:], count)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, ModelError):
                raise
            raise self._strange(f"its answer lacks a field or has a wrong value: {error}") from error

    def _arrays(self, outputs: list[dict[str, Any]], data: memoryview, count: int) -> Arrays:
        arrays: Arrays = {}
        at = 0
        for output in outputs:
            size = int(output["parameters"]["binary_data_size"])
            spec = next((spec for spec in self._outputs if spec.name == output["name"]), None)
            if spec is not None:
                shape = tuple(int(length) for length in output["shape"])
                received = ArraySpec(spec.name, TYPES.get(output["datatype"], "unknown"), shape)
                if not spec.fits(received) or shape[0] != count or size != _bytes_of(received, count) or at + size > len(data):
                    raise self._strange(f"expected {count} of {spec}, received {received} in {size} bytes")
                numbers = np.frombuffer(data[at : at + size], np.dtype(spec.dtype).newbyteorder("<"))
                arrays[spec.name] = numbers.reshape(shape).astype(spec.dtype)  # in its own memory
            at += size
        if missing := [spec.name for spec in self._outputs if spec.name not in arrays]:
            raise self._strange(f"it has no {', '.join(missing)}")
        return arrays

    def _ask(self, path: str) -> dict[str, Any]:
        answer, _ = self._request("GET", path, None, {}, MAX_JSON_BYTES)
        found = parse_json(answer)
        if not isinstance(found, dict):
            raise self._strange(f"expected a JSON object from {path}")
        return found

    def _request(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], most: int) -> tuple[bytes, int]:
        """The body of the answer and the length of its JSON part. If the server has closed the connection, it is opened
        again."""
        for attempt in (1, 2):
            fresh = self._connection.sock is None
            try:
                self._connection.request(method, path, body, dict(headers))
                if self._connection.sock is not None:
                    self._connection.sock.settimeout(ANSWER_TIME_S)
                response = self._connection.getresponse()
                answer = response.read(most + 1)
                break
            except TimeoutError as error:
                self._connection.close()
                raise RuntimeUnavailableError(
                    f"expected an answer from {self._address} in time, received none: is it overloaded?"
                ) from error
            except (http.client.HTTPException, OSError) as error:
                self._connection.close()
                if attempt == 1 and not fresh:
                    continue
                reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
                raise RuntimeUnavailableError(
                    f"expected a Triton server with HTTP at {self._address.host}:{self._address.port}, but it cannot be "
                    f"reached: {reason}"
                ) from error
        if len(answer) > most:
            self._connection.close()
            raise self._strange(f"its answer is longer than {most} bytes")
        if response.status != 200:
            raise RuntimeUnavailableError(
                f"the server at {self._address.host}:{self._address.port} refuses {show(self._address.name)}: "
                f"{_words(answer, response.status)}"
            )
        length = response.getheader(_LENGTH)
        return answer, int(length) if length is not None and length.isdigit() else len(answer)

    def _strange(self, what: str) -> ModelError:
        return ModelError(f"{self._address} does not follow Triton's protocol: {what}")

    def _release(self) -> None:
        self._connection.close()


def _spec(tensor: Mapping[str, Any]) -> ArraySpec:
    shape = tuple(None if int(length) < 0 else int(length) for length in tensor["shape"])
    return ArraySpec(str(tensor["name"]), TYPES[tensor["datatype"]], shape)


def _bytes_of(spec: ArraySpec, count: int) -> int:
    size = np.dtype(spec.dtype).itemsize * count
    for length in spec.shape[1:]:
        size *= length or 1
    return size


def _words(answer: bytes, status: int) -> str:
    try:
        return show(parse_json(answer)["error"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP status {status}"
