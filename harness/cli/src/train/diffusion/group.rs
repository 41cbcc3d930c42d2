//! Training on several GPUs: a process for each, started by the one that the user started.
//!
//! The first process is rank 0: it alone saves, talks and looks at pictures. It starts the others with
//! its own arguments and `--member`, and gives each what they recognise each other by through a pipe
//! to its standard input. The pipe stays open as long as rank 0 lives: a member that finds it closed
//! ends. The other way round a thread waits for each member: one that ends before the training does
//! would leave the others waiting for it in NCCL without end, so the whole training is ended then. Its
//! last checkpoint is as it was.

use std::str::FromStr;

use oodbench_diffusion::train::{DiffusionTraining, Share};
use oodbench_nn::train::{Alone, Reduce};

use crate::exit::Failure;

/// Which of several processes this one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member(pub(super) Share);

impl FromStr for Member {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (rank, world) = text.split_once('/')?;
            let share = Share { rank: rank.parse().ok()?, world: world.parse().ok()? };
            (share.rank < share.world).then_some(Self(share))
        };
        parse().ok_or_else(|| format!("expected RANK/WORLD, got `{text}`"))
    }
}

/// The devices of `--device`, one for each process.
pub(super) fn devices(typed: &str) -> Result<Vec<&str>, Failure> {
    let names: Vec<&str> = typed.split(',').collect();
    if names.len() == 1 {
        return Ok(names);
    }
    if !names.iter().all(|name| name.starts_with("cuda:")) {
        let message = format!("`--device` of several expected `cuda:N` only, got `{typed}`");
        let hint = "for example `--device cuda:0,cuda:1`".to_owned();
        return Err(Failure::usage(message, Some(hint)));
    }
    if !cfg!(feature = "nccl") {
        let message = format!("train on devices `{typed}`: this build has no NCCL");
        let hint = "build with `--features cuda,cudnn,nccl`, or name one device";
        return Err(Failure::usage(message, Some(hint.to_owned())));
    }
    Ok(names)
}

/// Those that make every step together.
pub(super) enum Machines {
    One(Alone),
    #[cfg(feature = "nccl")]
    Several(together::Group),
}

impl Machines {
    /// Starts the other processes, if there are to be any, and gives `training` its share.
    pub(super) fn start(
        names: &[&str],
        training: &mut DiffusionTraining<'_>,
        device: &candle_core::Device,
    ) -> Result<Self, Failure> {
        if names.len() == 1 {
            return Ok(Self::One(Alone));
        }
        training.take_share(Share { rank: 0, world: names.len() })?;
        #[cfg(feature = "nccl")]
        return together::Group::start(names, device).map(Self::Several);
        #[cfg(not(feature = "nccl"))]
        {
            let _ = device;
            unreachable!("several devices are refused without NCCL")
        }
    }

    pub(super) fn reduce(&mut self) -> &mut dyn Reduce {
        match self {
            Self::One(alone) => alone,
            #[cfg(feature = "nccl")]
            Self::Several(group) => group.reduce(),
        }
    }

    /// Whether any of the processes says so; all of them ask at the same time.
    pub(super) fn any(&self, says: bool) -> Result<bool, Failure> {
        match self {
            Self::One(_) => Ok(says),
            #[cfg(feature = "nccl")]
            Self::Several(group) => group.any(says),
        }
    }

    /// Waits for the other processes to end.
    pub(super) fn finish(self) -> Result<(), Failure> {
        match self {
            Self::One(_) => Ok(()),
            #[cfg(feature = "nccl")]
            Self::Several(group) => group.finish(),
        }
    }
}

#[cfg(feature = "nccl")]
pub(super) mod together;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_read_as_it_is_written() {
        assert_eq!("1/2".parse(), Ok(Member(Share { rank: 1, world: 2 })));
        for wrong in ["", "1", "2/2", "-1/2", "a/b", "1/0"] {
            assert!(wrong.parse::<Member>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn several_devices_are_gpus() {
        assert_eq!(devices("cpu").unwrap(), ["cpu"]);
        let message = |typed| devices(typed).unwrap_err().message;
        assert!(message("cpu,cuda:0").contains("`cuda:N` only, got `cpu,cuda:0`"));
        if cfg!(feature = "nccl") {
            assert_eq!(devices("cuda:0,cuda:1").unwrap(), ["cuda:0", "cuda:1"]);
        } else {
            assert!(message("cuda:0,cuda:1").contains("this build has no NCCL"));
        }
    }
}
