"""Streams: features of every frame of a video or camera as it comes, with the age of each and a count of all drops."""

from .result import Result as Result
from .source import Frame as Frame
from .source import Sink as Sink
from .source import Source as Source
from .sources import Images as Images
from .sources import Limited as Limited
from .sources import Paced as Paced
from .statistics import Statistics as Statistics
from .stream import Stream as Stream
