"""A language-model doctor's model and tokenizer: from scratch on a CPU, or any causal model with a chat template.

A model directory is an ordinary one of Hugging Face's: `AutoModelForCausalLM` and `AutoTokenizer` load what `LanguageModel.save` writes.

Does not cover: turns and masks (`conversation`), writing (`generation`), training.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as FastTokenizer
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin
from transformers.utils import logging

from medenv.agents.conversation import Chat
from medenv.errors import RunError

SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
REACHED_WITHIN = 5.0  # seconds until Hugging Face counts as not reachable


@dataclass(frozen=True)
class LanguageModel:
    """A causal model (with LoRA PEFT's wrapper of one), its tokenizer, its chat, and its longest context in tokens (None: no bound)."""

    model: Any
    tokenizer: Any
    chat: Chat
    context: int | None

    def save(self, directory: str | Path) -> None:
        """Write a model directory. With LoRA the model's part of it is the adapter alone, as PEFT writes it."""
        with _quiet():
            self.model.save_pretrained(directory)
            self.tokenizer.save_pretrained(directory)


def train_tokenizer(texts: Iterable[str], size: int = 2048) -> FastTokenizer:
    """A byte-level BPE tokenizer of at most `size` entries (>= 261), learnt from `texts`: words that are frequent there are one token each.

    Nothing is normalised and every byte is an entry, so any text comes back as it was (lone surrogates are no text). The chat template
    opens each turn with a token of its role (system, user, assistant) and closes it with `<|end|>`.
    """
    if size < 256 + len(SPECIAL):
        raise RunError(f"a tokenizer of {size} entries: give at least {256 + len(SPECIAL)}, one for each byte and special token")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    pad, end, *roles = SPECIAL
    tokenizer = FastTokenizer(tokenizer_object=bpe, pad_token=pad, eos_token=end, additional_special_tokens=roles, padding_side="left")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def new_model(tokenizer: Any, seed: int = 0, hidden: int = 128, layers: int = 4, heads: int = 4, context: int = 1024) -> LlamaForCausalLM:
    """An untrained Llama in float32, 1.4 million parameters with 2,048 entries. The weights are a function of the arguments.

    They start with standard deviation hidden**-0.5: so small a model learns from it sooner than from the library's 0.02.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=context,
        initializer_range=hidden**-0.5,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with _seeded(seed):
        return LlamaForCausalLM(config).eval()


def from_scratch(texts: Iterable[str], seed: int = 0, size: int = 2048, system: str | None = None, **shape: int) -> LanguageModel:
    """An untrained doctor whose tokenizer is learnt from `texts`; `shape`: hidden, layers, heads, context of `new_model`."""
    tokenizer = train_tokenizer(texts, size)
    model = new_model(tokenizer, seed, **shape)
    return LanguageModel(model, tokenizer, Chat(tokenizer, system), model.config.max_position_embeddings)


def load_model(
    source: str | Path,
    *,
    context: int = 0,
    system: str | None = None,
    lora: int | None = None,
    chat_template: str | None = None,
    pad_token: str | None = None,
    tokenizer_from: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> LanguageModel:
    """A causal model from a directory or by its name on Hugging Face, with what a consultation needs checked before its weights are read.

    `context`: tokens that a consultation may take at most (0: what the model holds); `tokenizer_from`: a directory with another tokenizer,
    as an adapter's has it; `lora`: train an adapter of this rank instead of the model, its start drawn with `seed`;
    `chat_template` (its text) and `pad_token`: instead of the tokenizer's; `device`: CUDA where there is any; `dtype`: bfloat16 on CUDA,
    float32 elsewhere. RunError, each with what to do: no model there, no causal model, a memory that can't be cut row by row, no chat
    template or one that is not prefix-stable, no pad token, less context than asked for, LoRA without peft.
    """
    source = str(source)
    local = _on_this_machine(source)
    source = str(Path(source).resolve()) if local and Path(source).is_dir() else source  # adapters on top remember it
    with _quiet(), _readable(source):
        config = AutoConfig.from_pretrained(source, local_files_only=local)
    limit = _checked(config, source, context)
    with _quiet(), _readable(source):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_from or source, local_files_only=local or tokenizer_from is not None)
    tokenizer.chat_template = chat_template or tokenizer.chat_template
    tokenizer.pad_token = pad_token or tokenizer.pad_token
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= config.get_text_config().vocab_size:
        raise RunError(f"{source}: the tokenizer has no pad token of the model's: name one of its special tokens with `pad_token`")
    peft = None if lora is None else _peft(lora)
    chat = Chat(tokenizer, system)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    with _quiet(), _readable(source):
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, local_files_only=local)
    if peft is not None:
        adapter = peft.LoraConfig(r=lora, lora_alpha=2 * (lora or 0), target_modules="all-linear", task_type="CAUSAL_LM")
        with _seeded(seed), warnings.catch_warnings(action="ignore", category=FutureWarning):  # between peft and transformers
            model = peft.get_peft_model(model, adapter)
    return LanguageModel(model.to(device).eval(), tokenizer, chat, context or limit)


def _on_this_machine(source: str) -> bool:
    """Whether to look for `source` here alone. RunError where it is neither here nor on Hugging Face, and that within seconds."""
    if Path(source).is_dir():
        if not (Path(source) / "config.json").is_file():
            raise RunError(f"{source} is no model directory, it holds no config.json: name what `save_pretrained` wrote, or a model's name")
        return True
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", source):
        raise RunError(f"{source}: there is no such directory; name a model directory, or a model on Hugging Face such as owner/name")
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        HfApi().model_info(source, timeout=REACHED_WITHIN)
    except Exception as error:  # of whichever HTTP library it uses
        if isinstance(try_to_load_from_cache(source, "config.json"), str):
            return True
        raise RunError(f"{source} is no directory here, and Hugging Face did not give it ({_first_line(error)}): check the name") from error
    return False


def _checked(config: Any, source: str, context: int) -> int | None:
    """The model's longest context; RunError for a model that can't be a doctor."""
    if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise RunError(f"{source} is a model of type {config.model_type!r}, which can't write text: name a causal language model")
    cache = DynamicCache(config=config)
    if not all(isinstance(x, DynamicLayer) and not isinstance(x, LinearAttentionCacheLayerMixin) for x in cache.layers):
        raise RunError(f"{source}: a model of type {config.model_type!r} remembers other than by attention: name one with attention alone")
    limit: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and limit < context:
        raise RunError(
            f"{source} reads at most {limit} tokens and a consultation may take {context}: have fewer or shorter turns, or another model"
        )
    return limit


def _peft(rank: int) -> Any:
    if rank < 1:
        raise RunError(f"lora is {rank!r}: give the adapter's rank, at least 1, or none to train the whole model")
    try:
        import peft
    except ImportError:
        raise RunError("LoRA needs peft, which is not installed: pip install 'medenv[trl]', or train the whole model") from None
    return peft


@contextlib.contextmanager
def _readable(source: str) -> Iterator[None]:
    """Whatever the libraries raise while they read a model is one line."""
    try:
        yield
    except Exception as error:
        raise RunError(f"{source} can't be read ({_first_line(error)}): put back a whole copy of the model") from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Weights are drawn from torch's global CPU generator: it is seeded, and put back."""
    before = torch.random.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.random.set_rng_state(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
