"""A small server that speaks KServe's protocol as Triton 2.51 does, for one model; and a reader of `config.pbtxt`."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

DATATYPES = {"TYPE_UINT8": "UINT8", "TYPE_FP32": "FP32"}
NUMPY = {"UINT8": np.uint8, "FP32": np.float32}
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|#[^\n]*|[^\s{}\[\],:"#]+')


def read_config(text):
    """Protobuf's text format as a dictionary of lists: every field may be repeated."""
    tokens = [token for token in _TOKEN.findall(text) if not token.startswith("#")]

    def value():
        token = tokens.pop(0)
        if token == "{":
            found = message()
            assert tokens.pop(0) == "}"
            return found
        if token.startswith('"'):
            return re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), token[1:-1]).encode("latin-1").decode()
        return int(token) if re.fullmatch(r"-?\d+", token) else {"true": True, "false": False}.get(token, token)

    def message():
        found = {}
        while tokens and tokens[0] != "}":
            name = tokens.pop(0)
            assert re.fullmatch(r"[a-z_]+", name), name
            if tokens[0] == ":":
                tokens.pop(0)
            if tokens[0] == "[":
                tokens.pop(0)
                while tokens[0] != "]":
                    found.setdefault(name, []).append(value())
                    if tokens[0] == ",":
                        tokens.pop(0)
                tokens.pop(0)
            else:
                found.setdefault(name, []).append(value())
        return found

    found = message()
    assert not tokens
    return found


class Server:
    """Serves the only model of a repository; `infer` computes its outputs from its inputs, dictionaries of arrays.

    `damage(path, body, headers)` may change the answer. `batches` are the numbers of items of the requests.
    """

    def __init__(self, folder, infer, damage=lambda path, body, headers: (body, headers)):
        self.config = read_config((folder / "config.pbtxt").read_text())
        self.name, self.infer, self.damage = folder.name, infer, damage
        self.batches, self.connections = [], 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self):
                server.connections += 1
                super().setup()

            def do_GET(self):
                self.answer(server.get(self.path))

            def do_POST(self):
                length = int(self.headers["Inference-Header-Content-Length"])
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self.answer(server.post(self.path, json.loads(body[:length]), body[length:]))

            def answer(self, found):
                status, body, headers = found
                body, headers = server.damage(self.path, body, headers)
                if body is None:  # close the connection without an answer
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.address = f"triton://127.0.0.1:{self._http.server_port}/{self.name}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._http.shutdown()
        self._http.server_close()

    def tensors(self, side):
        return [
            {"name": t["name"][0], "datatype": DATATYPES[t["data_type"][0]], "shape": [-1, *t["dims"]]}
            for t in self.config[side]
        ]

    def get(self, path):
        model = f"/v2/models/{self.name}"
        found = {
            "/v2": {"name": "triton", "version": "2.51.0", "extensions": ["binary_tensor_data"]},
            model: {"name": self.name, "inputs": self.tensors("input"), "outputs": self.tensors("output")},
            f"{model}/config": {
                "max_batch_size": self.config["max_batch_size"][0],
                "parameters": {
                    p["key"][0]: {"string_value": p["value"][0]["string_value"][0]} for p in self.config["parameters"]
                },
            },
        }.get(path)
        if found is None:
            error = f"Request for unknown model: '{path.split('/')[3]}' is not found"
            return 400, json.dumps({"error": error}).encode(), {}
        return 200, json.dumps(found).encode(), {}

    def post(self, path, head, data):
        assert path == f"/v2/models/{self.name}/infer"
        arrays, at = {}, 0
        for tensor in head["inputs"]:
            size = tensor["parameters"]["binary_data_size"]
            numbers = np.frombuffer(data[at : at + size], NUMPY[tensor["datatype"]])
            arrays[tensor["name"]] = numbers.reshape(tensor["shape"])
            at += size
        assert at == len(data)
        count = len(next(iter(arrays.values())))
        self.batches.append(count)
        if count > self.config["max_batch_size"][0]:
            return 400, json.dumps({"error": "inference request batch-size must be <= max"}).encode(), {}
        results = self.infer(arrays)
        assert all(output["parameters"] == {"binary_data": True} for output in head["outputs"])
        described, parts = [], []
        for output in self.tensors("output"):
            array = np.ascontiguousarray(results[output["name"]], NUMPY[output["datatype"]])
            described.append({**output, "shape": list(array.shape), "parameters": {"binary_data_size": array.nbytes}})
            parts.append(array.tobytes())
        text = json.dumps({"model_name": self.name, "outputs": described}).encode()
        return 200, text + b"".join(parts), {"Inference-Header-Content-Length": str(len(text))}
