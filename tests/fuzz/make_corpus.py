"""Writes the seeds of the fuzz targets: a folder for each of them, in the folder that is named, and a dictionary."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from engine_file_samples import arrays, header, pack, take_apart, with_field

SMALL = {"dim": 4, "heads": 1, "head_dim": 4, "hidden": 4, "depth": 1}


def engine_files() -> dict[str, bytes]:
    """Files of every dtype and choice, with a ViT, a denoiser or both, small for their mutations to be many."""
    full = header()
    for part in ("vit", "denoiser"):
        full[part] |= SMALL
    full["vit"] |= {"extra_tokens": 1}
    alone = with_field(with_field(full, "vit", None), "patch_embed", None)
    vit = with_field(full, "denoiser", None)
    bare = with_field(alone, "denoiser.depth", 0)
    files = {"full": full, "denoiser": alone, "vit": vit, "map": bare}
    for activation in ("gelu", "gelu_tanh", "quick_gelu", "relu"):
        files[activation] = with_field(with_field(alone, "denoiser.activation", activation), "denoiser.gated", True)
    packed = {name: pack(fields, arrays(fields)) for name, fields in files.items()}
    packed |= {f"full-{dtype}": pack(full, arrays(full), dtype) for dtype in ("F16", "BF16")}
    needed = {name: array for name, array in arrays(full).items() if "norm" not in name and ".bias" not in name}
    return packed | {"bare": pack(full, {name: array for name, array in needed.items() if ".scale" not in name})}


def images() -> dict[str, bytes]:
    """Programs for pixels.cpp: four sizes, three scales and shifts, a kind, two sizes, a layout and some pixels."""
    numbers, noise = bytes([80, 60] * 3), bytes(i * 89 % 256 for i in range(400))
    out = {}
    for kind in (0, 130):  # uint8, float32
        for layout in (0, 1, 2, 4, 8, 9, 16, 32, 64):
            for target, source in ((7, 30), (30, 7), (15, 15)):
                program = (
                    bytes([target, target + 2, 39, 39]) + numbers + bytes([kind, source, source + 5, layout, 3, 2, 5])
                )
                out[f"{kind}-{layout}-{target}"] = program + noise
    # Rows of more than a chunk, and a height that shrinks most.
    out["wide"] = bytes([9, 7, 3, 241, 200]) + numbers + bytes([0, 3, 241, 200, 0, 0]) + noise
    out["tall"] = bytes([9, 7, 241, 200, 3]) + numbers + bytes([0, 241, 200, 3, 0, 0]) + noise
    out["tall-turned"] = bytes([9, 7, 241, 200, 3]) + numbers + bytes([0, 241, 200, 3, 16, 0]) + noise
    return out


def words() -> list[str]:
    """What stands in headers: keys, choices and names of tensors."""
    found: set[str] = set()

    def collect(value: object) -> None:
        if isinstance(value, dict):
            found.update(value)
            for item in value.values():
                collect(item)
        elif isinstance(value, str) and value.isascii():
            found.add(value)

    file = engine_files()["full"]
    collect(header())
    collect(take_apart(file)[0])
    return sorted(word for word in found if len(word) < 40)


def main() -> None:
    folder = Path(sys.argv[1])
    for target, seeds in (("engine_file", engine_files()), ("session", engine_files()), ("pixels", images())):
        (folder / target).mkdir(parents=True, exist_ok=True)
        for name, data in seeds.items():
            (folder / target / name).write_bytes(data)
    (folder / "words").write_text("".join(f'"{word}"\n' for word in words()))


if __name__ == "__main__":
    main()
