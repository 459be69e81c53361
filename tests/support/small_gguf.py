"""A language model of one block in a GGUF file, its linear weights in 8 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np

WIDTH = 32  # a block of 8 bits holds as many values
PIECES = ["<unk>", "<s>", "</s>", "▁", *"abcdefghijklmnopqrstuvwxyz"]


def write_gguf(folder: Path) -> Path:
    from gguf import GGMLQuantizationType, GGUFWriter, TokenType
    from gguf.quants import quantize

    folder.mkdir()
    writer = GGUFWriter(folder / "small.gguf", "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(2 * WIDTH)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // 2)
    writer.add_vocab_size(len(PIECES))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(PIECES)
    writer.add_token_scores([0.0] * len(PIECES))
    writer.add_token_types([TokenType.UNKNOWN, *[TokenType.CONTROL] * 2, *[TokenType.NORMAL] * (len(PIECES) - 3)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    generator = np.random.default_rng(0)
    plain = {"token_embd": (len(PIECES), WIDTH), "output": (len(PIECES), WIDTH), "output_norm": (WIDTH,)}
    plain |= {"blk.0.attn_norm": (WIDTH,), "blk.0.ffn_norm": (WIDTH,)}
    packed = {f"blk.0.attn_{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")}
    packed |= {f"blk.0.ffn_{name}": (2 * WIDTH, WIDTH) for name in ("gate", "up")} | {
        "blk.0.ffn_down": (WIDTH, 2 * WIDTH)
    }
    for name, shape in (plain | packed).items():
        values = generator.normal(size=shape).astype(np.float32)
        if name in packed:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{name}.weight", quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder
