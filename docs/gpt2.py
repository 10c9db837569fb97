"""Make a small untrained GPT-2 and its tokenizer, a checkpoint folder of transformers that ``make gpt2`` then trains.

Usage: python docs/gpt2.py FOLDER
"""

import os
import sys

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the order of equal pairs is then always the same

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from headway.training import read_text

TOKENS, LENGTH = 512, 128
END = "<|endoftext|>"


def tokenizer() -> PreTrainedTokenizerFast:
    """Pairs of bytes, learned from the built-in text."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=TOKENS, special_tokens=[END], initial_alphabet=alphabet)
    made.train_from_iterator([bytes(read_text().data).decode()], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=END, eos_token=END)


def main(folder: str) -> None:
    """Write the folder."""
    torch.manual_seed(0)
    sizes = {"vocab_size": TOKENS, "n_positions": LENGTH, "n_embd": 64, "n_layer": 2, "n_head": 4}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
