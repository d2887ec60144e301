"""What happens to a page between the printer and the picture: paper, folds, light, a camera, blur, noise, JPEG.

    plan = Plan.draw(rng, width, height)          # before the page is drawn: how large it must be, where it will lie
    image, boxes = plan.apply(page_image, boxes)  # boxes: (n, 4), moved with the picture

The geometry is one homography, applied to the picture and to the corners of every box. About four in ten plans are clean.
A `View` is what comes after: a picture of any size and shape is padded and resized to what the model takes.
"""

import functools
import io
import random
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Color = tuple[int, int, int]


@dataclass(frozen=True)
class View:
    """How a picture that somebody has becomes the model's: centred on black, then resized as a whole, as `ImageProcessor` pads and resizes.

    Attributes:
        width, height: what the model takes, pixels.
        picture_width, picture_height: of the picture before.
        scale: pixels of the model's picture a pixel of the one before.
    """

    width: int
    height: int
    picture_width: int
    picture_height: int
    scale: float

    @classmethod
    def draw(cls, rng: random.Random, width: int, height: int, aspect: tuple[float, float]) -> "View":
        """A shape (width / height) between the two of `aspect`, and a size from three quarters of the model's to 1.6 times as large."""
        way = rng.random()
        shape = width / height if way < 0.25 else aspect[0] * (aspect[1] / aspect[0]) ** rng.random()
        way = rng.random()
        scale = 1.0 if way < 0.35 else 1 / rng.uniform(1.0, 1.6) if way < 0.88 else 1 / rng.uniform(0.75, 1.0)
        inner_width, inner_height = min(width, height * shape), min(height, width / shape)
        return cls(width, height, max(16, int(inner_width / scale)), max(16, int(inner_height / scale)), scale)

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the picture in pixels of the model's."""
        return self.picture_width * self.scale, self.picture_height * self.scale

    def apply(self, image: Image.Image, boxes: np.ndarray) -> tuple[Image.Image, np.ndarray]:
        """The model's picture (width x height) and the boxes in it, (n, 4) float32."""
        if image.size == (self.width, self.height):
            return image, boxes
        padded_size = round(self.width / self.scale), round(self.height / self.scale)
        move = (padded_size[0] - image.width) // 2, (padded_size[1] - image.height) // 2
        padded = image
        if image.size != padded_size:
            padded = Image.new("RGB", padded_size)
            padded.paste(image, move)
        if padded_size != (self.width, self.height):
            padded = padded.resize((self.width, self.height), Image.Resampling.BICUBIC)
        scale = np.array([self.width / padded_size[0], self.height / padded_size[1]] * 2)
        return padded, ((boxes + np.array(move * 2)) * scale).astype(np.float32)


