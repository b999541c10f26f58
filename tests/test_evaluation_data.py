"""Readers of labelled folders: every layout from a few hand-made files, and everything that is wrong with real ones."""

import json
import struct
import zlib

import numpy as np
import pytest

from dvt_fast.errors import InputError
from dvt_fast.evaluation.data.boxes import read_boxes
from dvt_fast.evaluation.data.depth import read_depth
from dvt_fast.evaluation.data.segmentation import read_index, read_segmentation

Image = pytest.importorskip("PIL.Image")

SIZE = (8, 6)  # width and height of all images
LABEL = np.array([[0, 0, 0, 0, 1, 1, 1, 1]] * 3 + [[2, 2, 2, 2, 255, 255, 255, 255]] * 3, np.uint8)


def photo(path, size=SIZE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 60)).save(path, **options)
    return path


def index(path, array=LABEL, palette=False):
    """An index image; with a palette whose colours say nothing about the numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if palette:
        image.putpalette([(value * 89 + 7) % 256 for value in range(768)])
    image.save(path)
    return path


def text(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def names(items):
    return [item.image.stem for item in items]


def one_problem(data, *parts):
    """There is one, and it says all of these."""
    (line,) = data.problems
    assert "\n" not in line and all(str(part) in line for part in parts), line


def camvid(root, train=("a", "b"), val=("c",)):
    for part, stems in (("train", train), ("val", val)):
        for stem in stems:
            photo(root / "images" / part / f"{stem}.jpg")
            index(root / "labels" / part / f"{stem}.png")
    text(root / "classes.txt", "id name", "0 sky", "1 road", "2 Unlabelled (ignore it)")
    return root


def flat(root, stems="abcdefgh", folder="labels"):
    for stem in stems:
        photo(root / "images" / f"{stem}.jpg")
        index(root / folder / f"{stem}.png")
    return root


# Layouts of classes.


def test_index_layout_with_folders(tmp_path):
    data = read_segmentation(camvid(tmp_path))
    assert (data.name, data.classes, data.problems) == (tmp_path.name, ("sky", "road"), ())
    assert (names(data.train), names(data.val)) == (["a", "b"], ["c"])
    labels = data.val[0].read()
    assert labels.dtype == np.int16
    np.testing.assert_array_equal(labels, np.where(LABEL > 1, -1, LABEL.astype(int)))


def test_index_layout_with_lists_which_may_name_paths(tmp_path):
    flat(tmp_path)
    text(tmp_path / "train.txt", "# comment", "a", "images/b.jpg labels/b.png", "a")
    text(tmp_path / "val.txt", "c.jpg", "", "b")
    data = read_segmentation(tmp_path)
    assert (names(data.train), names(data.val)) == (["a"], ["b", "c"])
    one_problem(data, "b.jpg", "both train and val")


def test_lists_choose_from_the_folders_of_the_parts(tmp_path):
    camvid(tmp_path)
    text(tmp_path / "train.txt", "b")
    text(tmp_path / "val.txt", "c")
    assert names(read_segmentation(tmp_path).train) == ["b"]


@pytest.mark.parametrize(
    ("options", "val"),
    [
        ({"val_fraction": 0.25}, "gh"),
        ({"folds": 4, "fold": 0}, "ab"),
        ({"folds": 4, "fold": 3}, "gh"),
        ({"folds": 3, "fold": 1}, "cde"),
    ],
)
def test_a_set_without_parts_is_cut_into_blocks(tmp_path, options, val):
    data = read_segmentation(flat(tmp_path, folder="masks_semantic"), **options)
    assert names(data.val) == list(val)
    assert sorted(names(data.train) + names(data.val)) == list("abcdefgh")
    assert data.classes == ("class 0", "class 1", "class 2")  # no names anywhere: what is found


def test_voc_layout(tmp_path):
    for stem in ("2007_000032", "2007_000039"):
        photo(tmp_path / "JPEGImages" / f"{stem}.jpg")
        index(tmp_path / "SegmentationClass" / f"{stem}.png", palette=True)
    text(tmp_path / "ImageSets/Segmentation/train.txt", "2007_000032")
    text(tmp_path / "ImageSets/Segmentation/val.txt", "2007_000039")
    data = read_segmentation(tmp_path)
    assert len(data.classes) == 21 and data.classes[15] == "person"
    np.testing.assert_array_equal(data.val[0].read(), np.where(LABEL == 255, -1, LABEL.astype(int)))


def test_ade20k_layout(tmp_path):
    for part, stem in (("training", "ADE_train_1"), ("validation", "ADE_val_1")):
        photo(tmp_path / "images" / part / f"{stem}.jpg")
        index(tmp_path / "annotations" / part / f"{stem}.png")
    data = read_segmentation(tmp_path)
    assert len(data.classes) == 150
    np.testing.assert_array_equal(
        data.train[0].read(), np.where((LABEL == 0) | (LABEL == 255), -1, LABEL.astype(int) - 1)
    )
    text(
        tmp_path / "objectInfo150.txt",
        "Idx\tRatio\tTrain\tName",
        "1\t0.2\t11\twall",
        "2\t0.1\t12\tbuilding, edifice",
    )
    assert read_segmentation(tmp_path).classes == ("wall", "building, edifice")


@pytest.mark.parametrize("values", [np.uint8, np.uint16], ids=["L", "I;16"])
def test_numbers_are_read_as_they_are(tmp_path, values):
    array = (LABEL.astype(np.uint16) * (100 if values is np.uint16 else 1)).astype(values)
    np.testing.assert_array_equal(read_index(index(tmp_path / "a.png", array)), array)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_numbers_of_few_bits_are_not_spread(tmp_path, bits):
    """Optimised PNGs keep small numbers in fewer bits of grey, which Pillow would brighten to 0..255."""
    rows = np.arange(16).reshape(2, 8) % 2**bits
    packed = [np.packbits((row[:, None] >> np.arange(bits)[::-1]) & 1).tobytes() for row in rows]

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 8, 2, bits, 0, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row for row in packed))
    path = tmp_path / "small.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b""))
    np.testing.assert_array_equal(read_index(path), rows)


# Names of classes.


@pytest.mark.parametrize(
    "classes",
    [
        ["x", "y", "z"],
        {0: "x", 1: "y", 2: "z"},
        {"0": "x", "1": "y", "2": "z"},
        {"x": 0, "y": 1, "z": 2},
        "mine.txt",
        "mine.json",
        "mine.yaml",
    ],
    ids=str,
)
def test_classes_are_named_in_many_ways(tmp_path, classes):
    text(flat(tmp_path) / "mine.txt", "x", "y", "z")
    text(tmp_path / "mine.json", json.dumps({"boxes": {"0": "dog"}, "mask_classes": {"0": "x", "1": "y", "2": "z"}}))
    if classes == "mine.yaml":
        pytest.importorskip("yaml")
        text(tmp_path / "mine.yaml", "nc: 3", "names: {0: x, 1: y, 2: z}", "train: [images]")
    assert read_segmentation(tmp_path, classes=classes, val_fraction=0.5).classes == ("x", "y", "z")


def test_what_is_ignored_does_not_count(tmp_path):
    data = read_segmentation(flat(tmp_path), classes=["void", "y", "z"], ignore=2, val_fraction=0.5)
    assert data.classes == ("y",)
    np.testing.assert_array_equal(data.val[0].read(), np.where(LABEL == 1, 0, -1))


def test_a_name_makes_255_count(tmp_path):
    data = read_segmentation(flat(tmp_path), classes={0: "x", 1: "y", 2: "z", 255: "edge"}, val_fraction=0.5)
    assert data.classes[3] == "edge" and (data.val[0].read() == 3).sum() == 12


def test_keep_takes_the_most_frequent_of_train(tmp_path):
    flat(tmp_path, "abcd")
    index(tmp_path / "labels/d.png", np.full((6, 8), 7, np.uint8))  # in val alone, however large
    index(tmp_path / "labels/a.png", np.full((6, 8), 2, np.uint8))
    data = read_segmentation(tmp_path, keep=2, val_fraction=0.5)
    assert data.classes == ("class 0", "class 2")
    one_problem(data, "d.png", "no pixel of a class that counts")
    kept = [read_segmentation(tmp_path, keep=2, folds=4, fold=fold).classes for fold in range(3)]
    assert kept == [("class 2", "class 7")] * 3  # over all images, so that all folds have the same
    with pytest.raises(InputError, match="keep must be from 1 to the 4 classes, got 5"):
        read_segmentation(tmp_path, keep=5, val_fraction=0.5)


# What is wrong with one image costs that image alone.


def _value(root):
    return index(root / "labels/train/a.png", np.where(LABEL == 2, 7, LABEL).astype(np.uint8)), "value 7"


def _size(root):
    return index(root / "labels/train/a.png", LABEL[:, :4]), "is 4 x 6, but a.jpg is 8 x 6"


def _colours(root):
    return photo(root / "labels/train/a.png"), "mode RGB, expected an index image"


def _empty(root):
    path = root / "labels/train/a.png"
    path.write_bytes(b"")
    return path, "empty (0 bytes)"


def _cut(root):
    path = root / "labels/train/a.png"
    path.write_bytes(path.read_bytes()[:60])
    return path, "cannot be read as an index image"


def _no_label(root):
    (root / "labels/train/a.png").unlink()
    return root / "images/train/a.jpg", "no label of that name"


def _no_image(root):
    (root / "images/train/a.jpg").unlink()
    return root / "labels/train/a.png", "no image of that name"


def _broken_image(root):
    path = root / "images/train/a.jpg"
    path.write_bytes(b"no picture")
    return path, "not an image"


def _nothing_counts(root):
    return index(root / "labels/train/a.png", np.full_like(LABEL, 255)), "no pixel of a class that counts"


def _listed(root):
    text(root / "train.txt", "b", "gone")
    text(root / "val.txt", "c")
    return root / "train.txt", "names gone, of which there is no image"


@pytest.mark.parametrize(
    "spoil",
    [_value, _size, _colours, _empty, _cut, _no_label, _no_image, _broken_image, _nothing_counts, _listed],
)
def test_a_bad_image_is_named_and_left_out(tmp_path, spoil):
    path, why = spoil(camvid(tmp_path))
    data = read_segmentation(tmp_path)
    one_problem(data, path, why)
    assert (names(data.train), names(data.val)) == (["b"], ["c"])


def test_two_images_of_one_name(tmp_path):
    camvid(tmp_path)
    other = photo(tmp_path / "images/train/a.png")
    data = read_segmentation(tmp_path)
    one_problem(data, other, "a.jpg has the same name")
    assert names(data.train) == ["a", "b"]


@pytest.mark.parametrize(("orientation", "fits"), [(6, True), (3, False)])
def test_labels_fit_the_upright_image(tmp_path, orientation, fits):
    flat(tmp_path, "abc")
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo(tmp_path / "images/a.jpg", SIZE[::-1], exif=exif)  # 6 x 8 in the file
    assert (len(read_segmentation(tmp_path, val_fraction=0.3).problems) == 0) == fits


def empty_part(root):
    (root / "images/train").mkdir(parents=True)
    return camvid(root, train=())


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda root: root / "absent", {}, "no such folder"),
        (lambda root: text(root / "file"), {}, "a file, expected a folder"),
        (lambda root: root, {}, "no layout of labels that is known"),
        (lambda root: root, {"layout": "index"}, "no image in images"),
        (lambda root: root, {"layout": "cityscapes"}, "layout must be auto, voc, ade20k, index"),
        (lambda root: photo(root / "images/a.jpg").parents[1], {}, "no label in labels or masks"),
        (flat, {}, "give val_fraction or folds"),
        (camvid, {"val_fraction": 0.5}, "has parts train and val of its own"),
        (flat, {"val_fraction": 1.5}, "val_fraction must be between 0 and 1"),
        (flat, {"val_fraction": "half"}, "val_fraction must be a number, got 'half'"),
        (flat, {"val_fraction": 0.01}, "no usable image in the part val"),
        (flat, {"val_fraction": 0.5, "folds": 4}, "not both"),
        (flat, {"folds": 4, "fold": 4}, "fold from 0 to folds - 1, got 4 and 4"),
        (flat, {"val_fraction": 0.5, "ignore": "sky"}, "ignore must be a whole number, got 'sky'"),
        (lambda root: camvid(root, train=()), {}, "has no parts train and val: give val_fraction or folds"),
        (empty_part, {}, "no usable image in the part train$"),
        (flat, {"val_fraction": 0.5, "classes": "absent.txt"}, "absent.txt: No such file"),
        (flat, {"val_fraction": 0.5, "classes": 3}, "expected names of classes"),
        (flat, {"val_fraction": 0.5, "classes": ["x"]}, "8 left out, the first: .*a.png: value 1, 2 is none of the 1"),
    ],
)
def test_a_folder_of_no_use_is_an_error(tmp_path, make, options, message):
    with pytest.raises(InputError, match=message):
        read_segmentation(make(tmp_path), **options)


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("classes.txt", ["0 sky", "0 road"], "'0 road': expected a number that is there once"),
        ("classes.txt", ["0 sky", "1"], "'1': expected a number"),
        ("classes.txt", [], "expected names of classes"),
        ("classes.txt", ["0 sky", "70000 road"], "values from 0 to 65535"),
        ("classes.json", ["{"], "classes.json: cannot be read"),
        ("classes.json", ['{"box": ["dog"]}'], "no names found; expected a key 'names'"),
    ],
)
def test_a_bad_file_of_names_is_an_error(tmp_path, name, lines, message):
    text(flat(tmp_path) / name, *lines)
    with pytest.raises(InputError, match=message):
        read_segmentation(tmp_path, val_fraction=0.5)


def test_one_list_alone_is_an_error(tmp_path):
    text(flat(tmp_path) / "train.txt", "a")
    with pytest.raises(InputError, match=r"has train.txt alone, expected train.txt and val.txt"):
        read_segmentation(tmp_path)


# Depth.

MILLIMETRES = np.array([[0, 500, 2000, 12000, 800, 900, 1000, 1100]] * 6, np.uint16)
METRES = np.array([[np.nan, 0.5, 2, np.nan, 0.8, 0.9, 1, 1.1]] * 6, np.float32)


def rgbd(root, folders=("rgb", "depth"), stems="abcd"):
    for stem in stems:
        photo(root / folders[0] / f"{stem}.jpg")
        index(root / folders[1] / f"{stem}.png", MILLIMETRES)
    return root


@pytest.mark.parametrize("folders", [("rgb", "depth"), ("images", "depth_registered_mm"), ("color", "depth")])
def test_depth_in_folders(tmp_path, folders):
    data = read_depth(rgbd(tmp_path, folders), val_fraction=0.25)
    assert (names(data.train), names(data.val), data.problems) == (["a", "b", "c"], ["d"], ())
    read = data.val[0].read()
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, METRES, rtol=1e-6)


@pytest.mark.parametrize("kind", ["npy", "tiff"])
def test_floating_point_depth_is_in_metres(tmp_path, kind):
    rgbd(tmp_path)
    metres = np.where(np.isnan(METRES), np.inf, METRES).astype(np.float32)
    for stem in "cd":
        (tmp_path / f"depth/{stem}.png").unlink()
        if kind == "npy":
            np.save(tmp_path / f"depth/{stem}.npy", metres)
        else:
            Image.fromarray(metres).save(tmp_path / f"depth/{stem}.tiff")
    data = read_depth(tmp_path, val_fraction=0.5)
    np.testing.assert_array_equal(data.val[1].read(), METRES)


def test_depth_in_lists_of_pairs(tmp_path):
    for stem in "abc":
        photo(tmp_path / f"bath/rgb_{stem}.jpg")
        index(tmp_path / f"bath/sync_depth_{stem}.png", MILLIMETRES)
    pair = "/bath/rgb_{0}.jpg /bath/sync_depth_{0}.png 518.8579"
    text(tmp_path / "nyu_train.txt", pair.format("a"), pair.format("b"), pair.format("gone"), "bath/rgb_a.jpg")
    text(tmp_path / "nyu_test.txt", "bath/rgb_c.jpg bath/sync_depth_c.png")
    data = read_depth(tmp_path)
    assert (names(data.train), names(data.val)) == (["rgb_a", "rgb_b"], ["rgb_c"])
    assert "rgb_gone.jpg and bath/sync_depth_gone.png: no such file" in data.problems[0]
    assert "expected an image and its depth map" in data.problems[1]
    text(tmp_path / "nyu_train.txt", pair.format("a"), pair.format("c"))
    data = read_depth(tmp_path)
    assert (names(data.train), names(data.val)) == (["rgb_a"], ["rgb_c"])
    one_problem(data, tmp_path, "rgb_c.jpg", "listed in both train and val, left out of train")
    with pytest.raises(InputError, match="parts train and val of its own"):
        read_depth(tmp_path, val_fraction=0.5)


def test_lists_of_names_choose_from_the_folders(tmp_path):
    text(rgbd(tmp_path) / "train.txt", "a", "c")
    text(tmp_path / "val.txt", "b")
    assert names(read_depth(tmp_path).train) == ["a", "c"]


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (np.zeros_like(MILLIMETRES), "no valid depth: no pixel from 0.001 to 10 m"),
        (MILLIMETRES[:4], "is 8 x 4, but a.jpg is 8 x 6"),
        (np.zeros((6, 8), np.uint8), "expected one number of at least 16 bits a pixel, got uint8"),
        (np.zeros((6, 8, 3), np.uint8), "got uint8 of shape [6, 8, 3]"),
        (None, "the file is empty (0 bytes)"),
    ],
)
def test_a_bad_depth_map_is_named_and_left_out(tmp_path, array, why):
    path = rgbd(tmp_path) / "depth/a.png"
    if array is None:
        path.write_bytes(b"")
    else:
        index(path, array)
    data = read_depth(tmp_path, val_fraction=0.25)
    one_problem(data, path, why)
    assert names(data.train) == ["b", "c"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give val_fraction"),
        ({"layout": "lists"}, "no list of pairs"),
        ({"layout": "kitti"}, "layout must be auto, folders, lists"),
        ({"val_fraction": 0.5, "scale": 0}, "expected scale > 0"),
        ({"val_fraction": 0.5, "max_depth": "far"}, "max_depth must be a number"),
        ({"val_fraction": 0.5, "max_depth": 0.2}, "no usable image in the part train; 4 left out"),
    ],
)
def test_depth_of_no_use_is_an_error(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        read_depth(rgbd(tmp_path), **options)


# Boxes. In all layouts: a cat (1, 1) - (5, 4) and a dog that reaches out of the image on a, nothing on b.

CAT, DOG = [1, 1, 5, 4], [4, 3, 8, 6]


def coco(root, stems="ab", size=SIZE, part="", **more):
    for stem in stems:
        photo(root / "images" / part / f"{stem}.jpg")
    content = {
        "images": [
            {"id": place, "file_name": f"{stem}.jpg", "width": size[0], "height": size[1]}
            for place, stem in enumerate(stems)
        ],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 17, "bbox": [1, 1, 4, 3]},
            {"id": 2, "image_id": 0, "category_id": 30, "bbox": [4, 3, 40, 30], "iscrowd": 0},
            {"id": 3, "image_id": 0, "category_id": 30, "bbox": [0, 0, 8, 6], "iscrowd": 1},
        ],
        "categories": [{"id": 30, "name": "dog"}, {"id": 17, "name": "cat"}],
    }
    content["annotations"] += more.pop("annotations", [])
    text(root / f"annotations/instances_{part or 'all'}.json", json.dumps(content | more))
    return root


def voc(root, extra="", size=SIZE):
    for stem in "ab":
        photo(root / "JPEGImages" / f"{stem}.jpg")
    head = f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>"
    text(
        root / "Annotations/a.xml",
        head,
        box_xml("cat", 2, 2, 5, 4),
        box_xml("dog", 5, 4, 44, 33, difficult=1),
        extra,
        "</annotation>",
    )
    text(root / "Annotations/b.xml", "<annotation/>")
    return root


def box_xml(name, *edges, difficult=0):
    corners = "".join(f"<{tag}>{edge}</{tag}>" for tag, edge in zip(("xmin", "ymin", "xmax", "ymax"), edges))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{corners}</bndbox></object>"


def yolo(root, *extra):
    for stem in "ab":
        photo(root / "images" / f"{stem}.jpg")
    text(root / "labels/a.txt", "0 0.375 0.4166666666666667 0.5 0.5", "1 1 1 1 1", *extra)
    text(root / "classes.txt", "cat", "dog")
    return root


@pytest.mark.parametrize("make", [coco, voc, yolo])
def test_box_layouts(tmp_path, make):
    data = read_boxes(make(tmp_path))
    assert (data.classes, data.train, data.problems) == (("cat", "dog"), (), ())
    first, second = data.val
    assert (first.image.name, first.size) == ("a.jpg", SIZE)
    np.testing.assert_allclose(first.boxes, [CAT, DOG])
    assert (first.boxes.dtype, first.classes.dtype) == (np.float64, np.int64)
    assert first.classes.tolist() == [0, 1]
    assert second.boxes.shape == (0, 4) and second.classes.shape == (0,)


def test_difficult_objects_can_be_left_out(tmp_path):
    data = read_boxes(voc(tmp_path), difficult=False)
    assert data.classes == ("cat",) and len(data.val[0].boxes) == 1
    with pytest.raises(InputError, match="difficult must be true or false"):
        read_boxes(tmp_path, difficult="no")


def test_parts_of_boxes(tmp_path):
    for part in ("train2017", "val2017"):
        coco(tmp_path / "coco", part=part)  # the same names in both: the folder of the part decides
    data = read_boxes(tmp_path / "coco")
    assert [one.image.parent.name for one in (*data.train, *data.val)] == ["train2017"] * 2 + ["val2017"] * 2
    assert names(read_boxes(coco(tmp_path / "cut", "abcd"), val_fraction=0.25).val) == ["d"]
    for part, stems in (("train", "ab"), ("val", "bc")):
        coco(tmp_path / "shared", stems, part=part)
    for part in ("train", "val"):  # one folder for both parts
        for path in (tmp_path / "shared/images" / part).iterdir():
            path.rename(tmp_path / "shared/images" / path.name)
        (tmp_path / "shared/images" / part).rmdir()
    data = read_boxes(tmp_path / "shared")
    assert (names(data.train), names(data.val)) == (["a"], ["b", "c"])
    assert any("b.jpg: listed in both train and val" in line for line in data.problems)
    text(voc(tmp_path / "voc") / "ImageSets/Main/train.txt", "b")
    text(tmp_path / "voc/ImageSets/Main/val.txt", "a")
    data = read_boxes(tmp_path / "voc")
    assert (names(data.train), names(data.val)) == (["b"], ["a"])


def test_yolo_names_among_the_labels_or_nowhere(tmp_path):
    yolo(tmp_path)
    (tmp_path / "classes.txt").rename(tmp_path / "labels/classes.txt")
    data = read_boxes(tmp_path)
    assert (data.classes, data.problems) == (("cat", "dog"), ())
    (tmp_path / "labels/classes.txt").unlink()
    assert read_boxes(tmp_path).classes == ("class 0", "class 1")


@pytest.mark.parametrize(
    ("make", "where", "why"),
    [
        (lambda root: yolo(root, "2 0.5 0.5 0.1 0.1"), "a.txt line 3", "class 2 is none of the 2 classes"),
        (lambda root: yolo(root, "0 2.5 0.5 0.1 0.1"), "a.txt line 3", "has no area in the image of 8 x 6"),
        (lambda root: yolo(root, "0 nan 0.5 0.1 0.1"), "a.txt line 3", "has no area"),
        (lambda root: yolo(root, "0 0.5 0.5 0.1"), "a.txt line 3", "expected class, x, y, width, height"),
        (lambda root: voc(root, box_xml("cat", 9, 1, 12, 4)), "a.xml object 3", "(8, 0, 12, 4) has no area"),
        (lambda root: voc(root, box_xml("cat", 1, 1, "x", 4)), "a.xml object 3", "expected a name, and xmin"),
        (lambda root: voc(root, box_xml("", 1, 1, 2, 4)), "a.xml object 3", "expected a name"),
        (
            lambda root: coco(root, annotations=[{"id": 9, "image_id": 0, "category_id": 5, "bbox": [0, 0, 1, 1]}]),
            "annotation 9",
            "class 5 is none of the 2 classes",
        ),
        (lambda root: coco(root, annotations=[{"id": 9, "image_id": 0}]), "annotation 9", "expected a category_id"),
    ],
)
def test_a_bad_box_is_named_and_left_out(tmp_path, make, where, why):
    data = read_boxes(make(tmp_path))
    one_problem(data, tmp_path, where, why)
    assert [len(one.boxes) for one in data.val] == [2, 0]


def _unreadable(root):
    (yolo(root) / "images/a.jpg").write_bytes(b"")
    return root


def _xml(root):
    (voc(root) / "Annotations/a.xml").write_text("<annotation>")
    return root


def _empty_xml(root):
    (voc(root) / "Annotations/a.xml").write_text("")
    return root


def _binary(root):
    (yolo(root) / "labels/a.txt").write_bytes(b"\xff\xfe\x00")
    return root


@pytest.mark.parametrize(
    ("make", "where", "why"),
    [
        (lambda root: voc(root, size=(6, 8)), "a.xml", "says 6 x 8, but a.jpg is 8 x 6 upright"),
        (_unreadable, "a.jpg", "the file is empty (0 bytes)"),
        (_xml, "a.xml", "not readable XML"),
        (_empty_xml, "a.xml", "the file is empty (0 bytes)"),
        (_binary, "a.txt", "not text in UTF-8"),
    ],
)
def test_a_bad_image_with_boxes_is_named_and_left_out(tmp_path, make, where, why):
    data = read_boxes(make(tmp_path))
    one_problem(data, where, why)
    assert names(data.val) == ["b"]


def test_a_missing_image_of_coco_is_named(tmp_path):
    (coco(tmp_path) / "images/a.jpg").unlink()
    data = read_boxes(tmp_path)
    one_problem(data, "instances_all.json", "names a.jpg, of which there is no image")
    assert names(data.val) == ["b"]


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda root: root, {}, "no layout of boxes"),
        (lambda root: yolo(voc(root)), {}, "fits the layouts voc, yolo: say which"),
        (coco, {"layout": "kitti"}, "layout must be auto, coco, voc, yolo"),
        (lambda root: coco(root, categories=7), {}, "not a COCO file: expected lists of images"),
        (lambda root: coco(root, categories=[{"id": 1}]), {}, "expected categories with an id and a name"),
        (
            lambda root: coco(root, size=(1, 1)),
            {},
            "no usable image in the part val; 2 left out, the first: .*says 1 x",
        ),
        (lambda root: coco(root, size=("wide", 1)), {}, "a.jpg: width and height: expected numbers of pixels"),
        (lambda root: text(root / "annotations/a.json", "[").parents[1], {}, "a.json: not readable JSON"),
        (
            lambda root: coco(coco(root, part="train"), part="other"),
            {},
            "one JSON file, or one for train and one for val: instances_other.json, instances_train.json",
        ),
        (lambda root: coco(coco(root, part="train"), part="val"), {"val_fraction": 0.5}, "parts train and val of its"),
    ],
)
def test_boxes_of_no_use_are_an_error(tmp_path, make, options, message):
    with pytest.raises(InputError, match=message):
        read_boxes(make(tmp_path), **options)


# Real sets.


def test_real_sets(shared_data):
    data = read_segmentation(shared_data / "seg/camvid")
    assert (len(data.train), len(data.val), len(data.classes), data.problems) == (367, 101, 11, ())
    labels = data.val[0].read()
    assert labels.shape == (360, 480) and set(np.unique(labels)) <= set(range(-1, 11))

    data = read_segmentation(shared_data / "boxes/coco128", folds=4, fold=1, keep=12)
    assert len(data.classes) == 12 and "person" in data.classes
    assert sum("no label of that name" in line for line in data.problems) == 28

    data = read_depth(shared_data / "depth/7scenes_redkitchen", val_fraction=0.25)
    assert (len(data.train), len(data.val), data.problems) == (48, 16, ())
    assert [data.val[i].image.stem for i in (0, -1)] == ["frame-000480", "frame-000630"]

    for name, images, boxes, classes in (("coco128", 128, 929, 80), ("raccoon", 92, 99, 1)):
        data = read_boxes(shared_data / "boxes" / name)
        assert (len(data.val), sum(len(one.boxes) for one in data.val)) == (images, boxes)
        assert (len(data.classes), data.train, data.problems) == (classes, (), ())
