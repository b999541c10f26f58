"""Videos and cameras as sources of a stream, and what is written of one: a video to look at, features to keep.

The decoders are PyAV's, from the extra [video]; it is imported when a file or camera is opened.
"""

from .camera import Camera as Camera
from .file import VideoFile as VideoFile
from .folder import ImageSequence as ImageSequence
from .open import open_source as open_source
