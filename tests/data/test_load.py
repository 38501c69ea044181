import random

import numpy as np
import pytest
import torch
from pictures import encoded, pixels, png, write_classes, write_hub

from privimage.data import (
    ImageShape,
    check_source,
    digits,
    load_public,
    load_sample,
    load_sensitive,
    load_test,
)
from privimage.data import decode as decode_module
from privimage.errors import UserError

SHAPE = ImageShape(8, 3)


@pytest.fixture
def warnings_heard():
    return []


def _public(path, heard):
    return load_public(str(path), SHAPE, heard.append)


def _sensitive(path, names=None):
    return load_sensitive(str(path), SHAPE, names)


def _images(seeds):
    return torch.stack([torch.from_numpy(pixels(seed=seed).transpose(2, 0, 1)) for seed in seeds])


# ------------------------------------------------------------------------------------- both roles


def test_parquet_and_folders_hold_the_same_set(tmp_path, warnings_heard):
    parquet = write_hub(tmp_path / "x.parquet", map(png, range(4)), [0, 0, 1, 1], ["cat", "dog"])
    files = {
        "cat": {"0.png": png(0), "1.png": png(1)},
        "dog": {"2.png": png(2), "3.png": png(3)},
    }
    folder = write_classes(tmp_path / "folder", files)
    loaded = [_public(path, warnings_heard) for path in (parquet, folder)]
    loaded += [_sensitive(path) for path in (parquet, folder)]
    for images in loaded:
        assert torch.equal(images.images, _images(range(4)))
        assert images.labels.tolist() == [0, 0, 1, 1]
        assert images.names == ("cat", "dog")
        assert (images.images.dtype, images.labels.dtype) == (torch.uint8, torch.int64)
    assert warnings_heard == []


def test_a_wrong_extension_does_not_matter(tmp_path, warnings_heard):
    jpeg = encoded(np.full((8, 8, 3), 100, dtype=np.uint8), "JPEG")
    files = {"cat": {"a.png": jpeg}, "dog": {"b.jpg": png(1)}}
    found = _public(write_classes(tmp_path, files), warnings_heard)
    assert (found.images[0] == 100).all()
    assert torch.equal(found.images[1:], _images([1]))


def test_the_order_does_not_depend_on_who_decodes_first(tmp_path, monkeypatch):
    path = write_hub(tmp_path / "x.parquet", map(png, range(60)))
    monkeypatch.setattr("privimage.machine.cores", lambda: 8)
    assert torch.equal(_sensitive(path).images, _images(range(60)))


def test_a_representation_does_not_tell_how_many_there_are(tmp_path):
    found = _sensitive(write_hub(tmp_path / "x.parquet", map(png, range(7))))
    assert repr(found) == "ImageSet(0 labels, (3, 8, 8))"


@pytest.mark.parametrize("name", ["digits-train", "digits-test", "glyphs"])
def test_a_built_in_set_is_known_in_both_roles(name, warnings_heard):
    shape = ImageShape(8, 1)
    first = load_public(f"builtin:{name}", shape, warnings_heard.append)
    second = load_sensitive(f"builtin:{name}", shape, None)
    assert torch.equal(first.images, second.images)
    assert first.images.shape[1:] == (1, 8, 8)


def test_a_built_in_set_comes_in_the_declared_form_and_as_it_is_in_its_own(warnings_heard):
    own = load_sensitive("builtin:digits-test", ImageShape(8, 1), None)
    assert torch.equal(own.images, digits.test().images)
    assert torch.equal(own.labels, digits.test().labels)
    larger = load_sensitive("builtin:digits-test", ImageShape(16, 3), None)
    assert larger.images.shape == (360, 3, 16, 16)
    with pytest.raises(UserError, match="did you mean 'builtin:glyphs'"):
        load_public("builtin:glyph", SHAPE, warnings_heard.append)


def test_a_source_is_checked_without_reading_its_images(tmp_path, monkeypatch):
    path = write_hub(tmp_path / "x.parquet", [b"junk"])
    monkeypatch.setattr("privimage.data.load.decode_all", lambda *_: pytest.fail("was read"))
    for source in ("", "builtin:glyphs", str(path)):
        check_source("--test", source)
    with pytest.raises(UserError, match=r"--test: there is no file or folder .*nowhere"):
        check_source("--test", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="--test: 'builtin:glyph' is no built-in set"):
        check_source("--test", "builtin:glyph")


# ----------------------------------------------------------------------------------------- public


