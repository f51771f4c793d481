"""GGUF files as models: what the folder holds, what is refused, and that it is made once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoConfig

from axpo.errors import CheckpointError, ConfigError, MissingError
from axpo.models import gguf as converting
from axpo.models.loading import load_checkpoint
from axpo.models.paths import model_path, show_path
from axpo.models.tiny import tiny_model
from tests.support.families import SMOLLM2, TEXT, TURNS

TOKENS = [*TURNS, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ĊĊ", "12"]
MERGES = ["Ċ Ċ", "1 2"]
QUANTISED = gguf.GGMLQuantizationType.Q4_1


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "axpo" / "gguf"


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model(AutoConfig.for_model("llama", **TEXT | {"vocab_size": len(TOKENS)}), 0)


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows as llama.cpp rotates them: the pairs of a head beside each other."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, -1)


def gguf_tensors(model: Any) -> dict[str, np.ndarray]:
    """A Llama's weights by their names in a GGUF file."""
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    heads = {"attn_q": 4, "attn_k": 2}
    found = {
        "token_embd.weight": model.model.embed_tokens.weight,
        "output_norm.weight": model.model.norm.weight,
    }
    for number, layer in enumerate(model.model.layers):
        for name, short in names.items():
            found[f"blk.{number}.{short}.weight"] = layer.get_submodule(name).weight
    arrays = {name: weight.detach().numpy() for name, weight in found.items()}
    return {
        name: permuted(array, heads[short]) if (short := name.split(".")[-2]) in heads else array
        for name, array in arrays.items()
    }


def write(
    file: Path,
    tensors: dict[str, np.ndarray],
    quantised: bool = False,
    architecture: str = "llama",
    pre: str = "smollm",
    template: str = SMOLLM2,
    scaled: bool = False,
) -> Path:
    """A GGUF file as llama.cpp writes it, of a model with the sizes of `TEXT`."""
    out = gguf.GGUFWriter(file, architecture)
    out.add_name("tiny")
    out.add_context_length(TEXT["max_position_embeddings"])
    out.add_embedding_length(TEXT["hidden_size"])
    out.add_block_count(TEXT["num_hidden_layers"])
    out.add_feed_forward_length(TEXT["intermediate_size"])
    out.add_head_count(TEXT["num_attention_heads"])
    out.add_head_count_kv(TEXT["num_key_value_heads"])
    out.add_rope_dimension_count(16)
    out.add_rope_freq_base(10_000.0)
    out.add_layer_norm_rms_eps(1e-6)
    out.add_vocab_size(len(TOKENS))
    if scaled:
        out.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(pre)
    out.add_token_list(TOKENS)
    out.add_token_types([3 if token in TURNS else 1 for token in TOKENS])
    out.add_token_merges(MERGES)
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_unk_token_id(0)
    out.add_pad_token_id(2)
    if template:
        out.add_chat_template(template)
    for name, array in tensors.items():
        if quantised and array.ndim == 2:
            packed = gguf.quantize(array, QUANTISED)
            out.add_tensor(name, packed, raw_dtype=QUANTISED)
        else:
            out.add_tensor(name, array)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return file


def test_the_folder_holds_the_files_weights(tmp_path: Path, model: Any) -> None:
    tensors = gguf_tensors(model)
    for quantised in (False, True):
        file = write(tmp_path / f"{quantised}.gguf", tensors, quantised)
        loaded = load_checkpoint(model_path(str(file))).model
        found = gguf_tensors(loaded)
        assert found.keys() == tensors.keys() and loaded.dtype == torch.float32
        for name, array in tensors.items():
            expected = array
            if quantised and array.ndim == 2:
                expected = gguf.dequantize(gguf.quantize(array, QUANTISED), QUANTISED)
            assert np.array_equal(found[name], expected), name
    ids = torch.tensor([[1, 7, 9, 11, 2]])
    alike = load_checkpoint(model_path(str(tmp_path / "False.gguf"))).model
    with torch.no_grad():  # the pairs of each head are where the model expects them
        assert torch.equal(alike(input_ids=ids).logits, model(input_ids=ids).logits)
    config = alike.config
    assert not hasattr(config, "quantization_config") and config.tie_word_embeddings
    assert alike.generation_config.eos_token_id == 2


