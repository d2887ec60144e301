"""Names of tensors: from every layout that we read to the names of `FastVLMModel`, and back.

    APPLE.ours("model.mm_projector.0.weight")               # "multi_modal_projector.linear_1.weight"
    APPLE.stored("multi_modal_projector.linear_1.weight")   # "model.mm_projector.0.weight"
    APPLE.dropped("model.vision_tower.vision_tower.model.head.proj")    # why it is not read

A rule is a pair of templates that must match a whole name: `{n}` stands for a number, `{rest}` for what follows. One table serves both
directions, so an error can name a missing tensor as the file would.

The towers' names: transformers stores timm's; Apple's releases and MobileCLIP's own files have the original ones (R:
llava/model/multimodal_encoder/mobileclip/mci.py), where stages, downsamplings and position encodings are counted through in `network`.
"""

import functools
import re
from collections.abc import Iterable

Rule = tuple[str, str]

# Original name of each child of the tower, timm's name, and what is inside.
_ORIGINAL_TOWER = [
    *((f"patch_embed.{i}", f"stem.{i}", "mobile_one") for i in range(3)),
    ("network.0.{n}", "stages.0.blocks.{n}", "rep_mixer_block"),
    ("network.1", "stages.1.downsample", "patch_embed"),
    ("network.2.{n}", "stages.1.blocks.{n}", "rep_mixer_block"),
    ("network.3", "stages.2.downsample", "patch_embed"),
    ("network.4.{n}", "stages.2.blocks.{n}", "rep_mixer_block"),
    ("network.5", "stages.3.downsample", "patch_embed"),
    ("network.6", "stages.3.pos_emb", "position"),
    ("network.7.{n}", "stages.3.blocks.{n}", "attention_block"),
    ("network.8", "stages.4.downsample", "patch_embed"),
    ("network.9", "stages.4.pos_emb", "position"),
    ("network.10.{n}", "stages.4.blocks.{n}", "attention_block"),
    ("conv_exp", "final_conv", "mobile_one"),
]
_MOBILE_ONE = [
    ("reparam_conv.{rest}", "reparam_conv.{rest}"),
    ("rbr_conv.{rest}", "conv_kxk.{rest}"),
    ("rbr_scale.{rest}", "conv_scale.{rest}"),
    ("rbr_skip.{rest}", "identity.{rest}"),
    ("se.reduce.{rest}", "se.fc1.{rest}"),
    ("se.expand.{rest}", "se.fc2.{rest}"),
]


def _within(child: str, rules: Iterable[Rule]) -> list[Rule]:
    return [(f"{child}.{original}", f"{child}.{ours}") for original, ours in rules]


_INSIDE: dict[str, list[Rule]] = {
    "mobile_one": _MOBILE_ONE,
    "rep_mixer_block": [
        ("token_mixer.reparam_conv.{rest}", "token_mixer.reparam_conv.{rest}"),
        ("token_mixer.layer_scale", "token_mixer.layer_scale.gamma"),
        *_within("token_mixer.norm", _MOBILE_ONE),
        *_within("token_mixer.mixer", _MOBILE_ONE),
        ("convffn.{rest}", "mlp.{rest}"),
        ("layer_scale", "layer_scale.gamma"),
    ],
    "patch_embed": [
        ("proj.0.lkb_reparam.{rest}", "proj.0.reparam_conv.{rest}"),
        ("proj.0.lkb_origin.{rest}", "proj.0.large_conv.{rest}"),
        ("proj.0.small_conv.{rest}", "proj.0.small_conv.{rest}"),
        *_within("proj.1", _MOBILE_ONE),
    ],
    "position": [("reparam_conv.{rest}", "reparam_conv.{rest}"), ("pe.{rest}", "pos_enc.{rest}")],
    "attention_block": [
        ("norm.{rest}", "norm.{rest}"),
        ("token_mixer.{rest}", "token_mixer.{rest}"),
        ("convffn.{rest}", "mlp.{rest}"),
        ("layer_scale_1", "layer_scale_1.gamma"),
        ("layer_scale_2", "layer_scale_2.gamma"),
    ],
}

