//! A tiny folder, whole, in other formats, and with one mistake at a time.

use std::fs;

use half::{bf16, f16};
use oodbench_datasets::NoProgress;
use oodbench_nn::npz::{NpzWriter, Values};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::*;
use crate::bank::{Bank, BankFolder};

/// A tensor on its way into a file.
struct Written(&'static str, Dtype, Vec<usize>, Vec<u8>);

fn reals(name: &'static str, shape: &[usize], values: &[f32]) -> Written {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Written(name, Dtype::F32, shape.to_vec(), bytes)
}

fn integers(name: &'static str, values: &[i64]) -> Written {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Written(name, Dtype::I64, vec![values.len()], bytes)
}

fn write(path: &Path, tensors: &[Written]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let views = tensors.iter().map(|Written(name, dtype, shape, bytes)| {
        (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

const WEIGHT: [f32; 6] = [1.0, 0.0, -1.0, 0.5, 2.0, 0.25];
const BIAS: [f32; 2] = [0.5, -1.0];

/// Three numbers a row, all exact in `f16` and `bf16`.
fn features(n: usize) -> Vec<f32> {
    (0..3 * n).map(|i| (i % 7) as f32 * 0.25 - 0.5).collect()
}

fn logits(n: usize) -> Vec<f32> {
    let row =
        |h: &[f32]| [0, 1].map(|k| (0..3).map(|d| WEIGHT[3 * k + d] * h[d]).sum::<f32>() + BIAS[k]);
    features(n).chunks(3).flat_map(row).collect()
}

fn set(n: usize) -> Vec<Written> {
    let labels: Vec<i64> = (0..n as i64).map(|i| i % 2).collect();
    vec![
        reals("features", &[n, 3], &features(n)),
        reals("logits", &[n, 2], &logits(n)),
        integers("labels", &labels),
    ]
}

fn head() -> Vec<Written> {
    vec![reals("weight", &[2, 3], &WEIGHT), reals("bias", &[2], &BIAS)]
}

/// Train, test, a near set and the head.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    write(&path("train.safetensors"), &set(6));
    write(&path("test.safetensors"), &set(5));
    write(&path("near/b.safetensors"), &set(4));
    write(&path("head.safetensors"), &head());
    folder
}

#[track_caller]
fn refused(folder: &tempfile::TempDir, parts: &[&str]) {
    let error = crate::EngineError::from(FeatureFolder::open(folder.path()).unwrap_err());
    let text = format!("{}\n{}", crate::text::chain(&error), error.hint().unwrap_or_default());
    assert!(parts.iter().all(|part| text.contains(part)), "expected {parts:?} in {text}");
}

#[test]
fn sets_stand_in_the_order_of_their_roles_and_names() {
    let folder = folder();
    for name in ["near/a", "far/c", "csid/d", "ood_val", "val"] {
        write(&folder.path().join(format!("{name}.safetensors")), &set(2));
    }
    fs::write(folder.path().join(".hidden"), "").unwrap();
    let opened = FeatureFolder::open(folder.path()).unwrap();
    let names: Vec<String> =
        opened.sets.iter().map(|set| format!("{}/{}", set.role, set.name)).collect();
    let expected =
        "id-train/train id-val/val ood-val/ood_val id-test/test near/a near/b far/c csid/d";
    assert_eq!(names.join(" "), expected);
    assert_eq!((opened.n_classes, opened.n_features), (2, 3));
    assert!(opened.warnings.is_empty(), "{:?}", opened.warnings);
}

#[test]
fn what_is_no_part_of_the_layout_is_warned_of() {
    let folder = folder();
    write(&folder.path().join("trian.safetensors"), &set(2));
    write(&folder.path().join("fare/x.safetensors"), &set(2));
    fs::write(folder.path().join("near/x.npy"), "").unwrap();
    fs::create_dir(folder.path().join("near/z.npz")).unwrap();
    let mut more = set(4);
    more.push(reals("feature", &[1], &[0.0]));
    write(&folder.path().join("near/b.safetensors"), &more);
    let warnings = FeatureFolder::open(folder.path()).unwrap().warnings.join("\n");
    for part in [
        "did you mean `train`?",
        "did you mean `far`?",
        "x.npy",
        "did you mean `features`?",
        "z.npz` is not read: expected .safetensors or .npz, got a folder",
    ] {
        assert!(warnings.contains(part), "expected {part} in {warnings}");
    }
}

#[test]
fn files_that_are_missing_or_there_twice_are_named() {
    let folder = tempfile::tempdir().unwrap();
    refused(&folder, &["expected `test.safetensors`", "docs/features.md"]);
    write(&folder.path().join("test.safetensors"), &set(5));
    refused(&folder, &["in `near` or `far`"]);
    write(&folder.path().join("far/x y.safetensors"), &set(5));
    refused(&folder, &["x y.safetensors", "letters", "got `x y`", "rename"]);
    fs::remove_file(folder.path().join("far/x y.safetensors")).unwrap();
    write(&folder.path().join("far/x.safetensors"), &set(5));
    FeatureFolder::open(folder.path()).unwrap();
    fs::write(folder.path().join("far/x.npz"), "").unwrap();
    refused(&folder, &["one file for `far/x`", "x.npz", "x.safetensors"]);
    let nowhere = FeatureFolder::open(&folder.path().join("nowhere")).unwrap_err();
    assert!(nowhere.hint().unwrap().contains("test.safetensors"));
    let file = FeatureFolder::open(&folder.path().join("test.safetensors")).unwrap_err();
    assert!(file.hint().unwrap().contains("a folder"));
}

#[test]
fn tensors_that_do_not_go_together_are_named_with_what_was_expected() {
    let check = |name: &str, tensors: &[Written], parts: &[&str]| {
        let folder = folder();
        write(&folder.path().join(name), tensors);
        refused(&folder, &[&[name], parts].concat());
    };
    let near = "near/b.safetensors";
    let some = |name, shape: &[usize]| reals(name, shape, &vec![0.0; shape.iter().product()]);
    check(near, &[some("features", &[4, 2])], &["3 columns as in", "head.safetensors", "got 2"]);
    check(near, &[some("logits", &[4, 3])], &["`logits` expected 2 columns", "got 3"]);
    let rows = [some("features", &[4, 3]), some("logits", &[3, 2])];
    check(near, &rows, &["`logits` expected 4 rows as `features` has", "[3, 2]"]);
    check(near, &[some("features", &[4, 3, 1])], &["expected [n, d], got F32 [4, 3, 1]", "flat"]);
    check(near, &[some("features", &[0, 3])], &["at least one row", "[0, 3]"]);
    check(
        near,
        &[integers("labels", &[0])],
        &["expected `features` [n, d] or `logits`", "`labels`"],
    );
    let whole = Written("features", Dtype::I64, vec![1, 3], vec![0; 24]);
    check(near, &[whole], &["F32, F64, F16 or BF16", "I64 [1, 3]"]);
    let test = "test.safetensors";
    let labels = |labels| vec![some("features", &[2, 3]), labels];
    check(test, &labels(integers("labels", &[0])), &["`labels` expected integers [2]", "I64 [1]"]);
    check(test, &labels(reals("labels", &[2], &[0.0; 2])), &["got F32 [2]", "torch.long"]);
    check(test, &labels(integers("labels", &[0, 2])), &["0 to 1, or -1", "`2` in row 1"]);
    check(test, &labels(integers("ids", &[0, 1 << 60])), &["`ids` expected at most"]);
    let train = "train.safetensors";
    check(train, &labels(integers("labels", &[0, -1])), &["expected 0 to 1, got `-1` in row 1"]);
    let head = "head.safetensors";
    check(head, &[some("weight", &[3])], &["`weight` expected", "F32 [3]"]);
    check(head, &[some("bias", &[2])], &["`weight` expected", "got none"]);
    check(head, &[some("weight", &[2, 3]), some("bias", &[3])], &["`bias`", "[2]", "[3]"]);
    check(
        head,
        &[reals("weight", &[2, 3], &[0.0, 0.0, 0.0, 0.0, f32::NAN, 0.0])],
        &["`weight` expected finite", "`NaN` in row 1, column 1"],
    );
}

#[test]
fn files_that_are_no_tensors_are_refused() {
    let folder = folder();
    let path = folder.path().join("test.safetensors");
    let whole = fs::read(&path).unwrap();
    for length in [0, 7, 40, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        refused(&folder, &["test.safetensors", "whole safetensors file", "export the file again"]);
    }
    fs::remove_file(&path).unwrap();
    fs::write(folder.path().join("test.npz"), "PK\x03\x04 and no more").unwrap();
    refused(&folder, &["test.npz", "npz file", "export the file again"]);
}

/// The bank's file of a set.
fn bank(
    folder: &FeatureFolder,
    role: Role,
    rows: Option<usize>,
) -> Result<Bank, crate::EngineError> {
    let set = folder.of_role(role).unwrap();
    let rows = rows.unwrap_or(set.len);
    let content = content(set, rows)?;
    let place = BankFolder::new(&folder.path.join(".cache"), &content);
    Bank::open(&convert(set, rows, &content, folder.head.as_ref(), &place, &NoProgress)?)
}

#[test]
fn every_format_gives_the_same_numbers() {
    let folder = folder();
    let open = || FeatureFolder::open(folder.path()).unwrap();
    let plain = bank(&open(), Role::IdTest, None).unwrap();
    assert_eq!((plain.features(), plain.logits()), (&features(5)[..], &logits(5)[..]));
    assert_eq!((plain.labels(), plain.ids()), (Some(&[0, 1, 0, 1, 0][..]), None));
    let path = folder.path().join("test.safetensors");
    let bytes = |dtype: Dtype, values: &[f32]| -> Vec<u8> {
        let one = |&value: &f32| match dtype {
            Dtype::F64 => f64::from(value).to_le_bytes().to_vec(),
            Dtype::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
            _ => bf16::from_f32(value).to_le_bytes().to_vec(),
        };
        values.iter().flat_map(one).collect()
    };
    for dtype in [Dtype::F64, Dtype::F16, Dtype::BF16] {
        let labels = Written("labels", Dtype::U8, vec![5], vec![0, 1, 0, 1, 0]);
        let ids = Written(
            "ids",
            Dtype::I32,
            vec![5],
            (0..20).map(|i| i32::from(i % 4 == 0) as u8).collect(),
        );
        let features = Written("features", dtype, vec![5, 3], bytes(dtype, &features(5)));
        write(&path, &[features, labels, ids]);
        let other = bank(&open(), Role::IdTest, None).unwrap();
        assert_eq!(other.features(), plain.features(), "{dtype:?}");
        assert_eq!(other.logits(), plain.logits(), "the head gives them, {dtype:?}");
        assert_eq!(other.labels(), plain.labels());
        assert_eq!(other.ids(), Some(&[1; 5][..]));
    }
    fs::remove_file(&path).unwrap();
    let mut npz = NpzWriter::create(&folder.path().join("test.npz")).unwrap();
    npz.array("features", &[5, 3], Values::F32(&features(5))).unwrap();
    let wide: Vec<f64> = logits(5).into_iter().map(f64::from).collect();
    npz.array("logits", &[5, 2], Values::F64(&wide)).unwrap();
    npz.array("labels", &[5], Values::I64(&[0, 1, 0, 1, 0])).unwrap();
    npz.finish().unwrap();
    let other = bank(&open(), Role::IdTest, None).unwrap();
    assert_eq!((other.features(), other.logits()), (plain.features(), plain.logits()));
    assert_eq!(other.labels(), plain.labels());
}

#[test]
fn a_limit_takes_the_first_rows_and_is_another_content() {
    let folder = folder();
    let opened = FeatureFolder::open(folder.path()).unwrap();
    let part = bank(&opened, Role::IdTest, Some(2)).unwrap();
    assert_eq!((part.len(), part.features()), (2, &features(2)[..]));
    let set = opened.of_role(Role::IdTest).unwrap();
    assert_ne!(content(set, 2).unwrap(), content(set, 5).unwrap());
}

#[test]
fn labels_of_ood_images_are_not_kept() {
    let folder = folder();
    let mut odd = set(4);
    odd[2] = integers("labels", &[7, -5, 0, 99]);
    write(&folder.path().join("near/b.safetensors"), &odd);
    let opened = FeatureFolder::open(folder.path()).unwrap();
    assert_eq!(bank(&opened, Role::Near, None).unwrap().labels(), Some(&[-1; 4][..]));
}

#[test]
fn a_number_that_is_none_is_found_wherever_it_is() {
    let folder = folder();
    let n = 1_000_000 / 3;
    for (row, column, value) in [(0, 0, f32::NAN), (n - 1, 2, f32::INFINITY)] {
        let mut values = vec![0.25; 3 * n];
        values[3 * row + column] = value;
        write(&folder.path().join("test.safetensors"), &[reals("features", &[n, 3], &values)]);
        let opened = FeatureFolder::open(folder.path()).unwrap();
        let error = bank(&opened, Role::IdTest, None).err().unwrap().to_string();
        let place = format!("got `{value}` in row {row}, column {column}");
        assert!(error.contains("test.safetensors") && error.contains(&place), "{error}");
    }
    // What does not fit into `f32` is none either.
    let huge =
        Written("features", Dtype::F64, vec![1, 3], [1e300f64; 3].map(f64::to_le_bytes).concat());
    write(&folder.path().join("test.safetensors"), &[huge]);
    let opened = FeatureFolder::open(folder.path()).unwrap();
    assert!(bank(&opened, Role::IdTest, None).err().unwrap().to_string().contains("got `1e300`"));
}

#[test]
fn features_of_another_layer_disagree_with_the_logits() {
    let folder = folder();
    let opened = || FeatureFolder::open(folder.path()).unwrap();
    let off = |opened: &FeatureFolder| {
        let head = opened.head.as_ref().unwrap();
        disagreement(head, &bank(opened, Role::IdTest, None).unwrap()).unwrap()
    };
    assert_eq!(off(&opened()), None);
    let mut other = set(5);
    let shifted: Vec<f32> = features(5).iter().map(|x| x * x + 1.0).collect();
    other[0] = reals("features", &[5, 3], &shifted);
    write(&folder.path().join("test.safetensors"), &other);
    assert!(off(&opened()).is_some_and(|off| off > 0.5));
}

#[test]
fn without_logits_and_head_the_labels_tell_the_classes() {
    let folder = folder();
    fs::remove_file(folder.path().join("head.safetensors")).unwrap();
    for name in ["train", "test", "near/b"] {
        let mut tensors = vec![reals("features", &[4, 3], &features(4))];
        tensors.extend((name == "train").then(|| integers("labels", &[0, 4, 1, 0])));
        write(&folder.path().join(format!("{name}.safetensors")), &tensors);
    }
    let opened = FeatureFolder::open(folder.path()).unwrap();
    assert_eq!((opened.n_classes, opened.n_features), (5, 3));
    let bank = bank(&opened, Role::IdTest, None).unwrap();
    assert_eq!((bank.n_classes(), bank.labels()), (0, Some(&[-1; 4][..])));
}
