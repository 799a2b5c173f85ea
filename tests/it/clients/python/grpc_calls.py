"""Makes gRPC calls that standard input orders: python grpc_calls.py PROTO.

An order is a line of words with tabs between them: channel (a name; kept open, or - for one of its own), HOST:PORT, method,
key, number (MultiGet: how often the key is named; Set: bytes of the value; else 0), login (user:password, a whole authorization that begins with Bearer, or -), deadline in
seconds, and how many calls are made at once. Each call is answered by a line: the status code, a tab, the details.
"""

import base64
import os
import pathlib
import sys
import tempfile

import grpc
from grpc_tools import protoc

proto = sys.argv[1]
out = tempfile.mkdtemp()
arguments = ["protoc", f"-I{os.path.dirname(proto)}", f"--python_out={out}", f"--grpc_python_out={out}", proto]
assert protoc.main(arguments) == 0
sys.path.insert(0, out)
import kvs2_pb2 as messages
import kvs2_pb2_grpc as services

OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
]
channels = {}
open_streams = []
# The messages of the standard services are strings and enums, so plain bytes serve.
plain = (lambda b: b, lambda b: b)


def call(channel, method, key, number, metadata, deadline):
    arguments = {"metadata": metadata, "timeout": deadline}
    api = services.Kvs2Stub(channel)
    if method == "Get":
        return api.Get.future(messages.GetRequest(key=key), **arguments)
    if method == "Set":
        return api.Set.future(messages.SetRequest(key=key, value=b"v" * number), **arguments)
    if method == "MultiGet":
        return api.MultiGet.future(messages.MultiGetRequest(keys=[key] * number), **arguments)
    if method == "Health":
        return channel.unary_unary("/grpc.health.v1.Health/Check", *plain).future(b"", **arguments)
    if method == "Watch":
        # Stays open; its first message is waited for.
        stream = channel.unary_stream("/grpc.health.v1.Health/Watch", *plain)(b"")
        assert next(stream) == b"\x08\x01", "SERVING"
        open_streams.append(stream)
        return call(channel, "Health", key, number, metadata, deadline)
    assert method == "Reflection", method
    path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
    return channel.stream_unary(path, *plain).future(iter([b"\x3a\x00"]), **arguments)


def open_channel(target):
    """To HOST:PORT, or over TLS to CA_FILE@HOST:PORT; with a certificate CA_FILE,KEY_FILE,CERTIFICATE_FILE@HOST:PORT."""
    files, _, address = target.rpartition("@")
    if not files:
        return grpc.insecure_channel(address, options=OPTIONS)
    # The authority, then the client's key and certificate.
    contents = [pathlib.Path(file).read_bytes() for file in files.split(",")]
    credentials = grpc.ssl_channel_credentials(*contents)
    return grpc.secure_channel(address, credentials, options=OPTIONS)


print("READY", flush=True)
for line in sys.stdin:
    name, target, method, key, number, login, deadline, times = line.rstrip("\n").split("\t")
    channel = channels.get(name) or open_channel(target)
    if name != "-":
        channels[name] = channel
    encoded = base64.b64encode(login.encode()).decode()
    authorization = login if login.startswith("Bearer ") else f"Basic {encoded}"
    metadata = [] if login == "-" else [("authorization", authorization)]
    calls = [
        call(channel, method, key.encode(), int(number), metadata, float(deadline)) for _ in range(int(times))
    ]
    for one in calls:
        try:
            one.result()
        except grpc.RpcError:
            pass
        print(one.code().name, (one.details() or "").replace("\n", " "), sep="\t", flush=True)
    if name == "-":
        channel.close()
