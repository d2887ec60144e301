"""Chat templates cut into segments: joined, what Jinja alone renders; apart, they know text from tokens and answers from the rest."""

import functools
import random

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from fastvlm.prompts import BUILT_IN, PLAIN, QWEN_2, VICUNA_V1, ChatTemplate, PromptError, Segment, read_messages

# Templates in the manner of well-known families, each with a habit of its own.
LLAMA_3 = (
    "{{- bos_token }}\n{%- for message in messages %}\n"
    "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}\n"
    "{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}\n{%- endif %}\n"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FAST_VLM = (  # transformers' port: pictures first, every text after a line end
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + part['text'] }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BOTH = (  # strings and parts, joined without anything between
    "{% for message in messages %}{{ '<|' + message.role + '|>' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
REASONING = (  # what was thought in earlier turns is dropped
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' %}{% generation %}"
    "{{ message.content.split('</think>')[-1].lstrip('\n') }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "qwen_2": QWEN_2,
    "vicuna_v1": VICUNA_V1,
    "llama 3": LLAMA_3,
    "mistral": MISTRAL,
    "chatml": CHATML,
    "fast_vlm": FAST_VLM,
    "both": BOTH,
    "reasoning": REASONING,
}
TOKENS = [
    *("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("[INST]", "[/INST]", "<|user|>", "<|assistant|>", "<|end|>"),
]
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}


@functools.cache
def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, tokens=TOKENS, variables=VARIABLES)


def user(*parts) -> dict:
    content = [{"type": "image", "image": "x.png"} if part is None else {"type": "text", "text": part} for part in parts]
    return {"role": "user", "content": content}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def segments(source: str, messages, **options) -> list[Segment]:
    return template(source).segments(read_messages(messages), **options)


def joined(found: list[Segment]) -> str:
    return "".join(segment.text for segment in found)


def texts(found: list[Segment]) -> list[str]:
    return [segment.text for segment in found]


# The default template


def test_an_image_before_the_question_is_the_reference_prompt():
    found = segments("qwen_2", [user(None, "What is this?")])
    assert joined(found) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<image>\nWhat is this?<|im_end|>\n<|im_start|>assistant\n"
    )
    after = found[[segment.kind for segment in found].index("image") + 1]
    assert after == Segment("text", "\nWhat is this?")  # one run, as the reference tokenises it


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([user("Hi")], "SYSuser\nHi"),
        ([{"role": "user", "content": "Hi"}], "SYSuser\nHi"),
        ([user("What is this?", None)], "SYSuser\nWhat is this?\n<image>"),
        ([user(None, None, "Compare.")], "SYSuser\n<image>\n<image>\nCompare."),
        ([user("First:", None, "second:", None, "Which?")], "SYSuser\nFirst:\n<image>\nsecond:\n<image>\nWhich?"),
        ([user(None)], "SYSuser\n<image>"),
        ([user("one", "two")], "SYSuser\none\ntwo"),
        ([user(" kept \n")], "SYSuser\n kept \n"),
        ([{"role": "user", "content": []}], "SYSuser\n"),
    ],
)
def test_parts_of_a_turn_stand_one_a_line(messages, expected):
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>"
    assert joined(segments("qwen_2", messages)) == expected.replace("SYS", system) + "<|im_end|>\n<|im_start|>assistant\n"


def test_a_system_turn_takes_the_place_of_the_default():
    found = joined(segments("qwen_2", [{"role": "system", "content": "Be brief."}, user("Hi"), assistant("Hello"), user(None)]))
    assert found == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
        "<|im_start|>user\n<image><|im_end|>\n<|im_start|>assistant\n"
    )


def test_vicuna_is_llavas_v1():
    found = segments("vicuna_v1", [user(None, "Hi"), assistant("Hello."), user("Bye")])
    system = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )
    assert joined(found) == f"{system} USER: <image>\nHi ASSISTANT: Hello.</s>USER: Bye ASSISTANT:"


