"""ROS bags as sources and sinks of a stream, without ROS. Needs rosbags, from the extra [ros]."""

from .bag import Bag as Bag
from .bag import Topic as Topic
from .bag import is_bag as is_bag
from .messages import FEATURE_MAP_DEFINITION as FEATURE_MAP_DEFINITION
from .messages import features_of as features_of
from .sink import BagSink as BagSink
from .source import BagSource as BagSource
