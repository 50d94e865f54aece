"""Whatever the bytes: the picture a viewer shows, as an RGB square, or one exception with why."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from alexnet_jax.data import decode

RED, BLUE = (250, 10, 20), (10, 20, 250)


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def halves(width=40, height=20, left=RED, right=BLUE):
    """An image of two colours, so that turning or mirroring it shows."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:, : width // 2] = left
    pixels[:, width // 2 :] = right
    return Image.fromarray(pixels)


def photograph(width, height):
    pixels = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    return Image.fromarray(pixels.astype(np.uint8)).resize((width, height))


def resize_then_crop(data, size):
    """The same square by Pillow in two steps, rounded as torchvision's Resize and CenterCrop do."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    short = min(image.size)
    image = image.resize([int(size * length / short) for length in image.size], Image.BILINEAR)
    x, y = (round((length - size) / 2) for length in image.size)
    return np.asarray(image.crop((x, y, x + size, y + size)))


@pytest.mark.parametrize(
    "width_height", [(500, 375), (375, 500), (333, 250), (100, 70), (301, 301)]
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_equals_resizing_the_shorter_side_and_cropping_the_centre(width_height, kind):
    data = encode(photograph(*width_height), kind)
    difference = decode.square(data, 256).astype(int) - resize_then_crop(data, 256)
    assert np.abs(difference).max() <= 1


def test_shrinking_a_large_jpeg_while_decoding_changes_little():
    data = encode(photograph(1501, 1103), "JPEG", quality=95)
    difference = decode.square(data, 256).astype(int) - resize_then_crop(data, 256)
    assert np.abs(difference).mean() < 2


def test_a_square_of_the_right_size_is_not_resampled():
    image = photograph(90, 64)
    square = decode.square(encode(image, "PNG"), 64)
    np.testing.assert_array_equal(square, np.asarray(image)[:, 13:77])


@pytest.mark.parametrize("kind", decode.FORMATS)
def test_formats(kind):
    optional = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}
    if kind in optional and not features.check(optional[kind]):
        pytest.skip(f"this Pillow is built without {kind}")
    square = decode.square(encode(halves(), kind), 16)
    assert square.shape == (16, 16, 3)
    assert square.dtype == np.uint8
    assert np.abs(square[:, 2].astype(int) - RED).max() < 40
    assert np.abs(square[:, -3].astype(int) - BLUE).max() < 40


def ramp_16_bit():
    return Image.fromarray((np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64))


MODES = {
    "grey": (Image.new("L", (9, 9), 77), "PNG", (77, 77, 77)),
    "grey jpeg": (Image.new("L", (9, 9), 77), "JPEG", (77, 77, 77)),
    "one bit": (Image.new("1", (9, 9), 1), "PNG", (255, 255, 255)),
    "palette": (Image.new("RGB", (9, 9), RED).quantize(4), "PNG", RED),
    "grey, half transparent": (Image.new("LA", (9, 9), (0, 128)), "PNG", (127, 127, 127)),
    "transparent": (Image.new("RGBA", (9, 9), (*RED, 0)), "PNG", (255, 255, 255)),
    "opaque": (Image.new("RGBA", (9, 9), (*RED, 255)), "PNG", RED),
    "16 bits": (Image.fromarray(np.full((9, 9), 0x4D00, np.uint16)), "PNG", (77, 77, 77)),
    "16 bits, tiff": (Image.fromarray(np.full((9, 9), 0x4D00, np.uint16)), "TIFF", (77, 77, 77)),
    "cmyk": (Image.new("CMYK", (9, 9), (255, 0, 0, 0)), "JPEG", (0, 255, 255)),
    "cmyk, tiff": (Image.new("CMYK", (9, 9), (255, 0, 0, 0)), "TIFF", (0, 255, 255)),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_colour_mode_becomes_rgb_as_a_viewer_shows_it(mode):
    image, kind, colour = MODES[mode]
    square = decode.square(encode(image, kind), 8)
    assert square.shape == (8, 8, 3)
    assert np.abs(square.astype(int) - colour).max() <= 3


def test_sixteen_bits_keep_their_gradient():
    square = decode.square(encode(ramp_16_bit(), "PNG"), 64)
    np.testing.assert_array_equal(square[..., 0].ravel(), np.arange(64 * 64) // 16)


RAMP = np.arange(64 * 64).reshape(64, 64) / (64 * 64 - 1)
WIDE = {
    "float, 0 to 1": (RAMP.astype(np.float32), "TIFF"),
    "float, any range": ((RAMP * 3e5 - 7e4).astype(np.float32), "TIFF"),
    "float, in a PFM": (RAMP.astype(np.float32), "PPM"),
    "32 bits": (np.rint(RAMP * (2**31 - 1)).astype(np.int32), "TIFF"),
    "32 bits with a sign": (np.rint((RAMP - 0.5) * 1000).astype(np.int32), "TIFF"),
    "16 bits, jpeg 2000": (np.rint(RAMP * 65535).astype(np.uint16), "JPEG2000"),
    "16 bits, pgm": (np.rint(RAMP * 65535).astype(np.uint16), "PPM"),
}


@pytest.mark.parametrize("name", WIDE)
def test_more_than_8_bits_keep_their_gradient(name):
    values, kind = WIDE[name]
    square = decode.square(encode(Image.fromarray(values), kind), 64)
    assert np.abs(square[..., 0] - 255 * RAMP).max() <= 1


def tiff(values, photometric=1):
    """A TIFF of grey levels as they are; Pillow writes neither uint32 nor white as zero."""
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    height, width = values.shape
    tags = {256: width, 257: height, 258: values.itemsize * 8, 259: 1, 262: photometric}
    tags |= {273: 8 + 2 + 10 * 12 + 4, 277: 1, 278: height, 279: values.nbytes, 339: kind}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, 10) + entries + bytes(4) + values.tobytes()


def test_tiffs_of_the_upper_half_of_32_bits_and_with_white_as_zero():
    whole = np.rint(RAMP * (2**32 - 1)).astype(np.uint32)
    assert np.abs(decode.square(tiff(whole), 64)[..., 0] - 255 * RAMP).max() <= 1
    for values in (np.rint(RAMP * 65535).astype(np.uint16), RAMP.astype(np.float32)):
        square = decode.square(tiff(values, photometric=0), 64)
        assert np.abs(square[..., 0] - 255 * (1 - RAMP)).max() <= 1


def test_values_that_are_no_numbers_leave_the_others_their_range():
    values = RAMP.astype(np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    square = decode.square(tiff(values), 64)[..., 0]
    assert square[0, :3].tolist() == [0, 255, 0]
    assert np.abs(square - 255 * RAMP)[1:].max() <= 1
    with pytest.raises(decode.BadImage, match="finite"):
        decode.square(tiff(np.full((9, 9), np.nan, np.float32)), 64)


def test_a_tiff_that_pillow_cannot_read_says_so():
    with pytest.raises(decode.BadImage, match=r"TIFF.*convert it to 8 bits"):
        decode.square(tiff(RAMP.astype(np.float64)), 64)


def test_the_suffixes_are_pillows_for_the_formats():
    pillows = {
        suffix for suffix, kind in Image.registered_extensions().items() if kind in decode.FORMATS
    }
    assert pillows <= set(decode.SUFFIXES)


def test_palette_transparency_shows_white():
    image = Image.new("P", (9, 9), 1)
    image.putpalette([*RED, *BLUE])
    assert (decode.square(encode(image, "PNG", transparency=1), 8) == 255).all()
    assert (decode.square(encode(image, "PNG", transparency=0), 8) == BLUE).all()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animation_shows_its_first_frame(kind):
    frames = [Image.new("RGB", (9, 9), colour) for colour in (RED, BLUE, BLUE)]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(decode.square(data, 8).astype(int) - RED).max() < 12


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_is_honoured(orientation, kind):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(halves(64, 64), kind, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    np.testing.assert_array_equal(decode.square(data, 64), np.asarray(upright))


@pytest.mark.parametrize("exif", [b"MM\0*\0\0\0\xff" + b"\xff" * 20, b"no header", b"MM\0*"])
def test_broken_exif_does_no_harm(exif):
    data = encode(halves(), "JPEG", exif=b"Exif\0\0" + exif)
    assert decode.square(data, 16).shape == (16, 16, 3)


@pytest.mark.parametrize("width_height", [(1, 1), (1, 20_000), (20_000, 1), (3, 2), (2, 3000)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_extreme_shapes(width_height, kind):
    square = decode.square(encode(Image.new("RGB", width_height, RED), kind), 256)
    assert square.shape == (256, 256, 3)
    assert np.abs(square.astype(int) - RED).max() < 6


def png_header(width, height):
    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("width_height", [(14_000, 13_000), (100_000, 100_000), (2**31 - 1, 1)])
def test_decompression_bombs_are_refused_by_their_header(width_height):
    with pytest.raises(decode.BadImage, match="pixels"):
        decode.square(png_header(*width_height), 64)


BROKEN = {
    "empty": (b"", "empty"),
    "text": (b"this is no image", "known format"),
    "jpeg marker alone": (b"\xff\xd8\xff\xe0", "known format|truncated|cannot"),
    "truncated jpeg": (encode(photograph(200, 200), "JPEG")[:3000], "truncated"),
    "truncated png": (encode(photograph(200, 200), "PNG")[:3000], "truncated"),
    "a program to draw it": (encode(halves(), "EPS"), "known format"),
    "pickle": (b"cos\nsystem\n(S'touch /tmp/bomb'\ntR.", "known format"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_images_say_why_in_one_line(name):
    data, why = BROKEN[name]
    with pytest.raises(decode.BadImage, match=why) as raised:
        decode.square(data, 64)
    assert "\n" not in str(raised.value)


SAMPLES = [
    encode(photograph(60, 40), "JPEG"),
    encode(photograph(60, 40), "PNG"),
    encode(photograph(20, 40).quantize(16), "GIF"),
    encode(photograph(20, 40), "TIFF"),
    encode(photograph(20, 40), "BMP"),
    encode(photograph(20, 40), "WEBP"),
]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_bytes_give_a_square_or_a_reason(data):
    if data.draw(st.integers(0, 3)) == 0:
        image = data.draw(st.binary(max_size=300))
    else:
        image = bytearray(data.draw(st.sampled_from(SAMPLES)))
        for place in data.draw(st.lists(st.integers(0, len(image) - 1), max_size=8)):
            image[place] = data.draw(st.integers(0, 255))
        image = bytes(image[: data.draw(st.integers(1, len(image)))])
    try:
        square = decode.square(image, 24)
    except decode.BadImage:
        return
    assert square.shape == (24, 24, 3)
    assert square.dtype == np.uint8
