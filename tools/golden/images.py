"""Writes the small image files of pkg/data/testdata and what Pillow reads from them.

Usage: python tools/golden/images.py pkg/data/testdata      (Pillow 13.0.0, numpy 2.4.6)

Every X has an X.want.png beside it: the upright 8-bit RGB or RGBA picture that Load must return for X.
"""

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin

out = Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)


def scene(w, h, alpha=False):
    """Smooth colour ramps with one hard edge in every direction: chroma interpolation and rounding both show."""
    y, x = np.mgrid[0:h, 0:w].astype(np.float64)
    rgb = np.stack([255 * x / max(w - 1, 1), 255 * y / max(h - 1, 1), 128 + 100 * np.sin(x / 3) * np.cos(y / 2)], -1)
    rgb[h // 2:, w // 2:] = 255 - rgb[h // 2:, w // 2:]
    if alpha:
        rgb = np.concatenate([rgb, (40 + 215 * (x + y) / max(w + h - 2, 1))[..., None]], -1)
    return Image.fromarray(np.clip(np.rint(rgb), 0, 255).astype(np.uint8))


def keep(name, data, want=None):
    (out / name).write_bytes(data)
    if want is None:
        want = Image.open(io.BytesIO(data))
    want = ImageOps.exif_transpose(want)
    want = want.convert("RGBA" if want.mode in ("LA", "PA", "RGBA") or "transparency" in want.info else "RGB")
    want.info = {}
    want.save(out / (name + ".want.png"), exif=b"")


def encoded(im, fmt, **kw):
    b = io.BytesIO()
    im.save(b, fmt, **kw)
    return b.getvalue()


rgb, rgba = scene(21, 13), scene(21, 13, alpha=True)
icc = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
icc[24:36] = bytes(12)  # the date of creation
icc = bytes(icc)

# JPEG: the three samplings Pillow writes, progressive, grey, tiny planes, the two four-channel kinds
for i, s in enumerate(["444", "422", "420"]):
    keep(f"rgb{s}.jpg", encoded(rgb, "JPEG", quality=92, subsampling=i))
keep("progressive.jpg", encoded(rgb, "JPEG", quality=92, progressive=True))
keep("grey.jpg", encoded(rgb.convert("L"), "JPEG", quality=92))
keep("narrow.jpg", encoded(scene(3, 5), "JPEG", quality=92, subsampling=2))
keep("one.jpg", encoded(scene(1, 1), "JPEG", quality=92))
black = scene(13, 21).convert("L").transpose(Image.Transpose.TRANSPOSE)
cmyk = encoded(Image.merge("CMYK", [*rgb.split(), black]), "JPEG", quality=92)
keep("cmyk.jpg", cmyk)
adobe = cmyk.index(b"Adobe\0") + 11  # the transform byte: 2 says that the same samples are YCCK
keep("ycck.jpg", cmyk[:adobe] + b"\2" + cmyk[adobe + 1:])

# WebP
keep("lossy.webp", encoded(rgb, "WEBP", quality=85))
keep("lossy_alpha.webp", encoded(rgba, "WEBP", quality=85))
keep("lossless.webp", encoded(rgba, "WEBP", lossless=True, exact=True))

# PNG: palette with tRNS, colour key, 1 and 16 bit grey, grey with alpha
pal = rgb.quantize(16)
keep("palette.png", encoded(pal, "PNG"))
keep("palette_trns.png", encoded(pal, "PNG", transparency=bytes([0, 60, 128, 200])))
keep("colour_key.png", encoded(rgb, "PNG", transparency=rgb.getpixel((4, 2))))
keep("grey1.png", encoded(rgb.convert("1"), "PNG"))
keep("grey_alpha.png", encoded(rgba.convert("LA"), "PNG"))
keep("one.png", encoded(scene(1, 1), "PNG"))

# TIFF
keep("lzw.tif", encoded(rgb, "TIFF", compression="tiff_lzw"))
keep("plain.tif", encoded(rgba, "TIFF"))
keep("grey.tif", encoded(rgb.convert("L"), "TIFF"))

# 16-bit grey: the .want.png holds the high bytes, the test checks the low ones by formula 257 * high + 5
grey = np.asarray(rgb.convert("L")).astype(np.uint16)
sixteen = Image.fromarray(np.minimum(grey.astype(np.uint32) * 257 + 5, 65535).astype(np.uint16))
high = Image.fromarray((np.asarray(sixteen) >> 8).astype(np.uint8)).convert("RGB")
keep("grey16.png", encoded(sixteen, "PNG"), want=high)
keep("grey16.tif", encoded(sixteen, "TIFF"), want=high)

# EXIF orientation: eight stored forms of one picture, in every container that carries the tag
upright = scene(5, 3)
undo = {1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270}
for o, op in undo.items():
    stored = upright.transpose(op) if op is not None else upright
    exif = Image.Exif()
    exif[0x0112] = o
    exif[0x010F] = "fluxir"
    keep(f"orient{o}.png", encoded(stored, "PNG", exif=exif))
    assert Image.open(out / f"orient{o}.png.want.png").tobytes() == upright.tobytes()
stored = upright.transpose(undo[6])
exif = Image.Exif()
exif[0x0112] = 6
keep("orient6.webp", encoded(stored, "WEBP", lossless=True, exif=exif), want=upright)
ifd = TiffImagePlugin.ImageFileDirectory_v2()
ifd[0x0112] = 6
keep("orient6.tif", encoded(stored, "TIFF", tiffinfo=ifd), want=upright)
keep("orient6.jpg", encoded(stored, "JPEG", quality=100, subsampling=0, exif=exif))

# one profile and resolution in all four containers
for fmt, ext in [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("TIFF", "tif")]:
    kw = {"lossless": True} if fmt == "WEBP" else {}
    keep(f"profile.{ext}", encoded(upright, fmt, icc_profile=icc, dpi=(300, 300), **kw))
(out / "srgb.icc").write_bytes(icc)


# headers that promise 65535x65535 pixels and hold none
def chunk(name, p):
    return struct.pack(">I", len(p)) + name + p + struct.pack(">I", zlib.crc32(name + p))


big = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 65535, 65535, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(b"\0"))
(out / "bomb.png").write_bytes(big + chunk(b"IEND", b""))
sof = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, 65535, 65535, 3) + bytes([1, 0x22, 0, 2, 0x11, 0, 3, 0x11, 0])
(out / "bomb.jpg").write_bytes(b"\xff\xd8" + sof + b"\xff\xda\x00\x0c\x03\x01\x00\x02\x11\x03\x11\x00\x3f\x00")
tif = bytearray(encoded(scene(2, 2), "TIFF"))
at = struct.unpack_from("<I", tif, 4)[0]
for i in range(struct.unpack_from("<H", tif, at)[0]):
    e = at + 2 + 12 * i
    if struct.unpack_from("<H", tif, e)[0] in (0x100, 0x101):
        struct.pack_into("<HII", tif, e + 2, 4, 1, 65535)
(out / "bomb.tif").write_bytes(tif)
vp8x = b"VP8X" + struct.pack("<I", 10) + bytes([0x10, 0, 0, 0]) + b"\xfe\xff\x00\xfe\xff\x00"
alph = b"ALPH" + struct.pack("<I", 2) + b"\0\0"
body = b"WEBP" + vp8x + alph
(out / "bomb.webp").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