def test_plain_is_pictures_and_caption():
    found = segments("plain", [user(None, "left out"), assistant("A dog.")], add_generation_prompt=False, answers_needed=True)
    assert found == [Segment("image", "<image>"), Segment("text", "A dog.\n", is_answer=True)]
    assert template(template("plain").source).is_plain  # as it is saved
    assert set(BUILT_IN) == {"qwen_2", "vicuna_v1", "plain"}
    assert "IMAGE" in PLAIN


# Any template: against Jinja as transformers runs it


def conversation(rng: random.Random) -> list[dict]:
    words = ["hello", "  spaced ", "\n\nlines\n", "ünï 中文", "a <b> c", "{{ x }} {% y %}", "", "it's", "'type'", "</think> ok"]

    def text() -> str:
        return " ".join(rng.choices(words, k=rng.randrange(1, 4)))

    messages = []
    for _ in range(rng.randrange(1, 4)):
        parts = [rng.choice([None, text()]) for _ in range(rng.randrange(1, 4))]
        messages += [user(*parts) if rng.random() < 0.7 else {"role": "user", "content": text()}, assistant(text())]
    return messages[: rng.choice([None, -1])]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_joined_segments_are_what_transformers_renders(name, add_generation_prompt):
    rng = random.Random(name)
    chat_template = template(TEMPLATES[name])
    for _ in range(15):
        messages = conversation(rng)
        if name == "fast_vlm":  # which reads a string as no parts
            messages = [
                {**m, "content": [{"type": "text", "text": m["content"]}]} if isinstance(m["content"], str) else m for m in messages
            ]
        found = joined(chat_template.segments(read_messages(messages), add_generation_prompt=add_generation_prompt))
        options = {"chat_template": chat_template.source, "add_generation_prompt": add_generation_prompt}
        (expected,), _ = render_jinja_template([messages], **options, **VARIABLES)
        assert found == expected


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"both"}))
@pytest.mark.parametrize("typed", [*TOKENS, "<image>", "<<s>s>", "<image<image>>"])
def test_typed_tokens_stay_text(name, typed):
    """The same conversation with harmless letters in the place of the token has the same structure."""
    for shape in ("{}", "a {} b", "{}{}", "\n{}"):
        text = shape.replace("{}", typed)
        found = segments(TEMPLATES[name], [user(None, text), assistant(text), user(text)])
        plain = segments(TEMPLATES[name], [user(None, "xyz"), assistant("xyz"), user("xyz")])
        assert [(s.kind, s.text) for s in found if s.kind != "text"] == [(s.kind, s.text) for s in plain if s.kind != "text"]
        assert joined(found).count(typed) >= 3


def test_a_token_cannot_be_put_together_from_parts():
    found = segments(BOTH, [user("<|e", "nd|>", "<ima", "ge>")])
    assert [segment.text for segment in found] == ["<|user|>", "<|end|><image>", "<|end|>", "<|assistant|>"]
    assert [segment.kind for segment in found] == ["token", "text", "token", "token"]


def test_the_marks_are_never_part_of_a_text():
    """Text may hold the very characters that marks are made of."""
    odd = "".join(map(chr, range(0xFDD0, 0xFDEC)))
    found = segments("qwen_2", [user(odd + "<|im_end|>"), assistant(odd), user("x")])
    assert f"user\n{odd}<|im_end|>" in texts(found)
    assert odd in [segment.text for segment in found if segment.is_answer]
    with pytest.raises(PromptError, match="U\\+FDD0"):
        segments("qwen_2", [user("".join(map(chr, range(0xFDD0, 0xFDF0))))])


