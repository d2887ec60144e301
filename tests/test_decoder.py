"""The decoder against transformers' Qwen2, Qwen3, Llama and Mistral with the same random weights, and its cache against none."""

import pytest
import torch

from fastvlm.config import ConfigError, FastVLMConfig, TextConfig, VisionConfig
from fastvlm.model.decoder import Decoder
from fastvlm.model.fastvlm import FastVLMModel

transformers = pytest.importorskip("transformers")

SMALL = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=199,
    max_position_embeddings=64,
)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)
CASES = {
    "qwen2": ("Qwen2Config", {}),
    "qwen2-window": ("Qwen2Config", dict(use_sliding_window=True, sliding_window=5, max_window_layers=1)),
    "qwen2-yarn": ("Qwen2Config", dict(rope_parameters=dict(YARN, rope_theta=1e6))),
    "qwen3": ("Qwen3Config", dict(head_dim=32)),
    "qwen3-bias": ("Qwen3Config", dict(head_dim=16, attention_bias=True)),
    "llama": ("LlamaConfig", {}),
    "llama-biases": ("LlamaConfig", dict(attention_bias=True, mlp_bias=True)),
    "llama-all-heads": ("LlamaConfig", dict(num_key_value_heads=4)),
    "llama-llama3": ("LlamaConfig", dict(rope_parameters=dict(LLAMA3, rope_theta=5e5))),
    "llama-linear": ("LlamaConfig", dict(rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=1e4))),
    "llama-dynamic": (
        "LlamaConfig",
        dict(rope_parameters=dict(rope_type="dynamic", factor=2.0, rope_theta=1e4), max_position_embeddings=8),
    ),
    "mistral-window": ("MistralConfig", dict(sliding_window=6)),
    "mistral-full": ("MistralConfig", dict(sliding_window=None, head_dim=24)),
}


@pytest.fixture(params=CASES, scope="module")
def pair(request):
    """(transformers' model, our decoder) with the same weights."""
    class_name, changes = CASES[request.param]
    config = getattr(transformers, class_name)(**{**SMALL, **changes})
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    reference = transformers.AutoModel.from_config(config).eval()
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, 0.5 if parameter.dim() == 1 else 0.0, 0.2)
    decoder = Decoder(TextConfig.from_dict(config.to_dict())).eval()
    decoder.load_state_dict(reference.state_dict())
    return reference, decoder


