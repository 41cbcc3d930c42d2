//! Products of matrices on the CPU, for cuBLAS and for convolutions.

/// Rows and columns of the tile that stays in registers.
const TILE_ROWS: usize = 16;
const TILE_COLUMNS: usize = 4;

macro_rules! product {
    ($name:ident, $tile:ident, $fast:ident, $number:ty) => {
        #[inline(always)]
        fn $tile(
            depth: usize,
            a: &[$number],
            b: &[$number],
        ) -> [[$number; TILE_ROWS]; TILE_COLUMNS] {
            let mut sums = [[0.0; TILE_ROWS]; TILE_COLUMNS];
            for (a, b) in a.chunks_exact(TILE_ROWS).zip(b.chunks_exact(TILE_COLUMNS)).take(depth) {
                for (sums, b) in sums.iter_mut().zip(b) {
                    for (sum, a) in sums.iter_mut().zip(a) {
                        *sum = a.mul_add(*b, *sum);
                    }
                }
            }
            sums
        }

        #[target_feature(enable = "avx2,fma")]
        fn $fast(
            depth: usize,
            a: &[$number],
            b: &[$number],
        ) -> [[$number; TILE_ROWS]; TILE_COLUMNS] {
            $tile(depth, a, b)
        }

        /// `store(row, column, sum over p of a(row, p) b(p, column))`, summed in the order of `p`.
        pub(crate) fn $name(
            rows: usize,
            columns: usize,
            depth: usize,
            a: impl Fn(usize, usize) -> $number,
            b: impl Fn(usize, usize) -> $number,
            mut store: impl FnMut(usize, usize, $number),
        ) {
            let fast = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let row_tiles = rows.div_ceil(TILE_ROWS);
            let mut left = vec![0.0; row_tiles * depth * TILE_ROWS];
            for (tile, panel) in left.chunks_exact_mut((depth * TILE_ROWS).max(1)).enumerate() {
                for (at, value) in panel.iter_mut().enumerate() {
                    let (p, row) = (at / TILE_ROWS, tile * TILE_ROWS + at % TILE_ROWS);
                    *value = if row < rows { a(row, p) } else { 0.0 };
                }
            }
            let mut right = vec![0.0; depth * TILE_COLUMNS];
            for first_column in (0..columns).step_by(TILE_COLUMNS) {
                for (at, value) in right.iter_mut().enumerate() {
                    let (p, column) = (at / TILE_COLUMNS, first_column + at % TILE_COLUMNS);
                    *value = if column < columns { b(p, column) } else { 0.0 };
                }
                for tile in 0..row_tiles {
                    let panel = &left[tile * depth * TILE_ROWS..][..depth * TILE_ROWS];
                    let sums = if fast {
                        // SAFETY: the processor has both features.
                        unsafe { $fast(depth, panel, &right) }
                    } else {
                        $tile(depth, panel, &right)
                    };
                    for (column, sums) in sums.iter().enumerate() {
                        for (row, sum) in sums.iter().enumerate() {
                            let (row, column) = (tile * TILE_ROWS + row, first_column + column);
                            if row < rows && column < columns {
                                store(row, column, *sum);
                            }
                        }
                    }
                }
            }
        }
    };
}

product!(product_f32, tile_f32, tile_f32_fast, f32);
product!(product_f64, tile_f64, tile_f64_fast, f64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_is_a_sum_of_products() {
        for (rows, columns, depth) in [(1, 1, 1), (17, 5, 3), (16, 4, 8), (33, 9, 0), (3, 2, 40)] {
            let a = |row: usize, p: usize| (row * 7 + p * 3 % 11) as f32 - 4.0;
            let b = |p: usize, column: usize| (p * 5 + column * 2) as f32 % 13.0 - 6.0;
            let mut stored = 0;
            product_f32(rows, columns, depth, a, b, |row, column, value| {
                let expected: f32 = (0..depth).map(|p| a(row, p) * b(p, column)).sum();
                assert!((value - expected).abs() <= 1e-3, "{row} {column}: {value} {expected}");
                stored += 1;
            });
            assert_eq!(stored, rows * columns);
        }
    }
}
