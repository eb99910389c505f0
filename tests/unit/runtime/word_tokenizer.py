"""A tokenizer that needs no download."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def save_tokenizer(folder: Path, words: Sequence[str]) -> None:
    """One that knows these words, of which the first pads and the second stands for all others."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    pad, unknown, *_ = words
    numbers = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, unk_token=unknown)
    fast.save_pretrained(folder)
