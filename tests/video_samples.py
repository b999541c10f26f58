"""Small videos for tests, made by PyAV."""

import struct
from fractions import Fraction

import numpy as np


def corners(h: int = 48, w: int = 64) -> np.ndarray:
    """A picture whose corners are red, green, blue and white, clockwise from the top left."""
    image = np.zeros((h, w, 3), np.uint8)
    image[: h // 2, : w // 2, 0] = 255
    image[: h // 2, w // 2 :, 1] = 255
    image[h // 2 :, w // 2 :, 2] = 255
    image[h // 2 :, : w // 2] = 255
    return image


def grey(value: int, h: int = 48, w: int = 64) -> np.ndarray:
    return np.full((h, w, 3), value, np.uint8)


def make_video(path, images, times=None, codec="libx264", pixels="yuv420p", rate=10, **options):
    """A video of `images`; times: of each, in seconds. options: of the encoder."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={key: str(value) for key, value in options.items()})
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pixels
        stream.codec_context.time_base = Fraction(1, 1000)
        for i, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts = round(1000 * (times[i] if times else i / rate))
            frame.time_base = Fraction(1, 1000)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def orient(path, matrix) -> None:
    """Tell players of an MP4 to show each pixel (x, y) at matrix @ (x, y): [2, 2], as phones do for turned pictures."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40
    (a, c), (b, d) = (np.asarray(matrix) * 65536).astype(int)
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def packets_of(path) -> list[tuple[int, int, bool]]:
    """(position, size, whether a key frame) of each packet in a file."""
    import av

    with av.open(str(path)) as container:
        return [(packet.pos, packet.size, packet.is_keyframe) for packet in container.demux(video=0) if packet.size]


def damage(path, which, fill=b"\0") -> None:
    """Overwrite packets of a file."""
    data = bytearray(path.read_bytes())
    for position, size, _ in [packets_of(path)[i] for i in which]:
        data[position : position + size] = fill * size
    path.write_bytes(data)
