//! A worker process and the one who watches it: starts it, hears its events, ends it when it is
//! silent or greedy, and finds a name for every way in which it can end.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use oodbench_record::Outcome;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// How long to wait for an event before looking after the worker.
const LOOK: Duration = Duration::from_millis(50);

/// Lines of what a worker wrote to its standard error that are kept.
const KEPT_LINES: usize = 50;

/// What a worker may do, and what it is called with.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long a worker may say nothing.
    pub silence: Duration,
    /// Resident memory, in bytes.
    pub memory: Option<u64>,
}

/// How to start a worker: the program and its arguments; the request goes to its standard input.
#[derive(Clone, Debug)]
pub struct WorkerCommand {
    pub program: PathBuf,
    pub args: Vec<String>,
}

/// A worker that did not end as it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub outcome: Outcome,
    /// One line.
    pub message: String,
}

/// Starts a worker, hands it `request`, and calls `hear` with each event and `talk` with each line
/// that it writes to its standard error. `is_last` tells the event after which it may end.
///
/// # Errors
/// How it ended, if not as it should: without its last event, by a signal, or for a limit.
pub fn supervise<R: Serialize, E: DeserializeOwned>(
    command: &WorkerCommand,
    request: &R,
    threads: usize,
    limits: &Limits,
    mut hear: impl FnMut(E),
    mut talk: impl FnMut(&str),
    is_last: impl Fn(&E) -> bool,
) -> Result<(), Ended> {
    let mut child = start(command, threads).map_err(|error| Ended {
        outcome: Outcome::Error,
        message: format!("start worker `{}`: {error}", command.program.display()),
    })?;
    send(&mut child, request);
    let lines = listen(&mut child);
    let mut tail = VecDeque::new();
    let mut last_heard = Instant::now();
    let mut finished = false;
    let mut ended_by_us = None;
    loop {
        match lines.recv_timeout(LOOK) {
            Ok(Line::Event(line)) => {
                last_heard = Instant::now();
                // What is no event cannot come from the worker's own code: the descriptor is private.
                if let Ok(event) = serde_json::from_str::<E>(&line) {
                    finished |= is_last(&event);
                    hear(event);
                }
            }
            Ok(Line::Talk(line)) => {
                talk(&line);
                if is_of_a_backtrace(&line) {
                    continue;
                }
                if tail.len() == KEPT_LINES {
                    tail.pop_front();
                }
                tail.push_back(line);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if ended_by_us.is_none()
            && let Some(ended) = over_a_limit(&child, limits, last_heard)
        {
            // A worker that is gone already needs no signal.
            let _ = child.kill();
            ended_by_us = Some(ended);
        }
    }
    let status = child.wait().map_err(|error| Ended {
        outcome: Outcome::Error,
        message: format!("wait for the worker: {error}"),
    })?;
    match ended_by_us {
        Some(ended) => Err(ended),
        None if finished && status.success() => Ok(()),
        None => Err(name_the_end(status, finished, &tail.into_iter().collect::<Vec<_>>())),
    }
}

fn start(command: &WorkerCommand, threads: usize) -> std::io::Result<Child> {
    Command::new(&command.program)
        .args(&command.args)
        // Every library that computes has its own pool of threads, and reads this.
        .env("RAYON_NUM_THREADS", threads.max(1).to_string())
        // candle's own pool waits by spinning, which takes the cores from the kernels that run on rayon.
        .env("CANDLE_NUM_THREADS", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
}

fn send<R: Serialize>(child: &mut Child, request: &R) {
    let Some(mut stdin) = child.stdin.take() else { return };
    let text = serde_json::to_vec(request).expect("a request is plain data");
    // A worker that ends before it has read everything is named by how it ended.
    let _ = stdin.write_all(&text);
}

enum Line {
    Event(String),
    Talk(String),
}

/// Reads both pipes until they are closed.
fn listen(child: &mut Child) -> Receiver<Line> {
    let (sender, receiver) = channel();
    let read = |pipe: Option<Box<dyn Read + Send>>, wrap: fn(String) -> Line| {
        let sender = sender.clone();
        let Some(pipe) = pipe else { return };
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                if sender.send(wrap(line)).is_err() {
                    break;
                }
            }
        });
    };
    read(child.stdout.take().map(|pipe| Box::new(pipe) as _), Line::Event);
    read(child.stderr.take().map(|pipe| Box::new(pipe) as _), Line::Talk);
    receiver
}

fn over_a_limit(child: &Child, limits: &Limits, last_heard: Instant) -> Option<Ended> {
    if last_heard.elapsed() > limits.silence {
        let seconds = limits.silence.as_secs_f64();
        let message = format!("nothing was heard of it for {seconds} s, the time limit");
        return Some(Ended { outcome: Outcome::TimedOut, message });
    }
    let (limit, used) = (limits.memory?, anonymous_bytes(child.id())?);
    (used > limit).then(|| Ended { outcome: Outcome::OutOfMemory, message: memory_text(limit) })
}