def test_a_public_image_that_is_damaged_is_left_out_and_counted(tmp_path, warnings_heard):
    contents = [png(0), b"junk", png(2), None, png(4)]
    path = write_hub(tmp_path / "x.parquet", contents, [0, 1, 1, 0, 1], ["cat", "dog"])
    found = _public(path, warnings_heard)
    assert torch.equal(found.images, _images([0, 2, 4]))
    assert found.labels.tolist() == [0, 1, 1]
    assert len(warnings_heard) == 1
    assert warnings_heard[0].startswith(f"--public: 2 of 5 images in '{path}' can't be decoded")


def test_public_classes_without_names_are_numbered(tmp_path, warnings_heard):
    path = write_hub(tmp_path / "x.parquet", map(png, range(3)), [0, 3, 1])
    found = _public(path, warnings_heard)
    assert (found.names, found.labels.tolist()) == (("0", "1", "3"), [0, 2, 1])
    assert warnings_heard == [
        f"--public: 1 of 4 classes in '{path}' have no images; left out ('2')"
    ]


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        (None, None, "has no labels; give"),
        ([0, 1, 2], ["cat", "dog"], "a label 2 without name"),
        ([0, 1, -1], ["cat", "dog"], "a label -1 without name"),
        ([0, 1, -1], None, "a label -1 without name"),
        ([0, 1, 2**40], None, "a label 1099511627776 without name"),
        ([0, 1, None], ["cat", "dog"], "an image without label"),
        ([1, 1, 1], ["cat", "dog"], "3 images of one class; at least two"),
    ],
)
def test_public_labels_that_say_too_little_are_refused(
    tmp_path, warnings_heard, labels, names, message
):
    path = write_hub(tmp_path / "x.parquet", map(png, range(3)), labels, names)
    with pytest.raises(UserError, match=f"^--public: .*{message}") as caught:
        _public(path, warnings_heard)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("names", [None, ["cat", "dog"]])
def test_a_public_set_of_nothing_but_damage_is_refused(tmp_path, warnings_heard, names):
    path = write_hub(tmp_path / "x.parquet", [b"", b"junk"], [0, 1], names)
    with pytest.raises(UserError, match="0 images of no class"):
        _public(path, warnings_heard)


def test_a_public_folder_without_classes_is_refused(tmp_path, warnings_heard):
    (tmp_path / "a.png").write_bytes(png(0))
    with pytest.raises(UserError, match="one subfolder a class"):
        _public(tmp_path, warnings_heard)


# -------------------------------------------------------------------------------------- sensitive


def _hostile_rows():
    """Contents and labels as nobody should have them."""
    randomness = random.Random(0)
    whole = [png(seed, channels) for seed in range(3) for channels in (1, 3, 4)]
    rows = [(content, label) for content in whole for label in (0, 1, None, -1, 9, 2**62, -(2**63))]
    rows += [
        (content, 0) for content in (None, b"", b"\x00" * 99, b"\x89PNG\r\n\x1a\n", b"II*\x00")
    ]
    for form in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"):
        content = encoded(pixels(20, 31, 1), form)
        for _ in range(20):
            damaged = bytearray(content[: randomness.randrange(1, len(content) + 1)])
            damaged[randomness.randrange(len(damaged))] = randomness.randrange(256)
            rows.append((bytes(damaged), randomness.choice([0, 1, None])))
    return rows


def test_no_content_can_stop_a_sensitive_set(tmp_path, capfd, caplog, recwarn):
    rows = _hostile_rows()
    contents, labels = zip(*rows, strict=True)
    path = write_hub(tmp_path / "x.parquet", contents, labels, ["cat", "dog"])
    found = _sensitive(path)
    assert (capfd.readouterr(), caplog.records, recwarn.list) == (("", ""), [], [])
    assert len(found) == len(rows)
    assert found.labels.tolist() == [label if label in (0, 1) else 2 for label in labels]
    # Each row is what its own image gives by itself, and grey if that is nothing.
    for row, content in enumerate(contents):
        alone = decode_module.decode(content or b"", SHAPE)
        expected = np.full((3, 8, 8), 128) if alone is None else alone
        assert np.array_equal(found.images[row], expected)


def test_a_file_larger_than_any_image_is_grey_and_not_read_whole(tmp_path):
    path = write_classes(tmp_path, {"cat": {"a.png": png(0), "c.png": png(1)}})
    with open(path / "cat" / "b.png", "wb") as file:
        file.truncate(2**40)  # Takes up no room on the disk, and would in memory.
    found = _sensitive(path)
    assert torch.equal(found.images[[0, 2]], _images([0, 1]))
    assert (found.images[1] == 128).all()


