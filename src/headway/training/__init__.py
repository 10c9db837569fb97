"""Training: text to tokens to batches, optimizers, the loop, checkpoints that resume to the bit, and run folders."""

from headway.training.batches import Batches, TextBatches, TextValidation
from headway.training.checkpoint import Checkpoint, Checkpoints, read_checkpoint
from headway.training.decoding import Beam, beam_search, generate_batch, speculate, stream_beams
from headway.training.execution import Execution
from headway.training.files import FolderLock, read_json, write_json_atomic
from headway.training.history import History
from headway.training.live import Live
from headway.training.loop import Observer, Progress, Trainer
from headway.training.optimizer import build_optimizer, learning_rate
from headway.training.run import Run, RunResult, load_model, open_run, train
from headway.training.settings import TrainSettings
from headway.training.text import Split, Text, read_text
from headway.training.tokenizer_json import TokenizerJson
from headway.training.vocabularies import vocabulary_from_json
from headway.training.vocabulary import Bpe, Bytes, Delimited, Masked, Vocabulary, token_texts
from headway.training.watching import load_watch

__all__ = [
    "Batches",
    "Beam",
    "Bpe",
    "Bytes",
    "Checkpoint",
    "Checkpoints",
    "Delimited",
    "Execution",
    "FolderLock",
    "History",
    "Live",
    "Masked",
    "Observer",
    "Progress",
    "Run",
    "RunResult",
    "Split",
    "Text",
    "TextBatches",
    "TextValidation",
    "TokenizerJson",
    "TrainSettings",
    "Trainer",
    "Vocabulary",
    "beam_search",
    "build_optimizer",
    "generate_batch",
    "learning_rate",
    "load_model",
    "load_watch",
    "open_run",
    "read_checkpoint",
    "read_json",
    "read_text",
    "speculate",
    "stream_beams",
    "token_texts",
    "train",
    "vocabulary_from_json",
    "write_json_atomic",
]
