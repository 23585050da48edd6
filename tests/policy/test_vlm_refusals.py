"""Images and models that cannot be read are refused with a sentence."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
import torch
from PIL import Image

from segcredit.errors import PolicyError
from segcredit.policy.checkpoints.pretrained import Pretrained
from segcredit.policy.samplers.generate import Generate
from segcredit.policy.vlm import vision_policy
from segcredit.protocols import Prompt
from segcredit.tasks.arithmetic import Arithmetic
from vision_models import CLASSES, image, tokenizer


@pytest.fixture(scope="module")
def policy() -> Any:
    return vision_policy(*CLASSES["llava"](), Generate())


def _encoded(policy: Any, text: str, *images: bytes) -> str:
    ids, _, _ = policy.encode_prompts([Prompt("p", text, None, images)])
    return policy.tokenizer.decode(ids[0])


@pytest.mark.parametrize("content", [b"", b"no image", image(0)[:60], image(0)[:-40]])
def test_an_unreadable_image(policy: Any, content: bytes) -> None:
    with pytest.raises(PolicyError, match=r"image 1 of prompt 'p' cannot be read"):
        _encoded(policy, "what?", image(0), content)


def test_a_huge_image() -> None:
    policy: Any = vision_policy(*CLASSES["llava"](), Generate(), max_pixels=64 * 64)
    _encoded(policy, "what?", image(0, 64, 64))
    with pytest.raises(PolicyError, match=r"72 x 64 pixels; expected at most 4096"):
        _encoded(policy, "what?", image(0, 72, 64))


def test_a_huge_image_is_not_unpacked_first(policy: Any) -> None:
    buffer = BytesIO()
    Image.new("1", (30_000, 30_000)).save(buffer, "PNG")
    with pytest.raises(PolicyError, match=r"image 0 of prompt 'p'"):
        _encoded(policy, "what?", buffer.getvalue())


@pytest.mark.parametrize(
    ("text", "count"), [("<image> <image>", 1), ("<image>", 0), ("<image>", 2)]
)
def test_places_and_images_that_differ_in_number(policy: Any, text: str, count: int) -> None:
    with pytest.raises(PolicyError, match=rf"{text.count('<')} places '<image>' .* {count} images"):
        _encoded(policy, text, *[image(0)] * count)


def test_images_come_first_where_the_text_does_not_say(policy: Any) -> None:
    shown = "<image>" * 16
    assert _encoded(policy, "ab", image(0), image(1)).endswith(f"user: {shown}{shown}ab\nbot: ")
    assert _encoded(policy, "a<image>b", image(0)).endswith(f"user: a{shown}b\nbot: ")


def test_a_text_that_names_a_token_of_images() -> None:
    policy: Any = vision_policy(*CLASSES["qwen2_5_vl"](), Generate())
    with pytest.raises(PolicyError, match=r"names '<\|image_pad\|>'"):
        _encoded(policy, "what is <|image_pad|>?", image(0))


def test_without_a_chat_template_or_with_it_switched_off() -> None:
    model, processor = CLASSES["qwen2_5_vl"]()
    policy: Any = vision_policy(model, processor, Generate(), chat=False)
    four = "<|image_pad|>" * 4
    assert _encoded(policy, "ab", image(0)) == f"<|vision_start|>{four}<|vision_end|>ab"
    processor.chat_template = None
    policy = vision_policy(model, processor, Generate())
    assert _encoded(policy, "ab", image(0)) == f"<|vision_start|>{four}<|vision_end|>ab"


def test_a_prompt_that_is_a_chat_has_the_messages_before_it() -> None:
    model, processor = CLASSES["qwen2_5_vl"]()
    policy: Any = vision_policy(model, processor, Generate(), chat=False)
    prompt = Prompt("p", "ab", None, (image(0),), chat=(("user", "1"), ("assistant", "2")))
    ids, mask, _ = policy.encode_prompts([prompt])
    shown = "<|image_pad|>" * 4
    said = policy.tokenizer.decode(ids[mask].tolist())
    assert said == f"user: 1\nuser: 2\nuser: <|vision_start|>{shown}<|vision_end|>ab\nbot: "
    processor.chat_template = None
    with pytest.raises(PolicyError, match="has no chat template"):
        policy.encode_prompts([prompt])


def test_transparent_images_lie_on_white_and_photographs_upright(policy: Any) -> None:
    def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
        buffer = BytesIO()
        picture.save(buffer, kind, **options)
        return buffer.getvalue()

    clear = saved(Image.new("RGBA", (32, 32), (0, 0, 0, 0)), "PNG")
    white = saved(Image.new("RGB", (32, 32), "white"), "PNG")
    prompts = [Prompt(key, "a", None, (content,)) for key, content in (("c", clear), ("w", white))]
    one, other = (policy.images.encode(prompt)["pixel_values"] for prompt in prompts)
    assert torch.equal(one, other)
    picture = Image.new("RGB", (32, 32), "black")
    picture.paste("white", (0, 0, 16, 32))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down, as a camera was held
    turned = saved(picture, "PNG", exif=exif)
    upright = saved(picture.rotate(180), "PNG")
    one, other = (
        policy.images.encode(Prompt("p", "a", None, (content,)))["pixel_values"]
        for content in (turned, upright)
    )
    assert torch.equal(one, other)


def test_a_prompt_without_text_or_image(policy: Any) -> None:
    model, processor = CLASSES["llava"]()
    plain: Any = vision_policy(model, processor, Generate(), chat=False)
    with pytest.raises(PolicyError, match="has no tokens"):
        _encoded(plain, "")


def test_images_for_a_policy_that_reads_text_alone(tmp_path: Any) -> None:
    import transformers as hf

    words = tokenizer()
    config = hf.LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        vocab_size=len(words), eos_token_id=1,
    )  # fmt: skip
    hf.LlamaForCausalLM(config).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    policy: Any = Pretrained(str(tmp_path)).load(Arithmetic(), Generate(), temperature=1.0, seed=0)
    with pytest.raises(PolicyError, match="1 images, and LlamaForCausalLM reads text alone"):
        policy.encode_prompts([Prompt("p", "a", None, (image(0),))])
    ids, _, extras = policy.encode_prompts([Prompt("p", "ab", None)])
    assert ids.shape == (1, 2)
    assert extras == ()


def test_a_checkpoint_without_its_processor(tmp_path: Any) -> None:
    model, processor = CLASSES["llava"]()
    model.save_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(PolicyError, match="cannot be read"):
        Pretrained(str(tmp_path)).load(Arithmetic(), Generate(), temperature=1.0, seed=0)


def test_a_processor_that_lacks_what_the_model_reads() -> None:
    model, processor = CLASSES["qwen2_5_vl"]()
    type(processor).return_mm_token_type_ids = False
    try:
        with pytest.raises(PolicyError, match=r"reads mm_token_type_ids, which .* does not give"):
            vision_policy(model, processor, Generate())
    finally:
        del type(processor).return_mm_token_type_ids


def test_completions_that_the_model_takes_for_something_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, processor = CLASSES["paligemma"]()
    monkeypatch.setattr("segcredit.policy.vlm._COMPLETION_TYPE", {})
    with pytest.raises(PolicyError, match="nats off from those of its own generate"):
        vision_policy(model, processor, Generate())


def test_a_very_narrow_image() -> None:
    policy: Any = vision_policy(*CLASSES["qwen2_5_vl"](), Generate())
    buffer = BytesIO()
    Image.new("RGB", (1000, 2)).save(buffer, "PNG")
    with pytest.raises(PolicyError, match="cannot read the images of prompt 'p'"):
        _encoded(policy, "what?", buffer.getvalue())
