"""Position methods, one per file.

>>> Yarn(factor=8.0).spec()
'yarn(factor=8.0)'
"""

from __future__ import annotations

from headway.positions.alibi import Alibi
from headway.positions.axial import Axial
from headway.positions.base import LARGEST, Position, TermInputs
from headway.positions.comrope import ComRope
from headway.positions.cope import Cope
from headway.positions.dape import Dape, DapeV2
from headway.positions.deberta import Deberta
from headway.positions.dynamicbias import DynamicBias
from headway.positions.extending import extend
from headway.positions.fire import Fire
from headway.positions.fope import FoPE
from headway.positions.fox import Fox
from headway.positions.grape import GrapeA, GrapeM
from headway.positions.grapeap import GrapeAP
from headway.positions.hope import Hope, HopeLorentz
from headway.positions.inkling import Inkling
from headway.positions.interchange import LayerPosition, convert_pairing, from_hf, layers_from_hf, to_hf
from headway.positions.kerple import Kerple
from headway.positions.learned import Learned
from headway.positions.mrope import MRope
from headway.positions.music import Music
from headway.positions.none import NoPosition
from headway.positions.path import Path
from headway.positions.pope import Pope
from headway.positions.randomized import Randomized
from headway.positions.registry import as_method, methods, parse
from headway.positions.rotary import Rotary
from headway.positions.sandwich import Sandwich
from headway.positions.scaled import NTK, DynamicNTK, Interpolated, Llama3, LongRope, Proportional, Yarn
from headway.positions.selective import SelectiveRotary
from headway.positions.shaw import Shaw
from headway.positions.sinusoidal import Sinusoidal
from headway.positions.sinusoidal2d import Sinusoidal2D
from headway.positions.stickbreaking import StickBreaking
from headway.positions.swin import Swin, SwinV2
from headway.positions.t5 import T5
from headway.positions.transformerxl import TransformerXL
from headway.positions.wall import Wall
from headway.positions.xpos import XPos

__all__ = [
    "LARGEST",
    "NTK",
    "T5",
    "Alibi",
    "Axial",
    "ComRope",
    "Cope",
    "Dape",
    "DapeV2",
    "Deberta",
    "DynamicBias",
    "DynamicNTK",
    "Fire",
    "FoPE",
    "Fox",
    "GrapeA",
    "GrapeAP",
    "GrapeM",
    "Hope",
    "HopeLorentz",
    "Inkling",
    "Interpolated",
    "Kerple",
    "LayerPosition",
    "Learned",
    "Llama3",
    "LongRope",
    "MRope",
    "Music",
    "NoPosition",
    "Path",
    "Pope",
    "Position",
    "Proportional",
    "Randomized",
    "Rotary",
    "Sandwich",
    "SelectiveRotary",
    "Shaw",
    "Sinusoidal",
    "Sinusoidal2D",
    "StickBreaking",
    "Swin",
    "SwinV2",
    "TermInputs",
    "TransformerXL",
    "Wall",
    "XPos",
    "Yarn",
    "as_method",
    "convert_pairing",
    "extend",
    "from_hf",
    "layers_from_hf",
    "methods",
    "parse",
    "to_hf",
]


def __getattr__(name: str) -> type[Position]:
    """Import a method whose file was added without an import above."""
    for method in methods().values():
        if method.__name__ == name:
            return method
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
