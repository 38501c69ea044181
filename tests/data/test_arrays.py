"""Sets of decoded pixels: NumPy archives, IDX and CIFAR's binary version."""

import gzip
import io
import struct
import zipfile

import numpy as np
import pytest
import torch
from pictures import pixels

from privimage.data import ImageShape, load_public, load_sensitive
from privimage.data.formats import open_source
from privimage.errors import UserError

RGB, GREY = ImageShape(8, 3), ImageShape(8, 1)
LABELS = [0, 1, 1, 0, 1]


def _stack(channels=3, count=5, side=8):
    return np.stack([pixels(side, side, channels, seed) for seed in range(count)])


def _refused(path, message):
    with pytest.raises(UserError, match=message) as caught:
        open_source("--public", path)
    assert "\n" not in str(caught.value)


def _first(stack):
    return torch.from_numpy(stack[:, None] if stack.ndim == 3 else stack.transpose(0, 3, 1, 2))


# ------------------------------------------------------------------------------------------- npz


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_in_every_layout_is_the_same_set(tmp_path, save):
    stack, path = _stack(), tmp_path / "x.npz"
    for images in (stack, np.ascontiguousarray(stack.transpose(0, 3, 1, 2))):
        save(path, images=images, labels=LABELS, names=["cat", "dog"])
        heard = []
        found = load_public(str(path), RGB, heard.append)
        assert torch.equal(found.images, _first(stack))
        assert (found.labels.tolist(), found.names, heard) == (LABELS, ("cat", "dog"), [])
    grey = _stack(1)
    for images in (grey, grey[..., None], grey[:, None]):
        save(path, images=images)
        found = load_sensitive(str(path), GREY, None)
        assert torch.equal(found.images, _first(grey))
        assert found.names == ()


def test_npz_labels_out_of_range(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, images=_stack(), labels=np.array([0, 1, 2, -1, 2**40]), names=["cat", "dog"])
    with pytest.raises(UserError, match="a label -1 without name"):
        load_public(str(path), RGB, pytest.fail)
    assert load_sensitive(str(path), RGB, None).labels.tolist() == [0, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": _stack()}, r"needs an array 'images'; it has \['pictures'\]"),
        ({"images": _stack() / 255}, "must be uint8 .*not float64"),
        ({"images": np.asfortranarray(_stack())}, "must be uint8 in C order"),
        ({"images": _stack()[0, 0]}, r"not uint8 \[8, 3\]"),
        ({"images": np.zeros((2, 8, 8, 7), np.uint8)}, r"not uint8 \[2, 8, 8, 7\]"),
        ({"images": np.zeros((2, 0, 8), np.uint8)}, r"not uint8 \[2, 0, 8\]"),
        ({"images": _stack()[:0]}, "there are no images"),
        ({"images": _stack(), "labels": LABELS[1:]}, r"whole numbers, .* int64 \[4\] for 5"),
        ({"images": _stack(), "labels": [0.5] * 5}, "'labels' must be whole numbers"),
        ({"images": _stack(), "labels": LABELS, "names": [1, 2]}, "'names' must be a list of text"),
    ],
)
def test_npz_arrays_of_another_kind_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    _refused(tmp_path / "x.npz", message)


def test_npz_objects_are_never_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("was unpickled",)

    labels = np.array([Trap()] * 5)
    np.savez(tmp_path / "x.npz", images=_stack(), labels=labels)
    _refused(tmp_path / "x.npz", "not readable as a NumPy archive")
    np.savez(tmp_path / "x.npz", images=labels)
    _refused(tmp_path / "x.npz", "must be uint8")


def test_an_npz_header_that_promises_more_than_there_is_is_one_line(tmp_path):
    header = io.BytesIO()
    description = {"descr": "|u1", "fortran_order": False, "shape": (1000, 8, 8)}
    np.lib.format.write_array_header_1_0(header, description)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue() + bytes(640))
    with pytest.raises(UserError, match="damaged as a NumPy archive") as caught:
        load_sensitive(str(tmp_path / "x.npz"), GREY, None)
    assert "\n" not in str(caught.value)
    for content in (b"", b"\x93NUMPY", (tmp_path / "x.npz").read_bytes()[:400]):
        (tmp_path / "y.npz").write_bytes(content)
        _refused(tmp_path / "y.npz", "not readable as a NumPy archive")


# ------------------------------------------------------------------------------------------- IDX


def _write_idx(path, array):
    content = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    content += array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("label_ending", ["", ".gz"])
@pytest.mark.parametrize("form", ["{}-images-idx3-ubyte", "{}-images.idx3-ubyte"])
def test_idx_takes_its_labels_from_the_file_beside_it(tmp_path, ending, label_ending, form):
    for part in ("train", "t10k"):
        images = _stack(1) if part == "train" else _stack(1, 2)
        path = _write_idx(tmp_path / (form.format(part) + ending), images)
        labels = form.format(part).replace("images", "labels").replace("idx3", "idx1")
        _write_idx(tmp_path / (labels + label_ending), np.array(LABELS[: len(images)]))
    path = tmp_path / (form.format("train") + ending)
    found = load_public(str(path), GREY, pytest.fail)
    assert torch.equal(found.images, _first(_stack(1)))
    assert (found.labels.tolist(), found.names) == (LABELS, ("0", "1"))
    assert load_sensitive(str(path), GREY, ("a", "b", "c")).labels.tolist() == LABELS


