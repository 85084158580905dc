"""Files of every format, whole and with every kind of damage."""

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor

import ganzoo.data
import numpy as np
import pytest
import torch
from ganzoo import Error
from ganzoo.data.base import DataSet
from PIL import Image

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("GANZOO_CACHE", str(folder))
    return folder


def refusal(path, **options):
    with pytest.raises(Error) as refused:
        data = ganzoo.data.open(str(path), **options)
        data.fetch(torch.arange(len(data)))
    sentence = str(refused.value)
    assert sentence.startswith("ganzoo: ") and sentence.endswith(".") and "\n" not in sentence
    return sentence.removeprefix("ganzoo: ")


def everything(data):
    return data.fetch(torch.arange(len(data)))


def as_pixels(images):
    return ((images + 1) * 127.5).round().to(torch.uint8).numpy()


# --- IDX ---

IMAGES = RANDOM.integers(0, 256, (7, 5, 4), dtype=np.uint8)
LABELS = np.array([3, 1, 4, 1, 5, 2, 6], np.uint8)


def idx(values, code=8):
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, code, values.ndim, *values.shape) + values.tobytes()


def write_idx(folder, prefix="train", dash="-", gz=""):
    pack = gzip.compress if gz else bytes
    folder.mkdir(exist_ok=True)
    (folder / f"{prefix}-images{dash}idx3-ubyte{gz}").write_bytes(pack(idx(IMAGES)))
    (folder / f"{prefix}-labels{dash}idx1-ubyte{gz}").write_bytes(pack(idx(LABELS)))


@pytest.mark.parametrize("dash", ["-", "."])
@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("split, prefix", [("train", "train"), ("test", "t10k")])
def test_idx(dash, gz, split, prefix, tmp_path):
    write_idx(tmp_path, prefix, dash, gz)
    data = ganzoo.data.open(str(tmp_path), split=split)
    batch = everything(data)
    assert (data.shape, data.classes, data.split) == ((1, 5, 4), 7, split)
    np.testing.assert_array_equal(as_pixels(batch["image"])[:, 0], IMAGES)
    assert batch["label"].tolist() == LABELS.tolist()
    one_file = ganzoo.data.open(str(tmp_path / f"{prefix}-images{dash}idx3-ubyte{gz}"))
    assert torch.equal(everything(one_file)["image"], batch["image"])


def test_idx_in_raw_and_without_labels(tmp_path):
    write_idx(tmp_path / "raw")
    (tmp_path / "raw" / "train-labels-idx1-ubyte").unlink()
    data = ganzoo.data.open(str(tmp_path))
    assert data.classes is None and list(everything(data)) == ["image"]


def test_idx_padded(tmp_path):
    write_idx(tmp_path)
    image = as_pixels(everything(ganzoo.data.open(str(tmp_path), size="8"))["image"])
    np.testing.assert_array_equal(image[:, 0, 1:6, 2:6], IMAGES)
    assert ganzoo.data.open("stacked-digits", source=str(tmp_path), size=8, n=9).shape == (3, 8, 8)
    assert image.shape == (7, 1, 8, 8) and image.sum(dtype=int) == IMAGES.sum(dtype=int)
    said = f"the option size of {tmp_path} must be at least 5, as images are padded, not scaled, got 4."
    assert refusal(tmp_path, size=4) == said