@torch.inference_mode()
def test_matches_transformers(pair):
    reference, decoder = pair
    input_ids = torch.randint(0, 199, (2, 17), generator=torch.Generator().manual_seed(3))
    expected = reference(input_ids).last_hidden_state
    torch.testing.assert_close(decoder(decoder.embed_tokens(input_ids)), expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_cached_steps_match_one_pass(pair):
    """One pass = prefill and single steps = prefill in two parts, also past the cache's first capacity and after a trim."""
    _, decoder = pair
    if decoder.config.rope.rope_type == "dynamic":
        pytest.skip("dynamic scaling changes with the length, so a cache holds keys of other angles by its definition")
    embeds = decoder.embed_tokens(torch.randint(0, 199, (2, 17), generator=torch.Generator().manual_seed(4)))
    expected = decoder(embeds)
    cache = decoder.new_cache(2, capacity=4)
    parts = [decoder(embeds[:, :9], cache=cache), decoder(embeds[:, 9:13], cache=cache)]
    parts += [decoder(embeds[:, i : i + 1], cache=cache) for i in range(13, 17)]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=1e-5, rtol=1e-5)
    cache.trim(9)
    torch.testing.assert_close(decoder(embeds[:, 9:], cache=cache), expected[:, 9:], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_segments_are_as_if_each_alone_followed_the_first(pair):
    _, decoder = pair
    if decoder.config.rope.rope_type == "dynamic":
        pytest.skip("dynamic scaling changes with the length, and the segments together are longer than each")
    embeds = decoder.embed_tokens(torch.randint(0, 199, (1, 12), generator=torch.Generator().manual_seed(6)))
    segments = torch.tensor([[0] * 5 + [1] * 3 + [2] * 4])
    if any(window is not None for window in decoder.config.sliding_windows):
        with pytest.raises(ValueError, match="segments cannot be computed with a cache, padding or attention windows"):
            decoder(embeds, segments=segments)
        return
    together = decoder(embeds, segments=segments)
    torch.testing.assert_close(together[:, :8], decoder(embeds[:, :8]), atol=1e-5, rtol=1e-5)
    second = decoder(torch.cat((embeds[:, :5], embeds[:, 8:]), dim=1))
    torch.testing.assert_close(together[:, 8:], second[:, 5:], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="segments cannot be computed with a cache"):
        decoder(embeds, cache=decoder.new_cache(1, capacity=12), segments=segments)


@torch.inference_mode()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(pair, side):
    _, decoder = pair
    if decoder.config.rope.rope_type == "dynamic":
        pytest.skip("dynamic scaling looks at the longest row of the batch, as transformers does")
    rows = [torch.randint(0, 199, (n,), generator=torch.Generator().manual_seed(n)) for n in (3, 11, 7)]
    input_ids, mask = torch.zeros(3, 11, dtype=torch.long), torch.zeros(3, 11, dtype=torch.bool)
    for i, row in enumerate(rows):
        columns = slice(11 - len(row), 11) if side == "left" else slice(0, len(row))
        input_ids[i, columns], mask[i, columns] = row, True
    batch = decoder(decoder.embed_tokens(input_ids), mask)
    for i, row in enumerate(rows):
        alone = decoder(decoder.embed_tokens(row[None]))[0]
        torch.testing.assert_close(batch[i, mask[i]], alone, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_padded_rows_decode_as_alone_and_survive_reordering(pair):
    _, decoder = pair
    if decoder.config.rope.rope_type == "dynamic":
        pytest.skip("dynamic scaling looks at the longest row of the batch, as transformers does")
    rows = [torch.randint(0, 199, (n,), generator=torch.Generator().manual_seed(n)) for n in (4, 10)]
    step = torch.tensor([[7], [8]])
    input_ids = torch.stack([torch.nn.functional.pad(row, (10 - len(row), 0)) for row in rows])
    mask = torch.arange(10) >= torch.tensor([[6], [0]])
    cache = decoder.new_cache(2, capacity=16)
    decoder(decoder.embed_tokens(input_ids), mask, cache)
    cache.reorder(torch.tensor([1, 0, 1]))
    actual = decoder(decoder.embed_tokens(step[[1, 0, 1]]), cache=cache)[:, 0]
    for i, row in enumerate((1, 0, 1)):
        alone = decoder(decoder.embed_tokens(torch.cat((rows[row], step[row]))[None]))[0, -1]
        torch.testing.assert_close(actual[i], alone, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("tie", [True, False])
def test_images_over_placeholders(tie):
    """Two images, one, and none in one batch give each row's logits as alone; the head is tied or not as the config says."""
    text = TextConfig.from_dict({"model_type": "qwen2", **SMALL, "tie_word_embeddings": tie})
    vision = VisionConfig(layers=(1, 1, 1, 1, 1), embed_dims=(8, 16, 32, 32, 32))
    torch.manual_seed(0)
    model = FastVLMModel(FastVLMConfig(vision, text, image_token_id=198, tie_word_embeddings=tie)).eval()
    assert ("lm_head.weight" in model.state_dict()) is not tie
    pixel_values = torch.rand(3, 3, 64, 128)
    image = [198, 198]
    rows = [[1, *image, 2, *image, 3], [4, 5, 6, *image, 7, 8], [9, 10, 11, 12, 13, 14, 15]]
    per_row = [pixel_values[:2], pixel_values[2:], None]
    batch = model(torch.tensor(rows), pixel_values=pixel_values)
    assert batch.shape == (3, 7, 199)
    for i, row in enumerate(rows):
        alone = model(torch.tensor([row]), pixel_values=per_row[i])[0]
        torch.testing.assert_close(batch[i], alone, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="4 image tokens in input_ids but 2 image features"):
        model(torch.tensor(rows[:1]), pixel_values=pixel_values[:1])


def test_fields_of_published_configs_are_known():
    """SmolLM2's, Qwen2.5's and Vicuna's config.json have these beside their family's own."""
    plain = TextConfig.from_dict({"model_type": "llama", **SMALL})
    extra = {
        "is_llama_config": True,
        "rope_interleaved": False,
        "use_mrope": False,
        "transformers.js_config": {},
        "max_sequence_length": 2048,
    }
    assert TextConfig.from_dict({"model_type": "llama", **SMALL, **extra}) == plain


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"hidden_size": None}, "no 'hidden_size'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"num_key_value_heads": 3}, "no multiple of num_key_value_heads"),
        ({"clip_qkv": 8}, "does not know: clip_qkv"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "'longrope' is not supported"),
        ({"rope_scaling": {"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}}, "'longrope' is not supported"),
        ({"num_hidden_layers": "24"}, "num_hidden_layers is '24'"),
        ({"rope_interleaved": True}, "rope_interleaved is True"),
        ({"use_mrope": True}, "use_mrope is True"),
    ],
)
def test_configs_we_cannot_run_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        TextConfig.from_dict({"model_type": "qwen2", **SMALL, **changes})
