//! Training images and the loss of a predicted noise.

use candle_core::{DType, Device, Tensor, Var};
use oodbench_cuda::augment::{Loss, Pick, diffuse, noise_loss, pick_images};
use oodbench_cuda::upload::Upload;

use crate::{assert_close, device, numbers};

/// As the CPU cuts an image out.
fn cut(
    pixels: &[u8],
    (h, w): (usize, usize),
    pick: Pick,
    padding: usize,
    signed: bool,
) -> Vec<f32> {
    let mut out = vec![0f32; 3 * h * w];
    for (i, value) in out.iter_mut().enumerate() {
        let (channel, y, x) = (i / (h * w), i / w % h, i % w);
        let column = if pick.mirrored { w - 1 - x } else { x };
        let from_y = (y + pick.dy as usize).checked_sub(padding).filter(|y| *y < h);
        let from_x = (column + pick.dx as usize).checked_sub(padding).filter(|x| *x < w);
        if let (Some(y), Some(x)) = (from_y, from_x) {
            let place = ((pick.index as usize * h + y) * w + x) * 3 + channel;
            *value = f32::from(pixels[place]) / 255.0;
        }
        if signed {
            *value = *value * 2.0 - 1.0;
        }
    }
    out
}

#[test]
fn images_are_those_of_the_cpu_bit_for_bit() {
    let device = device();
    for (h, w, padding) in [(5, 4, 0), (5, 4, 2), (1, 1, 1), (17, 33, 4), (3, 7, 9)] {
        let n = 5;
        let pixels: Vec<u8> = (0..n * h * w * 3).map(|i| (i * 89 % 256) as u8).collect();
        let picks: Vec<Pick> = (0..11u32)
            .map(|i| Pick {
                index: i * 3 % n as u32,
                dy: i * 5 % (2 * padding as u32 + 1),
                dx: i * 7 % (2 * padding as u32 + 1),
                mirrored: i % 2 == 1,
            })
            .collect();
        let words: Vec<u32> = picks.iter().flat_map(|pick| pick.words()).collect();
        let on_device = Tensor::from_slice(&pixels, (n, h, w, 3), &device).unwrap();
        let table = Tensor::from_vec(words, (picks.len(), 4), &device).unwrap();
        for (signed, how) in [(false, (1.0, 0.0)), (true, (2.0, -1.0))] {
            let xs = pick_images(&on_device, &table, padding, how).unwrap();
            assert_eq!(xs.dims(), [picks.len(), 3, h, w]);
            let got: Vec<f32> = xs.flatten_all().unwrap().to_vec1().unwrap();
            let cut = |pick: &Pick| cut(&pixels, (h, w), *pick, padding, signed);
            let expected: Vec<f32> = picks.iter().flat_map(cut).collect();
            assert!(got == expected, "{h}x{w}, padding {padding}, signed {signed}");
        }
    }
}

#[test]
fn noised_images_are_those_of_the_cpu_bit_for_bit() {
    let (cuda, n) = (device(), 3 * 5 * 7);
    let of = |device: &Device| {
        // The factors of every image begin where the noise ends, as in an upload.
        let all = Tensor::from_vec(numbers(3, 4 * n + 8), 4 * n + 8, device).unwrap();
        let noise = all.narrow(0, 0, 4 * n).unwrap().reshape((4, 3, 5, 7)).unwrap();
        let factors = all.narrow(0, 4 * n, 8).unwrap().reshape((2, 4)).unwrap();
        let xs = Tensor::from_vec(numbers(4, 4 * n), (4, 3, 5, 7), device).unwrap();
        (xs, noise, factors)
    };
    let (xs, noise, factors) = of(&cuda);
    let got = diffuse(&xs, &noise, &factors).unwrap().flatten_all().unwrap();
    let (xs, noise, factors) = of(&Device::Cpu);
    let factor = |i| factors.get(i).unwrap().reshape((4, 1, 1, 1)).unwrap();
    let signal = xs.broadcast_mul(&factor(0)).unwrap();
    let expected = (signal + noise.broadcast_mul(&factor(1)).unwrap()).unwrap();
    let expected = expected.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(got.to_vec1::<f32>().unwrap(), expected);
    let wrong = Tensor::zeros((2, 3), DType::F32, &cuda).unwrap();
    let (xs, noise, _) = of(&cuda);
    assert!(diffuse(&xs, &noise, &wrong).is_err());
}

#[test]
fn the_loss_of_a_noise_and_its_gradient_are_those_of_the_formula() {
    let device = device();
    for (batch, per_image) in [(1, 1), (3, 255), (2, 3072), (40, 257)] {
        for loss in [Loss::Square, Loss::Absolute] {
            let (eps, noise) = (numbers(1, batch * per_image), numbers(2, batch * per_image));
            let tensor = |v: &[f32]| Tensor::from_slice(v, (batch, per_image), &device).unwrap();
            let var = Var::from_tensor(&tensor(&eps)).unwrap();
            let result = noise_loss(&var, &tensor(&noise), loss).unwrap();
            assert_eq!(result.dims(), &[] as &[usize]);
            let off = |i: usize| f64::from(eps[i]) - f64::from(noise[i]);
            let one = |i: usize| match loss {
                Loss::Square => off(i).powi(2),
                Loss::Absolute => off(i).abs(),
            };
            let expected = (0..eps.len()).map(one).sum::<f64>() / batch as f64;
            let got = f64::from(result.to_scalar::<f32>().unwrap());
            assert!((got / expected - 1.0).abs() < 1e-6, "expected {expected}, got {got}");
            // Half of the loss, as one of two micro-batches has it.
            let grads = (&result / 2.0).unwrap().backward().unwrap();
            let slope = |i: usize| match loss {
                Loss::Square => 2.0 * off(i),
                Loss::Absolute => off(i).signum(),
            };
            let expected: Vec<f64> =
                (0..eps.len()).map(|i| slope(i) / (2.0 * batch as f64)).collect();
            let got = grads.get(&var).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_close(&got, &expected, DType::F32, 1e-6);
        }
    }
}

#[test]
fn uploads_take_turns_and_keep_what_they_carry() {
    let device = device();
    let mut upload = Upload::<f32>::new(&device).unwrap();
    let sent: Vec<(Vec<f32>, Tensor)> = (1..12u64)
        .map(|i| {
            let numbers = numbers(i, 1000 * (i as usize % 4) + 7);
            let tensor = upload.tensor(&numbers, numbers.len()).unwrap();
            (numbers, tensor)
        })
        .collect();
    for (numbers, tensor) in sent {
        assert_eq!(tensor.to_vec1::<f32>().unwrap(), numbers);
    }
    assert!(upload.tensor(&[1.0], 2).is_err());
    assert!(Upload::<f32>::new(&Device::Cpu).is_err());
}
