"""The user's data: feeds for calibration and accuracy, metrics, and fingerprints of both."""

from joulec.data.fingerprint import data_fingerprint, file_digest
from joulec.data.probing import probing_feeds
from joulec.data.sources import DataSpec, load_feeds, synthetic_feeds
from joulec.data.splits import held_out
from joulec.data.userfile import Infer, Metric, load_function, load_metric

__all__ = [
    "DataSpec",
    "Infer",
    "Metric",
    "data_fingerprint",
    "file_digest",
    "held_out",
    "load_feeds",
    "load_function",
    "load_metric",
    "probing_feeds",
    "synthetic_feeds",
]
