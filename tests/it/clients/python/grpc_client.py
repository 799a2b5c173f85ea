"""Talks to the gRPC API: python grpc_client.py PORT PROTO."""

import os
import sys
import tempfile

import grpc
from grpc_tools import protoc

port, proto = sys.argv[1], sys.argv[2]
out = tempfile.mkdtemp()
arguments = ["protoc", f"-I{os.path.dirname(proto)}", f"--python_out={out}", f"--grpc_python_out={out}", proto]
assert protoc.main(arguments) == 0
sys.path.insert(0, out)
import kvs2_pb2 as messages
import kvs2_pb2_grpc as services

channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.max_receive_message_length", -1)])
api = services.Kvs2Stub(channel)
binary = bytes(range(256))

reply = api.Get(messages.GetRequest(key=b"missing"), timeout=20)
assert (reply.status, reply.data) == (messages.NOT_FOUND, b""), reply
assert api.Set(messages.SetRequest(key=binary, value=binary), timeout=20).status == messages.PUBLISHED
reply = api.Get(messages.GetRequest(key=binary), timeout=20)
assert (reply.status, reply.data) == (messages.OK, binary), reply
api.Set(messages.SetRequest(key=b"empty", value=b""), timeout=20)
parts = api.MultiGet(messages.MultiGetRequest(keys=[b"empty", b"missing", binary, b"empty"]), timeout=20).parts
seen = [(part.key, part.status, part.data) for part in parts]
assert seen == [
    (b"empty", messages.OK, b""),
    (b"missing", messages.NOT_FOUND, b""),
    (binary, messages.OK, binary),
    (b"empty", messages.OK, b""),
], seen

# The standard health service: its messages are strings and enums, so plain bytes serve.
check = channel.unary_unary("/grpc.health.v1.Health/Check", lambda b: b, lambda b: b)
for service in (b"", b"kvs2.Kvs2"):
    request = b"\x0a" + bytes([len(service)]) + service if service else b""
    assert check(request, timeout=20) == b"\x08\x01", "SERVING"

# Server reflection: list_services names the API.
reflect = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", lambda b: b, lambda b: b)
listed = b"".join(reflect(iter([b"\x3a\x00"]), timeout=20))
assert b"kvs2.Kvs2" in listed and b"grpc.health.v1.Health" in listed, listed

# Too large for the topic: refused with the reason, nothing written.
if len(sys.argv) > 3:
    try:
        api.Set(messages.SetRequest(key=b"big", value=b"x" * int(sys.argv[3])), timeout=20)
        raise AssertionError("it was taken")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and "max.message.bytes" in error.details(), error
print("OK")
