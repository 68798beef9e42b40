"""Folders as people have them: capitals, links, stray files, splits in odd places, ImageNet as it is downloaded."""

from __future__ import annotations

import logging
import os

import pytest

from secvit.images import load_checked, load_split, splits
from tests.images.make import folder, pack, save, table

# -- words for splits --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "val"), [("Train", "Val"), ("TRAINING", "Validation"), ("train2017", "val2017"), ("train", "Dev"),
                       ("Training", "VALID"), ("training", "validation")]
)  # fmt: skip
def test_every_word_for_a_split_is_one_in_any_case(tmp_path, train, val):
    folder(tmp_path / train), folder(tmp_path / val, count=2)
    assert splits(tmp_path) == ("train", "val")
    assert load_split(tmp_path).classes == ("cat", "dog") and len(load_split(tmp_path, "val")) == 4


def test_a_held_out_test_split_is_found_too(tmp_path):
    folder(tmp_path / "Train"), folder(tmp_path / "Testing", count=2)
    assert splits(tmp_path) == ("train", "test") and len(load_split(tmp_path, "test")) == 4


@pytest.mark.parametrize("names", [("Train.csv", "VAL.CSV"), ("Training.TSV", "valid.tsv"), ("TRAIN.NPZ", "Val.npz")])
def test_files_of_splits_are_found_in_any_case(tmp_path, names):
    for name in names:
        if name.lower().endswith("npz"):
            pack(tmp_path / "x.npz").rename(tmp_path / name)
        else:
            between = "\t" if name.lower().endswith("tsv") else ","
            rows = [f"{i}.png{between}{'ab'[i % 2]}" for i in range(4)]
            table(tmp_path / name, rows, f"path{between}label", images=False)
    for i in range(4):
        save(tmp_path / f"{i}.png")
    assert splits(tmp_path) == ("train", "val")
    assert len(load_split(tmp_path, "val")) in (4, 6)


def test_an_undivided_table_may_end_in_capitals(tmp_path):
    table(tmp_path / "ALL.CSV", [f"{i}.png,{'ab'[i % 2]}" for i in range(8)])
    assert load_split(tmp_path / "ALL.CSV").classes == ("a", "b")


@pytest.mark.parametrize("second", ["Train", "training", "TRAIN2017"])
def test_two_folders_for_one_split_are_refused_by_name(tmp_path, second):
    folder(tmp_path / "train"), folder(tmp_path / second)
    with pytest.raises(ValueError, match=rf"is a second train; keep one of them \((train, {second}|{second}, train)\)"):
        load_split(tmp_path)


def test_classes_that_are_all_words_for_splits_are_refused(tmp_path):
    folder(tmp_path / "train", ("Train", "Val"))
    with pytest.raises(ValueError, match="class folders are called Train, Val, which are words for splits"):
        load_split(tmp_path)


def test_splits_inside_of_the_classes_are_refused(tmp_path):
    for name in ("cat", "dog"):
        folder(tmp_path / name, ("train", "test"))
    with pytest.raises(ValueError, match=r"cat/test: a split inside of a class, .*; expected \S+test/cat"):
        load_split(tmp_path)


def test_a_class_may_be_called_train(tmp_path, caplog):
    folder(tmp_path, ("bus", "train", "car"))
    assert load_split(tmp_path).classes == ("bus", "car", "train")
    assert "train hold no class folders, and bus is beside them; each is read as a class" in caplog.text


def test_a_folder_beside_the_splits_is_said_to_be_unused(tmp_path, caplog):
    folder(tmp_path / "train"), folder(tmp_path / "val"), folder(tmp_path / "extra")
    load_split(tmp_path)
    assert "folders that are no split and not used: extra" in caplog.text


# -- classes -----------------------------------------------------------------------------------


def test_folders_with_numbers_are_ordered_by_value_as_in_a_table(tmp_path):
    names = [str(i) for i in (10, 9, 2, 0, 11)]
    folder(tmp_path / "d", names)
    rows = [f"{name}/{i}.png,{name}" for name in names for i in range(4)]
    table(tmp_path / "d" / "all.csv", rows, images=False)
    assert load_split(tmp_path / "d").classes == load_split(tmp_path / "d" / "all.csv").classes
    assert load_split(tmp_path / "d").classes == ("0", "2", "9", "10", "11")


