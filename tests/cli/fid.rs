//! `oodbench fid`: distances between folders, statistics and samples, and what can go wrong.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use oodbench_diffusion::fid::Statistics;
use oodbench_diffusion::picture::{Picture, Range};
use oodbench_nn::formula;
use oodbench_nn::inception::Inception;
use oodbench_nn::npz::{NpzWriter, Values};
use oodbench_tests::binary::{Ran, Scene};

const DIFFUSION: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../datasets/benchmarks/glyphs/diffusion.safetensors");

/// Statistics with this mean in each feature, and these variances.
fn statistics(scene: &Scene, name: &str, mean: f64, variances: &[f64]) -> PathBuf {
    let d = variances.len();
    let at = |i: usize| if i / d == i % d { variances[i / d] } else { 0.0 };
    let covariance: Vec<f64> = (0..d * d).map(at).collect();
    let path = scene.path(name);
    Statistics::new(vec![mean; d], &covariance).unwrap().write(&path).unwrap();
    path
}

/// A folder of images by formula.
fn images(scene: &Scene, folder: &str, n: usize, width: usize, height: usize) {
    let len = n * 3 * height * width;
    let values = formula::uniform(&format!("{folder}/{width}"), len, 0.0, 1.0);
    let values = Tensor::from_vec(values, (n, 3, height, width), &Device::Cpu).unwrap();
    for (i, picture) in Picture::each(&values, Range::Unit).unwrap().iter().enumerate() {
        scene.write(&format!("{folder}/{width}-{i}.png"), picture.png().unwrap());
    }
}

/// Remembers what a network asks for, and answers by formula.
#[derive(Clone, Default)]
struct Formula(Arc<Mutex<BTreeMap<String, Tensor>>>);