def test_stacked_digits_of_idx_files(tmp_path):
    write_idx(tmp_path)
    batch = everything(ganzoo.data.open("stacked-digits", source=str(tmp_path), n=50))
    assert batch["image"].shape == (50, 3, 5, 4)
    for image, label in zip(as_pixels(batch["image"]), batch["label"].tolist()):
        digits = [int(LABELS[next(i for i in range(7) if (IMAGES[i] == channel).all())]) for channel in image]
        assert label == 100 * digits[0] + 10 * digits[1] + digits[2]


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "is not an IDX file: it has 0 bytes beginning with none."),
        (b"\x89PNG\r\n" + bytes(20), "is not an IDX file: it has 26 bytes beginning with 89504e47."),
        (idx(IMAGES)[:-1], "must have 140 bytes of data by its header (7, 5, 4), and has 139."),
        (idx(IMAGES) + b"x", "must have 140 bytes of data by its header (7, 5, 4), and has 141."),
        (idx(IMAGES, code=13), "must hold unsigned bytes in 3 dimensions, and its header says type 13 in 3."),
        (idx(LABELS) + bytes(20), "must hold unsigned bytes in 3 dimensions, and its header says type 8 in 1."),
        (idx(IMAGES[:0]), "is empty: its header says (0, 5, 4)."),
        (
            struct.pack(">BBBB3I", 0, 0, 8, 3, 2**31, 2**31, 2**31),
            "must have 9,903,520,314,283,042,199,192,993,792 bytes",
        ),
    ],
)
def test_damaged_idx(content, said, tmp_path):
    write_idx(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    assert refusal(tmp_path).startswith(f"{tmp_path}/train-images-idx3-ubyte {said}")


@pytest.mark.parametrize(
    "damage", [lambda c: c[:-9], lambda c: c[: len(c) // 2], lambda c: b"x" + c, lambda c: c[:30] + b"????" + c[34:]]
)
def test_damaged_gzip(damage, tmp_path):
    write_idx(tmp_path, gz=".gz")
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(damage(file.read_bytes()))
    assert refusal(tmp_path).startswith(f"{file} is not a whole gzip file (")


def test_idx_that_do_not_fit_together(tmp_path):
    write_idx(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(LABELS[:6]))
    assert "has 6 labels for the 7 images of train-images-idx3-ubyte." in refusal(tmp_path)
    assert "has no IDX file of the test images (t10k-images-idx3-ubyte)." in refusal(tmp_path, split="test")


# --- CIFAR-10 ---

PICTURES = RANDOM.integers(0, 256, (4, 3072), dtype=np.uint8)
KINDS = [6, 9, 0, 4]


def python_2_pickle(pixels, labels):
    """A batch as Python 2's cPickle wrote CIFAR-10's: protocol 2, byte strings."""

    def text(value):
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<I", len(value)) + value

    def number(value):
        return b"K" + bytes([value]) if value < 256 else b"J" + struct.pack("<i", value)

    dtype = b"cnumpy\ndtype\n" + text(b"u1") + number(0) + number(1) + b"\x87R"
    dtype += b"(" + number(3) + text(b"|") + b"NNN" + b"J\xff\xff\xff\xff" * 2 + number(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + number(0) + b"\x85" + text(b"b") + b"\x87R"
    array += (
        b"("
        + number(1)
        + number(len(pixels))
        + number(3072)
        + b"\x86"
        + dtype
        + b"\x89"
        + text(pixels.tobytes())
        + b"tb"
    )
    listed = b"](" + b"".join(map(number, labels)) + b"e"
    names = b"](" + b"".join(text(b"picture.png") for _ in labels) + b"e"
    items = (
        text(b"data")
        + array
        + text(b"labels")
        + listed
        + text(b"batch_label")
        + text(b"batch 1 of 5")
        + text(b"filenames")
        + names
    )
    return b"\x80\x02}(" + items + b"u."


def python_3_pickle(pixels, labels, **options):
    return pickle.dumps({b"data": pixels, b"labels": labels}, **options)


def binary(pixels, labels):
    return b"".join(bytes([label]) + row.tobytes() for label, row in zip(labels, pixels))


def write_cifar(folder, pack, ending=""):
    folder.mkdir(exist_ok=True)
    for i in range(5):
        (folder / f"data_batch_{i + 1}{ending}").write_bytes(pack(np.roll(PICTURES, i, 0), KINDS))
    (folder / f"test_batch{ending}").write_bytes(pack(PICTURES[:2], KINDS[:2]))


@pytest.mark.parametrize(
    "pack, ending",
    [
        (python_2_pickle, ""),
        (lambda *batch: python_3_pickle(*batch, protocol=2), ""),
        (lambda *batch: python_3_pickle(*batch, protocol=4), ""),
        (binary, ".bin"),
    ],
)
def test_cifar10(pack, ending, tmp_path):
    write_cifar(tmp_path, pack, ending)
    train, test = ganzoo.data.open(str(tmp_path)), ganzoo.data.open(str(tmp_path), split="test")
    assert (len(train), len(test), train.shape, train.classes) == (20, 2, (3, 32, 32), 10)
    batch = everything(train)
    np.testing.assert_array_equal(as_pixels(batch["image"][4:8]).reshape(4, -1), np.roll(PICTURES, 1, 0))
    assert batch["label"].tolist() == KINDS * 5


def test_cifar10_in_its_archive(tmp_path):
    write_cifar(tmp_path / "cifar-10-batches-py", python_2_pickle)
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    for split in ("train", "test"):
        packed, unpacked = (everything(ganzoo.data.open(str(p), split=split)) for p in (archive, tmp_path))
        assert torch.equal(packed["image"], unpacked["image"]) and torch.equal(packed["label"], unpacked["label"])
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    assert "is not a whole .tar.gz file (" in refusal(archive)
    archive.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])  # as flipped pixels would: the sum is wrong
    assert refusal(archive).startswith(f"{archive} is not a whole .tar.gz file (CRC check failed")
    with tarfile.open(archive, "w:gz") as file:
        file.add(tmp_path / "cifar-10-batches-py" / "test_batch", "test_batch")
    assert refusal(archive) == f"{archive} has no data_batch_1, one of the 5 files of CIFAR-10's train images."


class Bomb:
    def __reduce__(self):
        return open, ("exploded", "w")


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "is empty."),
        (python_2_pickle(PICTURES, KINDS)[:5000], "is damaged: its pickle cannot be read (UnpicklingError)"),
        (b"nonsense", "is not a batch of CIFAR-10 ("),
        (
            pickle.dumps({b"data": Bomb(), b"labels": KINDS}),
            f"is not a batch of CIFAR-10 (it asks for {open.__module__}.open, which is refused).",
        ),
        (
            pickle.dumps([1, 2]),
            "is not a batch of CIFAR-10: it must be a dict of data, rows of 3072 bytes, and labels.",
        ),
        (
            python_3_pickle(PICTURES[:, :3000], KINDS),
            "is not a batch of CIFAR-10: it must be a dict of data, rows of 3072 bytes",
        ),
        (
            python_3_pickle(PICTURES.astype(np.int16), KINDS),
            "is not a batch of CIFAR-10: it must be a dict of data, rows of 3072",
        ),
        (python_2_pickle(PICTURES, KINDS[:3]), "has 3 labels for 4 images."),
        (python_2_pickle(PICTURES, [1, 2, 3, 10]), "has the label 10, and CIFAR-10's are 0 to 9."),
    ],
)
def test_damaged_cifar10(content, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_cifar(tmp_path / "cifar", python_2_pickle)
    (tmp_path / "cifar" / "data_batch_3").write_bytes(content)
    sentence = refusal(tmp_path / "cifar")
    assert sentence.startswith(f"{tmp_path}/cifar/data_batch_3 ")
    assert (
        said in sentence
        or "UnpicklingError" in said
        and "is not a batch of CIFAR-10 (pickle data was truncated)" in sentence
    )
    assert not (tmp_path / "exploded").exists()


def test_damaged_binary_cifar10(tmp_path, capsys):
    write_cifar(tmp_path, binary, ".bin")
    assert len(ganzoo.data.open(str(tmp_path), split="test")) == 2
    assert capsys.readouterr().err == f"ganzoo: {tmp_path} has 2 test images, and CIFAR-10 has 10,000.\n"
    file = tmp_path / "data_batch_2.bin"
    file.write_bytes(file.read_bytes()[:-1])
    assert refusal(tmp_path) == f"{file} must be records of 3073 bytes, and has 12291 bytes."
    file.unlink()
    assert (
        refusal(tmp_path)
        == f"{tmp_path} has no data_batch_2 or data_batch_2.bin, one of the 5 files of CIFAR-10's train images."
    )


# --- folders and zips of images ---


def picture(height=6, width=6, mode="RGB", seed=0):
    random = np.random.default_rng(seed)
    shape = (height, width) if mode == "L" else (height, width, len(mode))
    return Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8), mode)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