def test_a_split_that_lacks_a_class_keeps_the_numbers_of_train(tmp_path, caplog):
    folder(tmp_path / "train", ("ant", "bee", "cow")), folder(tmp_path / "val", ("bee", "cow"), 2)
    val = load_split(tmp_path, "val")
    assert val.classes == ("ant", "bee", "cow") and val.labels.tolist() == [1, 1, 2, 2]
    assert "val has 2 of the 3 classes of train" in caplog.text


def test_an_npz_with_the_classes_in_another_order_is_matched_by_name(tmp_path):
    pack(tmp_path / "train.npz", [0, 1, 2], ("a", "b", "c"))
    pack(tmp_path / "val.npz", [0, 1, 2], ("c", "a", "b"))
    assert load_split(tmp_path, "val").labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize("classes", [("cat", "dog"), ("a", "b", "c")])
def test_one_image_a_class_leaves_nothing_to_hold_out(tmp_path, classes):
    folder(tmp_path, classes, 1)
    with pytest.raises(ValueError, match="each class has one image, so nothing can be held out for val; add images"):
        load_split(tmp_path, "val")


def test_a_class_with_one_image_beside_larger_ones_stays_in_train(tmp_path):
    folder(tmp_path, ("cat", "dog"), 10), folder(tmp_path, ("emu",), 1)
    train, val = load_split(tmp_path), load_split(tmp_path, "val")
    assert train.labels.bincount().tolist() == [8, 8, 1] and val.labels.bincount(minlength=3).tolist() == [2, 2, 0]


# -- what is used and what is left out ---------------------------------------------------------


def test_images_in_linked_folders_and_of_every_ending_are_used(tmp_path, caplog):
    folder(tmp_path / "d")
    for i in range(3):
        save(tmp_path / "more" / f"{i}.webp"), save(tmp_path / "d" / "dog" / "deep" / f"{i}.avif")
        save(tmp_path / "d" / "cat" / f"x{i}.JPE")
    os.symlink(tmp_path / "more", tmp_path / "d" / "cat" / "more")
    os.symlink(tmp_path / "more", tmp_path / "d" / "fox")
    images = [load_split(tmp_path / "d", split) for split in ("train", "val")]
    assert images[0].classes == ("cat", "dog", "fox") and sum(map(len, images)) == 8 + 3 * 4
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_what_is_left_out_is_said_once_with_reasons(tmp_path, caplog):
    folder(tmp_path)
    (tmp_path / "cat" / "photo.heic").write_bytes(b"x")
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"x")
    save(tmp_path / "lost.png")
    os.symlink(tmp_path / "nowhere", tmp_path / "dog" / "gone.png")
    os.symlink(tmp_path, tmp_path / "dog" / "up")
    with caplog.at_level(logging.INFO):
        load_split(tmp_path)
    (line,) = [record for record in caplog.records if "used" in record.getMessage()]
    assert line.levelno == logging.WARNING and f"{tmp_path}: used " in line.getMessage()
    for reason in ("1 of another ending (.heic)", "hidden or stray", "1 broken links",
                   "1 linked folders that contain themselves", "1 images outside of the class folders"):  # fmt: skip
        assert reason in line.getMessage()


def test_hidden_files_alone_are_no_reason_for_a_warning(tmp_path, caplog):
    folder(tmp_path)
    (tmp_path / "cat" / ".DS_Store").write_bytes(b"x")
    with caplog.at_level(logging.INFO):
        load_split(tmp_path)
    (line,) = [record for record in caplog.records if "left out" in record.getMessage()]
    assert line.levelno == logging.INFO and "used 8 of 9 files; left out: 1 hidden or stray" in line.getMessage()


@pytest.mark.parametrize("stray", ["__MACOSX", "@eaDir", ".git", "lost+found"])
def test_what_file_managers_leave_is_no_class(tmp_path, stray):
    folder(tmp_path, count=20)
    for name in ("cat", "dog"):
        (tmp_path / stray / name).mkdir(parents=True)
        (tmp_path / stray / name / "._1.png").write_bytes(b"\0\5\x16\7" * 20)
        (tmp_path / name / "._1.png").write_bytes(b"\0\5\x16\7" * 20)
    train, val, _ = load_checked(tmp_path)
    assert train.classes == ("cat", "dog") and len(train) + len(val) == 40


