"""Every format and colour mode gives Pillow's own RGB, upright; everything else is one line that says what to do."""

import io
import random
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastvlm.image_io import ImageError, ImageLimits, load_image

# pytest undoes the filter that image_io sets
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

PARITY = Path(__file__).parent / "data/parity/small_tied"


def picture(width: int = 61, height: int = 40, seed: int = 0) -> Image.Image:
    """Smooth enough for JPEG, different in every corner."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, format_name: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


def with_alpha() -> Image.Image:
    image = picture().convert("RGBA")
    image.putalpha(picture(seed=1).convert("L"))
    return image


def palette_with_transparency() -> Image.Image:
    image = picture().quantize(32)
    image.info["transparency"] = 3
    return image


ENCODED = {
    "png": lambda: encode(picture(), "PNG"),
    "png gray": lambda: encode(picture().convert("L"), "PNG"),
    "png gray and alpha": lambda: encode(with_alpha().convert("LA"), "PNG"),
    "png alpha": lambda: encode(with_alpha(), "PNG"),
    "png palette": lambda: encode(palette_with_transparency(), "PNG", transparency=3),
    "png 1 bit": lambda: encode(picture().convert("1"), "PNG"),
    "apng": lambda: encode(picture(), "PNG", save_all=True, append_images=[picture(seed=2)]),
    "jpeg": lambda: encode(picture(), "JPEG"),
    "jpeg progressive": lambda: encode(picture(), "JPEG", progressive=True),
    "jpeg gray": lambda: encode(picture().convert("L"), "JPEG"),
    "jpeg cmyk": lambda: encode(picture().convert("CMYK"), "JPEG"),
    "mpo": lambda: encode(picture(), "MPO", save_all=True, append_images=[picture(seed=2)]),
    "webp": lambda: encode(picture(), "WEBP"),
    "webp lossless alpha": lambda: encode(with_alpha(), "WEBP", lossless=True),
    "webp animated": lambda: encode(picture(), "WEBP", save_all=True, append_images=[picture(seed=2)]),
    "gif": lambda: encode(picture(), "GIF"),
    "gif animated": lambda: encode(picture(), "GIF", save_all=True, append_images=[picture(seed=2)]),
    "tiff": lambda: encode(picture(), "TIFF"),
    "tiff pages": lambda: encode(picture(), "TIFF", save_all=True, append_images=[picture(seed=2)]),
    "tiff lzw": lambda: encode(picture(), "TIFF", compression="tiff_lzw"),
    "tiff jpeg": lambda: encode(picture(), "TIFF", compression="jpeg"),
    "tiff fax": lambda: encode(picture().convert("1"), "TIFF", compression="group4"),
    "tiff cmyk": lambda: encode(picture().convert("CMYK"), "TIFF"),
    "bmp": lambda: encode(picture(), "BMP"),
    "bmp palette": lambda: encode(picture().quantize(), "BMP"),
}


@pytest.mark.parametrize("name", ENCODED)
def test_formats_and_modes_give_pillows_rgb(name):
    data = ENCODED[name]()
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(pixels(load_image(data)), expected)


@pytest.mark.parametrize("path", sorted(PARITY.glob("*.[pj][np]g")), ids=lambda path: path.name)
def test_sources_are_equal(path):
    expected = np.asarray(Image.open(path).convert("RGB"))
    data = path.read_bytes()
    with path.open("rb") as file:
        for source in (path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), file, Image.open(path)):
            assert np.array_equal(pixels(load_image(source)), expected)


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(format_name, orientation):
    """The eight orientations by their definition: where the first row and the first column of the file belong."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = encode(picture(64, 32), format_name, exif=exif)
    raw = np.asarray(Image.open(io.BytesIO(encode(picture(64, 32), format_name))).convert("RGB"))
    upright = raw.transpose(1, 0, 2) if orientation >= 5 else raw
    if orientation in (3, 4, 7, 8):
        upright = upright[::-1]
    if orientation in (2, 3, 6, 7):
        upright = upright[:, ::-1]
    image = load_image(stored)
    assert np.array_equal(pixels(image), upright)
    assert np.array_equal(pixels(load_image(image)), upright)  # not turned twice


