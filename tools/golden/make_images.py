#!/usr/bin/env python3
"""Golden files of image preparation: image files of every kind with the pixels that Pillow reads from them,
hostile ones, and what transformers' processors make of images.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install torch transformers pillow
    /tmp/venv/bin/python tools/golden/make_images.py
"""
import io
import json
import pathlib
import struct
import zlib

import numpy
import transformers
from PIL import Image, ImageOps

from make_llama import fractions

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden" / "images"
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def picture(name, width, height):
    """Waves under noise, so that every frequency is there: uint8 [height][width][3]."""
    y, x = numpy.mgrid[0:height, 0:width].astype(numpy.float64)
    waves = [numpy.sin(x * (0.1 + c * 0.07)) + numpy.cos(y * (0.13 + c * 0.05)) for c in range(3)]
    noise = fractions(name, height * width * 3).astype(numpy.float64).reshape(height, width, 3)
    return numpy.clip(127 + 50 * numpy.stack(waves, -1) + 60 * noise, 0, 255).astype(numpy.uint8)


# ---- files and their pixels ----

def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, colour, rows, interlace=0):
    """A PNG by hand, for kinds that Pillow does not write. rows: bytes of each, without filter."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    data = b"".join(b"\0" + row for row in rows)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) +
            chunk(b"IEND", b""))


def interlaced(pixels):
    """Adam7 of uint8 [height][width][3]."""
    height, width = pixels.shape[:2]
    rows = [pixels[y, x0::dx].tobytes() for x0, y0, dx, dy in (
        (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
        for y in range(y0, height, dy) if pixels[y, x0::dx].size]
    return png(width, height, 8, 2, rows, 1)


def saved(image, kind, **how):
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def files():
    rgb = picture("files", 13, 9)
    image, grey = Image.fromarray(rgb), Image.fromarray(rgb[:, :, 0])
    alpha = Image.fromarray(numpy.dstack((rgb, rgb[:, :, 1])))
    palette = image.quantize(7)
    deep = (rgb.astype(numpy.uint16) * 256 + 0x5a).astype(">u2")
    yield "rgb.png", saved(image, "PNG"), rgb
    yield "grey.png", saved(grey, "PNG"), numpy.asarray(grey.convert("RGB"))
    bits = grey.point(lambda v: 255 * (v > 127)).convert("1")
    yield "black_and_white.png", saved(bits, "PNG"), numpy.asarray(bits.convert("RGB"))
    yield "alpha.png", saved(alpha, "PNG"), rgb
    yield "grey_alpha.png", saved(Image.merge("LA", (grey, grey)), "PNG"), numpy.asarray(grey.convert("RGB"))
    yield "palette.png", saved(palette, "PNG"), numpy.asarray(palette.convert("RGB"))
    yield "palette_alpha.png", saved(palette, "PNG", transparency=2), numpy.asarray(palette.convert("RGB"))
    yield "rgb_16_bit.png", png(13, 9, 16, 2, [row.tobytes() for row in deep]), rgb
    yield "interlaced.png", interlaced(rgb), rgb
    for name, source, how in (("rgb.jpg", image, {}), ("grey.jpg", grey, {}),
                              ("progressive.jpg", image, {"progressive": True}),
                              ("full_colour.jpg", image, {"subsampling": 0})):
        data = saved(source, "JPEG", quality=90, **how)
        yield name, data, numpy.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for kind, end in (("JPEG", "jpg"), ("PNG", "png")):
            data = saved(image, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
            shown = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
            yield f"turned_{orientation}.{end}", data, numpy.asarray(shown.convert("RGB"))


def hostile():
    rgb = picture("files", 13, 9)
    whole, photo = saved(Image.fromarray(rgb), "PNG"), saved(Image.fromarray(rgb), "JPEG")
    yield "truncated.png", "image.damaged", whole[:len(whole) * 2 // 3]
    yield "truncated.jpg", "image.damaged", photo[:len(photo) - 60]
    yield "header_only.jpg", "image.damaged", photo[:40]
    yield "bad_checksum.png", "image.damaged", whole[:45] + bytes([whole[45] ^ 1]) + whole[46:]
    yield "wide.png", "image.too_large", png(65535, 65535, 8, 2, [])
    yield "wider.png", "image.too_large", png(2 ** 31 - 1, 1, 8, 2, [])
    yield "many_pixels.png", "image.too_large", png(65000, 65000, 1, 0, [])
    yield "no_pixels.png", "image.damaged", png(0, 0, 8, 2, [])
    yield "short_data.png", "image.damaged", png(13, 9, 8, 2, [rgb[0].tobytes()])
    at = photo.index(b"\xff\xc0") + 5
    yield "wide.jpg", "image.too_large", photo[:at] + struct.pack(">HH", 65500, 65500) + photo[at + 4:]
    yield "cmyk.jpg", "image.unsupported_colours", saved(Image.fromarray(rgb).convert("CMYK"), "JPEG")
    yield "picture.gif", "image.unknown_format", saved(Image.fromarray(rgb), "GIF")
    yield "text.png", "image.unknown_format", b"version https://git-lfs.github.com/spec/v1\n"
    yield "empty.png", "image.unreadable", b""


# ---- processors ----

VIT = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "do_rescale": True,
       "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
DEIT = {**VIT, "image_processor_type": "DeiTImageProcessor", "do_center_crop": True, "image_mean": MEAN,
        "image_std": STD, "resample": 3}
CLIP = {**DEIT, "image_processor_type": "CLIPImageProcessor"}
SAM = {**DEIT, "image_processor_type": "SamImageProcessor", "do_center_crop": False, "do_pad": True,
       "do_convert_rgb": True, "resample": 2}
PROCESSORS = {  # name: (class, width, height, config)
    "vit_down": ("ViTImageProcessorPil", 61, 47, {
        **VIT, "size": {"height": 16, "width": 16}, "resample": 2}),
    "vit_up_number": ("ViTImageProcessorPil", 9, 14, {**VIT, "size": 20, "resample": 3}),
    "vit_one_way": ("ViTImageProcessorPil", 40, 16, {
        **VIT, "size": {"height": 16, "width": 24}, "resample": 3}),
    "vit_as_it_is": ("ViTImageProcessorPil", 16, 16, {
        **VIT, "size": {"height": 16, "width": 16}, "resample": 3, "do_normalize": False}),
    "deit_crop": ("DeiTImageProcessorPil", 50, 33, {
        **DEIT, "size": {"height": 27, "width": 27}, "crop_size": {"height": 20, "width": 20}}),
    "deit_crop_beyond": ("DeiTImageProcessorPil", 30, 30, {
        **DEIT, "size": {"height": 11, "width": 16}, "crop_size": {"height": 16, "width": 19}}),
    "shortest_edge": ("CLIPImageProcessorPil", 53, 37, {
        **CLIP, "size": {"shortest_edge": 21}, "crop_size": {"height": 18, "width": 18}}),
    "longest_edge_padded": ("SamImageProcessorPil", 37, 59, {
        **SAM, "size": {"longest_edge": 24}, "pad_size": {"height": 24, "width": 24}}),
}


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    record = {"made_with": f"pillow {Image.__version__}, transformers {transformers.__version__}",
              "files": [], "hostile": [], "processors": []}
    pixels, values = [], []
    for name, data, expected in files():
        (OUT / name).write_bytes(data)
        record["files"].append({"name": name, "width": expected.shape[1], "height": expected.shape[0]})
        pixels.append(numpy.ascontiguousarray(expected, dtype=numpy.uint8).ravel())
    for name, code, data in hostile():
        (OUT / name).write_bytes(data)
        record["hostile"].append({"name": name, "code": code})
    for name, (kind, width, height, config) in PROCESSORS.items():
        source = picture(name, width, height)
        processor = getattr(transformers, kind)(**{k: v for k, v in config.items()
                                                   if k != "image_processor_type"})
        result = processor(Image.fromarray(source), return_tensors="np")["pixel_values"][0]
        pixels.append(source.ravel())
        values.append(result.astype("<f4").ravel())
        record["processors"].append({"name": name, "width": width, "height": height,
                                     "to": list(result.shape[1:]), "config": config})
        print(name, result.shape, result.min(), result.max())
    (OUT / "pixels.bin").write_bytes(numpy.concatenate(pixels).tobytes())
    (OUT / "values.bin").write_bytes(numpy.concatenate(values).tobytes())
    text = ",\n".join(f"{json.dumps(key)}: " + ("[\n" + ",\n".join(map(json.dumps, value)) + "]"
                                              if isinstance(value, list) else json.dumps(value))
                      for key, value in record.items())
    (OUT / "expected.json").write_text("{" + text + "}\n")


if __name__ == "__main__":
    main()
