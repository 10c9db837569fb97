"""Make a checkpoint folder of a model of chemical reactions whose weights a package carries: RXNMapper or RXNFP.

Usage: python docs/reactions.py SOURCE FOLDER

SOURCE has weights as a pickle, of which only tensors are read, and the package has its tokenizer in code: here they
become safetensors and a tokenizer.json.
"""

import re
import sys
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AlbertConfig, AlbertForMaskedLM, BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

ATOMS = r"\[[^\]]+\]|Br?|Cl?|[NOSPFIbcnosp]|>>|%[0-9]{2}|[().=#\-+\\/:~@?*$0-9]"
"""A token of SMILES: an atom, alone or in brackets with its charge, a bond, a branch, a ring or an arrow."""
UNUSED = re.compile(r"position_ids$|\.pooler[._]|^cls\.seq_relationship\.|^(cls\.)?predictions\.(decoder\.)?bias$")
"""A buffer, parts that predict no masked token, and the bias that one parameter has two names for."""


def tokenizer(vocabulary: Path) -> PreTrainedTokenizerFast:
    """Words of the vocabulary, found by a pattern."""
    words = {word: number for number, word in enumerate(vocabulary.read_text(encoding="utf-8").splitlines())}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(ATOMS), "isolated")
    made.decoder = decoders.Fuse()
    special = [(name, words[name]) for name in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "cls", "sep", "pad", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


def main(source: str, folder: str) -> None:
    """Write the folder."""
    found = Path(source)
    weights = torch.load(found / "pytorch_model.bin", map_location="cpu", weights_only=True)
    kind = next(iter(weights)).partition(".")[0]
    config, model = {"albert": (AlbertConfig, AlbertForMaskedLM), "bert": (BertConfig, BertForMaskedLM)}[kind]
    made = model(config.from_json_file(found / "config.json"))
    lost = made.load_state_dict(weights, strict=False)
    if wrong := [name for names in lost for name in names if not UNUSED.search(name)]:
        raise SystemExit(f"expected the parameters of {model.__name__}, got others: {', '.join(wrong)}")
    made.save_pretrained(folder)
    tokenizer(found / "vocab.txt").save_pretrained(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
