use candle_core::Device;
use oodbench_diffood::change::Space;
use oodbench_diffood::denoise::{Denoiser, Outputs};
use oodbench_diffood::{Scoring, noise};
use oodbench_diffusion::net::{DdimConfig, NetConfig};
use oodbench_diffusion::sampler::Method;
use oodbench_diffusion::schedule::{Schedule, ScheduleConfig};
use oodbench_nn::formula;
use oodbench_sdk::ImageBatch;
fn main() {
    let net = NetConfig::Ddim(DdimConfig { kind: "simple".into(), image_size: 16, num_classes: 10, in_channels: 3, out_ch: 3, ch: 32, ch_mult: vec![1, 2], num_res_blocks: 1, attn_resolutions: vec![8], dropout: 0.0, var_type: "fixedlarge".into(), resamp_with_conv: true });
    let model = net.build(formula::var_builder(Default::default())).unwrap();
    let schedule = Schedule::new(&ScheduleConfig::default());
    for batch in [16, 64, 256] {
        let n = 64;
        let s = Scoring { denoiser: Denoiser { model: model.as_ref(), schedule: &schedule, method: Method::Ddim, steps: 50, beta: 2.0, batch, device: &Device::Cpu }, compared: [0, 360], repeats: 4, space: Space::Image };
        let px = formula::uniform("p", n * 768, 0.0, 1.0);
        let start = std::time::Instant::now();
        s.scores(ImageBatch::new(&px, 16, 16).unwrap(), &vec![3; n], &|i, r, l| noise::noise(0, i as u64, r, l), &|_| Ok(Outputs::default()), &mut || Ok(())).unwrap();
        println!("batch {batch}: {:.2} images/s", n as f64 / start.elapsed().as_secs_f64());
    }
}