def test_the_tokenizer_splits_text_as_its_model_did(tmp_path: Path, model: Any) -> None:
    """transformers reads the rule "smollm" as GPT-2's, which parts line breaks before a digit."""
    tensors = gguf_tensors(model)
    read: dict[str, list[str]] = {}
    for pre in ("smollm", "gpt-2"):
        path = model_path(str(write(tmp_path / f"{pre}.gguf", tensors, pre=pre)))
        tokenizer = load_checkpoint(path).processor.tokenizer
        read[pre] = tokenizer.convert_ids_to_tokens(tokenizer.encode("\n\n12<|im_end|>"))
        whole = "a\n\n12  3 é<|im_start|>"
        assert tokenizer.decode(tokenizer.encode(whole)) == whole
        assert tokenizer.chat_template == SMOLLM2
        asked = tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)
        assert "named SmolLM" in asked and tokenizer.eos_token == "<|im_end|>"
    assert read == {
        "smollm": ["ĊĊ", "1", "2", "<|im_end|>"],
        "gpt-2": ["Ċ", "Ċ", "12", "<|im_end|>"],
    }


def test_a_file_is_converted_once(
    tmp_path: Path, cache: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "a.gguf", gguf_tensors(model))
    folder = Path(model_path(str(file)))
    assert folder.parent == cache
    monkeypatch.setattr(converting, "_convert", None)
    assert Path(show_path(str(file.rename(tmp_path / "b.gguf")))) == folder
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    changed = gguf_tensors(model)
    changed["output_norm.weight"] = changed["output_norm.weight"] + 1
    assert Path(model_path(str(write(tmp_path / "b.gguf", changed)))) != folder


def in_process(function: Any) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=function)
    process.start()
    return process


def test_two_processes_convert_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, log = tmp_path / "a.gguf", tmp_path / "log"
    file.write_bytes(b"GGUF")

    def convert(file: Path, folder: Path) -> None:
        with log.open("a") as lines:
            lines.write("converted\n")
        time.sleep(0.2)
        (folder / "whole").touch()

    def ask() -> None:
        assert (converting.converted(file) / "whole").is_file()

    monkeypatch.setattr(converting, "_convert", convert)
    both = [in_process(ask), in_process(ask)]
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    assert log.read_text() == "converted\n"


def test_a_conversion_that_is_killed_leaves_nothing(
    tmp_path: Path, cache: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "a.gguf", gguf_tensors(model))

    def convert(file: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{")
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(converting, "_convert", convert)
    process = in_process(lambda: converting.converted(file))
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert any(path.name.startswith(".writing-") for path in cache.iterdir())
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = Path(model_path(str(file)))
    load_checkpoint(folder)
    assert {path.name for path in cache.iterdir()} == {".lock", folder.name}


def test_what_is_no_model_is_refused(
    tmp_path: Path, cache: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = gguf_tensors(model)
    whole = write(tmp_path / "whole.gguf", tensors)
    text, pointer = tmp_path / "text.gguf", tmp_path / "pointer.gguf"
    text.write_text("<html>404 Not Found</html>")
    pointer.write_text("version https://git-lfs.github.com/spec/v1")
    held = whole.read_bytes()
    cuts = {tmp_path / f"cut-{at}.gguf": at for at in (4, 24, 1_000, 6_000, len(held) // 2, -1)}
    for file, at in cuts.items():  # in the head, in settings and tokens, in weights
        file.write_bytes(held[:at])
    lacking = {name: array for name, array in tensors.items() if "ffn_up" not in name}
    scales = tensors | {"rope_freqs.weight": np.ones(8, np.float32)}
    bias = tensors | {"blk.0.attn_q.bias": np.ones(64, np.float32)}
    for file, message in (
        (text, "is not a GGUF file"),
        (pointer, "is a pointer of Git LFS"),
        *((file, "cut short") for file in cuts),
        (write(tmp_path / "bert.gguf", tensors, architecture="bert"), "bert"),
        (write(tmp_path / "gemma.gguf", tensors, architecture="gemma2"), "'gemma2'; expected"),
        (write(tmp_path / "lacks.gguf", lacking), "lacks the weights model.layers.0.mlp.up_proj"),
        (write(tmp_path / "freqs.gguf", scales), "positions are scaled .rope_freqs.weight"),
        (write(tmp_path / "yarn.gguf", tensors, scaled=True), "scaled .llama.rope.scaling.type"),
        (write(tmp_path / "bias.gguf", bias), r"LlamaForCausalLM takes"),
        (write(tmp_path / "pre.gguf", tensors, pre="viking"), "splits text as 'viking'"),
        (write(tmp_path / "base.gguf", tensors, template=""), "no chat template"),
    ):
        with pytest.raises(CheckpointError, match=f"{file.name}.*{message}") as raised:
            model_path(str(file))
        assert "\n" not in str(raised.value)
    assert {path.name for path in cache.iterdir()} == {".lock"}
    with pytest.raises(ConfigError, match=r"there is no file pretrained/a\.gguf; expected"):
        model_path("pretrained/a.gguf")
    assert show_path("pretrained/a.gguf") == "pretrained/a.gguf"
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingError, match=r"needs gguf.*pip install 'axpo\[gguf\]'"):
        model_path(str(whole))
