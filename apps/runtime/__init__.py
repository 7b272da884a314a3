"""The bundle format, and what runs a bundle on a device: numpy and one inference runtime, nothing else.

    from apps.runtime import Bundle

    with Bundle.open("runs/av_digits/bundles/cpu") as bundle:
        sample = bundle.read("seven.wav")
        print(bundle.predict(sample.array).label)

Everything here runs on Python 3.10 and imports nothing of mst-edge, because a bundle carries it along.
"""

from .answers import Answer, LabelMap, Numbers, Prediction
from .bundle import Bundle, memory_mb
from .drift import Drift
from .errors import BundleError
from .inputs import Sample, read_sample
from .manifest import Manifest
from .png import write_label_map

__all__ = [
    "Answer",
    "Bundle",
    "BundleError",
    "Drift",
    "LabelMap",
    "Manifest",
    "Numbers",
    "Prediction",
    "Sample",
    "memory_mb",
    "read_sample",
    "write_label_map",
]
