"""From an RGB picture to the tensor that the vision tower takes.

    processor = ImageProcessor(size=1024)                  # FastVLM's own recipe: pad to a black square
    pixel_values = processor(load_image("scan.png"))       # (1, 3, 1024, 1024) float32
    processor.num_tokens(3000, 4000)                       # 256: one per 64 x 64 pixels

Four modes say what happens to a picture that is no square:

    pad     centred on a black square as wide as its longer side, then scaled to size x size. The whole picture is seen. This is what
            Apple's `predict.py` does with the released checkpoints (their `image_aspect_ratio` is "pad").
    crop    the shorter side is scaled to `size` and the centre is cut out. What transformers' port, the snippet on the model cards and
            Apple's Swift app do. The ends of a long page are lost.
    anyres  an overview, scaled to size x size, and the picture again over a grid of size x size tiles (LLaVA's "anyres").
    native  the picture's own aspect ratio, sides rounded to multiples of 64, of about size x size pixels and never more. No pixel is spent
            on padding; the released checkpoints were not trained for it.

The pixels of `pad`, `crop` and `anyres` are those of the reference implementation, bit for bit, with fewer operations.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from fastvlm.config import PATCH_SIZE

MODES = ("pad", "crop", "anyres", "native")
DEFAULT_SIZE = 1024
MAX_SIZE = 8192  # 16384 tokens a picture; beyond it something is meant differently
MAX_TILES = 64

Size = tuple[int, int]  # width, height
_BICUBIC = Image.Resampling.BICUBIC
_STRIP_ROWS = 512


@dataclass(frozen=True)
class ImageProcessor:
    """The recipe; calling it makes the pixels of one picture.

    Attributes:
        size: side in pixels of the square (of each tile, of the square with the area) that the tower sees; a multiple of 64.
        mode: `pad`, `crop`, `anyres` or `native`, see above.
        image_mean, image_std: per channel, on the scale 0 to 1. FastVLM was trained with 0 and 1.
        grid_pinpoints: `anyres` only: the (width, height) that the tiles may cover, in pixels, multiples of `size`.
            None: 1x2, 2x1, 2x2, 1x3 and 3x1 tiles.
        draft: decode large JPEGs at 1/2, 1/4 or 1/8, never below what the mode makes of them. Faster; pixels differ a little.
    """

    size: int = DEFAULT_SIZE
    mode: str = "pad"
    image_mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    image_std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    grid_pinpoints: tuple[Size, ...] | None = None
    draft: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or not 0 < self.size <= MAX_SIZE or self.size % PATCH_SIZE:
            below = (
                min(MAX_SIZE, max(1, int(self.size) // PATCH_SIZE) * PATCH_SIZE) if isinstance(self.size, (int, float)) else DEFAULT_SIZE
            )
            raise ValueError(
                f"image size is {self.size!r}; it must be a multiple of {PATCH_SIZE} up to {MAX_SIZE}, such as 256, 512, {below} or 1024"
            )
        if self.mode not in MODES:
            raise ValueError(f"image mode is {self.mode!r}; supported: {', '.join(MODES)}")
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            if len(values) != 3 or not all(_is_number(value) for value in values) or (name == "image_std" and not all(values)):
                raise ValueError(f"{name} is {values!r}; it must hold three numbers{', none of them 0' if name == 'image_std' else ''}")
            object.__setattr__(self, name, tuple(float(value) for value in values))
        if self.grid_pinpoints is not None:
            pinpoints = tuple((width, height) for width, height in self.grid_pinpoints)
            for pair in pinpoints:
                if not all(isinstance(side, int) and side > 0 and side % self.size == 0 for side in pair):
                    raise ValueError(f"grid_pinpoints hold {pair!r}; each must be a width and a height that are multiples of {self.size}")
                if pair[0] * pair[1] > MAX_TILES * self.size**2:
                    raise ValueError(f"grid_pinpoints hold {pair!r}, more than {MAX_TILES} tiles of {self.size} x {self.size}")
            object.__setattr__(self, "grid_pinpoints", pinpoints or None)

    def at_size(self, size: int) -> "ImageProcessor":
        """The same recipe at another size; an `anyres` grid keeps its numbers of tiles."""
        if size == self.size:
            return self
        resized = replace(self, size=size, grid_pinpoints=None)
        if self.grid_pinpoints is None:
            return resized
        return replace(resized, grid_pinpoints=tuple((w // self.size * size, h // self.size * size) for w, h in self.grid_pinpoints))

    @property
    def grids(self) -> tuple[Size, ...]:
        """The (width, height) in pixels that `anyres` may cover with tiles."""
        if self.grid_pinpoints is not None:
            return self.grid_pinpoints
        return tuple((columns * self.size, rows * self.size) for columns, rows in ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1)))

    def __call__(self, image: Image.Image) -> np.ndarray:
        """An RGB image -> (tiles, 3, height, width) float32, normalised; one tile in every mode but `anyres`."""
        if image.mode != "RGB":
            raise ValueError(f"the image has mode {image.mode}; bring it to RGB first, with fastvlm.image_io.load_image")
        if self.mode == "pad":
            images = [_pad_and_resize(image, self.size, self._padding_colour)]
        elif self.mode == "crop":
            images = [_resize_and_crop(image, self.size)]
        elif self.mode == "anyres":
            images = _tiles(image, self.size, best_grid(image.size, self.grids))
        else:
            images = [image.resize(native_size(image.size, self.size), _BICUBIC)]
        pixel_values = np.empty((len(images), 3, images[0].height, images[0].width), np.float32)
        for index, tile in enumerate(images):
            self._normalise(tile, pixel_values[index])
        return pixel_values

    def num_tokens(self, height: int, width: int) -> int:
        """Image tokens of a picture of `height` x `width` pixels, over all its tiles."""
        if self.mode == "native":
            columns, rows = (side // PATCH_SIZE for side in native_size((width, height), self.size))
            return columns * rows
        per_tile = (self.size // PATCH_SIZE) ** 2
        if self.mode != "anyres":
            return per_tile
        grid_width, grid_height = best_grid((width, height), self.grids)
        return (1 + grid_width * grid_height // self.size**2) * per_tile

    def useful_size(self, size: Size) -> Size:
        """The smallest (width, height) at which a picture of `size` still fills what this recipe makes of it; for JPEG drafts."""
        width, height = size
        if self.mode == "pad":
            scale = self.size / max(size)
        elif self.mode == "crop":
            scale = self.size / min(size)
        elif self.mode == "anyres":
            grid = best_grid(size, self.grids)
            scale = max(min(grid[0] / width, grid[1] / height), self.size / min(size))
        else:
            target = native_size(size, self.size)
            scale = max(target[0] / width, target[1] / height)
        return max(1, math.ceil(width * scale)), max(1, math.ceil(height * scale))

    # Files

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], image_aspect_ratio: str | None = None) -> "ImageProcessor":
        """From a preprocessor_config.json: ours, Apple's exports or one that transformers wrote for CLIP or LLaVA.

        Args:
            values: the file's content; empty is the default recipe.
            image_aspect_ratio: of LLaVA's config.json, which decides between the modes where the file itself does not: "pad", "anyres",
                or anything else for `crop`.

        Raises:
            ValueError: names the field and what it holds.
        """
        where = "preprocessor_config.json"
        for name, wanted in _MUST_BE.items():
            if values.get(name, wanted) != wanted:
                raise ValueError(f"{where}: {name} is {values[name]!r}; only {wanted!r} is supported")
        scale = values.get("rescale_factor", 1 / 255)
        if not _is_number(scale) or abs(scale * 255 - 1) > 1e-6:
            raise ValueError(f"{where}: rescale_factor is {scale!r}; only 1/255 is supported")
        size = _square_side(values.get("size"), "size", where)
        crop_size = _square_side(values.get("crop_size"), "crop_size", where)
        if size is not None and crop_size is not None and size != crop_size:
            raise ValueError(f"{where}: size {size} and crop_size {crop_size} differ; only equal ones are supported")
        options: dict[str, Any] = {"size": size or crop_size or DEFAULT_SIZE}
        is_normalised = values.get("do_normalize", True)
        for name in ("image_mean", "image_std"):
            if is_normalised and values.get(name) is not None:
                value = values[name]
                options[name] = tuple(value) if isinstance(value, (list, tuple)) else (value,) * 3
        ours = values.get("fastvlm")
        if isinstance(ours, Mapping):
            if unknown := sorted(set(ours) - {"mode", "grid_pinpoints", "draft"}):
                raise ValueError(f"{where}: fastvlm has fields that this version does not know: {', '.join(map(str, unknown))}")
            options.update(ours)
            pinpoints = ours.get("grid_pinpoints")
            if pinpoints is not None and not _are_pairs(pinpoints):
                raise ValueError(f"{where}: grid_pinpoints is {str(pinpoints)[:80]!r}; expected [[width, height], ...]")
            options["grid_pinpoints"] = None if pinpoints is None else tuple(map(tuple, pinpoints))
        elif values.get("do_pad") is not None:
            options["mode"] = "pad" if values["do_pad"] else "crop"
        elif image_aspect_ratio is not None:
            options["mode"] = image_aspect_ratio if image_aspect_ratio in ("pad", "anyres") else "crop"
        else:
            options["mode"] = "crop" if values else "pad"
        try:
            return cls(**options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """A preprocessor_config.json for us and for transformers.

        transformers makes the same pixels of it for `pad` (its LLaVA processor) and `crop` (its CLIP processor); it has nothing like
        `native`, and pads there, nor LLaVA's `anyres` for this model, where it gives the overview alone.
        """
        values: dict[str, Any] = {
            "image_processor_type": "CLIPImageProcessor" if self.mode == "crop" else "LlavaImageProcessor",
            "processor_class": "LlavaProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": self.size},
            "resample": int(_BICUBIC),
            "do_center_crop": True,
            "crop_size": {"height": self.size, "width": self.size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
        }
        if self.mode != "crop":
            values["do_pad"] = True
        if self.mode in ("anyres", "native") or self.draft:
            ours: dict[str, Any] = {"mode": self.mode, "draft": self.draft}
            if self.grid_pinpoints is not None:
                ours["grid_pinpoints"] = [list(pair) for pair in self.grid_pinpoints]
            values["fastvlm"] = ours
        return values

    @property
    def _padding_colour(self) -> tuple[int, int, int]:
        red, green, blue = (int(mean * 255) for mean in self.image_mean)
        return red, green, blue

    def _normalise(self, image: Image.Image, out: np.ndarray) -> None:
        """RGB image -> `out` (3, height, width)."""
        table = _normalisation_table(self.image_mean, self.image_std)
        pixels = np.asarray(image)
        for channel in range(3):
            np.take(table[channel], pixels[:, :, channel], out=out[channel], mode="clip")


# What these fields of CLIP's and LLaVA's processors must hold for the recipe to be one of ours; absent is fine.
_MUST_BE = {"do_resize": True, "do_center_crop": True, "do_rescale": True, "do_convert_rgb": True, "resample": 3}


@functools.lru_cache(maxsize=8)
def _normalisation_table(image_mean: tuple[float, ...], image_std: tuple[float, ...]) -> np.ndarray:
    """(3, 256) float32: the value of each byte, rounded where transformers' CLIPImageProcessor rounds."""
    scaled = (np.arange(256) * (1 / 255)).astype(np.float32)
    return np.stack([(scaled - np.float32(mean)) / np.float32(std) for mean, std in zip(image_mean, image_std, strict=True)])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _are_pairs(value: Any) -> bool:
    return isinstance(value, Sequence) and all(isinstance(pair, Sequence) and len(pair) == 2 for pair in value)


