"""Videos and cameras as sources of a stream, and what is written of one: a video to look at, features to keep.

The decoders and encoders are PyAV's, from the extra [video]; it is imported when a file or camera is opened.
"""

from .camera import Camera as Camera
from .features import FeatureSink as FeatureSink
from .features import read_features as read_features
from .file import VideoFile as VideoFile
from .folder import ImageSequence as ImageSequence
from .mp4 import VideoSink as VideoSink
from .open import open_sink as open_sink
from .open import open_source as open_source
from .picture import Painter as Painter
from .pictures import PictureSink as PictureSink
