"""Clients that hold connections open: `python slow_clients.py PORT COUNT`, until standard input ends.

A third of the clients send nothing, a third send one byte in each round, and a third request the metrics but read
nothing. A client whose connection was closed connects again in the next round. Writes a line once all have connected.
"""

import resource
import select
import socket
import sys

ROUND_S = 1.0
ESTABLISHED = 1  # of TCP_INFO


def main(port: int, count: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (count + 100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    clients = [connected(port, kind) for kind in range(count)]
    print("connected", flush=True)
    while not select.select([sys.stdin], [], [], ROUND_S)[0]:
        for kind, client in enumerate(clients):
            try:
                if kind % 3 == 1:
                    client.send(b"G")
                elif kind % 3 == 0 and client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO) != ESTABLISHED:
                    raise ConnectionResetError
            except OSError:
                client.close()
                clients[kind] = connected(port, kind)


def connected(port: int, kind: int) -> socket.socket:
    while True:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.settimeout(5)
        try:
            client.connect(("127.0.0.1", port))
            client.send(b"GET /metrics HTTP/1.1\r\n\r\n" if kind % 3 == 2 else b"")
        except OSError:
            client.close()
            continue
        return client


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