def test_broken_exif_is_no_obstacle():
    data = encode(picture(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert load_image(data).size == (61, 40)


def test_a_pil_image_is_not_changed():
    image = with_alpha()
    before = image.tobytes()
    load_image(image)
    assert image.mode == "RGBA"
    assert image.tobytes() == before


def test_16_bit_gray_is_scaled_not_cut():
    values = np.arange(0, 65536, 17, dtype=np.uint16)[:3840].reshape(60, 64)
    expected = np.rint(values / 65535 * 255)
    for format_name in ("PNG", "TIFF"):
        assert np.array_equal(pixels(load_image(encode(Image.fromarray(values), format_name)))[..., 0], expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 128], [255, 3]], np.int32), [[0, 128], [255, 3]]),
        (np.array([[0, 257], [65535, 25700]], np.int32), [[0, 1], [255, 100]]),
        (np.array([[-10, 0], [10, 5]], np.int32), [[0, 128], [255, 191]]),
        (np.array([[0, 0.5], [1, 0.2]], np.float32), [[0, 128], [255, 51]]),
        (np.array([[0, 100], [255, 51]], np.float32), [[0, 100], [255, 51]]),
        (np.array([[-1, 0], [1, np.nan]], np.float32), [[0, 128], [255, 0]]),
        (np.array([[7, 7], [7, np.inf]], np.float32), [[7, 7], [7, 255]]),
        (np.full((2, 2), np.nan, np.float32), [[0, 0], [0, 0]]),
    ],
)
def test_integers_and_floats_are_brought_to_8_bits(values, expected):
    image = Image.fromarray(np.kron(values, np.ones((4, 4), values.dtype)))
    result = pixels(load_image(encode(image, "TIFF")))[::4, ::4, 0]
    assert np.array_equal(result, expected)


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50)
AVIF = b"\0\0\0\x18ftypavif\0\0\0\0avifmif1" + bytes(50)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"hello, this is text", "convert it to PNG or JPEG"),
        (b"%PDF-1.7 ...", "pdftoppm"),
        (HEIC, "HEIC"),
        (AVIF, "AVIF"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(50), "video"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\0\0\x01\0" + bytes(40), "convert it"),
        (encode(picture(), "JPEG")[:300], "damaged"),
        (encode(picture(), "PNG")[:-60], "damaged"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (encode(picture(1, 1), "PNG"), "1 x 1"),
        (encode(picture(5, 3000), "PNG"), "200 times"),
    ],
)
def test_what_cannot_be_used_says_what_to_do(data, says):
    with pytest.raises(ImageError, match=says) as caught:
        load_image(data)
    assert "\n" not in str(caught.value)


def test_a_strip_of_1_by_100000():
    with pytest.raises(ImageError, match="1 x 100000"):
        load_image(encode(Image.new("1", (1, 100_000)), "PNG"))


def test_paths_that_are_no_pictures(tmp_path):
    for path, says in [(tmp_path / "no.png", "no such picture"), (tmp_path, "is a folder"), ("/dev/zero", "not a regular file")]:
        with pytest.raises(ImageError, match=says):
            load_image(path)
    for path, says in [
        ("a\0b", "not a valid path"),
        ("line\nbreak", "no such"),
        ("https://example.org/a.png", "download"),
        ("x" * 5000, "cannot read"),
    ]:
        with pytest.raises(ImageError, match=says) as caught:
            load_image(path)
        assert "\n" not in str(caught.value)


def test_other_sources_are_refused(tmp_path):
    with pytest.raises(ImageError, match="not int"):
        load_image(3)
    (tmp_path / "text").write_text("text")
    with (tmp_path / "text").open() as file, pytest.raises(ImageError, match="'rb'"):
        load_image(file)
    closed = io.BytesIO()
    closed.close()
    with pytest.raises(ImageError, match="keep it open"):
        load_image(closed)


def test_limits_are_checked_on_the_header(tmp_path):
    """A bomb: a few kilobytes that say 60000 x 60000. Decoding them would take 10 GB."""
    row = encode(Image.new("1", (64, 64)), "PNG")
    bomb = row[:16] + (60_000).to_bytes(4, "big") * 2 + row[24:]
    bomb = bomb[:29] + zlib.crc32(bomb[12:29]).to_bytes(4, "big") + bomb[33:]
    with pytest.raises(ImageError, match="3,600,000,000"):
        load_image(bomb)
    small = encode(picture(100, 50), "PNG")
    (tmp_path / "a.png").write_bytes(small)
    for source in (small, tmp_path / "a.png", io.BytesIO(small)):
        with pytest.raises(ImageError, match="limit"):
            load_image(source, ImageLimits(max_bytes=100))
    for limits, says in [
        (ImageLimits(max_pixels=4999), "5,000 in all"),
        (ImageLimits(max_side=99), "at most 99"),
        (ImageLimits(min_side=51), "at least 51"),
        (ImageLimits(max_aspect_ratio=1.9), "1.9 times"),
    ]:
        for source in (small, picture(100, 50)):
            with pytest.raises(ImageError, match=says):
                load_image(source, limits)
    assert load_image(small, ImageLimits(max_pixels=5000, max_side=100, min_side=50, max_aspect_ratio=2)).size == (100, 50)


def test_drafts_are_smaller_but_never_too_small():
    data = encode(picture(1600, 1200), "JPEG")
    draft = load_image(data, useful_size=lambda size: (size[0] // 5, size[1] // 5))
    assert draft.size == (400, 300)  # a quarter: the smallest power of two that is still enough
    whole = load_image(data).resize((400, 300), Image.Resampling.BOX)
    assert np.abs(pixels(draft).astype(int) - pixels(whole)).mean() < 2  # measured: 0.3


@pytest.mark.parametrize("name", ENCODED)
def test_damaged_files_are_pictures_or_image_errors(name, capfd):
    data = ENCODED[name]()
    rng = random.Random(name)
    for _ in range(40):
        damaged = bytearray(data)
        if rng.random() < 0.4:
            del damaged[rng.randrange(len(damaged)) :]
        else:
            for _ in range(rng.choice([1, 2, 8])):
                damaged[rng.randrange(min(len(damaged), rng.choice([64, 100_000])))] ^= 1 << rng.randrange(8)
        try:
            assert load_image(bytes(damaged)).mode == "RGB"
        except ImageError as error:
            assert "\n" not in str(error)
    assert capfd.readouterr().err == ""
