"""A device behind a bad network: `python network.py SECONDS LOSS BITS COMMAND...` runs the command at its other end.

Two network namespaces are made, with a TUN device in each. Every packet of a connection between them is late by this
many seconds, lost with this probability, and waits for the ones before it at this many bits a second. So does
`tc netem`, which many kernels lack. Where root is missing, a user namespace stands in for it.
"""

import ctypes
import fcntl
import heapq
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import BinaryIO

HERE, THERE, PORT = "10.77.0.1", "10.77.0.2", 7777
TUNSETIFF, TUN, NO_INFORMATION = 0x400454CA, 1, 0x1000
MOST = 1 << 16
WAITING = 1000
"""Packets that wait for a line; another one is lost."""
CLOSING = 5.0


def alone() -> list[str]:
    """The words before a command that give it a network of its own."""
    return ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-rn"]


def trouble() -> str:
    """Why there can be no such network here; empty where there can."""
    try:
        done = subprocess.run([*alone(), sys.executable, __file__, "try"], capture_output=True, text=True, timeout=20)
    except OSError as error:
        return str(error)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def device(here: str, there: str) -> int:
    """A TUN device from the first address to the second; its file."""
    file = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", b"bad", TUN | NO_INFORMATION))
    subprocess.run(["ip", "addr", "add", here, "peer", there, "dev", "bad"], check=True)
    subprocess.run(["ip", "link", "set", "bad", "up"], check=True)
    return file


class Line:
    """One direction: packets and when they arrive."""

    def __init__(self, sink: int, delay: float, loss: float, bits: float, seed: int) -> None:
        self.sink, self.delay, self.loss, self.bits = sink, delay, loss, bits
        self.rng = random.Random(seed)
        self.free = 0.0
        self.packets: list[tuple[float, int, bytes]] = []
        self.count = self.lost = 0

    def take(self, packet: bytes, now: float) -> None:
        self.count += 1
        if self.rng.random() < self.loss or len(self.packets) > WAITING:
            self.lost += 1
            return
        self.free = max(self.free, now) + 8 * len(packet) / self.bits
        heapq.heappush(self.packets, (self.free + self.delay, self.count, packet))

    def give(self, now: float) -> float:
        """Hand on what has arrived; seconds until the next."""
        while self.packets and self.packets[0][0] <= now:
            os.write(self.sink, heapq.heappop(self.packets)[2])
        return self.packets[0][0] - now if self.packets else 1.0


def relay(one: int, other: int, delay: float, loss: float, bits: float) -> None:
    """Carry packets for ever."""
    lines = {one: Line(other, delay, loss, bits, 1), other: Line(one, delay, loss, bits, 2)}
    while True:
        wait = min(line.give(time.monotonic()) for line in lines.values())
        for file in select.select(list(lines), [], [], max(0.0, wait))[0]:
            lines[file].take(os.read(file, MOST), time.monotonic())


def serve(channel: socket.socket, command: list[str]) -> int:
    """The other end: its device goes to the relay, and the command gets the first connection."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # as the parent ends
    file = device(THERE, HERE)
    with socket.create_server((THERE, PORT)) as server:
        socket.send_fds(channel, [b"ready"], [file])
        os.close(file)
        connection, _ = server.accept()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin and process.stdout
        threading.Thread(target=pump, args=(connection.fileno(), process.stdin), daemon=True).start()
        while chunk := process.stdout.read(MOST):
            connection.sendall(chunk)
    connection.close()
    return process.returncode


def pump(source: int, sink: BinaryIO) -> None:
    """What comes in goes on, until it ends."""
    with suppress(OSError), sink:
        while chunk := os.read(source, MOST):
            view = memoryview(chunk)
            while view:
                view = view[sink.write(view) :]


def main(delay: float, loss: float, bits: float, command: list[str]) -> int:
    mine = device(HERE, THERE)
    channel, other = socket.socketpair()
    server = subprocess.Popen(
        ["unshare", "-n", sys.executable, __file__, "serve", str(other.fileno()), *command], pass_fds=[other.fileno()]
    )
    other.close()
    _, (theirs,), _, _ = socket.recv_fds(channel, 5, 1)
    threading.Thread(target=relay, args=(mine, theirs, delay, loss, bits), daemon=True).start()
    connection = socket.create_connection((THERE, PORT))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=send, args=(connection,), daemon=True).start()
    pump(connection.fileno(), os.fdopen(1, "wb", buffering=0))
    return server.wait(CLOSING)


def send(connection: socket.socket) -> None:
    """What comes in goes to the other end, until it ends."""
    while chunk := os.read(0, MOST):
        connection.sendall(chunk)
    connection.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["try"]:
            device(HERE, THERE)
        case ["serve", file, *words]:
            sys.exit(serve(socket.socket(fileno=int(file)), words))
        case ["inside", delay, loss, bits, *words]:
            sys.exit(main(float(delay), float(loss), float(bits), words))
        case words:
            os.execvp("unshare", [*alone(), sys.executable, __file__, "inside", *words])