def test_images_without_class_folders_are_refused_with_the_remedy(tmp_path):
    for split in ("train", "val"):
        for i in range(3):
            save(tmp_path / split / f"{i}.png")
    with pytest.raises(ValueError, match="train: images without class folders, so their classes are unknown"):
        load_split(tmp_path)
    with pytest.raises(ValueError, match=r"0 class folders; .* \(3 images lie in train itself: give each class"):
        load_split(tmp_path / "train")


@pytest.mark.parametrize("place", ["a\0b", "x" * 300, "/dev/zero", "/dev/null"])
def test_a_place_that_is_none_is_refused(place):
    with pytest.raises(ValueError, match=r"no such data|not a folder"):
        load_split(place)


# -- ImageNet as it is downloaded --------------------------------------------------------------

WNIDS = ("n01440764", "n01443537")


@pytest.fixture
def imagenet(tmp_path):
    data = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    folder(data / "train", WNIDS)
    for i in range(1, 7):
        save(data / "val" / f"ILSVRC2012_val_{i:08d}.JPEG"), save(data / "test" / f"ILSVRC2012_test_{i:08d}.JPEG")
    lines = [f"ILSVRC2012_val_{i:08d},{WNIDS[i % 2]} 85 1 499 272 {WNIDS[0]} 1 2 3 4 " for i in range(1, 7)]
    return data, "\n".join(["ImageId,PredictionString", *lines, ""])


@pytest.mark.parametrize("beside", [0, 1, 2, 3])
def test_the_flat_val_of_imagenet_is_read_with_its_solution_file(imagenet, beside):
    data, text = imagenet
    place = [data, *data.parents][beside]
    (place / "LOC_val_solution.csv").write_text(text)
    val = load_split(data, "val")
    assert val.classes == WNIDS and val.labels.tolist() == [1, 0, 1, 0, 1, 0] and val.image(0).mode == "RGB"
    assert len(load_split(data)) == 8
    with pytest.raises(ValueError, match="test_00000001 "):
        load_split(data, "test")


def test_without_the_solution_file_an_error_says_what_to_do(imagenet):
    with pytest.raises(ValueError, match=r"val: images without class folders.*put LOC_val_solution.csv .* beside val"):
        load_split(imagenet[0], "val")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("ImageId", "Id"), r"LOC_val_solution.csv, line 1: 'Id,Predict.*; expected ImageId"),
        (lambda text: text.replace("n01440764 85", ""), "line 3: class '1', which train lacks"),
        (lambda text: "\n".join(text.split("\n")[:-2]), "no line for ILSVRC2012_val_00000006 .1 such images of 6"),
        (lambda text: text + "x\n", "line 8: 'x'; expected an image and its class"),
        (lambda text: text + '"', "not a table of text"),
    ],
)
def test_a_solution_file_that_does_not_fit_is_refused_with_its_line(imagenet, change, message):
    data, text = imagenet
    (data / "LOC_val_solution.csv").write_text(change(text))
    with pytest.raises(ValueError, match=message):
        load_split(data, "val")


# -- names that hold a split's word, and splits with some of the classes -----------------------


@pytest.mark.parametrize(
    ("first", "second", "more"),
    [
        ("seg_train/seg_train", "seg_test/seg_test", "seg_pred"), ("train_images", "val_images", ""),
        ("training_set", "test_set", ""), ("train_set", "val_set", ""), ("trainset", "testset", ""),
        ("my_train", "val_pictures", ""), ("TrainImages", "TestImages", ""), ("val_set", "test_set", ""),
    ],
)  # fmt: skip
def test_folders_that_look_like_splits_do_not_become_classes(tmp_path, first, second, more):
    folder(tmp_path / first), folder(tmp_path / second)
    if more:
        save(tmp_path / more / "0.png")
    with pytest.raises(ValueError, match="seem to be splits, not classes; rename them to t(rain|est)/, (train|val)/"):
        load_split(tmp_path)


def test_images_right_in_folders_that_look_like_splits_are_no_classes(tmp_path):
    folder(tmp_path, ("train_images", "val_images"))
    with pytest.raises(ValueError, match="train_images, val_images seem to be splits"):
        load_split(tmp_path)


def test_classes_may_have_the_word_of_a_split_in_their_name(tmp_path):
    names = ("bullet_train", "crash_test_dummy", "steam_train", "valid_ticket")
    folder(tmp_path, names)
    assert load_split(tmp_path).classes == names