def test_a_folder_of_idx_files_asks_which_images_are_meant(tmp_path):
    for name in ("t10k-images-idx3-ubyte.gz", "train-images-idx3-ubyte.gz"):
        (tmp_path / name).touch()
    _refused(tmp_path, "holds IDX files; name the images .*/train-images-idx3-ubyte.gz'")


def test_idx_without_labels_is_an_unlabelled_set(tmp_path):
    path = _write_idx(tmp_path / "train-images-idx3-ubyte", _stack(1))
    assert not open_source("--sensitive", path).is_labelled


def test_a_damaged_idx_file_is_one_line(tmp_path):
    path = _write_idx(tmp_path / "train-images-idx3-ubyte.gz", _stack(1))
    labels = _write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.array(LABELS[1:]))
    _refused(path, r"beside it are not equally many \(5 images, 4 labels\)")
    _write_idx(labels, np.array(LABELS)[:, None])
    _refused(path, "no IDX file of bytes in 1 dimension")
    _write_idx(labels, np.array(LABELS))
    whole = path.read_bytes()
    for content in (b"", whole[:9], gzip.compress(b"\0\0\x0d\3" + bytes(40)), b"no gzip"):
        path.write_bytes(content)
        _refused(path, "not readable as IDX")
    path.write_bytes(gzip.compress(gzip.decompress(whole)[:-1]))
    with pytest.raises(UserError, match="damaged as an IDX file"):
        load_sensitive(str(path), GREY, ("0", "1"))


def test_idx_sizes_that_nobody_has_are_refused(tmp_path):
    for sizes in ((5, 0, 8), (5, 2**16, 2**16)):
        head = struct.pack(">BBBB3I", 0, 0, 8, 3, *sizes)
        (tmp_path / "a-images-idx3-ubyte").write_bytes(head + bytes(64))
        _refused(tmp_path / "a-images-idx3-ubyte", f"images of {sizes[1]}×{sizes[2]} pixels")


# ----------------------------------------------------------------------------------------- CIFAR


def _cifar_rows(stack, *label_columns):
    columns = [np.array(column, np.uint8)[:, None] for column in label_columns]
    flat = stack.transpose(0, 3, 1, 2).reshape(len(stack), -1)
    return np.concatenate([*columns, flat], axis=1).tobytes()


@pytest.fixture
def cifar10(tmp_path):
    stack = _stack(3, 5, 32)
    (tmp_path / "batches.meta.txt").write_text("airplane\nautomobile\n\n")
    (tmp_path / "data_batch_1.bin").write_bytes(_cifar_rows(stack[:3], LABELS[:3]))
    (tmp_path / "data_batch_2.bin").write_bytes(_cifar_rows(stack[3:], LABELS[3:]))
    (tmp_path / "test_batch.bin").write_bytes(_cifar_rows(stack[:1], [1]))
    return tmp_path, stack


def test_a_folder_of_cifar_10_is_its_training_images(cifar10):
    path, stack = cifar10
    found = load_public(str(path), ImageShape(32, 3), pytest.fail)
    assert torch.equal(found.images, _first(stack))
    assert (found.labels.tolist(), found.names) == (LABELS, ("airplane", "automobile"))
    test = load_sensitive(str(path / "test_batch.bin"), ImageShape(32, 3), None, "--test")
    assert torch.equal(test.images, _first(stack[:1]))
    assert test.labels.tolist() == [1]


def test_cifar_100_takes_the_fine_labels(tmp_path):
    stack = _stack(3, 2, 32)
    (tmp_path / "fine_label_names.txt").write_text("\n".join(f"fine{n}" for n in range(100)))
    (tmp_path / "train.bin").write_bytes(_cifar_rows(stack, [7, 8], [99, 3]))
    (tmp_path / "test.bin").write_bytes(_cifar_rows(stack[:1], [7], [4]))
    for path, labels in ((tmp_path, [99, 3]), (tmp_path / "test.bin", [4])):
        found = load_sensitive(str(path), ImageShape(32, 3), None)
        assert torch.equal(found.images, _first(stack[: len(labels)]))
        assert found.labels.tolist() == labels


def test_a_damaged_cifar_folder_is_one_line(cifar10):
    path, _ = cifar10
    whole = (path / "data_batch_2.bin").read_bytes()
    for content in (whole[:-1], b""):
        (path / "data_batch_2.bin").write_bytes(content)
        _refused(path, "data_batch_2.bin' is cut short")
    (path / "batches.meta.txt").unlink()
    _refused(path / "data_batch_1.bin", "needs batches.meta.txt or fine_label_names.txt beside it")
