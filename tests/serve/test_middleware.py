"""A request whose Content-Length exceeds the limit is rejected without reading its body."""

import asyncio

from jpeft.serve.middleware import LimitBody


def test_a_declared_length_is_enough_to_refuse():
    sent = []

    async def unreachable(*arguments):
        raise AssertionError("the application was asked, or the body read")

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "headers": [(b"content-length", b"11")]}
    asyncio.run(LimitBody(unreachable, max_bytes=10)(scope, unreachable, send))
    assert sent[0]["status"] == 413 and b"at most 10 bytes" in sent[1]["body"]
