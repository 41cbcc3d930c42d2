//! A tiny benchmark, whole and with one mistake at a time.

use super::*;
use crate::data_dir::DataDir;
use crate::testing::{Scene, png, zip};

const TINY: &str = r#"
schema = 1
name = "tiny"
title = "Tiny"
version = "1"
classes = 2

[preprocess]
resize = 8
crop = 4

[classifier]
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]

[[sets]]
role = "id-train"
name = "cats"
images = { kind = "imglist", list = "train.txt", root = "images" }

[[sets]]
role = "id-test"
name = "cats"
images = { kind = "imglist", list = "test.txt", root = "images" }
size = 1

[[sets]]
role = "near"
name = "dogs"
images = { kind = "folder", path = "dogs" }
preprocess = {}

[assets]
unet = "embedded:unet"

[presets.knn]
K = 5
layers = ["a", "b"]
"#;

#[test]
fn a_benchmark_is_read_with_all_its_tables() {
    let benchmark = Benchmark::parse(TINY, "tiny.toml").unwrap();
    assert_eq!(benchmark.classes, 2);
    assert_eq!(benchmark.presets["knn"]["K"], 5);
    assert_eq!(benchmark.assets["unet"], "embedded:unet");
    let near = benchmark.sets_of(Role::Near).next().unwrap();
    assert_eq!(benchmark.preprocess_of(near), Preprocess::default());
    let test = benchmark.sets_of(Role::IdTest).next().unwrap();
    assert_eq!(benchmark.preprocess_of(test).crop, Some(4));
    // What is read can be written.
    let text = toml::to_string(&benchmark).unwrap();
    assert_eq!(Benchmark::parse(&text, "again").unwrap(), benchmark);
}

#[test]
fn errors_say_where_and_what() {
    let check = |from: &str, to: &str, expected: &str| {
        let text = TINY.replacen(from, to, 1);
        assert_ne!(text, TINY, "`{from}` is in the text");
        let error = Benchmark::parse(&text, "tiny.toml").unwrap_err();
        assert_eq!(error.to_string(), format!("read benchmark `tiny.toml`{expected}"));
    };
    check(
        "classes = 2",
        "clases = 2",
        " line 6 column 1: unknown field `clases`, expected one of `schema`, `name`, `title`, \
         `version`, `classes`, `about`, `preprocess`, `classifier`, `sets`, `assets`, \
         `baselines`, `presets`",
    );
    check(
        "resize = 8",
        "size = 8",
        " line 9 column 1: unknown field `size`, expected `resize` or `crop`",
    );
    check(
        r#"path = "dogs""#,
        r#"folder = "dogs""#,
        " line 30 column 10: unknown field `folder`, expected `path` or `label`",
    );
    check(
        r#""near""#,
        r#""nearby""#,
        " line 28 column 8: unknown variant `nearby`, expected one of `id-train`, `id-val`, \
         `id-test`, `ood-val`, `near`, `far`, `csid`",
    );
    check(
        "crop = 4",
        "crop = ",
        " line 10 column 8: string values must be quoted, expected literal string",
    );
    check(
        "crop = 4",
        "crop = 9",
        ": expected `crop` of at most `resize` = 8 in `preprocess`, got 9",
    );
    check("schema = 1", "schema = 2", ": expected `schema` = 1, got 2");
    check("classes = 2", "classes = 1", ": expected `classes` of at least 2, got 1");
    check("id-test", "id-val", ": expected exactly one set with role `id-test`, got 0");
    check(
        "id-test",
        "id-train",
        ": expected set names that are unique within role `id-train`, got `cats` twice",
    );
    check("\"near\"", "\"csid\"", ": expected a set with role `near` or `far`, got none");
    check(
        "\"dogs\"\n",
        "\"big dogs\"\n",
        ": expected `name` of up to 64 letters, digits and `-_.+`, got `big dogs`",
    );
    check(
        "0.25",
        "0.0",
        ": expected finite `classifier.std`, and `std` above 0, got [0.0, 0.25, 0.25]",
    );
}

#[test]
fn sets_are_located_each_for_itself() {
    let scene = Scene::new();
    let image = png(8, 8, [5; 3]);
    scene.write("images/cat.zip", zip(false, &[("cat/1.png", &image), ("cat/2.png", &image)]));
    scene.write("train.txt", "cat/1.png 0\ncat/9.png 1\n");
    scene.write("test.txt", "cat/1.png 0\n");
    scene.write("dogs/rex/1.png", &image);
    let benchmark = Benchmark::parse(TINY, "tiny.toml").unwrap();
    let located = || locate(&benchmark, &scene.data());
    let refusal = |nth: usize| {
        let error = located().swap_remove(nth).source.err().unwrap();
        (scene.text(&error), error.is_missing())
    };

    let sets = located();
    assert!(refusal(0).1);
    assert!(sets[1].source.is_ok());
    // Out-of-distribution, although the folder makes it class 0.
    assert_eq!(sets[2].source.as_ref().unwrap().label(0), -1);

    scene.write("train.txt", "cat/1.png 0\ncat/2.png 2\n");
    scene.write("test.txt", "cat/1.png 0\ncat/2.png 1\n");
    let text = "read id-train set `cats`: label of `cat/2.png` expected from 0 to 1, got 2";
    assert_eq!(refusal(0), (text.to_owned(), false));
    let text = "read id-test set `cats`: expected 1 images, got 2";
    assert_eq!(refusal(1), (text.to_owned(), false));
}

#[test]
fn without_any_data_every_set_of_every_benchmark_is_missing() {
    let scene = Scene::new();
    let data = DataDir::new(scene.path("nowhere"), scene.path("scratch"));
    for builtin in builtins() {
        let benchmark = builtin.benchmark().unwrap();
        for located in locate(&benchmark, &data) {
            match located.source {
                Err(error) => assert!(error.is_missing() && !error.looked().is_empty(), "{error}"),
                Ok(_) => assert!(matches!(located.set.images, SourceSpec::Glyphs(_))),
            }
        }
    }
}
