//! Detectors that panic, crash, hang and lie, for the tests of the harness.
//!
//! Each has one fault, which its id names; see [`FAULTS`] for what should become of it. They need
//! logits alone, so they run wherever a classifier does. None is for use: they end the process
//! that they run in, which is why the harness gives a cell a process of its own.

pub mod search;

use oodbench_sdk::prelude::*;

/// What a detector does wrong, and when.
type Fault = fn(Moment) -> Result<()>;

/// Where in its life a detector is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    Fit,
    Score,
    Drop,
}

/// Declares a detector for each fault.
macro_rules! faults {
    ($($name:ident, $id:literal, $summary:literal, $fault:expr;)+) => {
        $(
            #[doc = $summary]
            pub struct $name;

            impl Detector for $name {
                type Params = NoParams;

                fn info() -> Info {
                    Info {
                        id: $id,
                        title: $id,
                        family: "faulty",
                        summary: $summary,
                        needs: Needs::LOGITS,
                        example: Example::of_logits(&[&[2.0, 1.0], &[0.5, 3.0]], &[-2.0, -3.0]),
                        ..Info::default()
                    }
                }

                fn new(_params: NoParams, _host: Host) -> Result<Self> {
                    Ok(Self)
                }

                fn fit(&mut self, _data: &FitData<'_>) -> Result<()> {
                    let fault: Fault = $fault;
                    fault(Moment::Fit)
                }

                fn score(&mut self, batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
                    let fault: Fault = $fault;
                    max_logit(batch, scores)?;
                    fault(Moment::Score)?;
                    if $id == "faulty-nan" && let Some(last) = scores.last_mut() {
                        *last = f32::NAN;
                    }
                    Ok(())
                }
            }

            impl Drop for $name {
                fn drop(&mut self) {
                    let fault: Fault = $fault;
                    // Nobody can be told of an error in a destructor; a panic is what counts.
                    let _ = fault(Moment::Drop);
                }
            }
        )+

        oodbench_sdk::export_pack!($($name,)+ search::Sweep);

        /// The id of each detector with a fault of its own.
        pub const FAULTS: &[&str] = &[$($id),+];
    };
}

faults! {
    Panic, "faulty-panic", "panics in score", |moment| panics(moment, Moment::Score);
    PanicInFit, "faulty-panic-in-fit", "panics in fit", |moment| panics(moment, Moment::Fit);
    PanicInDrop, "faulty-panic-in-drop", "scores rightly and panics when it is dropped",
        |moment| panics(moment, Moment::Drop);
    Segfault, "faulty-segfault", "reads address 0", |moment| when(moment, segfault);
    StackOverflow, "faulty-stack-overflow", "calls itself for ever",
        |moment| when(moment, || { deeper(0); });
    Exit0, "faulty-exit-0", "ends the process as if all were well",
        |moment| when(moment, exit_as_if_all_were_well);
    Hang, "faulty-hang", "sleeps for ever", |moment| when(moment, sleep_for_ever);
    EatMemory, "faulty-eat-memory", "takes memory in steps of 64 MiB, up to 64 GiB",
        |moment| when(moment, eat_memory);
    Nan, "faulty-nan", "gives NaN for the last image of each batch", |_| Ok(());
    Stdout, "faulty-stdout", "writes to stdout and scores rightly", |moment| when(moment, chatter);
    Failing, "faulty-error", "fails in score with a reason", |moment| match moment {
        Moment::Score => Err(Error::new("this detector always fails")),
        _ => Ok(()),
    };
}

/// Every one of them gives the negative greatest logit, as far as it gets.
fn max_logit(batch: &Batch<'_>, scores: &mut [f32]) -> Result<()> {
    for (score, logits) in scores.iter_mut().zip(batch.logits()?.rows()) {
        *score = -logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    }
    Ok(())
}

fn panics(moment: Moment, at: Moment) -> Result<()> {
    if moment == at {
        panic!("this detector always panics");
    }
    Ok(())
}

/// Does it while scoring.
fn when(moment: Moment, fault: fn()) -> Result<()> {
    if moment == Moment::Score {
        fault();
    }
    Ok(())
}

fn segfault() {
    // The address is hidden from the compiler, which would put a trap in place of the read.
    let address: *const u8 = std::hint::black_box(std::ptr::null());
    // SAFETY: there is none, this is the fault. No page is mapped at 0, so the system ends the
    // process with SIGSEGV before any value comes of it.
    let value = unsafe { address.read_volatile() };
    std::hint::black_box(value);
}

#[expect(unconditional_recursion, reason = "the stack is to overflow")]
fn deeper(depth: u64) -> u64 {
    // Something on the stack that is used after the call, so that no loop is made of it.
    let mut ballast = std::hint::black_box([depth; 64]);
    ballast[0] = deeper(std::hint::black_box(depth + 1));
    std::hint::black_box(ballast).iter().sum()
}

#[expect(clippy::exit, reason = "this is the fault")]
fn exit_as_if_all_were_well() {
    std::process::exit(0);
}

fn sleep_for_ever() {
    loop {
        std::thread::sleep(std::time::Duration::from_secs(3600));
    }
}

fn eat_memory() {
    /// Small enough that a limit strikes before the machine suffers.
    const STEP: usize = 64 << 20;
    const STEPS: usize = 1024;
    let mut eaten: Vec<Vec<u8>> = Vec::new();
    for step in 0..STEPS {
        // A value other than 0 touches every page, so that the memory is really taken.
        eaten.push(vec![step as u8 | 1; STEP]);
        std::hint::black_box(&eaten);
    }
}

#[expect(clippy::print_stdout, reason = "this is the fault")]
fn chatter() {
    // One line that looks like a message of the harness, and one that does not end.
    println!("{{\"done\":true}}");
    print!("chatter");
    let _ = std::io::Write::flush(&mut std::io::stdout());
}
