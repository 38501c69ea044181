"""Networks of other libraries, tiny and as they are, against autograd one example at a time.

They are no requirement: `pip install diffusers transformers timm peft` to run them.
"""

from importlib import import_module
from importlib.util import find_spec

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from truth import one_at_a_time

from privimage.dp import ExampleGradients

# Their imports and configurations warn of other packages' future.
pytestmark = pytest.mark.filterwarnings("ignore")
EXAMPLES, LENGTH, WORDS, CLASSES = 3, 7, 50, 5
_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": WORDS,
    "max_position_embeddings": 32,
}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": WORDS}
_ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": WORDS}
_DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": WORDS}
_BLOOM = {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": WORDS}
_SPANS = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
_PATCHES = {"image_size": 32, "patch_size": 8, "num_labels": CLASSES, **_SIZES}
_WINDOWS = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2]}
_WINDOWS |= {"num_heads": [2, 4], "window_size": 4, "num_labels": CLASSES}
_SEGMENTS = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_attention_heads": [1, 2]}
_SEGMENTS |= {"num_encoder_blocks": 2, "sr_ratios": [2, 1], "decoder_hidden_size": 8}

# Class and configuration by name; what they are given.
LANGUAGE = {
    "GPT2LMHeadModel": ("GPT2Config", _GPT | {"bos_token_id": 0, "eos_token_id": 0}),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", _SIZES | _ENDS),
    "LlamaForCausalLM": ("LlamaConfig", _SIZES | _ENDS | {"num_key_value_heads": 2}),
    "BloomForCausalLM": ("BloomConfig", _BLOOM | _ENDS),
    "T5ForConditionalGeneration": ("T5Config", _T5 | {"decoder_start_token_id": 0}),
}
SENTENCES = {
    "BertForSequenceClassification": ("BertConfig", _SIZES),
    "RobertaForSequenceClassification": ("RobertaConfig", _SIZES | {"pad_token_id": 0}),
    "DistilBertForSequenceClassification": ("DistilBertConfig", _DISTIL),
    "DebertaV2ForSequenceClassification": ("DebertaV2Config", _SIZES | _SPANS),
    "DebertaForSequenceClassification": ("DebertaConfig", _SIZES | _SPANS),
    "AlbertForSequenceClassification": ("AlbertConfig", _SIZES | {"embedding_size": 16}),
}
PICTURES = {
    "ViTForImageClassification": ("ViTConfig", _PATCHES),
    "Dinov2ForImageClassification": ("Dinov2Config", _PATCHES),
    "Swinv2ForImageClassification": ("Swinv2Config", _WINDOWS),
    "SegformerForImageClassification": ("SegformerConfig", _SEGMENTS | {"num_labels": CLASSES}),
}
TIMM = {
    "vit_tiny_patch16_224": {"img_size": 32},
    "xcit_nano_12_p16_224": {"img_size": 32},
    "mobilevit_xxs": {},
    "convnextv2_atto": {},
    "swin_s3_tiny_224": {"img_size": 64, "window_size": 2},
}
_BLOCKS = {
    "sample_size": 8,
    "block_out_channels": (32, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 16,
}
_TOKENS = {"num_layers": 1, "num_attention_heads": 4, "attention_head_dim": 8}
_LATENTS = {"sample_size": 8, "patch_size": 2, "in_channels": 4}
_JOINT = {"joint_attention_dim": 16, "pooled_projection_dim": 8}
_SD3 = {"caption_projection_dim": 32, "pos_embed_max_size": 8, "out_channels": 4}
# Configuration, and which of time, class, caption and its summary are given by which name.
DIFFUSION = {
    "UNet2DConditionModel": (
        _BLOCKS | {"attention_head_dim": 8},
        {"timestep": 0, "encoder_hidden_states": 2},
    ),
    "DiTTransformer2DModel": (
        _TOKENS | _LATENTS | {"num_embeds_ada_norm": CLASSES},
        {"timestep": 0, "class_labels": 1},
    ),
    "SD3Transformer2DModel": (
        _TOKENS | _LATENTS | _JOINT | _SD3,
        {"timestep": 0, "encoder_hidden_states": 2, "pooled_projections": 3},
    ),
}
ADAPTERS = {
    "LoraConfig": {"r": 4, "target_modules": ["q_proj", "embed_tokens"]},
    "dora": {"r": 4, "target_modules": ["q_proj"], "use_dora": True},
    "IA3Config": {
        "target_modules": ["k_proj", "down_proj"],
        "feedforward_modules": ["down_proj"],
    },
    "PromptTuningConfig": {"num_virtual_tokens": 3, "task_type": "CAUSAL_LM"},
}


def _library(name):
    """A library that loads torchvision, where that is, beside any build of torch."""
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    import_module("peers")
    return import_module(name)


def _made(name, known):
    transformers = _library("transformers")
    config, options = known[name]
    torch.manual_seed(0)
    return getattr(transformers, name)(getattr(transformers, config)(**options))


def _words(length=LENGTH):
    return torch.randint(1, WORDS, (EXAMPLES, length))


def _pictures(size):
    return torch.randn(EXAMPLES, 3, size, size), torch.randint(CLASSES, (EXAMPLES,))


def _next_word(model, words):
    options = {"decoder_input_ids": words} if model.config.is_encoder_decoder else {}
    found = model(input_ids=words, **options).logits[:, -LENGTH:]
    return F.cross_entropy(found.transpose(1, 2), words[:, -LENGTH:], reduction="none").mean(1)


def _label(model, given, labels):
    found = model(given)
    return F.cross_entropy(getattr(found, "logits", found), labels, reduction="none")


def _assert_exact(model, losses, *batch):
    model.eval().double()
    batch = [tensor.double() if tensor.is_floating_point() else tensor for tensor in batch]
    expected = one_at_a_time(model, losses, batch)
    found = ExampleGradients(model)(losses, *batch)
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("name", LANGUAGE)
@pytest.mark.parametrize("length", [LENGTH, EXAMPLES])
def test_language(name, length):
    _assert_exact(_made(name, LANGUAGE), _next_word, _words(length))


@pytest.mark.parametrize("name", SENTENCES)
@pytest.mark.parametrize("length", [LENGTH, EXAMPLES])
def test_sentences(name, length):
    labels = torch.randint(2, (EXAMPLES,))
    _assert_exact(_made(name, SENTENCES), _label, _words(length), labels)


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(name):
    _assert_exact(_made(name, PICTURES), _label, *_pictures(32))


@pytest.mark.parametrize("name", TIMM)
def test_pictures_by_timm(name):
    timm = _library("timm")
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=CLASSES, **TIMM[name])
    for path, layer in list(model.named_modules()):
        if isinstance(layer, nn.BatchNorm2d):
            model.set_submodule(path, nn.GroupNorm(1, layer.num_features))
    _assert_exact(model, _label, *_pictures(64 if not TIMM[name] else TIMM[name]["img_size"]))


@pytest.mark.parametrize("name", DIFFUSION)
def test_diffusion(name):
    config, names = DIFFUSION[name]
    torch.manual_seed(0)
    model = getattr(_library("diffusers"), name)(**config)

    def losses(model, images, *given):
        found = model(images, **{name: given[place] for name, place in names.items()}).sample
        return found.square().flatten(1).mean(1)

    images, caption, summary = (torch.randn(EXAMPLES, *s) for s in ((4, 8, 8), (5, 16), (8,)))
    _assert_exact(model, losses, images, *torch.randint(5, (2, EXAMPLES)), caption, summary)


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters(name):
    peft = _library("peft")
    config = getattr(peft, "LoraConfig" if name == "dora" else name)(**ADAPTERS[name])
    model = peft.get_peft_model(_made("LlamaForCausalLM", LANGUAGE), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    _assert_exact(model, _next_word, _words())
