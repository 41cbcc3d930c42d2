//! How a training is shown: a bar with what is left on a terminal, a line now and then elsewhere.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::observer::ProgressMode;

/// Talks on stderr.
pub(super) struct TrainTalk {
    bar: Option<ProgressBar>,
    /// Steps between two lines; none says nothing.
    every: Option<u64>,
    total: u64,
    images_a_second: Speed,
    steps_a_second: Speed,
}

/// How much is done in a second, mostly of late.
#[derive(Default)]
struct Speed {
    amount: f64,
    seconds: f64,
}

impl Speed {
    fn add(&mut self, amount: f64, seconds: f64) {
        // What is a minute old counts half.
        let keep = 0.5f64.powf(seconds / 60.0);
        self.amount = self.amount * keep + amount;
        self.seconds = self.seconds * keep + seconds;
    }

    fn get(&self) -> f64 {
        self.amount / self.seconds.max(1e-9)
    }
}

impl TrainTalk {
    /// A training of `total` steps, `done` of which were made earlier.
    pub(super) fn new(mode: ProgressMode, done: u64, total: u64, every: u64) -> Self {
        let is_bar = match mode {
            ProgressMode::Auto => std::io::stderr().is_terminal(),
            ProgressMode::Bar => true,
            ProgressMode::Counter | ProgressMode::None => false,
        };
        let bar = is_bar.then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("step {pos}/{len} {wide_bar} {msg}") {
                bar.set_style(style);
            }
            bar.set_position(done);
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        let every = (!is_bar && mode != ProgressMode::None).then_some(every.max(1));
        Self {
            bar,
            every,
            total,
            images_a_second: Speed::default(),
            steps_a_second: Speed::default(),
        }
    }

    /// After a step: `what` is said of it, such as its loss.
    pub(super) fn step(&mut self, step: u64, images: usize, since: Instant, what: &str) {
        let seconds = since.elapsed().as_secs_f64();
        self.images_a_second.add(images as f64, seconds);
        self.steps_a_second.add(1.0, seconds);
        let left = self.total.saturating_sub(step) as f64 / self.steps_a_second.get().max(1e-9);
        let speed = self.images_a_second.get();
        let how = format!("{what}, {} images/s, {} left", rounded(speed), duration(left));
        if let Some(bar) = &self.bar {
            bar.set_position(step);
            bar.set_message(how);
        } else if self.every.is_some_and(|every| step.is_multiple_of(every) || step == self.total) {
            say(&format!("step {step}/{}: {how}", self.total));
        }
    }

    /// A line of its own.
    pub(super) fn note(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(line)),
            None if self.every.is_some() => say(line),
            None => {}
        }
    }
}

impl Drop for TrainTalk {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A closed stderr does not stop a training.
pub(super) fn say(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

fn rounded(speed: f64) -> String {
    if speed < 10.0 { format!("{speed:.1}") } else { format!("{speed:.0}") }
}

/// Seconds for people.
pub(super) fn duration(seconds: f64) -> String {
    let seconds = seconds.max(0.0) as u64;
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, s) => format!("{s} s"),
        (0, 0, m, s) => format!("{m} min {s:02} s"),
        (0, h, m, _) => format!("{h} h {m:02} min"),
        (d, h, _, _) => format!("{d} d {h:02} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_at_a_glance() {
        let seconds = [5.0, 65.0, 7300.0, 200_000.0];
        assert_eq!(seconds.map(duration), ["5 s", "1 min 05 s", "2 h 01 min", "2 d 07 h"]);
    }

    #[test]
    fn the_speed_is_that_of_late() {
        let mut speed = Speed::default();
        (0..100).for_each(|_| speed.add(10.0, 1.0));
        assert!((speed.get() - 10.0).abs() < 1e-9);
        (0..300).for_each(|_| speed.add(50.0, 1.0));
        assert!((45.0..50.0).contains(&speed.get()), "{}", speed.get());
    }
}
