"""Asks a server for predictions of one image, over 16 connections. `load.py PORT PATH SIDE REQUESTS` prints failures.

Each connection sends the next request when the last one is answered.
"""

import asyncio
import json
import sys

import uvloop

CONNECTIONS = 16


def request(path: str, side: int) -> bytes:
    pixels = bytes(side * side)
    given = {"name": "images", "datatype": "UINT8", "shape": [1, side, side, 1]}
    document = {
        "inputs": [given | {"parameters": {"binary_data_size": len(pixels)}}],
        "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}],
    }
    header = json.dumps(document).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Inference-Header-Content-Length: {len(header)}",
        f"Content-Length: {len(header) + len(pixels)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + header + pixels


async def main(port: int, path: str, side: int, requests: int) -> int:
    """Return the number of requests without an answer."""
    left, failures, asked = requests, 0, request(path, side)

    async def ask() -> None:
        nonlocal left, failures
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while left > 0:
            left -= 1
            writer.write(asked)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]))
            failures += not head.startswith(b"http/1.1 200 ")
        writer.close()

    await asyncio.gather(*(ask() for _ in range(CONNECTIONS)))
    return failures


if __name__ == "__main__":
    print(uvloop.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
