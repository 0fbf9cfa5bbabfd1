"""Hugging Face folders of networks small enough to be differentiated slowly, with random weights large enough to matter."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

VOCABULARY = 60
WORDS = [f"w{i}" for i in range(VOCABULARY - 4)]
_COMMON = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 32}
_LLAMA = _BERT | {"num_key_value_heads": 1, "head_dim": 8}
_GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
_SECTIONS = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}

MODELS = {
    "bert": ("BertModel", "BertConfig", _BERT),
    "classifier": ("BertForSequenceClassification", "BertConfig", _BERT | {"num_labels": 3}),
    "regressor": ("BertForSequenceClassification", "BertConfig", _BERT | {"num_labels": 1}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", _LLAMA),
    "llama-classifier": ("LlamaForSequenceClassification", "LlamaConfig", _LLAMA | {"num_labels": 3, "pad_token_id": None}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", _GPT2),
    "albert": ("AlbertModel", "AlbertConfig", _BERT | {"embedding_size": 8}),
    "t5": ("T5ForConditionalGeneration", "T5Config", _T5),
    "vit": ("ViTForImageClassification", "ViTConfig", _BERT | {"image_size": 8, "patch_size": 4, "num_labels": 3, "vocab_size": None}),
    "qwen3-moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", _LLAMA | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", _LLAMA | {"num_local_experts": 3, "num_experts_per_tok": 2}),
    "gpt-oss": ("GptOssForCausalLM", "GptOssConfig", _LLAMA | _EXPERTS | _ROPE | {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}),
    "llama4": ("Llama4ForCausalLM", "Llama4TextConfig", _LLAMA | _EXPERTS | {"num_experts_per_tok": 1, "intermediate_size_mlp": 24, "attention_chunk_size": 16, "no_rope_layers": [1, 0]}),
    "granitemoe": ("GraniteMoeForCausalLM", "GraniteMoeConfig", _LLAMA | _EXPERTS),
    "qwen3-vl-moe": ("Qwen3VLMoeTextModel", "Qwen3VLMoeTextConfig", _LLAMA | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12} | _SECTIONS),
}
"""name -> class, config class, arguments."""


def build(name: str, folder: Path, tokenizer: bool = True, **config) -> transformers.PreTrainedModel:
    """The model, saved into `folder`."""
    cls, config_cls, arguments = MODELS[name]
    torch.manual_seed(0)
    settings = {k: v for k, v in (_COMMON | arguments | config).items() if not (k == "vocab_size" and v is None)}
    model = getattr(transformers, cls)(getattr(transformers, config_cls)(**settings)).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim >= 2:
                p.normal_(0, 0.3)
    transformers.logging.disable_progress_bar()
    model.save_pretrained(folder)
    if tokenizer:
        write_tokenizer(folder)
    return model


def write_tokenizer(folder: Path) -> None:
    """A word is a token; 1 comes before them, 2 after."""
    vocabulary = {t: i for i, t in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    tokenizer.save(str(folder / "tokenizer.json"))


def texts(count: int, seed: int = 0) -> list[str]:
    """Of 1 to 6 words."""
    drawn = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 7, (count,), generator=drawn).tolist()
    return [" ".join(WORDS[i] for i in torch.randint(0, len(WORDS), (n,), generator=drawn).tolist()) for n in lengths]


def edit_config(folder: Path, **changes) -> None:
    """Change members of config.json; None removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
