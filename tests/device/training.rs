//! Gradients of whole networks with respect to every variable.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor};
use oodbench_diffusion::net::{NetConfig, Pass};
use oodbench_nn::arch::{Architecture, Taps};
use oodbench_nn::formula;
use oodbench_nn::layers::Mode;
use oodbench_nn::precision::Precision;
use oodbench_nn::variables::Variables;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::variants::{self, Inputs};
use super::{F32, Gpu, assert_close, assert_near, values};

/// Variables of a network, by formula.
fn set_by_formula(variables: &Variables, device: &Device) {
    for (name, var) in variables.all() {
        let weight = Tensor::from_vec(formula::weight(&name, var.dims()), var.shape(), device);
        weight.and_then(|weight| var.set(&weight)).expect("a weight of the same shape");
    }
}

/// The noise under dropout, and what the sum of its squares has for gradients.
fn train_unet(
    net: &NetConfig,
    device: &Device,
    precision: Precision,
) -> (Variables, Tensor, GradStore) {
    let variables = Variables::new(3, device);
    let model = net.build_in(variables.builder(), precision).expect("a network");
    set_by_formula(&variables, device);
    let Inputs { x, t, y } = Inputs::of(net, device);
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let eps = model.eps(&x, &t, y.as_ref(), Pass::Train(&mut rng)).expect("a forward pass");
    let loss = eps.sqr().and_then(|squares| squares.sum_all()).expect("a loss");
    let grads = loss.backward().expect("a backward pass");
    (variables, eps, grads)
}

#[test]
fn gradients_of_unets_are_those_of_the_cpu() {
    let gpu = Gpu::new();
    for (name, net) in variants::every() {
        let (variables, expected_eps, expected) = train_unet(&net, &Device::Cpu, Precision::F32);
        let (ours_of, eps, ours) = train_unet(&net, &gpu.device, Precision::F32);
        assert_close(&format!("{name}: noise"), &eps, &expected_eps, F32);
        // A bias before a group of one channel has no gradient but rounding: what is small beside
        // the greatest of all gradients counts as nothing.
        let greatest = variables.all().iter().fold(0f64, |most, (_, var)| {
            let grad = expected.get(var).expect("a gradient");
            values(grad).iter().fold(most, |most, value| most.max(value.abs()))
        });
        for ((key, var), (_, var_of_ours)) in variables.all().iter().zip(ours_of.all()) {
            let (expected, ours) = (expected.get(var), ours.get(&var_of_ours));
            let ours = ours.unwrap_or_else(|| panic!("{name}: `{key}` has no gradient"));
            assert_eq!(ours.dtype(), DType::F32, "{name}: {key}");
            let expected = expected.expect("a gradient");
            assert_near(&format!("{name}: {key}"), ours, expected, 2.0 * F32, 1e-3 * greatest);
        }
    }
}

/// With activations of 8 bits each gradient is off by a few hundredths of its length.
#[test]
fn gradients_of_unets_in_bf16_point_the_same_way() {
    let gpu = Gpu::new();
    for (name, net) in variants::every() {
        let (variables, _, expected) = train_unet(&net, &Device::Cpu, Precision::F32);
        let (ours_of, _, ours) = train_unet(&net, &gpu.device, Precision::Bf16);
        let (mut difference, mut length) = (0.0, 0.0);
        for ((_, var), (key, var_of_ours)) in variables.all().iter().zip(ours_of.all()) {
            let expected = values(expected.get(var).expect("a gradient"));
            let ours = ours.get(&var_of_ours);
            let ours = ours.unwrap_or_else(|| panic!("{name}: `{key}` has no gradient"));
            assert_eq!(ours.dtype(), DType::F32, "{name}: {key}");
            for (ours, expected) in values(ours).into_iter().zip(expected) {
                difference += (ours - expected).powi(2);
                length += expected.powi(2);
            }
        }
        let off = (difference / length).sqrt();
        println!("{name}: gradients in bf16 are off by {off:.1e} of their length");
        assert!(off < 0.1, "{name}: off by {off:.2e} of their length");
    }
}

/// A classifier in training: batch statistics, and all that its gradients go through.
#[test]
fn gradients_of_classifiers_are_those_of_the_cpu() {
    let gpu = Gpu::new();
    let run =
        |architecture: Architecture, device: &Device| -> Result<(Variables, GradStore, Tensor)> {
            let variables = Variables::new(3, device);
            let network = architecture.build(5, variables.builder())?;
            set_by_formula(&variables, device);
            let xs = Tensor::from_vec(formula::normal("xs", 4 * 768), (4, 3, 16, 16), device)?;
            let logits = network.forward(&xs, Mode::Train, &mut Taps::none())?.logits;
            let grads = logits.sqr()?.sum_all()?.backward()?;
            Ok((variables, grads, logits))
        };
    for architecture in [
        Architecture::ResNetCifar { blocks: 1, width: 16, projection: true },
        Architecture::DenseNet { layers: 2, growth: 12, stem: 24, bottleneck: true, halving: true },
        Architecture::Wrn { blocks: 1, widen: 1 },
    ] {
        let (variables, expected, logits) = run(architecture, &Device::Cpu).expect("a step");
        let (ours_of, ours, our_logits) = run(architecture, &gpu.device).expect("a step");
        assert_close(&format!("{architecture}: logits"), &our_logits, &logits, 5.0 * F32);
        let ours_of = ours_of.trainable();
        for ((key, var), (_, var_of_ours)) in variables.trainable().iter().zip(&ours_of) {
            let (ours, expected) = (ours.get(var_of_ours), expected.get(var));
            let (ours, expected) = (ours.expect("a gradient"), expected.expect("a gradient"));
            // ReLU's kinks: an activation that falls to the other side by rounding.
            assert_near(&format!("{architecture}: {key}"), ours, expected, 1e-2, 1e-2);
        }
    }
}
