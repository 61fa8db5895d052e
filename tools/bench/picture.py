#!/usr/bin/env python3
"""picture.py SIDE FILE.png: writes a square picture with edges, gradients and noise, the same every time."""
import math
import random
import struct
import sys
import zlib

side, path = int(sys.argv[1]), sys.argv[2]
noise = random.Random(side)
rows = bytearray()
for y in range(side):
    rows.append(0)
    for x in range(side):
        base = 128 + 60 * math.sin(x / 17) * math.cos(y / 29) + (40 if (x // 24 + y // 24) % 2 else 0)
        rows += bytes(min(255, max(0, int(base + 15 * c + noise.gauss(0, 8)))) for c in range(3))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


with open(path, "wb") as f:
    f.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(bytes(rows))) + chunk(b"IEND", b""))
