//! The dynamic library that exports DiffOOD.