def _square_side(value: Any, name: str, where: str) -> int | None:
    """The side in `{"shortest_edge": 1024}`, `{"height": 1024, "width": 1024}` or `1024`."""
    if isinstance(value, Mapping):
        sides = {value[key] for key in ("shortest_edge", "height", "width") if value.get(key) is not None}
        value = sides.pop() if len(sides) == 1 else dict(value)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise ValueError(f"{where}: {name} is {str(value)[:80]}; expected one side in pixels, such as 1024")
    return value


# Scaling. Pillow scales rows first, rounds to 8 bits, then columns. `pad` does the same without making the large square: rows above and
# below a wide picture stay black whatever is done to them, so only its own rows are scaled; a tall one is widened a strip at a time, and
# only as far as its edges can be felt.


def _pad_and_resize(image: Image.Image, size: int, colour: tuple[int, int, int]) -> Image.Image:
    width, height = image.size
    side = max(width, height)
    if width == height:
        return image.resize((size, size), _BICUBIC)
    left, top = (side - width) // 2, (side - height) // 2
    if side == size:  # nothing to scale
        square = Image.new("RGB", (size, size), colour)
        square.paste(image, (left, top))
        return square
    rows = Image.new("RGB", (size, side), colour)
    if width > height:
        rows.paste(image.resize((size, height), _BICUBIC), (0, top))
    else:
        _paste_tall(image, rows, left)
    return rows.resize((size, size), _BICUBIC)


