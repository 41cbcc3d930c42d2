//! One product, checked as cuBLAS checks it and computed on the CPU.

use std::ffi::{c_int, c_void};

use super::product::{product_f32, product_f64};
use super::{EXECUTION_FAILED, INVALID_VALUE, NOT_SUPPORTED, scalar};
use crate::api::{Outcome, refusal, switched_on};
use crate::driver::memory;
use crate::half::{from_bf16, from_f16, to_bf16, to_f16, to_tf32};
use crate::work;

pub(super) const COMPUTE_16F: u32 = 64;
pub(super) const COMPUTE_32F: u32 = 68;
pub(super) const COMPUTE_64F: u32 = 70;
const FAST_16F: u32 = 74;
const FAST_16BF: u32 = 75;
const FAST_TF32: u32 = 77;

/// The types of matrices, with the numbers that `cudaDataType` gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Number {
    F32 = 0,
    F64 = 1,
    F16 = 2,
    Bf16 = 14,
}

impl Number {
    fn of(data_type: u32) -> Outcome<Self> {
        [Self::F32, Self::F64, Self::F16, Self::Bf16]
            .into_iter()
            .find(|number| *number as u32 == data_type)
            .ok_or_else(|| refusal(NOT_SUPPORTED, format!("matrices of data type {data_type}")))
    }