@dataclass
class Plan:
    """One document's degradations. `homography` (3, 3) maps page pixels to picture pixels; None is the identity.

    `page_width`, `page_height`: what to draw; the picture is `width` x `height`. `names` lists what is done, for statistics per degradation.
    """

    width: int
    height: int
    page_width: int
    page_height: int
    homography: np.ndarray | None = None
    background: str = "none"
    names: list[str] = field(default_factory=list)
    seed: int = 0

    @classmethod
    def draw(
        cls, rng: random.Random, width: int, height: int, *, aspect: tuple[float, float] | None = None, level: float | None = None
    ) -> "Plan":
        """Choose degradations for a picture of `width` x `height`.

        Args:
            aspect: the page's natural width / height, least and most; a page of another shape than the picture gets bars, as a processor pads it.
            level: 0 is clean, 1 the usual mixture; None draws: 0.4 of the plans are clean.
        """
        level = (0.0 if rng.random() < 0.4 else 1.0) if level is None else level
        plan = cls(width, height, width, height, seed=rng.getrandbits(32))
        if aspect is not None:
            plan._fit(rng, aspect)
        if level <= 0:
            plan.names.append("clean")
            plan._place(rng)
            return plan
        way = rng.random()
        if way < 0.14:
            plan.names.append("camera")
            plan.background = "scene"
            plan._warp(rng, margin=rng.uniform(0.01, 0.05), tilt=0.025, angle=2.5)
        elif way < 0.4:
            plan.names.append("rotation")
            plan.background = "paper"
            plan._warp(rng, margin=0.0, tilt=0.0, angle=rng.choice([1.0, 2.0, 3.0]))
        elif way < 0.5:
            plan.names.append("perspective")
            plan.background = "paper"
            plan._warp(rng, margin=0.0, tilt=0.02, angle=1.0)
        else:
            plan._place(rng)
        for name, share in (
            ("texture", 0.3),
            ("fold", 0.1),
            ("light", 0.35),
            ("blur", 0.3),
            ("noise", 0.4),
            ("jpeg", 0.5),
            ("contrast", 0.2),
            ("resample", 0.1),
        ):
            if rng.random() < share:
                plan.names.append(name)
        if not plan.names:
            plan.names.append("clean")
        return plan

    # ---- geometry

    def _fit(self, rng: random.Random, aspect: tuple[float, float]) -> None:
        """A page inside the picture whose shape is as natural as can be; the rest of the picture is bars."""
        low, high = aspect
        shape = self.width / self.height
        wanted = min(max(shape, low), high)
        if wanted == shape:
            return
        if shape > wanted:
            self.page_width = max(64, round(self.height * wanted))
        else:
            self.page_height = max(64, round(self.width / wanted))
        self.background = rng.choice(["black", "black", "black", "white", "gray", "scene"])

    def _place(self, rng: random.Random) -> None:
        """Centre the page (as a processor does when it pads) without any warping."""
        if (self.page_width, self.page_height) != (self.width, self.height):
            move = np.eye(3)
            move[0, 2], move[1, 2] = (self.width - self.page_width) // 2, (self.height - self.page_height) // 2
            self.homography = move

    def _warp(self, rng: random.Random, margin: float, tilt: float, angle: float) -> None:
        """A homography that turns the page by up to `angle` degrees, moves its corners by up to `tilt` of its side, and keeps it in the picture."""
        w, h = self.page_width, self.page_height
        corners = np.array([[0, 0], [w, 0], [w, h], [0, h]], float)
        target = corners + np.array([[rng.uniform(-tilt, tilt) * w, rng.uniform(-tilt, tilt) * h] for _ in range(4)])
        turn = np.radians(rng.uniform(-angle, angle))
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        target = (target - [w / 2, h / 2]) @ rotation.T
        # The whole page stays in view for a camera; a scanned page may lose the corners of its margins.
        extent = np.abs(target).max(0)
        room = np.array([self.width, self.height]) * (0.5 - margin)
        shrink = min(1.0, *(room / extent)) if self.background == "scene" else max(0.97, min(1.0, *(room / extent)))
        target = target * shrink + [self.width / 2, self.height / 2]
        self.homography = solve_homography(corners, target)

    def page_scale(self) -> float:
        """How much larger a length of the page is in the picture, about."""
        if self.homography is None:
            return 1.0
        middle = np.array([[self.page_width / 2, self.page_height / 2], [self.page_width / 2 + 1, self.page_height / 2 + 1]])
        (x0, y0), (x1, y1) = map_points(self.homography, middle)
        return float(np.hypot(x1 - x0, y1 - y0) / np.sqrt(2))

    # ---- pixels

    def apply(self, image: Image.Image, boxes: np.ndarray, paper: Color = (255, 255, 255)) -> tuple[Image.Image, np.ndarray]:
        """The final picture (width x height, RGB) and the boxes in it, (n, 4) float32."""
        generator = np.random.default_rng(self.seed)
        rng = random.Random(self.seed)
        if "texture" in self.names:
            image = _multiply(image, _texture(generator, image.size, rng.uniform(0.02, 0.09)))
        if "fold" in self.names:
            image = _multiply(image, _folds(rng, image.size))
        if self.homography is not None or image.size != (self.width, self.height):
            image = self._transform(image, generator, rng, paper)
            boxes = map_boxes(self.homography, boxes)
        if "light" in self.names:
            image = _multiply(image, _light(generator, image.size, rng.uniform(0.1, 0.45)))
        if "contrast" in self.names:
            low, high = rng.uniform(0, 60), rng.uniform(190, 255)
            tint = [rng.uniform(0.9, 1.0) for _ in range(3)] if rng.random() < 0.5 else [1.0, 1.0, 1.0]
            image = image.point([round((low + (high - low) * i / 255) * t) for t in tint for i in range(256)])
        if "resample" in self.names:
            scale = rng.uniform(0.7, 0.95)
            small = image.resize((round(self.width * scale), round(self.height * scale)), Image.Resampling.BICUBIC)
            image = small.resize((self.width, self.height), Image.Resampling.BICUBIC)
        if "blur" in self.names:
            image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.15, 0.6)))
        if "noise" in self.names:
            image = _add_noise(image, generator, rng)
        if "jpeg" in self.names:
            stream = io.BytesIO()
            image.save(stream, "JPEG", quality=round(rng.triangular(25, 95, 75)), subsampling=rng.choice([0, 2]))
            image = Image.open(stream).convert("RGB")
        return image, boxes.astype(np.float32)

    def _transform(self, image: Image.Image, generator: np.random.Generator, rng: random.Random, paper: Color) -> Image.Image:
        size = (self.width, self.height)
        homography = np.eye(3) if self.homography is None else self.homography
        plain = {"none": paper, "paper": paper, "black": (0, 0, 0), "white": (255, 255, 255), "gray": (127, 127, 127)}
        canvas = _scene(generator, rng, size) if self.background == "scene" else Image.new("RGB", size, plain[self.background])
        if np.allclose(homography[:2, :2], np.eye(2)) and np.allclose(homography[2], [0, 0, 1]) and np.allclose(homography[:2, 2] % 1, 0):
            canvas.paste(image, (int(homography[0, 2]), int(homography[1, 2])))
            return canvas
        backward = np.linalg.inv(homography)
        coefficients = (backward / backward[2, 2]).ravel()[:8].tolist()
        resample = Image.Resampling.BICUBIC if rng.random() < 0.3 else Image.Resampling.BILINEAR
        warped = image.transform(size, Image.Transform.PERSPECTIVE, coefficients, resample)
        mask = Image.new("L", size)
        w, h = image.size
        outline = map_points(homography, np.array([[2, 2], [w - 2, 2], [w - 2, h - 2], [2, h - 2]], float))
        ImageDraw.Draw(mask).polygon([tuple(p) for p in outline.tolist()], fill=255)
        if self.background == "scene":
            mask = mask.filter(ImageFilter.BoxBlur(0.7))
        canvas.paste(warped, (0, 0), mask)
        return canvas