# Answers


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"mistral"}))
def test_a_prompt_and_its_answer_begin_the_next_prompt(name):
    """So that what a model has read and said needs not be read again."""
    for answer in ("Yes.", " two words", "a\n\nb", "x<|im_end|>y", "ends "):
        first = [user(None, "Is it?")]
        prompt = segments(TEMPLATES[name], first)
        longer = segments(TEMPLATES[name], [*first, assistant(answer), user("Why?")])
        assert longer[: len(prompt)] == prompt
        said = longer[len(prompt)]
        assert said.is_answer
        assert said.text.strip() == answer.strip()
        assert longer[len(prompt) + 1].is_answer  # the end of the turn
        assert longer[len(prompt) + 1].kind == "token"


@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_are_what_assistants_say_and_the_end_of_their_turns(name):
    messages = [user(None, "one"), assistant("two"), user("three"), assistant("four")]
    found = segments(TEMPLATES[name], messages, add_generation_prompt=False, answers_needed=True)
    said = [segment for segment in found if segment.is_answer]
    assert [segment.text.strip() for segment in said if segment.kind == "text"] == ["two", "four"]
    assert [segment.kind for segment in said] == ["text", "token"] * 2
    assert said[1].text in {"<|im_end|>", "<|eot_id|>", "</s>", "<|end|>"}


def test_the_space_that_a_model_says_first_is_part_of_its_answer():
    found = texts(segments("vicuna_v1", [user("Hi"), assistant("Hello.")], add_generation_prompt=False))
    assert found[0].endswith("USER: Hi ASSISTANT:")
    assert found[1:] == [" Hello.", "</s>"]


def test_a_template_that_rewrites_answers_prompts_but_does_not_teach():
    messages = [user("Hi"), assistant("<think>hm</think>\nHello"), user("x")]
    assert "assistant\nHello" in texts(segments(REASONING, messages))
    with pytest.raises(PromptError, match="rewrites"):
        segments(REASONING, messages, answers_needed=True)


def test_a_template_without_an_end_of_turn_does_not_teach():
    source = "{% for message in messages %}{{ message.role + ': ' + message.content + '\n' }}{% endfor %}"
    assert joined(segments(source, [user("Hi")])) == "user: Hi\n"
    with pytest.raises(PromptError, match="learn to stop"):
        segments(source, [user("Hi"), assistant("Hello")], answers_needed=True)


# Errors


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "empty"),
        ("Hi", "expected a list"),
        ({"role": "user"}, "expected a list"),
        (["Hi"], r"messages\[0\] is a str"),
        ([{"role": "robot", "content": "x"}], "expected system, user or assistant"),
        ([{"role": "user"}], "content is a NoneType"),
        ([{"role": "user", "content": 3}], "content is a int"),
        ([{"role": "user", "content": "x", "name": "y"}], "name"),
        ([{"role": "user", "content": [{"type": "video"}]}], "expected 'text' or 'image'"),
        ([{"role": "user", "content": ["x"]}], r"content\[0\]"),
        ([{"role": "user", "content": [{"type": "text"}]}], "lacks its text"),
        ([{"role": "user", "content": [{"type": "text", "text": 3}]}], "lacks its text"),
        ([{"role": "user", "content": [{"type": "image"}]}], "lacks its image"),
        ([{"role": "system", "content": [{"type": "image", "image": "x"}]}], "user's turns"),
    ],
)
def test_wrong_messages_are_named(messages, says):
    with pytest.raises(PromptError, match=says):
        read_messages(messages)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{% for %}", "not valid Jinja"),
        ("no messages here", "does not repeat"),
        ("{{ messages.__class__.__mro__ }}", "does not repeat"),
    ],
)
def test_useless_templates_are_refused(source, says):
    with pytest.raises(PromptError, match=says):
        template(source)


def test_a_templates_own_refusal_is_passed_on():
    with pytest.raises(PromptError, match="roles must alternate"):
        segments(MISTRAL, [user("a"), user("b")])


def test_a_template_that_loses_a_picture_is_refused():
    source = "{% for part in messages[0].content %}{{ '<image>' if part.type == 'image' and loop.first }}{{ part.text }}{% endfor %}"
    with pytest.raises(PromptError, match="1 image tokens for 2 images"):
        segments(source, [user(None, "x", None)])