    pub(super) fn bytes(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// Where the matrices of a batch are.
#[derive(Debug, Clone, Copy)]
pub(super) enum Where {
    /// The first address, and how many numbers further each next one is.
    Strided(usize, i64),
    /// An array of addresses on the device.
    Listed(usize),
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix {
    at: Where,
    number: Number,
    leading: usize,
}

impl Matrix {
    pub(super) fn new(at: Where, data_type: u32, leading: c_int) -> Outcome<Self> {
        let number = Number::of(data_type)?;
        let leading = usize::try_from(leading)
            .map_err(|_| refusal(INVALID_VALUE, format!("leading dimension {leading}")))?;
        Ok(Self { at, number, leading })
    }

    /// The address of one matrix of the batch, whose bytes are checked.
    fn start(&self, what: &str, position: usize, rows: usize, columns: usize) -> Outcome<usize> {
        let bytes = self.number.bytes();
        let start = match self.at {
            Where::Strided(first, stride) => {
                first.wrapping_add_signed(stride as isize * (position * bytes) as isize)
            }
            Where::Listed(list) => {
                let entry = list + position * 8;
                memory().check("list of matrices", entry, 8)?;
                // SAFETY: inside an allocation.
                unsafe { (entry as *const usize).read_unaligned() }
            }
        };
        if rows == 0 || columns == 0 {
            return Ok(start);
        }
        let len = (self.leading * (columns - 1) + rows) * bytes;
        memory().check(what, start, len)?;
        if !start.is_multiple_of(bytes) {
            return Err(refusal(INVALID_VALUE, format!("{what} at {start:#x} is misaligned")));
        }
        Ok(start)
    }
}

fn read(number: Number, start: usize, at: usize) -> f64 {
    // SAFETY: the matrix's bytes were checked to be inside one allocation, and aligned.
    unsafe {
        match number {
            Number::F64 => (start as *const f64).add(at).read(),
            Number::F32 => f64::from((start as *const f32).add(at).read()),
            Number::F16 => f64::from(from_f16((start as *const u16).add(at).read())),
            Number::Bf16 => f64::from(from_bf16((start as *const u16).add(at).read())),
        }
    }
}

fn write(number: Number, start: usize, at: usize, value: f64) {
    // SAFETY: as in `read`.
    unsafe {
        match number {
            Number::F64 => (start as *mut f64).add(at).write(value),
            Number::F32 => (start as *mut f32).add(at).write(value as f32),
            Number::F16 => (start as *mut u16).add(at).write(to_f16(value as f32)),
            Number::Bf16 => (start as *mut u16).add(at).write(to_bf16(value as f32)),
        }
    }
}

/// `c = alpha op(a) op(b) + beta c` for each matrix of a batch.
#[derive(Debug, Clone)]
pub(super) struct Gemm {
    transposed: [bool; 2],
    rows: usize,
    columns: usize,
    depth: usize,
    batch: usize,
    compute: u32,
    tf32: bool,
    matrices: Option<[Matrix; 3]>,
    alpha: f64,
    beta: f64,
}

/// # Errors
/// It is none of `cublasGemmAlgo_t`.
pub(super) fn known_algorithm(algorithm: c_int) -> Outcome {
    match algorithm {
        -1..=23 | 99..=115 | 999 => Ok(()),
        _ => Err(refusal(INVALID_VALUE, format!("algorithm {algorithm} is none"))),
    }
}

impl Gemm {
    pub(super) fn new(
        operations: [u32; 2],
        [rows, columns, depth]: [c_int; 3],
        batch: c_int,
        compute: u32,
        tf32: bool,
    ) -> Outcome<Self> {
        let extent = |name: &str, value: c_int| {
            usize::try_from(value).map_err(|_| refusal(INVALID_VALUE, format!("{name} is {value}")))
        };
        if operations.iter().any(|operation| *operation > 2) {
            return Err(refusal(INVALID_VALUE, format!("operations {operations:?}")));
        }
        let tf32 = (tf32 || compute == FAST_TF32) && switched_on("STANDIN_TF32");
        Ok(Self {
            transposed: operations.map(|operation| operation != 0),
            rows: extent("m", rows)?,
            columns: extent("n", columns)?,
            depth: extent("k", depth)?,
            batch: extent("the batch", batch)?,
            compute,
            tf32,
            matrices: None,
            alpha: 1.0,
            beta: 0.0,
        })
    }

    /// The type of the scalars, where the types go together.
    fn scale(&self, [a, b, c]: [Number; 3]) -> Option<Number> {
        use Number::{Bf16, F16, F32, F64};
        match (self.compute & !1, a, b, c) {
            _ if a != b => None,
            (COMPUTE_64F, F64, _, F64) => Some(F64),
            (COMPUTE_16F, F16, _, F16) => Some(F16),
            (COMPUTE_32F, F32, _, F32)
            | (COMPUTE_32F, F16, _, F16 | F32)
            | (COMPUTE_32F, Bf16, _, Bf16 | F32) => Some(F32),
            _ if [FAST_16F, FAST_16BF, FAST_TF32].contains(&self.compute)
                && (a, c) == (F32, F32) =>
            {
                Some(F32)
            }
            _ => None,
        }
    }

    pub(super) fn matrices(mut self, matrices: [Matrix; 3]) -> Outcome<Self> {
        let numbers = matrices.map(|matrix| matrix.number);
        if self.scale(numbers).is_none() {
            let line = format!("compute type {} with matrices {numbers:?}", self.compute);
            return Err(refusal(NOT_SUPPORTED, line));
        }
        let needed = [
            if self.transposed[0] { self.depth } else { self.rows },
            if self.transposed[1] { self.columns } else { self.depth },
            self.rows,
        ];
        for ((name, matrix), needed) in ["a", "b", "c"].iter().zip(&matrices).zip(needed) {
            if matrix.leading < needed.max(1) {
                let line = format!(
                    "leading dimension of {name} expected at least {}, got {}",
                    needed.max(1),
                    matrix.leading
                );
                return Err(refusal(INVALID_VALUE, line));
            }
        }
        self.matrices = Some(matrices);
        Ok(self)
    }

    pub(super) fn scalars(
        mut self,
        alpha: *const c_void,
        beta: *const c_void,
        on_device: bool,
    ) -> Outcome<Self> {
        let matrices = self.matrices.as_ref().map(|all| all.map(|matrix| matrix.number));
        let number = matrices.and_then(|numbers| self.scale(numbers));
        let number = number.ok_or_else(|| refusal(EXECUTION_FAILED, "no matrices"))?;
        self.alpha = scalar(alpha, number, on_device)?;
        self.beta = scalar(beta, number, on_device)?;
        Ok(self)
    }

    pub(super) fn submit(self, stream: usize) -> Outcome {
        if self.rows == 0 || self.columns == 0 || self.batch == 0 {
            return Ok(());
        }
        let name =
            format!("gemm {} x {} x {}, batch {}", self.rows, self.columns, self.depth, self.batch);
        work::submit(stream, name, move || {
            (0..self.batch).try_for_each(|position| self.one(position))
        })
    }

    fn one(&self, position: usize) -> Outcome {
        let [a, b, c] = self.matrices.expect("checked when it was made");
        let (rows, columns, depth) = (self.rows, self.columns, self.depth);
        let shape = |transposed: bool, rows: usize, columns: usize| {
            if transposed { (columns, rows) } else { (rows, columns) }
        };
        let (a_rows, a_columns) = shape(self.transposed[0], rows, depth);
        let (b_rows, b_columns) = shape(self.transposed[1], depth, columns);
        let a_start = a.start("matrix a", position, a_rows, a_columns)?;
        let b_start = b.start("matrix b", position, b_rows, b_columns)?;
        let c_start = c.start("matrix c", position, rows, columns)?;
        let at = |matrix: &Matrix, transposed: bool, row: usize, column: usize| {
            if transposed { column + row * matrix.leading } else { row + column * matrix.leading }
        };
        let left = |row, p| read(a.number, a_start, at(&a, self.transposed[0], row, p));
        let right = |p, column| read(b.number, b_start, at(&b, self.transposed[1], p, column));
        let store = |row: usize, column: usize, sum: f64| {
            let to = row + column * c.leading;
            // With a beta of 0 what was there is not read: it may be NaN.
            let before =
                if self.beta == 0.0 { 0.0 } else { self.beta * read(c.number, c_start, to) };
            write(c.number, c_start, to, self.alpha * sum + before);
        };
        if a.number == Number::F64 {
            product_f64(rows, columns, depth, left, right, store);
            return Ok(());
        }
        let round = |value: f64| match self.compute {
            FAST_16F => from_f16(to_f16(value as f32)),
            FAST_16BF => from_bf16(to_bf16(value as f32)),
            _ if self.tf32 => to_tf32(value as f32),
            _ => value as f32,
        };
        product_f32(
            rows,
            columns,
            depth,
            |row, p| round(left(row, p)),
            |p, column| round(right(p, column)),
            |row, column, sum| store(row, column, f64::from(sum)),
        );
        Ok(())
    }
}