def solve_homography(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The (3, 3) matrix that maps four points (4, 2) to four others."""
    rows = []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
    return np.append(np.linalg.solve(np.array(rows, float), np.asarray(target, float).ravel()), 1).reshape(3, 3)


def map_points(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(n, 2) points through a (3, 3) homography."""
    moved = points @ homography[:, :2].T + homography[:, 2]
    return moved[:, :2] / moved[:, 2:]


def map_boxes(homography: np.ndarray | None, boxes: np.ndarray) -> np.ndarray:
    """The upright boxes around the four mapped corners of each box, (n, 4)."""
    if homography is None or len(boxes) == 0:
        return boxes
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 2)
    moved = map_points(homography, corners).reshape(-1, 4, 2)
    return np.concatenate([moved.min(1), moved.max(1)], axis=1)


def _multiply(image: Image.Image, factors: np.ndarray) -> Image.Image:
    """Scale brightness by (height, width) factors in 256ths: 0 to 256, since 255 * 256 is the most that 16 bits hold."""
    pixels = np.asarray(image).astype(np.uint16) * factors.clip(0, 256).astype(np.uint16)[:, :, None] >> 8
    return Image.fromarray(pixels.astype(np.uint8))


@functools.cache
def _noise_tile() -> np.ndarray:
    """Normal noise, (1024, 1024) int8 with a standard deviation of 32: drawn once, used at random places."""
    return np.clip(np.random.default_rng(20250613).standard_normal((1024, 1024), np.float32) * 32, -127, 127).astype(np.int8)


