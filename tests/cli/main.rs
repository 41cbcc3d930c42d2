//! Black-box tests of the binary: what is typed, what is printed, which files lie there afterwards.

mod bad_input;
mod bench;
mod faulty;
mod plugin;