ORIGINAL_TOWER_RULES: list[Rule] = [
    (f"{original}.{inside_original}", f"{ours}.{inside_ours}")
    for original, ours, kind in _ORIGINAL_TOWER
    for inside_original, inside_ours in _INSIDE[kind]
]
TIMM_TOWER_RULES: list[Rule] = [(f"{child}.{{rest}}", f"{child}.{{rest}}") for child in ("stem", "stages", "final_conv")]

CLIP_HEAD = "the CLIP head, which a language model does not use"
ROTARY = "a table of rotary frequencies, computed from the config"


class KeyMap:
    """Stored names to ours and back.

    Args:
        rules: pairs (stored template, our template). A stored name matches at most one.
        dropped: pairs (stored template, reason) of tensors that are left out on purpose.
    """

    def __init__(self, rules: Iterable[Rule], dropped: Iterable[Rule] = ()):
        self._to_ours = list(rules)
        self._to_stored = [(ours, stored) for stored, ours in self._to_ours]
        self._dropped = list(dropped)

    def ours(self, stored: str) -> str | None:
        return _translate(self._to_ours, stored)

    def stored(self, ours: str) -> str | None:
        return _translate(self._to_stored, ours)

    def dropped(self, stored: str) -> str | None:
        """Why this name is left out, or None when it is not."""
        return next((reason for template, reason in self._dropped if _pattern(template).fullmatch(stored)), None)


@functools.cache  # compiled when a name is looked up: a program that runs a bundle looks none up
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\{n\}", r"(?P<n>\d+)").replace(r"\{rest\}", r"(?P<rest>.+)"))


def _translate(rules: list[Rule], name: str) -> str | None:
    for template, translation in rules:
        if match := _pattern(template).fullmatch(name):
            return translation.format(**match.groupdict())
    return None


def prefixed(rules: Iterable[Rule], stored: str, ours: str) -> list[Rule]:
    return [(stored + first, ours + second) for first, second in rules]


NATIVE_TOWER = "model.vision_tower.timm_model."
APPLE_TOWER = "model.vision_tower.vision_tower.model."

NATIVE = KeyMap(
    [
        (NATIVE_TOWER + "{rest}", "vision_tower.{rest}"),
        ("model.multi_modal_projector.{rest}", "multi_modal_projector.{rest}"),
        ("model.language_model.{rest}", "language_model.{rest}"),
        ("lm_head.{rest}", "lm_head.{rest}"),
    ],
    [
        (NATIVE_TOWER + "head.{rest}", CLIP_HEAD),
        ("model.language_model.layers.{n}.self_attn.rotary_emb.inv_freq", ROTARY),
        ("model.language_model.rotary_emb.inv_freq", ROTARY),
    ],
)
APPLE = KeyMap(
    [
        *prefixed(ORIGINAL_TOWER_RULES, APPLE_TOWER, "vision_tower."),
        ("model.mm_projector.0.{rest}", "multi_modal_projector.linear_1.{rest}"),
        ("model.mm_projector.2.{rest}", "multi_modal_projector.linear_2.{rest}"),
        ("model.embed_tokens.{rest}", "language_model.embed_tokens.{rest}"),
        ("model.layers.{n}.{rest}", "language_model.layers.{n}.{rest}"),
        ("model.norm.{rest}", "language_model.norm.{rest}"),
        ("lm_head.{rest}", "lm_head.{rest}"),
    ],
    [
        (APPLE_TOWER + "head.proj", CLIP_HEAD),
        ("model.layers.{n}.self_attn.rotary_emb.inv_freq", ROTARY),
        ("model.rotary_emb.inv_freq", ROTARY),
    ],
)
