"""TCP streams between namespaces that take turns: what two arrangements cost, also on a machine that others use.

Arrangements are compared by the median of the ratios of turns that were next to each other. Beside the speed there is
the stream's price, bits per second of CPU of everything that moves it (sender, receiver, Open vSwitch): a busy machine
takes time away from streams but hardly makes a packet dearer.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from nubila.drivers import links

SINK = """
import socket
listener = socket.create_server(("0.0.0.0", 5001))
print("listening", flush=True)
room = bytearray(1 << 20)
while True:
    peer, _ = listener.accept()
    while peer.recv_into(room):
        pass
"""
SOURCE = """
import json, socket, sys, time
peer, block = socket.create_connection((sys.argv[1], 5001), 5), bytes(1 << 18)
ends, begun, sent, used = time.monotonic() + float(sys.argv[2]), time.monotonic(), 0, time.process_time()
while time.monotonic() < ends:
    peer.sendall(block)
    sent += len(block)
print(json.dumps([sent * 8 / 1e9, time.monotonic() - begun, time.process_time() - used]))
"""


class Turn(Struct, frozen=True):
    """One turn of one arrangement."""

    speed: float  # Gbit/s
    price: float  # Gbit per second of CPU


class Stream(Struct, frozen=True):
    """Where a stream comes from and goes to, and who else moves it."""

    source: str  # namespace
    sink: str
    address: str  # of the sink
    others: tuple[int, ...]  # pids


def spawn(namespace: str, program: str, *arguments: str) -> subprocess.Popen[str]:
    """A Python program in a namespace; its output is piped."""
    with links.entered(namespace):
        return subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True)


def sink(namespace: str) -> subprocess.Popen[str]:
    """The receiving end, listening."""
    started = spawn(namespace, SINK)
    assert started.stdout is not None
    assert started.stdout.readline() == "listening\n"
    return started


def cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds that processes have used."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(f[11]) + int(f[12]) for f in fields) / os.sysconf("SC_CLK_TCK")


def turn(stream: Stream, seconds: float) -> Turn:
    """Send for so long."""
    before = cpu_s(stream.others)
    source = spawn(stream.source, SOURCE, stream.address, str(seconds))
    gbit, took, used = json.loads(source.communicate(timeout=seconds + 60)[0])
    return Turn(gbit / took, gbit / max(used + cpu_s(stream.others) - before, 0.001))


def rounds(
    streams: Mapping[str, Stream], count: int, seconds: float, say: Callable[[str], None] = print
) -> dict[str, list[Turn]]:
    """All arrangements in turns, there and back again."""
    found: dict[str, list[Turn]] = {name: [] for name in streams}
    for stream in streams.values():
        turn(stream, seconds)  # addresses are learned, caches warm
    for number in range(count):
        for name in list(streams)[:: 1 if number % 2 == 0 else -1]:
            found[name].append(turn(streams[name], seconds))
    for name, turns in found.items():
        say(f"{name}: {' '.join(f'{t.speed:.2f}' for t in turns)} Gbit/s")
    return found


def compared(mine: Sequence[Turn], base: Sequence[Turn]) -> tuple[float, float]:
    """The median of the rounds' ratios: of speed, and of what a second of CPU moves."""
    pairs = list(zip(mine, base, strict=True))
    return statistics.median(a.speed / b.speed for a, b in pairs), statistics.median(
        a.price / b.price for a, b in pairs
    )


def verdict(what: str, speed: float, price: float, goal: float) -> str:
    """One line: by speed, or where others use the machine, by CPU."""
    load = os.getloadavg()[0]
    busy = load > 2.5 * (os.cpu_count() or 1) / 2
    met = (price if busy else speed) >= goal
    how = f"{speed:.0%} of the speed, {price:.0%} of the bits for a second of CPU"
    judged = f"judged by {'CPU, the machine is busy' if busy else 'speed'} (load {load:.1f})"
    return f"{'PASS' if met else 'MISS'}: {what}: {how}; goal {goal:.0%}, {judged}"
