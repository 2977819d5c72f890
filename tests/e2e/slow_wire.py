"""A slow, lossy wire between two network namespaces, as one process: two TUN devices and a queue.

Stands in for ``tc netem`` on kernels that were built without it. Each packet waits until those
before it are on the air, takes its own time there, and arrives half a round trip later, unless it
is lost. Run as root: ``python slow_wire.py NS_A IP_A NS_B IP_B RATE RTT LOSS``; bit/s, s, share.
It prints one line when both ends are up.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import sys
import time

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
LONGEST_QUEUE = 1000
"""Packets; as many as netem keeps."""


def open_end(name: str, namespace: str, address: str) -> int:
    """A TUN device in a namespace; what the kernel sends through it is read here."""
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
    subprocess.run(["ip", "link", "set", name, "netns", namespace], check=True)
    for words in (["addr", "add", f"{address}/30", "dev", name], ["link", "set", name, "up"]):
        subprocess.run(["ip", "-n", namespace, *words], check=True)
    return end


def relay(ends: list[int], rate: float, delay: float, loss: float) -> None:
    """Carry packets both ways for ever."""
    chance = random.Random(1)
    free_at = [0.0, 0.0]
    under_way: list[tuple[float, int, int, bytes]] = []
    number = 0
    while True:
        now = time.monotonic()
        while under_way and under_way[0][0] <= now:
            _, _, to, packet = heapq.heappop(under_way)
            try:
                os.write(ends[to], packet)
            except OSError:
                continue  # the other end is down: the packet is lost
        wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        for end in select.select(ends, [], [], wait)[0]:
            packet = os.read(end, 1 << 16)
            way = ends.index(end)
            now = time.monotonic()
            free_at[way] = max(free_at[way], now) + 8 * len(packet) / rate
            if chance.random() >= loss and len(under_way) < LONGEST_QUEUE:
                number += 1
                heapq.heappush(under_way, (free_at[way] + delay, number, 1 - way, packet))


def main() -> None:
    """Open both ends and carry packets until killed."""
    near, near_address, far, far_address = sys.argv[1:5]
    rate, round_trip, loss = (float(word) for word in sys.argv[5:8])
    unique = os.getpid()
    ends = [open_end(f"a{unique}", near, near_address), open_end(f"b{unique}", far, far_address)]
    print("up", flush=True)
    relay(ends, rate, round_trip / 2, loss)


if __name__ == "__main__":
    main()
