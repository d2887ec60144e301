"""Pixels of each mode against transformers, the reference's recorded values, and the recipe written out in full."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor, CLIPImageProcessorPil
from transformers.image_processing_utils import select_best_resolution

from fastvlm.image_io import load_image
from fastvlm.image_processing import ImageProcessor, best_grid, native_size

PARITY = Path(__file__).parent / "data/parity/small_tied"
BICUBIC = Image.Resampling.BICUBIC
SHAPES = [(100, 100), (130, 70), (70, 131), (640, 333), (333, 640), (1000, 20), (20, 1001), (128, 64), (64, 128), (1, 1)]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("path", sorted(PARITY.glob("*.[pj][np]g")), ids=lambda path: path.name)
def test_pad_equals_the_reference(path):
    expected = np.load(PARITY / "expected.npz")
    pixel_values = ImageProcessor()(load_image(path))
    assert pixel_values.shape == (1, 3, 1024, 1024)
    assert pixel_values.dtype == np.float32
    assert np.abs(pixel_values[0, :, ::64, ::64] - expected[f"{path.name}/pixel_values_rows"]).max() <= 1e-6
    mean_std = pixel_values.mean(dtype=np.float64), pixel_values.std(dtype=np.float64)
    assert np.abs(mean_std - expected[f"{path.name}/pixel_mean_std"]).max() <= 1e-6


def padded_in_full(image: Image.Image, size: int, colour=(0, 0, 0)) -> np.ndarray:
    side = max(image.size)
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square.resize((size, size), BICUBIC))


def test_pad_without_the_large_square_is_bit_for_bit_the_same():
    rng = random.Random(0)
    shapes = [*SHAPES, *((rng.randrange(1, 900), rng.randrange(1, 900)) for _ in range(60)), (600, 1600), (1600, 600), (96, 1920)]
    for index, shape in enumerate(shapes):
        image = noise(*shape, seed=index)
        size = 64 * rng.choice([1, 2, 3, 4, 8])
        pixel_values = ImageProcessor(size=size)(image)[0]
        assert np.array_equal(np.rint(pixel_values * 255).transpose(1, 2, 0), padded_in_full(image, size)), (shape, size)


def test_the_padding_colour_is_the_mean():
    mean = (0.48145466, 0.4578275, 0.40821073)
    for shape in ((90, 300), (300, 90), (64, 128)):
        pixel_values = ImageProcessor(size=128, image_mean=mean)(noise(*shape))[0] + np.reshape(mean, (3, 1, 1))
        assert np.array_equal(np.rint(pixel_values * 255).transpose(1, 2, 0), padded_in_full(noise(*shape), 128, (122, 116, 104)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mean_std", [((0, 0, 0), (1, 1, 1)), ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))])
def test_crop_equals_transformers(shape, mean_std):
    mean, std = mean_std
    theirs = CLIPImageProcessorPil(
        size={"shortest_edge": 128}, crop_size={"height": 128, "width": 128}, image_mean=mean, image_std=std, return_tensors="np"
    )
    expected = np.stack(theirs(noise(*shape))["pixel_values"])
    ours = ImageProcessor(size=128, mode="crop", image_mean=mean, image_std=std)(noise(*shape))
    assert np.abs(ours - expected).max() <= 1e-6


@pytest.mark.parametrize("mode", ["pad", "crop"])
@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_reads_what_we_save(tmp_path, mode, shape):
    processor = ImageProcessor(size=192, mode=mode)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor.to_dict()))
    image, ours = noise(*shape), processor(noise(*shape))
    theirs = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert np.abs(np.stack(theirs(image)["pixel_values"]) - ours).max() <= 1e-6
    # The torchvision backend scales with other rounding: measured, at most 2 of 255 levels on noise.
    theirs = AutoImageProcessor.from_pretrained(tmp_path)
    assert np.abs(np.stack(theirs(image)["pixel_values"]) - ours).max() <= 3 / 255


def test_anyres_picks_the_grid_that_llava_picks():
    rng = random.Random(1)
    sets = [ImageProcessor(size=128).grids, ((128, 384), (256, 128), (384, 384)), ((256, 256), (128, 512))]
    for _ in range(300):
        width, height = rng.randrange(1, 1500), rng.randrange(1, 1500)
        grids = rng.choice(sets)
        rows_first = select_best_resolution((height, width), [(h, w) for w, h in grids])
        assert best_grid((width, height), grids) == rows_first[::-1]


@pytest.mark.parametrize("shape", [(300, 100), (100, 300), (200, 201), (64, 64), (257, 513)])
def test_anyres_tiles_are_the_overview_and_the_grid(shape):
    """LLaVA's recipe, written with another library: NumPy pads, tiles are a reshape."""
    image, size = noise(*shape), 64
    processor = ImageProcessor(size=size, mode="anyres")
    grid = best_grid(shape, processor.grids)
    scale = min(grid[0] / shape[0], grid[1] / shape[1])
    scaled = [min(math.ceil(side * scale), most) for side, most in zip(shape, grid, strict=True)]
    canvas = np.zeros((grid[1], grid[0], 3), np.uint8)
    left, top = (grid[0] - scaled[0]) // 2, (grid[1] - scaled[1]) // 2
    canvas[top : top + scaled[1], left : left + scaled[0]] = np.asarray(image.resize(scaled, BICUBIC))
    tiles = canvas.reshape(grid[1] // size, size, grid[0] // size, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3)
    expected = np.concatenate([np.asarray(image.resize((size, size), BICUBIC))[None], tiles])
    pixel_values = processor(image)
    assert np.array_equal(np.rint(pixel_values * 255).transpose(0, 2, 3, 1), expected)
    assert processor.num_tokens(shape[1], shape[0]) == len(expected)


def test_native_keeps_the_shape_within_the_area():
    rng = random.Random(2)
    for _ in range(300):
        width, height = rng.randrange(200, 4000), rng.randrange(200, 4000)
        size = 64 * rng.choice([4, 8, 16, 24])
        if max(width, height) > 6 * min(width, height):
            continue
        columns, rows = (side / 64 for side in native_size((width, height), size))
        assert columns == int(columns) >= 1
        assert rows == int(rows) >= 1
        assert columns * rows <= (size / 64) ** 2
        if size >= 512:  # 8 x 8 and more: room enough to meet most shapes
            assert columns * rows >= 0.7 * (size / 64) ** 2
            assert 1 / 1.35 < (columns / rows) / (width / height) < 1.35
    assert native_size((1000, 1000), 512) == (512, 512)
    assert native_size((2000, 1000), 1024) == (1408, 704)
    assert native_size((100_000, 600), 256) == (1024, 64)
    pixel_values = ImageProcessor(size=256, mode="native")(noise(400, 100))
    assert pixel_values.shape == (1, 3, 128, 512)
    assert np.array_equal(np.rint(pixel_values[0] * 255).transpose(1, 2, 0), np.asarray(noise(400, 100).resize((512, 128), BICUBIC)))


@pytest.mark.parametrize("mode", ["pad", "crop", "anyres", "native"])
@pytest.mark.parametrize("shape", SHAPES)
def test_num_tokens_is_the_number_of_64_pixel_squares(mode, shape):
    processor = ImageProcessor(size=128, mode=mode)
    tiles, _, height, width = processor(noise(*shape)).shape
    assert processor.num_tokens(shape[1], shape[0]) == tiles * (height // 64) * (width // 64)


@pytest.mark.parametrize(("size", "tokens"), [(256, 16), (512, 64), (768, 144), (1024, 256), (1536, 576), (2048, 1024)])
def test_tokens_by_resolution(size, tokens):
    assert ImageProcessor(size=size).num_tokens(3000, 4000) == tokens


@pytest.mark.parametrize("mode", ["pad", "crop", "anyres", "native"])
def test_drafts_fill_what_the_mode_makes_of_them(mode):
    processor = ImageProcessor(size=256, mode=mode)
    for width, height in [(4000, 3000), (3000, 4000), (5000, 900)]:
        useful_width, useful_height = processor.useful_size((width, height))
        assert useful_width / width == pytest.approx(useful_height / height, rel=0.03)  # same shape
        draft = processor(noise(useful_width, useful_height))
        if mode == "pad":
            assert max(useful_width, useful_height) == 256
        assert draft.shape == processor(Image.new("RGB", (width, height))).shape


@pytest.mark.parametrize(
    "processor",
    [
        ImageProcessor(),
        ImageProcessor(size=512, mode="crop", image_mean=(0.5, 0.4, 0.3), image_std=(0.2, 0.2, 0.1)),
        ImageProcessor(size=128, mode="anyres", grid_pinpoints=((128, 256), (384, 384))),
        ImageProcessor(size=256, mode="native", draft=True),
    ],
)
def test_saved_and_read_again(processor):
    assert ImageProcessor.from_dict(json.loads(json.dumps(processor.to_dict()))) == processor


def test_reads_apples_and_transformers_files():
    apples = {
        "crop_size": {"height": 1024, "width": 1024},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.0, 0.0, 0.0],
        "image_processor_type": "CLIPImageProcessor",
        "image_std": [1.0, 1.0, 1.0],
        "processor_class": "LlavaProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": 1024},
    }
    assert ImageProcessor.from_dict(apples) == ImageProcessor(mode="crop")
    assert ImageProcessor.from_dict(apples, image_aspect_ratio="pad") == ImageProcessor(mode="pad")
    assert ImageProcessor.from_dict(apples, image_aspect_ratio="anyres").mode == "anyres"
    assert ImageProcessor.from_dict(apples, image_aspect_ratio="square").mode == "crop"
    assert ImageProcessor.from_dict({**apples, "do_pad": True}) == ImageProcessor(mode="pad")
    assert ImageProcessor.from_dict({**apples, "do_normalize": False, "image_mean": [1, 1, 1]}).image_mean == (0, 0, 0)
    assert ImageProcessor.from_dict({"size": 512, "crop_size": 512}).size == 512
    assert ImageProcessor.from_dict({}) == ImageProcessor()
    assert ImageProcessor.from_dict(CLIPImageProcessorPil(size={"shortest_edge": 256}, crop_size=256).to_dict()).size == 256


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"size": {"shortest_edge": 1000}}, "multiple of 64"),
        ({"size": {"shortest_edge": 512}, "crop_size": {"height": 256, "width": 256}}, "differ"),
        ({"size": {"height": 512, "width": 256}}, "one side"),
        ({"size": "large"}, "one side"),
        ({"do_resize": False}, "do_resize"),
        ({"resample": 2}, "resample"),
        ({"rescale_factor": 1}, "1/255"),
        ({"image_mean": [0, 0]}, "three numbers"),
        ({"image_std": [1, 0, 1]}, "none of them 0"),
        ({"fastvlm": {"mode": "stretch"}}, "supported: pad"),
        ({"fastvlm": {"speed": 1}}, "speed"),
        ({"fastvlm": {"mode": "anyres", "grid_pinpoints": [[100, 1024]]}}, "multiples of 1024"),
        ({"fastvlm": {"mode": "anyres", "grid_pinpoints": [1024]}}, r"\[\[width, height\]"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(values, says):
    with pytest.raises(ValueError, match=says):
        ImageProcessor.from_dict(values)


@pytest.mark.parametrize("size", [0, -64, 100, 1024.0, True, 1 << 20, "512"])
def test_sizes_are_multiples_of_64(size):
    with pytest.raises(ValueError, match="multiple of 64"):
        ImageProcessor(size=size)


def test_another_size_keeps_the_grid():
    processor = ImageProcessor(size=128, mode="anyres", grid_pinpoints=((128, 256), (384, 384)))
    assert processor.at_size(256).grid_pinpoints == ((256, 512), (768, 768))
    assert processor.at_size(128) is processor
    assert ImageProcessor(draft=True).at_size(512) == ImageProcessor(size=512, draft=True)


def test_only_rgb():
    with pytest.raises(ValueError, match="load_image"):
        ImageProcessor()(Image.new("L", (64, 64)))
