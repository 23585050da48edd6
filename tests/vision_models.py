"""A tiny random model of each class that reads images, with its processor: no download, no hub."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import torch
import transformers as hf
from PIL import Image
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from segcredit.policy.image_processors import without_videos

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789+-=#:.,?! \n"
PAD, END, BEGIN, UNKNOWN = range(4)
_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "pad_token_id": PAD,
    "eos_token_id": END,
    "bos_token_id": BEGIN,
    "tie_word_embeddings": False,
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
CHAT = (
    "{% for m in messages %}user: {% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}bot: {% endif %}"
)


def image(seed: int, width: int = 32, height: int = 32) -> bytes:
    """A PNG of random colours in 8x8 squares."""
    chance = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (height // 8, width // 8, 3), generator=chance, dtype=torch.uint8)
    buffer = BytesIO()
    Image.fromarray(small.numpy()).resize((width, height), 0).save(buffer, format="PNG")
    return buffer.getvalue()


def tokenizer(**specials: str) -> Any:
    """One token a character; named special tokens besides."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", *LETTERS, *specials.values()]
    inner: Any = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    inner.add_special_tokens([AddedToken(w, special=True) for w in specials.values()])
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        extra_special_tokens=specials,
    )


def _seeded(make: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


def _qwen(version: str, **vision: Any) -> tuple[Any, Any]:
    t = tokenizer(
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
        vision_bos_token="<|vision_start|>",
        vision_eos_token="<|vision_end|>",
    )
    ids = t.convert_tokens_to_ids
    config = getattr(hf, f"{version}Config")(
        text_config={
            **_TEXT,
            "head_dim": 8,
            "vocab_size": len(t),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 100.0,
                "mrope_section": [2, 1, 1],
                "mrope_interleaved": version == "Qwen3VL",
            },
        },
        vision_config={
            "depth": 2,
            "num_heads": 4,
            "intermediate_size": 48,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": 32,
            "initializer_range": 0.2,
            **vision,
        },
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    images = hf.Qwen2VLImageProcessorPil(
        patch_size=8, merge_size=2, size={"shortest_edge": 256, "longest_edge": 4096}
    )
    slot = "<|vision_start|><|image_pad|><|vision_end|>"
    made = without_videos(getattr(hf, f"{version}Processor"))(
        image_processor=images, tokenizer=t, chat_template=CHAT.replace("IMAGE", slot)
    )
    return _seeded(lambda: getattr(hf, f"{version}ForConditionalGeneration")(config)), made


def qwen2_5_vl() -> tuple[Any, Any]:
    """The paper's own family: flat patches, positions in three dimensions."""
    return _qwen("Qwen2_5_VL", hidden_size=32, window_size=32, fullatt_block_indexes=[1])


def qwen3_vl() -> tuple[Any, Any]:
    """As Qwen2.5-VL, with features of several vision layers."""
    return _qwen(
        "Qwen3VL", hidden_size=32, num_position_embeddings=16, deepstack_visual_indexes=[0]
    )


def llava() -> tuple[Any, Any]:
    """A Llama with a SigLIP tower."""
    t = tokenizer(image_token="<image>")
    config = hf.LlavaConfig(
        text_config=hf.LlamaConfig(**_TEXT, vocab_size=len(t)),
        vision_config=hf.SiglipVisionConfig(**_VISION, vision_use_head=False),
        image_token_id=t.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
    made = hf.LlavaProcessor(
        image_processor=hf.SiglipImageProcessorPil(size={"height": 32, "width": 32}),
        tokenizer=t,
        patch_size=8,
        vision_feature_select_strategy="full",
        image_token="<image>",
        chat_template=CHAT.replace("IMAGE", "<image>"),
    )
    return _seeded(lambda: hf.LlavaForConditionalGeneration(config)), made


def idefics3() -> tuple[Any, Any]:
    """Images of a prompt in a dimension of their own."""
    t = tokenizer(
        image_token="<image>",
        fake="<fake_token_around_image>",
        whole="<global-img>",
        eou="<end_of_utterance>",
    )
    config = hf.Idefics3Config(
        text_config=hf.LlamaConfig(**_TEXT, vocab_size=len(t)).to_dict(),
        vision_config=_VISION,
        image_token_id=t.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=PAD,
        tie_word_embeddings=False,
    )
    made = hf.Idefics3Processor(
        image_processor=hf.Idefics3ImageProcessorPil(
            size={"longest_edge": 32}, max_image_size={"longest_edge": 32}, do_image_splitting=False
        ),
        tokenizer=t,
        image_seq_len=4,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    )
    return _seeded(lambda: hf.Idefics3ForConditionalGeneration(config)), made


def paligemma() -> tuple[Any, Any]:
    """A prompt that sees all of itself; no chat template."""
    t = tokenizer(image_token="<image>")
    config = hf.PaliGemmaConfig(
        text_config=hf.GemmaConfig(**_TEXT, head_dim=8, vocab_size=len(t)).to_dict(),
        vision_config={**_VISION, "model_type": "siglip_vision_model", "vision_use_head": False},
        image_token_id=t.convert_tokens_to_ids("<image>"),
        projection_dim=32,
        hidden_size=32,
        tie_word_embeddings=False,
    )
    images = hf.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    images.image_seq_length = 16
    made = hf.PaliGemmaProcessor(image_processor=images, tokenizer=t)
    return _seeded(lambda: hf.PaliGemmaForConditionalGeneration(config)), made


def gemma3() -> tuple[Any, Any]:
    """Images that see all of themselves, sliding windows."""
    t = tokenizer(image_token="<img>", boi_token="<start_of_image>", eoi_token="<end_of_image>")
    ids = t.convert_tokens_to_ids
    config = hf.Gemma3Config(
        text_config={
            **_TEXT,
            "head_dim": 8,
            "vocab_size": len(t),
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 64,
        },
        vision_config={**_VISION, "vision_use_head": False},
        image_token_index=ids("<img>"),
        boi_token_index=ids("<start_of_image>"),
        eoi_token_index=ids("<end_of_image>"),
        mm_tokens_per_image=4,
        tie_word_embeddings=False,
    )
    made = hf.Gemma3Processor(
        image_processor=hf.Gemma3ImageProcessorPil(size={"height": 32, "width": 32}),
        tokenizer=t,
        image_seq_length=4,
        chat_template=CHAT.replace("IMAGE", "<start_of_image>"),
    )
    model = _seeded(lambda: hf.Gemma3ForConditionalGeneration(config))
    with torch.no_grad():  # it begins with zeros, so that images would change nothing
        weight = model.model.multi_modal_projector.mm_input_projection_weight
        weight.copy_(0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    return model, made


def internvl() -> tuple[Any, Any]:
    """A Qwen2 with an InternViT tower; images in tiles."""
    t = tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    config = hf.InternVLConfig(
        text_config=hf.Qwen2Config(**_TEXT, vocab_size=len(t)).to_dict(),
        vision_config={**_VISION, "image_size": [32, 32], "patch_size": [8, 8]},
        image_token_id=t.convert_tokens_to_ids("<IMG_CONTEXT>"),
        downsample_ratio=0.5,
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    images = hf.GotOcr2ImageProcessorPil(
        size={"height": 32, "width": 32}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    made = without_videos(hf.InternVLProcessor)(
        image_processor=images,
        tokenizer=t,
        image_seq_length=4,
        chat_template=CHAT.replace("IMAGE", "<IMG_CONTEXT>"),
    )
    return _seeded(lambda: hf.InternVLForConditionalGeneration(config)), made


CLASSES: dict[str, Callable[[], tuple[Any, Any]]] = {
    make.__name__: make
    for make in (qwen2_5_vl, qwen3_vl, llava, idefics3, paligemma, gemma3, internvl)
}
