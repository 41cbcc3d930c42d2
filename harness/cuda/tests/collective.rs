//! Sums over processes, here threads that each have a device of their own.
//!
//! With one GPU (`OODBENCH_DEVICE`, or `cuda:0`) a group of one is tested. `OODBENCH_DEVICES` names
//! several, for example `cuda:0,cuda:1`, for a group of as many.

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};
use oodbench_cuda::collective::{Collective, new_id};

/// The ordinals of the devices under test.
fn ordinals() -> Vec<usize> {
    let one = || std::env::var("OODBENCH_DEVICE").unwrap_or_else(|_| "cuda:0".to_owned());
    let names = std::env::var("OODBENCH_DEVICES").unwrap_or_else(|_| one());
    let ordinal = |name: &str| name.trim_start_matches("cuda:").parse().expect("`cuda:N`");
    names.split(',').map(ordinal).collect()
}

/// What each rank's `f` gives, in the order of ranks. One group at a time: two on the same GPUs could
/// each wait for what the other is before.
fn together<R: Send>(f: impl Fn(&Collective, &Device) -> R + Sync) -> Vec<R> {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (ordinals, id) = (ordinals(), new_id().expect("an id"));
    let world = ordinals.len();
    std::thread::scope(|scope| {
        let start = |(rank, ordinal): (usize, &usize)| {
            let (ordinal, f) = (*ordinal, &f);
            scope.spawn(move || {
                let device = oodbench_cuda::open(ordinal).expect("a device");
                let group = Collective::join(&device, &id, rank, world).expect("a group");
                assert_eq!((group.rank(), group.world()), (rank, world));
                f(&group, &device)
            })
        };
        let threads: Vec<_> = ordinals.iter().enumerate().map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank")).collect()
    })
}

/// Small whole numbers, so that sums of them are exact.
fn own(rank: usize, len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7 + rank * 13) % 32) as f32).collect()
}

#[test]
fn every_rank_gets_the_mean_of_all() {
    // Of shapes whose parts do and do not end at multiples of four; none of a transposed one moves.
    let shapes: [&[usize]; 5] = [&[3], &[], &[5, 7], &[16], &[2, 3, 4]];
    let means = together(|group, device| {
        let tensor = |shape: &&[usize]| {
            let numbers = own(group.rank(), shape.iter().product());
            Tensor::from_vec(numbers, *shape, device).expect("a tensor")
        };
        let mut tensors: Vec<Tensor> = shapes.iter().map(tensor).collect();
        tensors[2] = tensors[2].t().expect("a view");
        let means = group.mean(&tensors.iter().collect::<Vec<_>>()).expect("means");
        let flat = |(mean, tensor): (&Tensor, &Tensor)| {
            assert_eq!(mean.shape(), tensor.shape());
            mean.flatten_all().and_then(|mean| mean.to_vec1::<f32>()).expect("numbers")
        };
        means.iter().zip(&tensors).map(flat).collect::<Vec<_>>()
    });
    let world = means.len();
    for of_rank in &means {
        for (nth, (got, shape)) in of_rank.iter().zip(shapes).enumerate() {
            let sum = |i: usize| (0..world).map(|rank| own(rank, 64)[i]).sum::<f32>();
            let mean = |i: usize| sum(i) / world as f32;
            let expected: Vec<f32> = match nth {
                2 => (0..35).map(|i| mean(i % 5 * 7 + i / 5)).collect(),
                _ => (0..shape.iter().product()).map(mean).collect(),
            };
            assert_eq!(*got, expected, "{shape:?}");
        }
    }
}

#[test]
fn one_that_says_so_is_enough() {
    let all = together(|group, _| {
        let last = group.world() - 1;
        [false, group.rank() == last, false].map(|says| group.any(says).expect("an answer"))
    });
    assert!(all.iter().all(|answers| *answers == [false, true, false]), "{all:?}");
}

#[test]
fn what_does_not_fit_is_refused() {
    together(|group, device| {
        let wrong = Tensor::zeros(3, DType::U32, device).expect("a tensor");
        assert!(group.mean(&[&wrong]).is_err());
        let elsewhere = Tensor::zeros(3, DType::F32, &Device::Cpu).expect("a tensor");
        assert!(group.mean(&[&elsewhere]).is_err());
        assert!(!group.any(false).expect("the group goes on"));
    });
    let id = new_id().expect("an id");
    let error = Collective::join(&Device::Cpu, &id, 2, 2).err().expect("a refusal").to_string();
    assert!(error.contains("rank expected below 2, got 2"), "{error}");
}
