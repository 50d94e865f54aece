"""Makes one encoded image its central square: decoded as a viewer shows it, RGB, resized, uint8.

Pillow does both halves. Measured on 250 full-size ImageNet JPEGs to 256x256, CPU milliseconds an
image on 2 cores: TensorFlow's fused decode_and_crop_jpeg and antialiased resize 3.1; Pillow 2.65;
TensorFlow's decoder and Pillow's resize 2.6. Decoding only the square saves nothing there (1.27
against 1.29). Pillow releases the GIL in both halves and reads every format, so one path serves
all, with the same pixels on every machine.
"""

import io
import warnings

import numpy as np
from PIL import Image

# Photographs come in these formats. Pillow knows others, some of which start programs (EPS).
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")
# Their files' names end so: this is Pillow's own list, the same whatever Pillow is built with.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".bmp", ".webp"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    *(".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c", ".avif", ".avifs"),
)
# Pillow has this bound against decompression bombs, which another package may have lifted.
MAX_PIXELS = 178_956_970
_ORIENTATION = 0x0112  # This is an EXIF tag.
_PHOTOMETRIC, _SAMPLE_FORMAT = 262, 339  # These are TIFF tags.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Odd metadata in a readable image is no news to the user; an unreadable one raises.
warnings.filterwarnings("ignore", module=r"PIL\.")
Image.init()
_KNOWN_FORMATS = tuple(name for name in FORMATS if name in Image.OPEN)


class BadImage(Exception):
    """Bytes that give no picture; the message says why, without the file's name."""


def square(data: bytes, size: int) -> np.ndarray:
    """Returns the central square of an encoded image as uint8 [size, size, 3].

    The shorter side is resized to `size` with an antialiasing (triangle) filter, rounded to uint8,
    and the central square is kept (the paper, section 2); only that square is computed, whatever
    the other side. A JPEG at least four times too large is shrunk by its decoder first, to no less
    than twice `size`. The first frame stands for an animation, transparency shows white, and the
    EXIF orientation is honoured: viewers do it, telephones rely on it, and other images lack it.
    (The 2012 pipeline ignored it.) Of 16 bits the upper 8 are kept. Grey levels of 32 bits or in
    floating point have no range of their own: the picture's lowest value is shown black and its
    highest white. Raises BadImage.
    """
    if not data:
        raise BadImage("the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=_KNOWN_FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise BadImage(f"{width}x{height} pixels, above the limit of {MAX_PIXELS}")
            large = min(width, height) >= 4 * size
            shrunk = image.draft(None, (2 * size, 2 * size)) if large else None
            rgb = _to_rgb(image)
            turn = _UPRIGHT.get(_orientation(image))
        # The picture's extent in pixels of `rgb`; a shrunk one may end inside a pixel.
        return _cut(rgb, shrunk[1][2:] if shrunk else rgb.size, size, turn)
    except (BadImage, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        if data[:4] in (b"II*\0", b"MM\0*"):
            reason = "a TIFF whose pixels are of a kind that Pillow doesn't read"
            raise BadImage(f"{reason}: convert it to 8 bits") from None
        raise BadImage("not an image in a known format") from None
    except Exception as error:  # Pillow's decoders raise almost anything on corrupt bytes.
        raise BadImage(" ".join(str(error).split()) or type(error).__name__) from None


def square_of(image: Image.Image, size: int) -> np.ndarray:
    """Returns what `square` does of a picture that is decoded already."""
    rgb = _to_rgb(image)
    return _cut(rgb, rgb.size, size, _UPRIGHT.get(_orientation(image)))


def _cut(rgb: Image.Image, extent: tuple[float, float], size: int, turn) -> np.ndarray:
    box = _central_square(*extent, size)
    if min(extent) != size:
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR, box=box)
    elif rgb.size != (size, size):
        rgb = rgb.crop(box)
    return np.asarray(rgb if turn is None else rgb.transpose(turn))


def _central_square(width: float, height: float, size: int) -> tuple[float, ...]:
    """Returns the box of the original that resizing and then cropping would show.

    Sizes and offsets are rounded as pytorch/vision rounds them in Resize and CenterCrop
    (torchvision/transforms/functional.py), so that nets trained there see the same pixels.
    """
    short = min(width, height)
    starts, ends = [], []
    for length in (width, height):
        resized = int(size * length / short)
        start = round((resized - size) / 2)
        starts.append(start * length / resized)
        ends.append(min((start + size) * length / resized, length))
    return (*starts, *ends)


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_eight_bits(image))  # Pillow's conversion would clip at 255.
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert(
            "RGB"
        )
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> np.ndarray:
    """Returns the grey levels of an image of more than 8 bits, as a viewer shows them: uint8."""
    values, tiff = np.asarray(image), getattr(image, "tag_v2", {})
    if image.mode != "F" and (image.mode != "I" or image.format in ("PNG", "PPM")):
        levels = (np.clip(values, 0, 65535) >> 8).astype(np.uint8)
    else:
        if image.mode == "I" and tiff and tiff.get(_SAMPLE_FORMAT, (1,))[0] == 1:
            values = values.view(np.uint32)  # Pillow has only the signed ones.
        finite = values[np.isfinite(values)].astype(np.float64)
        if not finite.size:
            raise BadImage("none of its grey levels is a finite number")
        low, high = finite.min(), finite.max()
        shown = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
        levels = np.rint((shown - low) * (255 / ((high - low) or 1))).astype(np.uint8)
    if tiff.get(_PHOTOMETRIC) == 0:  # White is zero, which Pillow heeds for 8 bits alone.
        levels = 255 - levels
    if isinstance(transparent := image.info.get("transparency"), int):
        levels = np.where(values == transparent, 255, levels)
    return levels.astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    if "exif" not in image.info:
        return 1
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # A broken EXIF block says nothing about the picture.
        return 1