def test_whatever_a_decoder_raises_makes_a_grey_image(tmp_path, monkeypatch):
    path = write_hub(tmp_path / "x.parquet", [png(0), png(1)])
    fitted = decode_module._fitted
    for error in (RuntimeError, AssertionError, NotImplementedError, RecursionError, MemoryError):

        def failing(image, shape, error=error):
            if image.getpixel((0, 0)) == tuple(pixels(seed=0)[0, 0]):
                raise error("from deep inside")
            return fitted(image, shape)

        monkeypatch.setattr(decode_module, "_fitted", failing)
        found = _sensitive(path)
        assert (found.images[0] == 128).all()
        assert torch.equal(found.images[1:], _images([1]))


def test_removing_one_image_removes_its_row_and_nothing_else(tmp_path):
    rows = _hostile_rows()[::5]
    contents, labels = (list(column) for column in zip(*rows, strict=True))
    names = ["cat", "dog"]
    whole = _sensitive(write_hub(tmp_path / "x.parquet", contents, labels, names))
    for index in (0, 7, len(rows) - 1):
        kept = [row for row in range(len(rows)) if row != index]
        path = write_hub(
            tmp_path / "y.parquet", [contents[i] for i in kept], [labels[i] for i in kept], names
        )
        without = _sensitive(path)
        assert torch.equal(without.images, whole.images[kept])
        assert torch.equal(without.labels, whole.labels[kept])


def test_declared_names_are_matched_by_name(tmp_path):
    path = write_hub(tmp_path / "x.parquet", map(png, range(3)), [0, 1, 2], ["cat", "dog", "emu"])
    found = _sensitive(path, ("emu", "cat"))
    assert found.names == ("emu", "cat")
    assert found.labels.tolist() == [1, 2, 0]
    files = {"dog": {"0.png": png(0)}, "emu": {"1.png": png(1)}}
    folder = write_classes(tmp_path / "folder", files)
    assert _sensitive(folder, ("emu", "cat")).labels.tolist() == [2, 0]


def test_folders_are_never_matched_by_number(tmp_path):
    # One more image in a folder "zero" would otherwise change the labels of all the others.
    names = ("zero", "one")
    folder = write_classes(tmp_path, {"a": {"0.png": png(0)}, "b": {"1.png": png(1)}})
    assert _sensitive(folder, names).labels.tolist() == [2, 2]
    write_classes(tmp_path, {"zero": {"2.png": png(2)}})
    assert _sensitive(folder, names).labels.tolist() == [2, 2, 0]


def test_labels_without_names_are_matched_by_number(tmp_path):
    path = write_hub(tmp_path / "x.parquet", map(png, range(4)), [0, 1, 2, None])
    assert _sensitive(path, ("zero", "one")).labels.tolist() == [0, 1, 2, 2]
    with pytest.raises(UserError, match=r"^--sensitive: .*labels but no names.*--classes"):
        _sensitive(path)


def test_a_set_without_labels_has_none_whatever_is_declared(tmp_path):
    path = write_hub(tmp_path / "x.parquet", map(png, range(3)))
    for names in (None, ("cat", "dog")):
        found = _sensitive(path, names)
        assert (found.names, found.labels.tolist()) == ((), [0, 0, 0])


def test_one_class_is_no_mistake_in_a_sensitive_set(tmp_path):
    found = _sensitive(write_classes(tmp_path, {"cat": {"a.png": png(0)}}))
    assert (found.names, found.labels.tolist()) == (("cat",), [0])


def test_declared_names_hold_for_a_built_in_set_too():
    shape = ImageShape(8, 1)
    whole = load_sensitive("builtin:digits-train", shape, None)
    some = load_sensitive("builtin:digits-train", shape, ("3", "1", "none"))
    assert some.names == ("3", "1", "none")
    place = {3: 0, 1: 1}
    assert some.labels.tolist() == [place.get(label, 3) for label in whole.labels.tolist()]
    by_number = load_sensitive("builtin:digits-train", shape, ("zero", "one"))
    assert by_number.labels.tolist() == [min(label, 2) for label in whole.labels.tolist()]


def test_a_sample_is_some_of_the_images_in_their_order(tmp_path):
    contents = [png(number) for number in range(40)]
    path = write_hub(tmp_path / "x.parquet", contents, [n % 2 for n in range(40)], ("a", "b"))
    whole = load_sensitive(str(path), SHAPE, None)
    sample = load_sample(str(path), SHAPE, None, "x", 12, 0)
    places = [
        next(row for row in range(40) if torch.equal(whole.images[row], image))
        for image in sample.images
    ]
    assert places == sorted(set(places))
    assert len(places) == 12
    assert sample.labels.tolist() == [place % 2 for place in places]
    again = load_sample(str(path), SHAPE, None, "x", 12, 1)
    assert not torch.equal(again.images, sample.images)
    assert torch.equal(load_sample(str(path), SHAPE, None, "x", 40, 1).images, whole.images)


# ------------------------------------------------------------------------------------------- test


