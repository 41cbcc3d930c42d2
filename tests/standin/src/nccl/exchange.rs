//! Ranks that give each other bytes, through files that are named after a common id.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::INVALID_ARGUMENT;
use crate::api::{Outcome, refusal};
use crate::half::{from_bf16, from_f16, to_bf16, to_f16};

const SYSTEM_ERROR: u32 = 2;
/// The real library waits for ever; a test had better end.
const PATIENCE: Duration = Duration::from_secs(120);

/// An id that nobody else has.
pub(super) fn fresh_id() -> [u8; 128] {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let place = &raw const now as usize;
    let mut id = [0_u8; 128];
    id[..16].copy_from_slice(&now.to_le_bytes());
    id[16..24].copy_from_slice(&place.to_le_bytes());
    id[24..28].copy_from_slice(&std::process::id().to_le_bytes());
    id
}

/// One rank's side of a group.
pub(super) struct Meeting {
    folder: PathBuf,
    pub(super) rank: usize,
    pub(super) world: usize,
}

fn failed(what: &str, error: &std::io::Error) -> crate::api::Refusal {
    refusal(SYSTEM_ERROR, format!("{what}: {error}"))
}

impl Meeting {
    pub(super) fn new(id: &[u8], rank: usize, world: usize) -> Outcome<Self> {
        let name: String = id[..28].iter().map(|byte| format!("{byte:02x}")).collect();
        let shared = PathBuf::from("/dev/shm");
        let base = if shared.is_dir() { shared } else { std::env::temp_dir() };
        let folder = base.join(format!("oodbench-standin-{name}"));
        std::fs::create_dir_all(&folder)
            .map_err(|error| failed("make a group's folder", &error))?;
        Ok(Self { folder, rank, world })
    }

    fn file(&self, name: &str, rank: usize) -> PathBuf {
        self.folder.join(format!("{name}.{rank}"))
    }

    /// Gives bytes to the others, under a name that all ranks use.
    pub(super) fn post(&self, name: &str, bytes: &[u8]) -> Outcome {
        let made = self.file(&format!("{name}.partial"), self.rank);
        std::fs::write(&made, bytes)
            .and_then(|()| std::fs::rename(&made, self.file(name, self.rank)))
            .map_err(|error| failed("give to other ranks", &error))
    }