WHOLE = {
    f"{kind}/{i}.png": encoded(picture(seed=10 * k + i)) for k, kind in enumerate(["cats", "dogs"]) for i in range(5)
}


def write(path, files):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    for name, content in {} if path.suffix == ".zip" else files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


STORES = ["memory", "disk", "files"]


@pytest.mark.parametrize("where", ["folder", "images.zip"])
@pytest.mark.parametrize("store", STORES)
def test_images_with_classes(where, store, tmp_path, capsys):
    data = ganzoo.data.open(str(write(tmp_path / where, WHOLE)), store=store)
    batch = data.fetch(torch.tensor([9, 0, 0, 4]))
    assert (len(data), data.shape, data.classes, data.notes) == (10, (3, 6, 6), 2, ())
    assert batch["label"].tolist() == [1, 0, 0, 0]
    for image, seed in zip(as_pixels(batch["image"]), [14, 0, 0, 4]):
        np.testing.assert_array_equal(image.transpose(1, 2, 0), np.asarray(picture(seed=seed)))
    assert capsys.readouterr().err == ""


def test_classes_are_the_first_folders_that_differ(tmp_path):
    nested = {f"all/{name.replace('/', '/more/')}": content for name, content in WHOLE.items()}
    assert ganzoo.data.open(str(write(tmp_path / "a", nested))).classes == 2
    flat = {name.replace("/", ""): content for name, content in WHOLE.items()}
    data = ganzoo.data.open(str(write(tmp_path / "b", flat)))
    assert data.classes is None and list(everything(data)) == ["image"]
    mixed = {**WHOLE, "other.png": encoded(picture())}
    assert ganzoo.data.open(str(write(tmp_path / "c", mixed))).classes is None