def test_a_split_with_one_of_the_classes_keeps_the_numbers_of_train(tmp_path, caplog):
    folder(tmp_path / "train"), folder(tmp_path / "val", ("dog",), count=2)
    val = load_split(tmp_path, "val")
    assert val.classes == ("cat", "dog") and val.labels.tolist() == [1, 1]
    assert "val has 1 of the 2 classes of train" in caplog.text


def test_a_train_with_one_class_and_a_val_without_any_are_refused(tmp_path):
    folder(tmp_path / "a" / "train", ("dog",)), folder(tmp_path / "a" / "val", ("dog",))
    with pytest.raises(ValueError, match="1 class folders; expected at least two"):
        load_split(tmp_path / "a")
    folder(tmp_path / "b" / "train"), save(tmp_path / "b" / "val" / "x" / "0.png").rename(tmp_path / "0.png")
    with pytest.raises(ValueError, match="x: class folder without images"):
        load_split(tmp_path / "b", "val")


def test_a_test_split_alone_is_read_by_the_classes_of_a_network(tmp_path):
    folder(tmp_path / "test", ("dog",))
    assert load_split(tmp_path, "test", classes=("cat", "dog")).classes == ("dog",)
    for split, classes in (("test", ()), ("val", ("cat", "dog")), ("train", ("cat", "dog"))):
        with pytest.raises(ValueError, match="has test but no train"):
            load_split(tmp_path, split, classes)


# -- splits that are there, but cannot be read ----------------------------------------------------


@pytest.mark.parametrize("name", ["val", "Valid", "test", "val.csv", "val.npz"])
def test_a_split_that_is_a_link_to_nothing_is_named(tmp_path, name):
    folder(tmp_path / "train")
    (tmp_path / name).symlink_to(tmp_path / "annex" / "x")
    with pytest.raises(ValueError, match=rf"{name}: called like a (val|test) split, but a link to nothing"):
        load_split(tmp_path)


def test_a_folder_that_may_be_val_is_not_replaced_by_a_part_of_train(tmp_path):
    folder(tmp_path / "train"), folder(tmp_path / "eval")
    with pytest.raises(ValueError, match="no val split, but eval, which may be meant as val; rename it to val"):
        load_split(tmp_path, "val")
    folder(tmp_path / "val", count=2)
    assert len(load_split(tmp_path, "val")) == 4


def test_trainval_is_train_where_there_is_none(tmp_path):
    folder(tmp_path / "trainval"), folder(tmp_path / "test", count=2)
    assert splits(tmp_path) == ("train", "test") and len(load_split(tmp_path)) == 8
    folder(tmp_path / "train", count=3)
    with pytest.raises(ValueError, match="trainval is train and val together, and train is beside it, but no val"):
        load_split(tmp_path)
    folder(tmp_path / "val", count=1)
    assert len(load_split(tmp_path)) == 6 and len(load_split(tmp_path, "val")) == 2


def test_data_one_folder_deeper_are_pointed_at(tmp_path):
    folder(tmp_path / "photos" / "train"), folder(tmp_path / "photos" / "val")
    with pytest.raises(ValueError, match=r"1 class folders; .*photos has train, val: give it as the data"):
        load_split(tmp_path)


def test_a_flat_test_without_labels_can_be_moved_away(tmp_path):
    folder(tmp_path / "train"), save(tmp_path / "test" / "0.png")
    with pytest.raises(ValueError, match=rf"if they have no labels, move test out of {tmp_path}"):
        load_split(tmp_path, "test")


def test_an_image_with_two_classes_in_the_solution_is_refused_with_both_lines(tmp_path):
    folder(tmp_path / "train", ("n1", "n2")), save(tmp_path / "val" / "v_1.png"), save(tmp_path / "val" / "v_2.png")
    lines = ["ImageId,PredictionString", "v_1,n1 1 2 3 4", "v_2,n2 1 2 3 4", "v_1,n1 5 6 7 8"]
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(lines))
    assert load_split(tmp_path, "val").labels.tolist() == [0, 1]
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join([*lines, "v_1,n2 1 2 3 4"]))
    with pytest.raises(ValueError, match="LOC_val_solution.csv: v_1 is n1 in line 2 and n2 in line 5; keep one"):
        load_split(tmp_path, "val")
