"""Messages with pictures -> what a model takes: token ids and pixels, as NumPy arrays.

    processor = Processor.from_folder("FastVLM-0.5B")
    messages = [{"role": "user", "content": [{"type": "image", "image": "scan.png"}, {"type": "text", "text": "What is the total?"}]}]
    inputs = processor(messages)
    inputs.input_ids.shape, inputs.pixel_values.shape       # (1, 281), (1, 3, 1024, 1024)

The one way into the model, for the command line, the server, batches, training and evaluation alike.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastvlm.config import PATCH_SIZE, FastVLMConfig
from fastvlm.image_io import ImageError, ImageLimits, load_image
from fastvlm.image_processing import ImageProcessor
from fastvlm.prompts import BUILT_IN, IMAGE_TOKEN, QWEN_2, ChatTemplate, Message, PromptError, Segment, read_messages
from fastvlm.sampling import is_count
from fastvlm.tokenizer import Tokenizer, read_json

TEMPLATE_FILE = "chat_template.jinja"
GENERATION_FILE = "generation_config.json"


@dataclass
class ModelInputs:
    """One prompt.

    Attributes:
        input_ids: (1, S) int64, the image token once for each image feature.
        image_groups: for each picture a (tiles, 3, height, width) float32 array, in the order of their tokens.
        loss_mask: (1, S) bool, true where a model learns to produce the token; None outside training.
        preprocess_s: seconds that making this took.
        segments: (1, S) int64, never falling: parts that do not see each other, only what is in segment 0; None where all is one, and
            outside training.
    """

    input_ids: np.ndarray
    image_groups: list[np.ndarray] = field(default_factory=list)
    loss_mask: np.ndarray | None = None
    preprocess_s: float = 0.0
    segments: np.ndarray | None = None

    @property
    def pixel_values(self) -> np.ndarray | None:
        """(N, 3, height, width) float32, all tiles of all pictures; None without pictures.

        Raises:
            ValueError: the pictures differ in size, as `native` lets them; take `image_groups` then.
        """
        if not self.image_groups:
            return None
        if len({group.shape[1:] for group in self.image_groups}) > 1:
            raise ValueError("the pictures of this prompt differ in size, so they are not one array; use image_groups")
        return self.image_groups[0] if len(self.image_groups) == 1 else np.concatenate(self.image_groups)


class Processor:
    """Tokenizer, chat template and picture recipe of a checkpoint.

    Attributes:
        tokenizer: text to ids; knows the image token.
        image_processor: pictures to pixels; may be replaced.
        image_token_id: stands for one image feature in `input_ids`.
        image_limits: what a picture may cost.
        max_length: tokens that a prompt may have; None leaves that to the model.
        no_repeat_ngram_size: of answers (`fastvlm.sampling`), where whoever asks does not say; from generation_config.json.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        image_processor: ImageProcessor | None = None,
        *,
        image_token: str = IMAGE_TOKEN,
        chat_template: str | None = None,
        image_limits: ImageLimits | None = None,
        max_length: int | None = None,
        no_repeat_ngram_size: int = 0,
    ):
        """
        Args:
            image_token: its name; added to the tokenizer, at the next free id, where it is not known.
            chat_template: a Jinja program or a name in `fastvlm.prompts.BUILT_IN`; None is the tokenizer's own, or FastVLM's where the
                vocabulary has its tokens.
        """
        self.tokenizer = tokenizer
        self.image_processor = ImageProcessor() if image_processor is None else image_processor
        self.image_token = image_token
        self.image_token_id = tokenizer.add_special_token(image_token)
        self.image_limits = ImageLimits() if image_limits is None else image_limits
        self.max_length = max_length
        self.no_repeat_ngram_size = no_repeat_ngram_size
        source = _default_template(tokenizer) if chat_template is None else chat_template
        self._template = None if source is None else self._read_template(source)

    @classmethod
    def from_folder(cls, path: str | Path, config: FastVLMConfig | None = None, **options: Any) -> "Processor":
        """Read the small files of a checkpoint: tokenizer, chat template, picture recipe.

        Args:
            path: the folder; nothing is written to it.
            config: its model's config, whose image token id then holds.
            options: as for the constructor.

        Raises:
            ValueError: which file, what it holds and what was wanted.
        """
        folder = Path(path)
        tokenizer = Tokenizer.from_folder(folder)
        settings = read_json(folder / "processor_config.json")
        image_token = options.pop("image_token", None) or settings.get("image_token") or IMAGE_TOKEN
        if config is not None:
            image_token = tokenizer.token(config.image_token_id) or image_token
            added = tokenizer.add_special_token(image_token)
            if added != config.image_token_id:
                raise ValueError(
                    f"config.json says that the image token is {config.image_token_id}, but the tokenizer in {folder} has or would give "
                    f"{image_token!r} the id {added}; one of them is of another model"
                )
        if "image_processor" not in options:
            # transformers 5 keeps the recipe inside processor_config.json, older versions and Apple in a file of its own.
            recipe = settings.get("image_processor") or read_json(folder / "preprocessor_config.json")
            aspect = read_json(folder / "config.json").get("image_aspect_ratio")
            options["image_processor"] = ImageProcessor.from_dict(recipe, aspect if isinstance(aspect, str) else None)
        ngram_size = read_json(folder / GENERATION_FILE).get("no_repeat_ngram_size") or 0
        if not is_count(ngram_size):
            raise ValueError(f"{folder / GENERATION_FILE}: no_repeat_ngram_size is {ngram_size!r}; expected a whole number, 0 or more")
        options.setdefault("no_repeat_ngram_size", ngram_size)
        if options.get("chat_template") is None:
            options["chat_template"] = _stored_template(folder)
        return cls(tokenizer, image_token=image_token, **options)

    @property
    def template(self) -> ChatTemplate:
        if self._template is None:
            raise PromptError(f"this checkpoint has no chat template; set chat_template to Jinja source or one of {', '.join(BUILT_IN)}")
        return self._template

    @property
    def chat_template(self) -> str | None:
        """The Jinja source; may be set to another or to a name in `fastvlm.prompts.BUILT_IN`."""
        return None if self._template is None else self._template.source

    @chat_template.setter
    def chat_template(self, source: str) -> None:
        self._template = self._read_template(source)

    def __call__(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, resolution: int | None = None) -> ModelInputs:
        """The prompt that a model answers.

        Args:
            messages: `{"role": "system" | "user" | "assistant", "content": text or list of parts}`; a part is
                `{"type": "text", "text": ...}` or `{"type": "image", "image": path, bytes, binary file or PIL image}`.
            add_generation_prompt: end where the assistant's next turn begins.
            resolution: side in pixels that pictures are brought to, a multiple of 64; None is `image_processor.size`.

        Raises:
            ImageError: a picture that cannot be used.
            PromptError: messages that cannot become a prompt.
            ValueError: more than `max_length` tokens, with the numbers.
        """
        return self._inputs(messages, add_generation_prompt, resolution, is_training=False)

    def training_inputs(self, messages: Sequence[Message], *, resolution: int | None = None) -> ModelInputs:
        """A whole conversation to learn from; `loss_mask` is true on what assistants say and on the token that ends their turns."""
        return self._inputs(messages, add_generation_prompt=False, resolution=resolution, is_training=True)

    def save(self, folder: str | Path) -> None:
        """Write the small files of a checkpoint, which `from_folder` and transformers' AutoProcessor read.

        transformers renders the same prompts from them, and the same pixels in the modes `pad` and `crop`.
        """
        folder = Path(folder)
        template = {} if self._template is None else {"chat_template": self._template.source}
        self.tokenizer.save(folder, config={"image_token": self.image_token, "processor_class": "LlavaProcessor", **template})
        if self._template is not None:
            (folder / TEMPLATE_FILE).write_text(self._template.source, encoding="utf-8")
        _write_json(folder / "preprocessor_config.json", self.image_processor.to_dict())
        settings = {
            "image_token": self.image_token,
            "num_additional_image_tokens": 0,
            "patch_size": PATCH_SIZE,
            "processor_class": "LlavaProcessor",
            "vision_feature_select_strategy": "full",
        }
        _write_json(folder / "processor_config.json", settings)
        if self.no_repeat_ngram_size:
            others = read_json(folder / GENERATION_FILE)  # a checkpoint's own, such as where answers end
            _write_json(folder / GENERATION_FILE, {**others, "no_repeat_ngram_size": self.no_repeat_ngram_size})

    def _inputs(self, messages: Sequence[Message], add_generation_prompt: bool, resolution: int | None, is_training: bool) -> ModelInputs:
        start = time.perf_counter()
        turns = read_messages(messages)
        if is_training and not any(turn.role == "assistant" for turn in turns):
            raise PromptError("there is no assistant's turn to learn from; end each conversation with one")
        segments = self.template.segments(turns, add_generation_prompt=add_generation_prompt, answers_needed=is_training)
        images = [image for turn in turns for image in turn.images]
        groups = self._pixels(images, resolution)
        input_ids, loss_mask = self._ids(segments, [_num_tokens(group) for group in groups])
        self._check_length(len(input_ids), sum(map(_num_tokens, groups)), len(images))
        return ModelInputs(
            input_ids=np.array([input_ids], np.int64),
            image_groups=groups,
            loss_mask=np.array([loss_mask], np.bool_) if is_training else None,
            preprocess_s=time.perf_counter() - start,
        )

    def _pixels(self, images: Sequence[Any], resolution: int | None) -> list[np.ndarray]:
        image_processor = self.image_processor if resolution is None else self.image_processor.at_size(resolution)
        useful_size = image_processor.useful_size if image_processor.draft else None
        groups = []
        for number, image in enumerate(images, start=1):
            try:
                groups.append(image_processor(load_image(image, self.image_limits, useful_size=useful_size)))
            except ImageError as error:
                if len(images) == 1:
                    raise
                raise ImageError(f"image {number} of {len(images)}: {error}") from error
        return groups

    def _ids(self, segments: Sequence[Segment], image_tokens: Sequence[int]) -> tuple[list[int], list[bool]]:
        """Ids of the prompt, and which of them an assistant says."""
        ids: list[int] = []
        is_answer: list[bool] = []
        added = self.tokenizer.added_tokens
        remaining = iter(image_tokens)
        for index, segment in enumerate(segments):
            if segment.kind == "image":
                new = [self.image_token_id] * next(remaining)
            elif segment.kind == "token":
                new = [self.tokenizer.token_id(segment.text)]
            else:
                text = segment.text
                # Some tokenizers have tokens that swallow the white space beside them.
                if index > 0 and segments[index - 1].kind != "text" and added[segments[index - 1].text].rstrip:
                    text = text.lstrip()
                if index + 1 < len(segments) and segments[index + 1].kind != "text" and added[segments[index + 1].text].lstrip:
                    text = text.rstrip()
                new = self.tokenizer.encode(text, is_start=index == 0)
            ids += new
            is_answer += [segment.is_answer] * len(new)
        leading = list(self.tokenizer.bos_token_ids)
        if ids[: len(leading)] != leading:  # the template did not write it
            ids, is_answer = leading + ids, [False] * len(leading) + is_answer
        return ids, is_answer

    def _check_length(self, num_tokens: int, num_image_tokens: int, num_images: int) -> None:
        if self.max_length is not None and num_tokens > self.max_length:
            images = "1 image" if num_images == 1 else f"{num_images} images"
            raise ValueError(
                f"the prompt has {num_tokens} tokens, {num_image_tokens} of them for {images}, and the limit is {self.max_length}; "
                "shorten the text, send fewer images or choose a lower resolution"
            )

    def _read_template(self, source: str) -> ChatTemplate:
        source = BUILT_IN.get(source, source)
        # A template may build its turns of tokens that are not marked special. What it writes itself is structure, and not for users.
        self.tokenizer.keep_plain(name for name in self.tokenizer.added_tokens if name in source and len(name) > 1 and not name.isspace())
        names = {key: _token_name(value) for key, value in self.tokenizer.config.items() if key.endswith("_token")}
        return ChatTemplate(
            source,
            image_token=self.image_token,
            tokens=self.tokenizer.plain_in_text,
            variables={key: name for key, name in names.items() if name is not None},
        )


def _num_tokens(group: np.ndarray) -> int:
    """Image tokens of a (tiles, 3, height, width) array."""
    tiles, _, height, width = group.shape
    return tiles * (height // PATCH_SIZE) * (width // PATCH_SIZE)


def _default_template(tokenizer: Tokenizer) -> str | None:
    stored = _template_source(tokenizer.config.get("chat_template"))
    if stored is not None:
        return stored
    return QWEN_2 if tokenizer.added_tokens.keys() >= {"<|im_start|>", "<|im_end|>"} else None


def _stored_template(folder: Path) -> str | None:
    """The template's own file, which goes before the one in tokenizer_config.json."""
    path = folder / TEMPLATE_FILE
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not text in UTF-8; fetch the checkpoint again") from error
    return _template_source(read_json(folder / "chat_template.json").get("chat_template"))


def _template_source(value: Any) -> str | None:
    """A template, or the one called default in a list of several."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, Mapping)}
        template = named.get("default")
        return template if isinstance(template, str) else None
    return None


def _token_name(value: Any) -> str | None:
    name = value.get("content") if isinstance(value, Mapping) else value
    return name if isinstance(name, str) else None


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
