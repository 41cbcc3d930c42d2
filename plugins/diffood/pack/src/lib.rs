//! The dynamic library that exports DiffOOD.

oodbench_sdk::export_pack!(oodbench_diffood::DiffOod; built_for = oodbench_diffood::built_for());