def _paste_tall(image: Image.Image, rows: Image.Image, left: int) -> None:
    """Scale the rows of a tall picture, which stands `left` of a square's edge, into `rows` (size x the square's side).

    Columns of `rows` that no pixel of the picture reaches keep their colour. The cut is made where a column begins at a whole pixel: so
    every weight is the one that scaling the whole square has, whose rounding must not change.
    """
    size, side = rows.size
    scale = side / size
    reach = 2 * max(scale, 1.0)  # the bicubic kernel's support in pixels of the picture
    unit = math.gcd(size, side)
    columns_per_unit, pixels_per_unit = size // unit, side // unit
    first = max(0, math.floor((left - reach - scale) / pixels_per_unit))
    last = min(unit, math.ceil((left + image.width + reach + scale) / pixels_per_unit))
    margin = math.ceil(reach) + 1  # of plain colour, where the kernel would otherwise meet the end of the picture
    start, stop = max(0, first * pixels_per_unit - margin), min(side, last * pixels_per_unit + margin)
    box_left, box_right = first * pixels_per_unit - start, last * pixels_per_unit - start
    num_columns = (last - first) * columns_per_unit
    colour = rows.getpixel((0, 0))
    for top in range(0, image.height, _STRIP_ROWS):
        bottom = min(top + _STRIP_ROWS, image.height)
        strip = Image.new("RGB", (stop - start, bottom - top), colour)
        strip.paste(image.crop((0, top, image.width, bottom)), (left - start, 0))
        scaled = strip.resize((num_columns, bottom - top), _BICUBIC, box=(box_left, 0, box_right, bottom - top))
        rows.paste(scaled, (first * columns_per_unit, top))