    /// Waits for what all ranks give, in their order.
    pub(super) fn gather(&self, name: &str) -> Outcome<Vec<Vec<u8>>> {
        let begun = Instant::now();
        let one = |rank| loop {
            match std::fs::read(self.file(name, rank)) {
                Ok(bytes) => return Ok(bytes),
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(failed("take from other ranks", &error));
                }
                Err(_) if begun.elapsed() > PATIENCE => {
                    let line = format!("rank {rank} of {} never comes to `{name}`", self.world);
                    return Err(refusal(SYSTEM_ERROR, line));
                }
                Err(_) => std::thread::sleep(Duration::from_micros(200)),
            }
        };
        (0..self.world).map(one).collect()
    }

    /// Removes what this rank gave two groups before. Who gives to this group has taken all of the
    /// last one, so that every rank had given to that, and had taken all of the one before.
    pub(super) fn forget(&self, group: u64) {
        let Ok(all) = std::fs::read_dir(&self.folder) else { return };
        for entry in all.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let number = name.split('-').next().and_then(|number| number.parse::<u64>().ok());
            let own = name.ends_with(&format!(".{}", self.rank));
            if own && number.is_some_and(|number| number + 2 <= group) {
                // It lies there for good otherwise, which does no harm.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    /// Leaves; the last one removes the folder.
    pub(super) fn leave(&self) -> Outcome {
        self.post("left", &[])?;
        if (0..self.world).all(|rank| self.file("left", rank).exists()) {
            // Another one may be doing the same.
            let _ = std::fs::remove_dir_all(&self.folder);
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reduction {
    Sum = 0,
    Product = 1,
    Max = 2,
    Min = 3,
    Mean = 4,
}

impl Reduction {
    pub(super) fn of(number: u32) -> Outcome<Self> {
        [Self::Sum, Self::Product, Self::Max, Self::Min, Self::Mean]
            .into_iter()
            .find(|how| *how as u32 == number)
            .ok_or_else(|| refusal(INVALID_ARGUMENT, format!("reduction {number}")))
    }

    fn join(self, a: f64, b: f64) -> f64 {
        match self {
            Self::Sum | Self::Mean => a + b,
            Self::Product => a * b,
            Self::Max => a.max(b),
            Self::Min => a.min(b),
        }
    }
}

/// The types of numbers, as `ncclDataType_t` counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Number {
    I8 = 0,
    U8 = 1,
    I32 = 2,
    U32 = 3,
    I64 = 4,
    U64 = 5,
    F16 = 6,
    F32 = 7,
    F64 = 8,
    Bf16 = 9,
}

macro_rules! each {
    ($type:ty, $how:expr, $parts:expr, $world:expr) => {{
        let read = |part: &[u8], at: usize| {
            let bytes = &part[at * size_of::<$type>()..][..size_of::<$type>()];
            <$type>::from_le_bytes(bytes.try_into().expect("as many bytes"))
        };
        let count = $parts[0].len() / size_of::<$type>();
        (0..count)
            .flat_map(|at| {
                let all = $parts.iter().map(|part| read(part, at) as f64);
                let joined = all.reduce(|a, b| $how.join(a, b)).unwrap_or(0.0);
                let value = if $how == Reduction::Mean { joined / $world } else { joined };
                (value as $type).to_le_bytes()
            })
            .collect()
    }};
}

impl Number {
    pub(super) fn of(number: u32) -> Outcome<Self> {
        use Number::*;
        [I8, U8, I32, U32, I64, U64, F16, F32, F64, Bf16]
            .into_iter()
            .find(|one| *one as u32 == number)
            .ok_or_else(|| refusal(INVALID_ARGUMENT, format!("data type {number}")))
    }

    pub(super) fn bytes(self) -> usize {
        match self {
            Self::I8 | Self::U8 => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 | Self::U64 | Self::F64 => 8,
        }
    }

    /// Joins the parts of all ranks, in their order. 64-bit integers are exact below 2^53.
    pub(super) fn reduce(self, how: Reduction, parts: &[Vec<u8>]) -> Vec<u8> {
        let world = parts.len() as f64;
        let halves = |read: fn(u16) -> f32, write: fn(f32) -> u16| -> Vec<u8> {
            let at = |part: &[u8], at: usize| {
                f64::from(read(u16::from_le_bytes([part[2 * at], part[2 * at + 1]])))
            };
            (0..parts[0].len() / 2)
                .flat_map(|position| {
                    let all = parts.iter().map(|part| at(part, position));
                    let joined = all.reduce(|a, b| how.join(a, b)).unwrap_or(0.0);
                    let value = if how == Reduction::Mean { joined / world } else { joined };
                    write(value as f32).to_le_bytes()
                })
                .collect()
        };
        match self {
            Self::I8 => each!(i8, how, parts, world),
            Self::U8 => each!(u8, how, parts, world),
            Self::I32 => each!(i32, how, parts, world),
            Self::U32 => each!(u32, how, parts, world),
            Self::I64 => each!(i64, how, parts, world),
            Self::U64 => each!(u64, how, parts, world),
            Self::F32 => each!(f32, how, parts, world),
            Self::F64 => each!(f64, how, parts, world),
            Self::F16 => halves(from_f16, to_f16),
            Self::Bf16 => halves(from_bf16, to_bf16),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_that_are_threads_exchange_what_they_give() {
        let id = fresh_id();
        let run = |rank: usize| {
            let meeting = Meeting::new(&id, rank, 2).unwrap();
            for call in 1..=5_u64 {
                let name = format!("{call}-test");
                meeting.forget(call);
                meeting.post(&name, &(rank as f32 + call as f32).to_le_bytes()).unwrap();
                let parts = meeting.gather(&name).unwrap();
                let mean = Number::F32.reduce(Reduction::Mean, &parts);
                assert_eq!(mean, (call as f32 + 0.5).to_le_bytes());
            }
            meeting.leave().unwrap();
            meeting.folder
        };
        let folder = std::thread::scope(|scope| {
            let other = scope.spawn(|| run(1));
            run(0);
            other.join().unwrap()
        });
        assert!(!folder.exists());
    }

    #[test]
    fn reductions_are_what_they_say() {
        let parts = [3_u32.to_le_bytes().to_vec(), 5_u32.to_le_bytes().to_vec()];
        for (how, expected) in [
            (Reduction::Sum, 8),
            (Reduction::Product, 15),
            (Reduction::Max, 5),
            (Reduction::Min, 3),
            (Reduction::Mean, 4),
        ] {
            assert_eq!(Number::U32.reduce(how, &parts), u32::to_le_bytes(expected), "{how:?}");
        }
    }
}