@pytest.mark.parametrize(
    "kind, options", [("JPEG", {"quality": 95}), ("BMP", {}), ("GIF", {}), ("WEBP", {"lossless": True}), ("TIFF", {})]
)
def test_formats(kind, options, tmp_path):
    smooth = Image.fromarray(np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8))
    path = write(tmp_path / "images", {f"x.{kind.lower()}": encoded(smooth, kind, **options)})
    image = as_pixels(everything(ganzoo.data.open(str(path)))["image"])[0].transpose(1, 2, 0)
    assert np.abs(image.astype(int) - np.asarray(smooth)).mean() < 6


def test_scaled_and_cropped_around_the_centre(tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255  # exactly the centre
    files = {"wide.png": encoded(Image.fromarray(wide)), "tall.png": encoded(Image.fromarray(wide.transpose(1, 0, 2)))}
    data = ganzoo.data.open(str(write(tmp_path / "images", files)), size=10, channels=1)
    assert data.shape == (1, 10, 10)
    assert everything(data)["image"].mean() > 0.9


def test_photos_held_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    lying = picture(4, 8)
    path = write(tmp_path / "images", {"x.webp": encoded(lying, "WEBP", lossless=True, exif=exif)})
    data = ganzoo.data.open(str(path))
    assert data.shape == (3, 8, 4)
    np.testing.assert_array_equal(as_pixels(everything(data)["image"])[0].transpose(1, 2, 0), np.rot90(lying, -1))


def corrupted_png():
    whole = bytearray(encoded(picture(32, 32)))
    whole[200:260] = bytes(60)
    return bytes(whole)


DAMAGE = {
    "empty": (b"", "is empty"),
    "corrupt": (b"this is no picture", "cannot be read as an image"),
    "truncated": (encoded(picture())[:-40], "is damaged ("),
    "truncated JPEG": (encoded(picture(), "JPEG")[:-30], "is damaged (image file is truncated"),
    "small": (encoded(picture(3, 6)), "has 3×6 pixels among images of 6×6 (size=… scales all)"),
    "grey": (encoded(picture(mode="L")), "is grey among images in colour (channels=3 takes both)"),
    "16 bits": (encoded(Image.fromarray(np.zeros((6, 6), np.uint16))), "has pixels of the kind I;16, not of 8 bits"),
}


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_images_are_refused_by_name_or_skipped_with_their_number(kind, store, tmp_path, capsys, cache):
    content, said = DAMAGE[kind]
    path = write(tmp_path / "images", {**WHOLE, "dogs/2.png": content})
    sentence = refusal(path, store=store)
    at_fetch = store == "files" and "is damaged" in said
    expected = (
        f"{path}/dogs/2.png {said}" if at_fetch else f"1 of the 10 images in {path} cannot be taken: dogs/2.png {said}"
    )
    assert sentence.startswith(expected) and (
        at_fetch or sentence.endswith("; damaged=skip (--data-options damaged=skip) leaves them out.")
    )
    assert capsys.readouterr().err == ""

    data = ganzoo.data.open(str(path), store=store, damaged="skip")
    assert capsys.readouterr().err.startswith(
        f"ganzoo: 1 of the 10 images in {path} cannot be taken: dogs/2.png {said}"
    )
    assert len(data) == 9 and len(data.notes) == 1
    batch = everything(data)
    assert batch["label"].tolist() == [0] * 5 + [1] * 4
    for image, seed in zip(as_pixels(batch["image"]), [0, 1, 2, 3, 4, 10, 11, 13, 14]):
        np.testing.assert_array_equal(image.transpose(1, 2, 0), np.asarray(picture(seed=seed)))
    assert not [file for file in cache.rglob("*") if file.name.startswith(".")]


@pytest.mark.parametrize("where", ["folder", "images.zip"])
def test_every_damage_at_once(where, tmp_path, capsys):
    path = write(tmp_path / where, WHOLE | {f"dogs/{kind}.png": content for kind, (content, _) in DAMAGE.items()})
    assert "7 of the 17 images in" in refusal(path) and ", and 6 others;" in refusal(path)
    assert len(ganzoo.data.open(str(path), damaged="skip")) == 10
    assert "7 of the 17 images in" in capsys.readouterr().err


def test_size_and_channels_make_all_fit(tmp_path):
    files = WHOLE | {"cats/s.png": DAMAGE["small"][0], "cats/g.png": DAMAGE["grey"][0]}
    data = ganzoo.data.open(str(write(tmp_path / "images", files)), size="6", channels="3")
    assert (len(data), data.shape) == (12, (3, 6, 6))
    transparent = picture(mode="RGBA")
    assert ganzoo.data.open(str(write(tmp_path / "rgba", {"x.png": encoded(transparent)}))).shape == (3, 6, 6)


def test_a_corrupted_pixel_stream_is_found(tmp_path):
    path = write(tmp_path / "images", {"x.png": encoded(picture(32, 32)), "y.png": corrupted_png()})
    assert "y.png is damaged" in refusal(path)


def test_nothing_to_take(tmp_path):
    assert refusal(write(tmp_path / "bad", {"x.png": b""})).endswith("x.png is empty; none is left.")
    (tmp_path / "none").mkdir()
    assert "has no images (.png, .jpg" in refusal(tmp_path / "none")
    assert "is not a whole zip file (" in refusal(write(tmp_path, {"x.bin": b"x"}) / "x.bin")
    archive = write(tmp_path / "whole.zip", WHOLE)
    content = archive.read_bytes()
    archive.write_bytes(content[: len(content) // 2])
    assert refusal(archive).startswith(f"{archive} is not a whole zip file (")


def test_a_damaged_member_of_a_zip(tmp_path):
    archive = write(tmp_path / "images.zip", WHOLE)
    content = archive.read_bytes()
    at = content.index(WHOLE["dogs/2.png"]) + 60
    archive.write_bytes(content[:at] + b"????" + content[at + 4 :])
    assert "1 of the 10 images" in refusal(archive) and "dogs/2.png is damaged (Bad CRC-32" in refusal(archive)
    at = content.index(b"dogs/2.png")
    archive.write_bytes(content[:at] + b"\xff" * 99 + content[at + 99 :])  # the reason quotes it, bytes and all
    assert "dogs/2.png cannot be read (" in refusal(archive) and len(refusal(archive)) < len(str(archive)) + 300


def test_files_that_are_no_images_are_counted(tmp_path, capsys):
    path = write(
        tmp_path / "images", {**WHOLE, "readme.txt": b"", "cats/Thumbs.db": b"", ".hidden": b"", "cats/.x.png": b""}
    )
    assert len(ganzoo.data.open(str(path))) == 10
    said = f"ganzoo: {path} has 2 files that are not images, cats/Thumbs.db being the first; left out.\n"
    assert capsys.readouterr().err == said


def test_images_of_many_sizes_are_told_what_to_do(tmp_path):
    path = write(tmp_path / "images", {f"{n}.png": encoded(picture(4 + n % 5, 6)) for n in range(20)})
    assert refusal(path) == (
        f"the images in {path} have 5 sizes: size=64 (--data-options size=64) scales their shorter side and crops the centre."
    )
    assert ganzoo.data.open(str(path), size=4).shape == (3, 4, 4)
    assert len(ganzoo.data.open(str(path), damaged="skip")) == 4


def test_a_pack_is_used_again_until_the_files_change(tmp_path, cache, monkeypatch):
    path = write(tmp_path / "images", {**WHOLE, "cats/bad.png": b""})
    options = dict(store="disk", damaged="skip")
    first = ganzoo.data.open(str(path), **options)
    monkeypatch.setattr("ganzoo.data.folder._decode", lambda *_: pytest.fail("decoded again"))
    second = ganzoo.data.open(str(path), **options)
    assert second.notes == first.notes and second.classes == 2 and second.names == first.names
    assert torch.equal(everything(first)["image"], everything(second)["image"])
    monkeypatch.undo()
    monkeypatch.setenv("GANZOO_CACHE", str(cache))
    write(path, {"cats/0.png": encoded(picture(seed=99))})
    third = ganzoo.data.open(str(path), **options)
    assert not torch.equal(everything(third)["image"], everything(first)["image"])
    for index in (cache / "packed").glob("*.json"):
        index.write_text(json.dumps({"shape": [10**9, 3, 6, 6]}))  # as if the pixels had been cut off
    fourth = ganzoo.data.open(str(path), **options)
    assert torch.equal(everything(fourth)["image"], everything(third)["image"])


def test_large_sets_stay_in_their_files(tmp_path, monkeypatch):
    path = write(tmp_path / "images", WHOLE)
    assert type(ganzoo.data.open(str(path))).__name__ == "Decoded"
    monkeypatch.setattr("ganzoo.data.folder.MEMORY", 10 * 3 * 6 * 6 - 1)
    assert type(ganzoo.data.open(str(path))).__name__ == "Files"


@pytest.mark.parametrize("store", STORES)
def test_fetched_from_several_threads(store, tmp_path):
    data = ganzoo.data.open(str(write(tmp_path / "images.zip", WHOLE)), store=store, threads=3)
    expected = everything(data)["image"]
    batches = [torch.randint(10, (8,), generator=torch.Generator().manual_seed(i)) for i in range(40)]
    with ThreadPoolExecutor(4) as pool:
        for indices, batch in zip(batches, pool.map(data.fetch, batches)):
            assert torch.equal(batch["image"], expected[indices])


# --- any damage at all ---


def damaged_at_random(content, random):
    """Cut off, changed in a few bytes, or with some bytes more or fewer."""
    content, at = bytearray(content), int(random.integers(len(content)))
    kind = random.integers(4)
    if kind == 0:
        return bytes(content[:at])
    if kind == 1:
        return bytes(content[:at] + random.bytes(9) + content[at:])
    if kind == 2:
        return bytes(content[:at] + content[at + 9 :])
    for _ in range(random.choice([1, 3, 30])):
        content[random.integers(min(len(content), random.choice([40, 400, 10**6])))] = random.integers(256)
    return bytes(content)


@pytest.mark.parametrize("what", ["idx", "idx.gz", "cifar", "cifar.bin", "cifar.tar.gz", "images", "images.zip"])
def test_no_damage_ends_in_anything_but_a_sentence(what, tmp_path):
    path = tmp_path / what
    kinds = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
    if what.startswith("idx"):
        write_idx(path, gz=what[3:])
    elif what == "cifar.tar.gz":
        write_cifar(tmp_path / "python", python_2_pickle)
        with tarfile.open(path, "w:gz") as archive:
            archive.add(tmp_path / "python", "cifar-10-batches-py")
    elif what.startswith("cifar"):
        write_cifar(path, binary if "bin" in what else python_2_pickle, what[5:])
    else:
        write(path, {f"{kind}.{kind.lower()}": encoded(picture(16, 16), kind) for kind in kinds})
    files, refused = [path] if path.is_file() else sorted(path.iterdir()), 0
    random = np.random.default_rng(0)
    for _ in range(60):
        file = files[random.integers(len(files))]
        whole = file.read_bytes()
        file.write_bytes(damaged_at_random(whole, random))
        try:
            everything(ganzoo.data.open(str(path)))
        except Error as error:
            refused += 1
            assert "\n" not in str(error) and str(error).endswith(".")
        file.write_bytes(whole)
    assert refused >= 15


# --- pairs and domains ---


def test_side_by_side(tmp_path):
    path = write(tmp_path / "images", {f"{i}.png": encoded(picture(6, 12, seed=i)) for i in range(3)})
    data = ganzoo.data.open(str(path), form="side-by-side")
    batch = everything(data)
    assert (len(data), data.shape, sorted(batch)) == (3, (3, 6, 6), ["a", "b"])
    np.testing.assert_array_equal(
        as_pixels(batch["a"][1]).transpose(1, 2, 0), np.asarray(picture(6, 12, seed=1))[:, :6]
    )
    np.testing.assert_array_equal(
        as_pixels(batch["b"][2]).transpose(1, 2, 0), np.asarray(picture(6, 12, seed=2))[:, 6:]
    )
    assert ganzoo.data.open(str(path), form="side-by-side", size=4, store="files").shape == (3, 4, 4)
    write(path, {"odd.png": encoded(picture(6, 13))})
    assert "odd.png is 13 pixels wide, which does not halve" in refusal(path, form="side-by-side", size=4)


def test_halves_are_scaled_apart(tmp_path):
    both = np.zeros((20, 40, 3), np.uint8)
    both[:, 20:] = 255
    data = ganzoo.data.open(
        str(write(tmp_path / "i", {"x.png": encoded(Image.fromarray(both))})), form="side-by-side", size=7
    )
    batch = everything(data)
    assert batch["a"].max() == -1 and batch["b"].min() == 1


def pairs(count, a="a", b="b"):
    return {
        f"{folder}/{i}.{kind}": encoded(picture(seed=i), k)
        for folder, kind, k in ((a, "png", "PNG"), (b, "bmp", "BMP"))
        for i in range(count)
    }


@pytest.mark.parametrize("a, b", [("a", "b"), ("A", "B"), ("trainA", "trainB")])
def test_paired_folders(a, b, tmp_path):
    data = ganzoo.data.open(str(write(tmp_path / "pairs", pairs(5, a, b))))
    assert isinstance(data, DataSet) and (len(data), data.shape) == (5, (3, 6, 6))
    batch = data.fetch(torch.tensor([3, 1]))
    assert torch.equal(batch["a"], batch["b"])


def test_pairs_stay_together_when_one_is_left_out(tmp_path, capsys):
    path = write(tmp_path / "pairs", {**pairs(5), "a/1.png": b"", "b/3.bmp": b"x"})
    (path / "b" / "4.bmp").unlink()
    assert "1 of the 5 images in" in refusal(path) and "1.png is empty" in refusal(path)
    data = ganzoo.data.open(str(path), damaged="skip")
    err = capsys.readouterr().err
    assert (
        "1.png is empty" in err and "3.bmp cannot be read" in err and "3 of the images" in err and "no partner" in err
    )
    batch = everything(data)
    assert len(data) == 2 and torch.equal(batch["a"], batch["b"])
    np.testing.assert_array_equal(as_pixels(batch["a"][1]).transpose(1, 2, 0), np.asarray(picture(seed=2)))


def test_pairs_that_do_not_fit(tmp_path):
    path = write(tmp_path / "pairs", pairs(3))
    (path / "b" / "2.bmp").unlink()
    assert (
        refusal(path)
        == f"1 of the images in {path} have no partner of the same name, 2 being the first; damaged=skip (--data-options damaged=skip) leaves them out."
    )
    other = {f"b/{i}.bmp": encoded(picture(9, 9), "BMP") for i in range(3)}
    assert "has images of 6×6 pixels and b of 9×9; size=… fits them." in refusal(
        write(tmp_path / "other", pairs(3) | other)
    )
    assert "has no folders a and b or A and B or trainA and trainB, which form=paired needs." in refusal(
        tmp_path, form="paired"
    )


def test_unpaired_folders(tmp_path):
    path = write(tmp_path / "domains", {**pairs(4, "trainA", "trainB"), **pairs(2, "testA", "testB")})
    domains = ganzoo.data.open(str(path), form="unpaired", size=5)
    assert {name: (len(data), data.shape) for name, data in domains.items()} == {
        "a": (4, (3, 5, 5)),
        "b": (4, (3, 5, 5)),
    }
    assert len(ganzoo.data.open(str(path), form="unpaired", split="test")["b"]) == 2
