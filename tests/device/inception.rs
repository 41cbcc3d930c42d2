//! The network of the Fréchet inception distance, whose kernels are not all square.

use candle_core::{Device, Tensor};
use oodbench_nn::formula;
use oodbench_nn::inception::Inception;

use super::{F32, Gpu, assert_close};

#[test]
fn features_are_those_of_the_cpu() {
    let gpu = Gpu::new();
    let features = |device: &Device| {
        let network =
            Inception::new(formula::var_builder(Default::default()).set_device(device.clone()))?;
        let images = Tensor::from_vec(
            formula::uniform("fid", 3 * 32 * 32, 0.0, 1.0),
            (1, 3, 32, 32),
            device,
        )?;
        network.features(&images)
    };
    let expected = features(&Device::Cpu).expect("features");
    assert_close("Inception", &features(&gpu.device).expect("features"), &expected, F32);
}