def _hub(path, labels, names):
    return write_hub(path / "x.parquet", map(png, range(len(labels))), labels, names)


@pytest.mark.parametrize(
    ("own", "names"),
    [
        (["Ill", "Healthy"], ("healthy", "ill")),
        (["cow", "dog"], ("Cat", "cat")),
        (["7", "8"], ("0", "1")),
        # Shared, but no image has it.
        (["cow", "dog", "cat"], ("cat", "emu")),
    ],
)
def test_a_test_set_of_other_labels_is_refused(tmp_path, own, names):
    path = _hub(tmp_path, [0, 1, 1], own)
    message = rf"^--test: none of its labels \('{min(own[:2])}', .*x\.parquet.*'{names[0]}'"
    with pytest.raises(UserError, match=message) as caught:
        load_test(str(path), SHAPE, names, pytest.fail)
    assert "\n" not in str(caught.value)


def test_test_folders_of_other_names_are_refused_though_they_are_numerals(tmp_path, warnings_heard):
    folder = write_classes(tmp_path, {"0": {"a.png": png(0)}, "1": {"b.png": png(1)}})
    with pytest.raises(UserError, match=r"none of its labels \('0', '1' in .*'cat', 'dog'"):
        load_test(str(folder), SHAPE, ("cat", "dog"), warnings_heard.append)


def test_test_images_of_other_labels_are_counted_and_have_none(tmp_path, warnings_heard):
    path = _hub(tmp_path, [0, 1, 2, 2, None, 7], ["CAT", "cat", "dog"])
    found = load_test(str(path), SHAPE, ("bird", "cat"), warnings_heard.append)
    assert (found.names, found.labels.tolist()) == (("bird", "cat"), [2, 1, 2, 2, 2, 2])
    assert torch.equal(found.images, _images(range(6)))
    assert warnings_heard == [
        "--test: 5 of 6 images have a label that the synthetic images don't have ('7', 'CAT', "
        "'dog', …); accuracy leaves them out"
    ]


def test_damaged_test_images_are_left_out_and_counted(tmp_path, warnings_heard):
    contents, names = [png(0), b"junk", png(2), None], ("cat", "dog")
    for labels, expected in (([1, 0, 0, 1], [1, 0]), (None, [0, 0])):
        path = write_hub(tmp_path / "x.parquet", contents, labels, labels and [*names])
        found = load_test(str(path), SHAPE, names, warnings_heard.append)
        assert torch.equal(found.images, _images([0, 2]))
        assert (found.labels.tolist(), found.damaged) == (expected, 2)
        assert warnings_heard.pop().startswith(
            f"--test: 2 of 4 images in '{path}' can't be decoded"
        )
        assert not warnings_heard
    path = write_hub(tmp_path / "x.parquet", [b"junk", None], [0, 1], [*names])
    with pytest.raises(UserError, match=r"--test: none of the 2 images in .* can be decoded"):
        load_test(str(path), SHAPE, names, pytest.fail)


@pytest.mark.parametrize(
    ("own", "names"),
    [
        (["dog", "cat"], ("cat", "dog")),
        (None, ("dog", "cat")),
        (["1", "2"], ("dog", "cat")),
        (["dog", "cat"], ("0", "1")),
    ],
)
def test_test_labels_are_matched_by_number_only_where_one_side_has_no_names(
    tmp_path, warnings_heard, own, names
):
    path = _hub(tmp_path, [0, 0, 1], own)
    found = load_test(str(path), SHAPE, names, warnings_heard.append)
    expected = [names.index(own[0])] * 2 + [names.index(own[1])] if names[0] == "cat" else [0, 0, 1]
    assert found.labels.tolist() == expected
    is_said = own is not None and not {*own} & {*names}
    assert [line.partition(" (")[0] for line in warnings_heard] == (
        [f"--test: labels of '{path}' are matched by number"] if is_said else []
    )


def test_a_test_set_without_labels_or_for_images_without_has_none(tmp_path):
    for names, labels in ((("a", "b"), None), ((), [0, 1])):
        path = write_hub(tmp_path / "x.parquet", map(png, range(2)), labels)
        found = load_test(str(path), SHAPE, names, pytest.fail)
        assert (found.names, found.labels.tolist()) == ((), [0, 0])


def test_a_built_in_set_can_be_tested_on():
    shape = ImageShape(8, 1)
    names = tuple(str(digit) for digit in range(10))
    found = load_test("builtin:digits-test", shape, names, pytest.fail)
    assert torch.equal(found.labels, load_sensitive("builtin:digits-test", shape, None).labels)
    with pytest.raises(UserError, match="in 'builtin:glyphs'"):
        load_test("builtin:glyphs", shape, ("zero", "one"), pytest.fail)
