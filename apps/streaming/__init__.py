"""What apps on streams share: sources, windows, a gate, decisions, a view. No torch; rich for the live view alone.

from apps.runtime import Bundle
from apps.streaming import GateRule, SoundFile, Stream

with Bundle.open("runs/demo/bundles/cpu") as bundle:
    source = SoundFile("runs/demo/bundles/cpu/examples/7.wav")
    for event in Stream(bundle, source.rate_hz, gate=GateRule()).follow(source.blocks()):
        print(event.label, event.start_s, event.confidence)
"""

from .decide import UNKNOWN, Event, Rule
from .gate import Gate, GateRule
from .source import Block, Microphone, RawSound, SoundFile, Source, Table
from .stream import Counters, Step, Stream

__all__ = [
    "UNKNOWN",
    "Block",
    "Counters",
    "Event",
    "Gate",
    "GateRule",
    "Microphone",
    "RawSound",
    "Rule",
    "SoundFile",
    "Source",
    "Step",
    "Stream",
    "Table",
]