impl SimpleBackend for Formula {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        // With less the features hardly depend on the image.
        let gain = if shape.rank() == 4 { 1.5 } else { 1.0 };
        let values: Vec<f32> =
            formula::weight(name, shape.dims()).into_iter().map(|weight| weight * gain).collect();
        let tensor = Tensor::from_vec(values, shape, device)?.to_dtype(dtype)?;
        self.0.lock().unwrap().insert(name.to_owned(), tensor.clone());
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("`{name}` without a shape")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

/// Weights of Inception in the scene.
fn inception(scene: &Scene) -> String {
    let formula = Formula::default();
    let backend: Box<dyn SimpleBackend> = Box::new(formula.clone());
    Inception::new(VarBuilder::from_backend(backend, DType::F32, Device::Cpu)).unwrap();
    let path = scene.path("inception.safetensors");
    safetensors::serialize_to_file(&*formula.0.lock().unwrap(), None, &path).unwrap();
    path.to_str().unwrap().to_owned()
}

#[track_caller]
fn distance(ran: &Ran) -> f64 {
    ran.succeeded();
    let text = ran.stdout.strip_prefix("fid: ").and_then(|text| text.strip_suffix('\n'));
    text.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{}", ran.stdout))
}

#[test]
fn two_files_of_statistics_need_no_network() {
    let scene = Scene::new();
    statistics(&scene, "a.npz", 1.0, &[4.0, 9.0]);
    statistics(&scene, "b.npz", 3.0, &[1.0, 25.0]);
    let ran = scene.run(&["fid", "a.npz", "b.npz"]);
    ran.succeeded();
    // (1 - 3)^2 twice, (2 - 1)^2, (3 - 5)^2.
    assert_eq!((&*ran.stdout, &*ran.stderr), ("fid: 13.000000\n", ""));
    assert_eq!(scene.run(&["fid", "a.npz", "a.npz"]).stdout, "fid: 0.000000\n");
    let ran = scene.run(&["fid", "a.npz", "b.npz", "--message-format", "json"]);
    let answer: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert!((answer["fid"].as_f64().unwrap() - 13.0).abs() < 1e-9, "{answer}");
    assert_eq!(answer["second"]["set"], "b.npz");
    assert!(answer["second"]["images"].is_null());
}

#[test]
fn statistics_that_are_none() {
    let scene = Scene::new();
    let good = statistics(&scene, "good.npz", 0.0, &[1.0, 2.0]);
    let fid = |file: &str| scene.run(&["fid", "good.npz", file]);
    fid("nowhere.npz").refused(96, &["read `nowhere.npz`"]);
    let bytes = std::fs::read(&good).unwrap();
    scene.write("short.npz", &bytes[..bytes.len() / 2]);
    fid("short.npz").refused(96, &["`short.npz`", "hint: the file is damaged"]);
    statistics(&scene, "three.npz", 0.0, &[1.0, 2.0, 3.0]);
    fid("three.npz").refused(96, &["as many features, got 2 and 3"]);
    statistics(&scene, "negative.npz", 0.0, &[1.0, -2.0]);
    fid("negative.npz").refused(96, &["expected a covariance", "eigenvalue `-2e0`"]);
    let write = |name: &str, arrays: &[(&str, &[usize], &[f64])]| {
        let mut npz = NpzWriter::create(&scene.path(name)).unwrap();
        for (name, shape, values) in arrays {
            npz.array(name, shape, Values::F64(values)).unwrap();
        }
        npz.finish().unwrap();
    };
    write("samples.npz", &[("arr_0", &[2], &[0.0, 1.0])]);
    fid("samples.npz").refused(96, &["expected an array `mu`, got `arr_0`", "hint: ", "sigma"]);
    let mean: (&str, &[usize], &[f64]) = ("mu", &[2], &[0.0, 1.0]);
    write("flat.npz", &[mean, ("sigma", &[4], &[1.0, 0.0, 0.0, 1.0])]);
    fid("flat.npz").refused(96, &["flat.npz", "got [2] and [4]"]);
    write("skew.npz", &[mean, ("sigma", &[2, 2], &[1.0, 0.5, 0.0, 1.0])]);
    fid("skew.npz").refused(96, &["skew.npz", "symmetric"]);
    write("nan.npz", &[mean, ("sigma", &[2, 2], &[1.0, 0.0, 0.0, f64::NAN])]);
    fid("nan.npz").refused(96, &["nan.npz", "`sigma` expected finite values, got `NaN` at 3"]);
}

#[test]
fn arguments_that_make_no_sense() {
    let scene = Scene::new();
    statistics(&scene, "a.npz", 0.0, &[1.0, 2.0]);
    images(&scene, "images", 2, 8, 8);
    scene.run(&["fid"]).refused(2, &["two sets of images, got 0", "hint: "]);
    scene.run(&["fid", "a.npz"]).refused(2, &["got 1", "--save"]);
    let ran = scene.run(&["fid", "a.npz", "a.npz", "--save", "b.npz"]);
    ran.refused(2, &["`--save` expected images, got the statistics `a.npz`"]);
    let ran = scene.run(&["fid", "a.npz", "a.npz", "--sample", "8", "--weights", DIFFUSION]);
    ran.refused(2, &["got 3", "`--sample` is the first of the two"]);
    scene.run(&["fid", "a.npz", "a.npz", "--steps", "8"]).refused(2, &["--sample"]);
    scene.run(&["fid", "images", "images", "--batch-size", "0"]).refused(2, &["number from 1"]);
    scene.run(&["fid", "images", "a.npz"]).refused(96, &["2048 features, got 2", "a.npz"]);
    scene.run(&["fid", "images", "images", "--device", "tpu"]).refused(2, &["tpu", "cpu"]);
    let ran = scene.run(&["fid", "images", "images"]);
    ran.refused(2, &["no `--inception`", "hint: ", "pt_inception-2015-12-05-6726825d.pth"]);
    scene.write("weights.txt", "no weights");
    scene.run(&["fid", "images", "weights.txt"]).refused(2, &["`weights.txt`", "`.npz` file"]);
    let ran = scene.run(&["fid", "images", "images", "--inception", "nowhere.pth"]);
    ran.refused(96, &["nowhere.pth", "pt_inception-2015-12-05-6726825d.pth"]);
    let ran = scene.run(&["fid", "images", "images", "--inception", "weights.txt"]);
    ran.refused(96, &["weights.txt", "safetensors or a PyTorch file"]);
    let ran = scene.run(&["fid", "images", "images", "--inception", DIFFUSION]);
    ran.refused(96, &["diffusion.safetensors", "Conv2d_1a_3x3.conv.weight"]);
}

#[test]
fn a_folder_without_images() {
    let scene = Scene::new();
    std::fs::create_dir(scene.path("empty")).unwrap();
    images(&scene, "classes/zero", 2, 8, 8);
    let fid = |folder: &str| scene.run(&["fid", folder, folder]);
    fid("empty").refused(96, &["read `empty`: expected images, got none"]);
    fid("classes").refused(96, &["read `classes`", "hint: ", "--recursive"]);
    fid("nowhere").refused(96, &["read `nowhere`"]);
}

#[test]
fn a_place_for_statistics_is_tried_before_anything_is_computed() {
    let scene = Scene::new();
    images(&scene, "images", 2, 8, 8);
    let ran = scene.run(&["fid", "images", "--save", "images/8-0.png/a.npz"]);
    ran.refused(110, &["images/8-0.png/a.npz"]);
}

#[test]
fn folders_statistics_and_samples_agree() {
    let scene = Scene::new();
    let weights = inception(&scene);
    images(&scene, "a", 5, 32, 32);
    images(&scene, "a", 2, 20, 24);
    images(&scene, "b", 6, 16, 16);
    let fid = |args: &[&str]| scene.run(&[&["fid", "--inception", &weights], args].concat());
    let ran = fid(&["a", "b", "--save", "a.npz", "--progress", "none"]);
    let expected = distance(&ran);
    assert!(expected > 0.1, "{expected}");
    let warning = |set: &str, n| format!("warning: {set}: {n} images are fewer than the 2048");
    for line in [warning("a", 7), warning("b", 6)] {
        assert!(ran.stderr.contains(&line), "{}", ran.stderr);
    }
    assert_eq!(ran.stderr.lines().count(), 2, "{}", ran.stderr);

    let same = |args: &[&str]| {
        let got = distance(&fid(args));
        assert!((got / expected - 1.0).abs() < 1e-4, "{args:?}: {expected}, got {got}");
    };
    same(&["a.npz", "b", "--batch-size", "2", "--threads", "1"]);
    // A file alone is what pytorch-fid's `--save-stats` writes.
    let ran = fid(&["b", "--save", "new/b.npz"]);
    ran.succeeded();
    assert_eq!(ran.stdout, "");
    assert!(ran.stderr.contains("b: 6 images in "), "{}", ran.stderr);
    same(&["new/b.npz", "a.npz"]);

    images(&scene, "one", 1, 8, 8);
    fid(&["one", "a.npz"]).refused(96, &["one", "expected at least 2 images, got 1"]);
    scene.write("one/broken.jpg", b"\xff\xd8\xff and no more");
    fid(&["one", "a.npz"]).refused(96, &["one/broken.jpg", "JPEG"]);

    // A sample is measured as the PNG files of the same sample are.
    let sample = ["--method", "DDIM", "--steps", "2", "--seed", "3"];
    let ran = fid(&[&["--sample", "3", "--save", "c.npz", "a.npz"], &sample[..]].concat());
    let to_a = distance(&ran);
    assert!(ran.stderr.contains("3 samples in "), "{}", ran.stderr);
    scene.run(&[&["sample", "--n", "3", "--out", "c"], &sample[..]].concat()).succeeded();
    assert!(distance(&fid(&["c", "c.npz"])) < 1e-6 * to_a);
    let other = fid(&["--sample", "3", "--method", "DDIM", "--steps", "2", "c.npz"]);
    assert!(distance(&other) > 1e-3 * to_a);
}
