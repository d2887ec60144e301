"""Open a picture from anywhere and hand it on as 8-bit RGB, upright; or say in one line why not and what to do.

    image = load_image("scan.png")              # a path, bytes, an open binary file or a PIL image
    image = load_image(upload, ImageLimits(max_bytes=10_000_000))

Formats are recognised by content, never by name: PNG, JPEG, WebP, and the first frame of GIF, TIFF and BMP. Size limits are checked on
the header, before any pixel is decoded. What is done with the pixels afterwards is the business of `image_processing`.
"""

import contextlib
import ctypes
import functools
import os
import stat
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL
from PIL import BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

# Remarks on odd metadata, which have no bearing on the pixels that we take.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image
Size = tuple[int, int]  # width, height


class ImageError(ValueError):
    """A picture that cannot be used: one line that says what was found, what was wanted and what to do."""


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may cost. The defaults take a 200-megapixel photo, a scan of a large plan and a long screenshot."""

    max_bytes: int = 256_000_000  # of the encoded file
    max_pixels: int = 200_000_000  # width x height; decoded they need 4 bytes each
    max_side: int = 65_535  # pixels, the longest that JPEG can hold
    min_side: int = 4  # pixels; below it there is nothing to see
    max_aspect_ratio: float = 200.0  # longer side / shorter side

    def check_size(self, size: Size) -> None:
        """`ImageError` unless a picture of `size` (width, height) is within the limits."""
        width, height = size
        found = f"the picture is {width} x {height} pixels"
        if min(size) < self.min_side:
            raise ImageError(f"{found}; each side must have at least {self.min_side}: send the picture at its real size")
        if max(size) > self.max_side:
            raise ImageError(f"{found}; a side may have at most {self.max_side}: scale it down or cut it into parts")
        if width * height > self.max_pixels:
            raise ImageError(f"{found}, {width * height:,} in all; at most {self.max_pixels:,} are allowed: scale it down")
        if max(size) > self.max_aspect_ratio * min(size):
            raise ImageError(f"{found}; a side may be at most {self.max_aspect_ratio:g} times the other: cut it into parts")


# Opening with the class of the recognised format, rather than with Image.open, keeps every other decoder of Pillow out of reach, and
# leaves the limits to us: Pillow's own is one number for the whole process.
_OPENERS: dict[str, Callable[[BytesIO], Image.Image]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.jpeg_factory,  # or MPO, which phones write: its first picture
    "WebP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
}
SUPPORTED = ", ".join(_OPENERS)

_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
)
_HEIC_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}


def load_image(source: ImageSource, limits: ImageLimits | None = None, *, useful_size: Callable[[Size], Size] | None = None) -> Image.Image:
    """Read a picture, or the first frame of one.

    Args:
        source: a path, the encoded bytes, a binary file (read from where it stands) or a PIL image.
        limits: None is `ImageLimits()`.
        useful_size: given the (width, height) of the file, the smallest one that is still of use. With it a large JPEG is decoded at 1/2,
            1/4 or 1/8 of its size, which is several times faster; the pixels then differ a little from those of a full decode.

    Returns:
        An RGB image, turned upright as its EXIF orientation says; `source` itself where it is one already. Colours are those of
        Pillow's `convert("RGB")` (alpha is dropped, not blended), except that 16-bit, 32-bit and floating-point gray is scaled to 8 bits
        rather than cut off at 255.

    Raises:
        ImageError: with the reason and a remedy.
    """
    limits = ImageLimits() if limits is None else limits
    if isinstance(source, Image.Image):
        limits.check_size(source.size)
        return _decode(source, f"the {source.format or 'PIL'} picture")
    data = _read(source, limits.max_bytes)
    format_name = _recognise(data)
    what = f"this {format_name} picture ({len(data):,} bytes)"
    if format_name == "TIFF":
        _silence_libtiff()
    try:
        image = _OPENERS[format_name](BytesIO(data))
    except Exception as error:
        raise _damaged(what) from error
    limits.check_size(image.size)
    if useful_size is not None:
        image.draft(None, useful_size(image.size))
    return _decode(image, what)


def _read(source: ImageSource, max_bytes: int) -> bytes:
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
    elif isinstance(source, (str, os.PathLike)):
        data = _read_file(Path(source), max_bytes)
    elif hasattr(source, "read"):
        try:
            data = source.read(max_bytes + 1)
        except (OSError, ValueError) as error:
            raise ImageError("the picture's file cannot be read; open it with mode 'rb' and keep it open") from error
        if not isinstance(data, bytes):
            raise ImageError("the picture's file is open as text; open it with mode 'rb'")
    else:
        raise ImageError(f"a picture is a path, bytes, a binary file or a PIL image, not {type(source).__name__}")
    if not data:
        raise ImageError("the picture is empty (0 bytes); send it again")
    if len(data) > max_bytes:
        raise ImageError(f"the picture's file has more than {max_bytes:,} bytes, the limit; scale it down or compress it")
    return data


def _read_file(path: Path, max_bytes: int) -> bytes:
    name = str(path) if str(path).isprintable() else ascii(str(path))
    if name.startswith(("http:/", "https:/", "data:")):
        raise ImageError("the picture is given as a web address; download it and pass the file")
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{name} is a folder; name a picture file in it")
        if not stat.S_ISREG(status.st_mode):  # reading a device or a pipe may never end
            raise ImageError(f"{name} is not a regular file; pass its content as bytes")
        if status.st_size > max_bytes:
            raise ImageError(f"{name} has {status.st_size:,} bytes; the limit is {max_bytes:,}: scale it down or compress it")
        return path.read_bytes()
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"no such picture: {name}") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise ImageError(f"cannot read {name}: {getattr(error, 'strerror', None) or 'not a valid path'}") from error


def _recognise(data: bytes) -> str:
    """The format's name, from the first bytes."""
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[4:8] == b"ftyp":
        brands = {data[8:12], *(data[i : i + 4] for i in range(16, 64, 4))}
        if brands & _AVIF_BRANDS:
            raise ImageError(
                "this is an AVIF picture, which is not read here; convert it to PNG or JPEG, or open it and pass the PIL image"
            )
        if brands & _HEIC_BRANDS:
            raise ImageError(
                "this is a HEIC picture, which is not read here; convert it to JPEG, or open it with pillow-heif and pass the PIL image"
            )
        raise ImageError(f"this is a video or another ISO media file, not a picture; supported are {SUPPORTED}")
    if b"%PDF-" in data[:1024]:
        raise ImageError("this is a PDF; turn its pages into pictures first, for example: pdftoppm -r 150 -png file.pdf page")
    if data[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<svg", b"<?xml")):
        raise ImageError("this is SVG or XML, not pixels; export it as PNG first")
    raise ImageError(f"this is no picture of a supported format ({SUPPORTED}); convert it to PNG or JPEG")


@functools.cache
def _silence_libtiff() -> None:
    """Keep the C library that Pillow's wheels carry from writing to standard error about damaged files; we raise instead."""
    package = Path(PIL.__file__).parent
    for path in (*package.parent.glob("pillow.libs/libtiff*"), *package.glob(".dylibs/libtiff*")):
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL(str(path))  # the copy that Pillow has loaded already
            library.TIFFSetErrorHandler(None)
            library.TIFFSetWarningHandler(None)


def _damaged(what: str) -> ImageError:
    # Decoders raise anything on damaged data (SyntaxError, struct.error, OverflowError, MemoryError, ...), so whatever they raise means
    # this. Their own words are left out: they speak of internals, and of nothing that the sender could do.
    return ImageError(f"{what} is damaged or incomplete; send it again or save it anew")


def _decode(image: Image.Image, what: str) -> Image.Image:
    """RGB and upright; of `image` itself nothing changes but that its pixels are loaded."""
    try:
        image.load()
        upright = _upright(image)
        if upright.mode.startswith("I") or upright.mode == "F":
            upright = _to_8_bit(upright)
    except Exception as error:
        raise _damaged(what) from error
    if upright.mode == "RGB":
        return upright
    try:
        return upright.convert("RGB")
    except ValueError as error:
        raise ImageError(f"{what} has the colour mode {upright.mode}, which has no simple way to RGB; save it as RGB") from error


# EXIF orientation -> what brings the picture upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image: Image.Image) -> Image.Image:
    try:
        method = _UPRIGHT.get(image.getexif().get(0x0112, 1))
    except Exception:  # broken metadata says nothing about the pixels
        return image
    if method is None:
        return image
    upright = image.transpose(method)
    upright.info = {}  # the copy of the metadata would have it turned again, by us or by another reader
    return upright


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Gray of more than 8 bits, scaled so that its white becomes 255.

    16-bit files ("I;16") have white at 65535. 32-bit integers and floats do not say: the customary range that holds all values is taken
    (0 to 1 for floats, 0 to 255, 0 to 65535), else the span from the least to the greatest value. What is not a number is black.
    """
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        return Image.fromarray(np.rint(np.arange(65536) / 257).astype(np.uint8)[values], "L")
    with np.errstate(invalid="ignore"):  # some bit patterns that are not a number warn when they are widened
        values = values.astype(np.float64)
    is_finite = np.isfinite(values)
    if not is_finite.any():
        return Image.new("L", image.size)
    least, greatest = float(values[is_finite].min()), float(values[is_finite].max())
    low, high = least, greatest
    if least >= 0:
        customary = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        low, high = next(((0.0, white) for white in customary if greatest <= white), (least, greatest))
    values = np.where(np.isnan(values), low, np.clip(values, low, high))
    scaled = (values - low) * (255.0 / (high - low)) if high > low else np.zeros_like(values)
    return Image.fromarray(np.rint(scaled).astype(np.uint8), "L")