def _resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    if width <= height:
        scaled = (size, int(size * height / width))
    else:
        scaled = (int(size * width / height), size)
    left, top = (scaled[0] - size) // 2, (scaled[1] - size) // 2
    resized = image if scaled == image.size else image.resize(scaled, _BICUBIC)
    return resized.crop((left, top, left + size, top + size))


def best_grid(image_size: Size, grids: Sequence[Size]) -> Size:
    """Of `grids` (width, height), the one in which a picture scaled to fit keeps most pixels of its own, then the least wasteful."""
    width, height = image_size

    def quality(grid: Size) -> tuple[int, int]:
        scale = min(grid[0] / width, grid[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - grid[0] * grid[1]

    return max(grids, key=quality)  # the first of equals, as in LLaVA


def _tiles(image: Image.Image, size: int, grid: Size) -> list[Image.Image]:
    """The overview, then the tiles of the picture centred on `grid`, row by row."""
    width, height = image.size
    scale_x, scale_y = grid[0] / width, grid[1] / height
    if scale_x < scale_y:
        scaled = (grid[0], min(math.ceil(height * scale_x), grid[1]))
    else:
        scaled = (min(math.ceil(width * scale_y), grid[0]), grid[1])
    canvas = Image.new("RGB", grid)
    canvas.paste(image.resize(scaled, _BICUBIC), ((grid[0] - scaled[0]) // 2, (grid[1] - scaled[1]) // 2))
    places = [(x, y) for y in range(0, grid[1], size) for x in range(0, grid[0], size)]
    return [image.resize((size, size), _BICUBIC), *(canvas.crop((x, y, x + size, y + size)) for x, y in places)]


@functools.lru_cache(maxsize=1024)
def native_size(image_size: Size, size: int) -> Size:
    """(width, height) in multiples of 64, of at most size x size pixels, near the shape of `image_size`.

    Of all such grids the one with the least log(distortion of the aspect ratio) + half of log(pixels left unused).
    """
    ratio = image_size[0] / image_size[1]
    most = (size // PATCH_SIZE) ** 2
    best, least_cost = (1, 1), math.inf
    for rows in range(1, most + 1):
        for columns in {math.floor(rows * ratio), math.ceil(rows * ratio), most // rows}:
            if not 1 <= columns <= most // rows:
                continue
            cost = abs(math.log(columns / rows / ratio)) + 0.5 * math.log(most / (columns * rows))
            if cost < least_cost - 1e-12:
                best, least_cost = (columns, rows), cost
    return best[0] * PATCH_SIZE, best[1] * PATCH_SIZE
