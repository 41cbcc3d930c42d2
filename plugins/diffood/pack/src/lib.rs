//! The dynamic library that exports DiffOOD.

oodbench_sdk::export_pack!(oodbench_diffood::DiffOod);
