"""Stage-1 pairs of many images: made locally or on a cluster, stored in a folder or a bucket, read by training."""

from .build import Summary, build_dataset
from .check import Report, check_dataset
from .manifest import Record
from .reader import PairDataset

__all__ = ["PairDataset", "Record", "Report", "Summary", "build_dataset", "check_dataset"]
