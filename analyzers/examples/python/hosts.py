#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""An analyzer of captures in Python, with nothing but its standard library.

    petri analyzer exec --name hosts --kinds pcap -- python3 hosts.py {file}

It reads the pcapng file that it is given and says who the guest sent frames to:
one finding, and a result document with every pair of hosts. Findings go to
standard output, one line of JSON each; what is not for Petri goes to standard
error. It ends with 0, or with 77 if the file is not for it.
"""

import ipaddress
import json
import struct
import sys

SECTION, INTERFACE, PACKET = 0x0A0D0D0A, 1, 6
ETHERNET = 1
SKIP = 77
# What is kept of a capture that was made to be large.
MOST_PAIRS = 10_000


def blocks(f):
    """Yield the type, the byte order and the body of each block of a pcapng file."""
    order = "<"
    while len(head := f.read(8)) == 8:
        kind, length = struct.unpack(order + "II", head)
        if kind == SECTION:  # it says how numbers are written from here on
            magic = f.read(4)
            order = "<" if magic == b"\x4d\x3c\x2b\x1a" else ">"
            length = struct.unpack(order + "I", head[4:])[0] - 4
        if length < 12 or length > 16 << 20:
            raise ValueError(f"a block of {length} bytes")
        body = f.read(length - 12)
        if len(body) < length - 12:
            raise ValueError("the file ends within a block")
        f.read(4)  # the length again
        yield kind, order, body


def addresses(frame):
    """Return source and destination of a frame that carries IP, or None."""
    if len(frame) < 14:
        return None
    kind = struct.unpack(">H", frame[12:14])[0]
    if kind == 0x0800 and len(frame) >= 34:
        return ipaddress.ip_address(frame[26:30]), ipaddress.ip_address(frame[30:34])
    if kind == 0x86DD and len(frame) >= 54:
        return ipaddress.ip_address(frame[22:38]), ipaddress.ip_address(frame[38:54])
    return None


def main(path):
    pairs, frames, left_out, damage = {}, 0, 0, None
    with open(path, "rb") as f:
        if f.read(4) != b"\x0a\x0d\x0d\x0a":
            print("it is no pcapng file", file=sys.stderr)
            return SKIP
        f.seek(0)
        links = []
        try:
            for kind, order, body in blocks(f):
                if kind == SECTION:
                    links = []
                elif kind == INTERFACE and len(body) >= 2:
                    links.append(struct.unpack(order + "H", body[:2])[0])
                elif kind == PACKET and len(body) >= 20:
                    link, _, _, kept, _ = struct.unpack(order + "IIIII", body[:20])
                    frames += 1
                    if link >= len(links) or links[link] != ETHERNET:
                        continue
                    pair = addresses(body[20 : 20 + kept])
                    if pair is None:
                        continue
                    if pair not in pairs and len(pairs) >= MOST_PAIRS:
                        left_out += 1
                        continue
                    pairs[pair] = pairs.get(pair, 0) + 1
        except ValueError as e:  # a damaged file is a finding, not a failure
            damage = str(e)
    rows = [
        {"from": str(a), "to": str(b), "frames": n}
        for (a, b), n in sorted(pairs.items(), key=lambda p: (-p[1], str(p[0])))
    ]
    print(json.dumps({
        "kind": "hosts",
        "title": f"{frames} frames between {len(rows)} pairs of hosts",
        "severity": "info",
        "data": {"frames": frames, "pairs": len(rows), "most": rows[:10], "damage": damage},
    }))
    print(json.dumps({"result": {"schema": "petri.result.hosts.v1", "pairs": rows, "left_out": left_out}}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
