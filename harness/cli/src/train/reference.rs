//! `--restart FILE.ckpt`: a training that DiffOOD's own code began goes on here.

use std::path::Path;

use oodbench_diffusion::train::DiffusionTraining;
use oodbench_nn::train::torch;

use crate::exit::Failure;

/// Takes over weights, optimiser, average and step. The data order from there on is ours: PyTorch's
/// own cannot be taken over, and its code begins the pass anew when it restarts.
pub(super) fn adopt(training: &mut DiffusionTraining<'_>, path: &Path) -> Result<(), Failure> {
    torch::adopt(path, |step, read| training.adopt(step, read)).map_err(|error| {
        let mut failure = Failure::from(error);
        failure.hint.get_or_insert_with(|| {
            "`--restart FILE` takes a `train.ckpt` of DiffOOD's own code, with `ema.ckpt` beside it \
             where `Train.ema` is true; `--restart` alone goes on with the folder's own checkpoint"
                .to_owned()
        });
        failure
    })
}
