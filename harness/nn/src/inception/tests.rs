//! The network against pytorch-fid's, on weights by formula.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Shape};
use candle_nn::Init;
use candle_nn::var_builder::SimpleBackend;
use serde::Deserialize;

use super::*;
use crate::formula;

#[derive(Deserialize)]
struct Goldens {
    case: Vec<Golden>,
}

#[derive(Deserialize)]
struct Golden {
    height: usize,
    width: usize,
    std: f32,
    features: Vec<Vec<f32>>,
}

/// `formula::weight`, times 1.5 for convolutions; remembers what was asked for.
#[derive(Clone, Default)]
struct Formula {
    asked: Arc<Mutex<BTreeMap<String, Tensor>>>,
}

impl SimpleBackend for Formula {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let gain = if shape.rank() == 4 { 1.5 } else { 1.0 };
        let values: Vec<f32> =
            formula::weight(name, shape.dims()).into_iter().map(|w| w * gain).collect();
        let tensor = Tensor::from_vec(values, shape, device)?.to_dtype(dtype)?;
        self.asked.lock().unwrap().insert(name.to_owned(), tensor.clone());
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("`{name}` without a shape")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

fn formula_network() -> (Inception, BTreeMap<String, Tensor>) {
    let formula = Formula::default();
    let backend: Box<dyn SimpleBackend> = Box::new(formula.clone());
    let vb = VarBuilder::from_backend(backend, DType::F32, Device::Cpu);
    let network = Inception::new(vb).unwrap();
    let asked = formula.asked.lock().unwrap().clone();
    (network, asked)
}

fn images(height: usize, width: usize) -> Tensor {
    let values = formula::uniform(&format!("fid/{height}x{width}"), 2 * 3 * height * width, 0., 1.);
    Tensor::from_vec(values, (2, 3, height, width), &Device::Cpu).unwrap()
}

#[test]
fn features_are_those_of_pytorch_fid() {
    let goldens: Goldens = toml::from_str(include_str!("golden.toml")).unwrap();
    let (network, _) = formula_network();
    for Golden { height, width, std, features } in goldens.case {
        let images = images(height, width);
        let got = network.features(&images).unwrap().to_vec2::<f32>().unwrap();
        for (got, expected) in got.iter().zip(&features) {
            assert_eq!(got.len(), N_FEATURES);
            let got: Vec<f32> = got.iter().copied().step_by(64).collect();
            assert_eq!(got.len(), expected.len());
            let worst =
                got.iter().zip(expected).map(|(a, b)| (a - b).abs() / std).fold(0.0, f32::max);
            // The reference in float32 is off its own float64 by up to 1.6e-5.
            assert!(worst < 1e-4, "{height}x{width}: {worst}");
        }
    }
}

#[test]
fn a_file_must_hold_this_network_and_nothing_else() {
    let (network, mut tensors) = formula_network();
    let expected = network.features(&images(32, 32)).unwrap().to_vec2::<f32>().unwrap();
    drop(network);
    let load = |tensors: &BTreeMap<String, Tensor>| {
        let bytes = safetensors::serialize(tensors, None).unwrap();
        let file = StateDict::from_bytes(&bytes, Path::new("inception.pth")).unwrap();
        Inception::load(&file, &Device::Cpu)
    };
    let add = |tensors: &mut BTreeMap<String, Tensor>, key: &str, shape: &[usize]| {
        let tensor = Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
        tensors.insert(key.to_owned(), tensor);
    };
    add(&mut tensors, "AuxLogits.fc.bias", &[1008]);
    add(&mut tensors, "fc.weight", &[1008, 2048]);
    let loaded = load(&tensors).unwrap().features(&images(32, 32)).unwrap();
    assert_eq!(loaded.to_vec2::<f32>().unwrap(), expected);

    add(&mut tensors, "Mixed_7d.extra", &[1]);
    let error = load(&tensors).unwrap_err().to_string();
    assert!(error.contains("`Mixed_7d.extra` and 0 more tensors belong to no layer"), "{error}");
    tensors.remove("Mixed_7d.extra");

    tensors.remove("Mixed_6b.branch7x7_2.bn.running_var");
    let error = load(&tensors).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("no `Mixed_6b.branch7x7_2.bn.running_var`"), "{cause}");

    add(&mut tensors, "fc.weight", &[1000, 2048]);
    let error = load(&tensors).unwrap_err().to_string();
    assert!(error.contains("expected 1008 classes, got 1000: these are torchvision's"), "{error}");
}

#[test]
fn decoded_images_of_any_size_have_the_features_of_their_tensors() {
    let (network, _) = formula_network();
    let bytes: Vec<u8> =
        formula::uniform("fid/u8", 3 * 6 * 5, 0., 256.).into_iter().map(|x| x as u8).collect();
    // One image twice, as 6 x 5 and as 5 x 6, and the first again.
    let pixels = |width, height| Pixels { width, height, rgb: &bytes };
    let got = network.features_of(&[pixels(6, 5), pixels(5, 6), pixels(6, 5)]).unwrap();
    let got = got.to_vec2::<f32>().unwrap();
    for (got, (width, height)) in got.iter().zip([(6, 5), (5, 6), (6, 5)]) {
        let values: Vec<f32> = bytes.iter().map(|&byte| f32::from(byte) / 255.0).collect();
        let image = Tensor::from_vec(values, (1, height, width, 3), &Device::Cpu).unwrap();
        let image = image.permute((0, 3, 1, 2)).unwrap();
        let expected = network.features(&image).unwrap().to_vec2::<f32>().unwrap();
        let worst = got.iter().zip(&expected[0]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-4, "{width}x{height}: {worst}");
    }
    // More than go through the stem at a time.
    let many = network.features_of(&[pixels(6, 5); 9]).unwrap().to_vec2::<f32>().unwrap();
    assert!(many.iter().all(|features| features == &got[0]));
    assert!(network.features_of(&[]).is_err());
    assert!(network.features_of(&[pixels(6, 6)]).is_err());
}

#[test]
fn other_shapes_are_refused() {
    let (network, _) = formula_network();
    for shape in [&[1, 1, 32, 32][..], &[3, 32, 32], &[1, 3, 0, 32], &[0, 3, 32, 32]] {
        let images = Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        assert!(network.features(&images).is_err(), "{shape:?}");
    }
}
