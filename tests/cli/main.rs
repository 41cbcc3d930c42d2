//! Black-box tests of the binary: what is typed, what is printed, which files lie there afterwards.

mod bad_input;
mod bench;
mod denoise;
mod faulty;
mod fid;
mod plugin;
mod sample;
mod search;
mod train;
