//! Black-box tests of the binary: what is typed, what is printed, which files lie there afterwards.

mod bad_input;
mod bench;
mod companions;
mod denoise;
mod device;
mod ensemble;
mod faulty;
mod features;
mod fid;
mod plugin;
mod sample;
mod search;
mod train;
mod warnings;