def _tile(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    tile = _noise_tile()
    if height > 900 or width > 900:
        tile = np.tile(tile, (-(-height // 1024) + 1, -(-width // 1024) + 1))
    y, x = generator.integers(0, tile.shape[0] - height), generator.integers(0, tile.shape[1] - width)
    cut = tile[y : y + height, x : x + width]
    return cut[:: 1 - 2 * int(generator.integers(2)), :: 1 - 2 * int(generator.integers(2))]


def _smooth(generator: np.random.Generator, size: tuple[int, int], cells: int) -> np.ndarray:
    """A smooth random field in 0..255, (height, width) uint8."""
    small = generator.integers(0, 256, (cells, cells), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))


def _texture(generator: np.random.Generator, size: tuple[int, int], strength: float) -> np.ndarray:
    """Paper: fibres and stains, factors around 1."""
    width, height = size
    coarse = _smooth(generator, size, int(generator.integers(4, 40))).astype(np.int16) - 128
    fine = _tile(generator, height, width)
    return 256 - 80 * strength + coarse * strength * 0.6 + fine * strength


def _folds(rng: random.Random, size: tuple[int, int]) -> np.ndarray:
    """One or two creases with a shadow on one side."""
    width, height = size
    rows, columns = np.full(height, 256.0), np.full(width, 256.0)
    for _ in range(rng.randint(1, 2)):
        line = rng.choice([rows, columns])
        at, spread, depth = rng.uniform(0.15, 0.85) * len(line), rng.uniform(4, 60), rng.uniform(15, 75)
        distance = (np.arange(len(line)) - at) * rng.choice([-1, 1])
        line -= np.where(distance >= 0, depth * np.exp(-distance / spread), 0) - np.where(np.abs(distance) < 1, rng.uniform(0, 20), 0)
    return np.outer(rows, columns) / 256


def _light(generator: np.random.Generator, size: tuple[int, int], strength: float) -> np.ndarray:
    """Uneven light: brightness falls by up to `strength` towards some side or in a soft shadow."""
    field = _smooth(generator, size, int(generator.integers(2, 5)))
    return 262 - field * strength


def _add_noise(image: Image.Image, generator: np.random.Generator, rng: random.Random) -> Image.Image:
    pixels = np.asarray(image).astype(np.int16)
    height, width = pixels.shape[:2]
    strength = round(
        rng.uniform(4, 24)
    )  # in 256ths of 32 grey levels and more: a deviation of 0.5 to 3; squared below for rarer strong noise
    strength = strength * rng.choice([2, 3, 5])
    if rng.random() < 0.5:
        noise = (_tile(generator, height, width).astype(np.int16) * strength >> 8)[:, :, None]
    else:
        noise = np.stack([_tile(generator, height, width).astype(np.int16) * strength >> 8 for _ in range(3)], axis=2)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def _scene(generator: np.random.Generator, rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """What a page may lie on: a table of wood or stone, cloth, a wall."""
    width, height = size
    base = np.array([rng.uniform(20, 220) for _ in range(3)])
    if rng.random() < 0.6:
        base = base.mean() * np.array([1.1, 1.0, 0.85])
    stretch = rng.choice([(1, 1), (1, 12), (12, 1)])
    small = generator.integers(0, 256, (max(2, 40 // stretch[0]), max(2, 40 // stretch[1])), dtype=np.uint8)
    coarse = np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)).astype(np.float32) - 128
    coarse *= np.float32(rng.uniform(0.05, 0.25))
    pattern = coarse + _tile(generator, height, width) * np.float32(rng.uniform(0.02, 0.2))
    return Image.fromarray((base.astype(np.float32) + pattern[:, :, None]).clip(0, 255).astype(np.uint8))