fn memory_text(limit: u64) -> String {
    format!("it took more than {} MiB, the memory limit", limit / (1 << 20))
}

/// Resident memory that belongs to a process alone; mapped files do not count.
fn anonymous_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("RssAnon:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// Whether Rust wrote the line behind last words because of `RUST_BACKTRACE`: dozens of them would
/// take the words' place.
fn is_of_a_backtrace(line: &str) -> bool {
    let line = line.trim();
    let frame = line.split_once(": ").is_some_and(|(number, _)| number.parse::<u32>().is_ok());
    let start =
        ["stack backtrace:", "at ", "note: Some details are omitted", "note: run with `RUST_"];
    frame || start.iter().any(|start| line.starts_with(start))
}

/// A name for an end without last word.
fn name_the_end(status: ExitStatus, finished: bool, tail: &[String]) -> Ended {
    let said = |text: &str| tail.iter().any(|line| line.contains(text));
    let last = tail.iter().rev().map(|line| line.trim()).find(|line| !line.is_empty());
    let with_last = |text: String| match last {
        Some(line) => format!("{text}; its last words: {line}"),
        None => text,
    };
    if let Some(signal) = status.signal() {
        if said("memory allocation of ") {
            let line = tail.iter().find(|line| line.contains("memory allocation of "));
            let message = line.map_or_else(String::new, |line| line.trim().to_owned());
            return Ended { outcome: Outcome::OutOfMemory, message };
        }
        if signal == 9 {
            let message = "the system ended it, as it does when memory runs out".to_owned();
            return Ended { outcome: Outcome::OutOfMemory, message };
        }
        let signal = signal_name(signal);
        let message = if said("overflowed its stack") {
            "the stack overflowed".to_owned()
        } else {
            with_last(format!("signal {signal}"))
        };
        return Ended { outcome: Outcome::Crashed { signal }, message };
    }
    let status = status.code().unwrap_or(-1);
    let message = if finished {
        with_last(format!("status {status} at its end"))
    } else {
        with_last(format!("status {status} before its work was done"))
    };
    Ended { outcome: Outcome::ExitedEarly { status }, message }
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        31 => "SIGSYS",
        _ => return format!("signal {signal}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str, limits: &Limits) -> (Vec<u32>, Result<(), Ended>) {
        let args = ["-c", script].map(str::to_owned).to_vec();
        let command = WorkerCommand { program: "/bin/sh".into(), args };
        let mut heard = Vec::new();
        let ended = supervise(
            &command,
            &"request",
            1,
            limits,
            |n| heard.push(n),
            |_| (),
            |n: &u32| *n == 0,
        );
        (heard, ended)
    }

    fn limits() -> Limits {
        Limits { silence: Duration::from_secs(20), memory: None }
    }

    fn outcome(script: &str) -> Outcome {
        run(script, &limits()).1.unwrap_err().outcome
    }

    #[test]
    fn events_are_heard_in_order() {
        let (heard, ended) =
            run("cat > /dev/null; echo 2; echo nonsense; echo 1; echo 0", &limits());
        assert_eq!((heard, ended), (vec![2, 1, 0], Ok(())));
    }

    #[test]
    fn every_end_has_a_name() {
        assert_eq!(outcome("exit 0"), Outcome::ExitedEarly { status: 0 });
        assert_eq!(outcome("echo 0; exit 3"), Outcome::ExitedEarly { status: 3 });
        assert_eq!(outcome("kill -SEGV $$"), Outcome::Crashed { signal: "SIGSEGV".into() });
        assert_eq!(outcome("kill -KILL $$"), Outcome::OutOfMemory);
        let script = "echo 'memory allocation of 8 bytes failed' >&2; kill -ABRT $$";
        assert_eq!(outcome(script), Outcome::OutOfMemory);
        let script = "echo 'memory allocation of 8 bytes failed' >&2
            echo 'stack backtrace:' >&2
            for i in $(seq 0 200); do echo \"  $i: std::alloc\" >&2; echo '   at a.rs:1:1' >&2; done
            echo 'note: Some details are omitted, run with `RUST_BACKTRACE=full`' >&2; kill -ABRT $$";
        assert_eq!(outcome(script), Outcome::OutOfMemory);
    }

    #[test]
    fn silence_has_a_limit() {
        let limits = Limits { silence: Duration::from_millis(200), memory: None };
        let start = Instant::now();
        let ended = run("exec sleep 20", &limits).1.unwrap_err();
        assert_eq!(ended.outcome, Outcome::TimedOut);
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn last_words_are_passed_on() {
        let ended = run("echo ' dying ' >&2; exit 7", &limits()).1.unwrap_err();
        assert!(ended.message.ends_with("its last words: dying"), "{}", ended.message);
    }
}
