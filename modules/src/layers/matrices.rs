//! Matrices inside tensors of the CPU backend, and their products.

use burn::backend::TensorMetadata;
use burn_flex::FlexTensor;

use super::flex::numbers;

/// Products of fewer multiplications are made by one thread.
const ALONE: usize = 192 * 192 * 192;

/// A matrix inside a tensor.
#[derive(Clone, Copy)]
pub(crate) struct Matrix {
    start: *const f32,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Numbers from a row to the next, and from a column to the next.
    strides: [isize; 2],
}

impl Matrix {
    pub(crate) fn transposed(self) -> Self {
        let [row, column] = self.strides;
        Self { rows: self.columns, columns: self.rows, strides: [column, row], ..self }
    }

    /// Rows from `first` on, at most `count`.
    pub(crate) fn tile(self, first: usize, count: usize) -> Self {
        // The offset of an existing row lies inside the tensor.
        let start = self.start.wrapping_offset(first as isize * self.strides[0]);
        Self { start, rows: count.min(self.rows - first), ..self }
    }

    /// The number in a row and a column.
    ///
    /// # Safety
    /// The row and the column are inside, and the tensor lives.
    pub(crate) unsafe fn get(self, row: usize, column: usize) -> f32 {
        let at = row as isize * self.strides[0] + column as isize * self.strides[1];
        // SAFETY: the caller answers for the place.
        unsafe { *self.start.offset(at) }
    }

    /// Writes the number in a row and a column.
    ///
    /// # Safety
    /// As for [`Matrix::get`], and nobody else uses the tensor meanwhile.
    pub(crate) unsafe fn set(self, row: usize, column: usize, value: f32) {
        let at = row as isize * self.strides[0] + column as isize * self.strides[1];
        // SAFETY: the caller answers for the place.
        unsafe { *self.start.cast_mut().offset(at) = value };
    }

    /// Numbers to read, of these dims, in row order.
    pub(crate) fn read(numbers: &[f32], rows: usize, columns: usize) -> Self {
        assert!(numbers.len() >= rows * columns, "the numbers are enough");
        Self { start: numbers.as_ptr(), rows, columns, strides: [columns as isize, 1] }
    }

    /// A buffer of these dims in row order.
    pub(crate) fn of(buffer: &mut [f32], rows: usize, columns: usize) -> Self {
        assert!(buffer.len() >= rows * columns, "the buffer is large enough");
        Self { start: buffer.as_mut_ptr(), rows, columns, strides: [columns as isize, 1] }
    }

    /// Writes `scale a b` here, or adds it.
    ///
    /// # Safety
    /// All three lie in live memory; this one may be written and nobody else uses it meanwhile.
    pub(crate) unsafe fn product(self, add: bool, scale: f32, a: Self, b: Self) {
        // SAFETY: the caller answers for the memory.
        unsafe { self.multiply(add, scale, a, b, gemm::Parallelism::None) };
    }

    /// Writes `a b` here, or adds it, with all threads when that pays.
    ///
    /// # Safety
    /// As for [`Matrix::product`].
    pub(crate) unsafe fn product_by_all(self, add: bool, a: Self, b: Self) {
        let work = self.rows * self.columns * a.columns;
        let threads = match work < ALONE {
            true => gemm::Parallelism::None,
            false => gemm::Parallelism::Rayon(0),
        };
        // SAFETY: the caller answers for the memory.
        unsafe { self.multiply(add, 1.0, a, b, threads) };
    }

    unsafe fn multiply(self, add: bool, scale: f32, a: Self, b: Self, by: gemm::Parallelism) {
        assert_eq!((a.rows, a.columns, b.columns), (self.rows, b.rows, self.columns), "a product");
        // SAFETY: dims agree, and the caller answers for the memory.
        unsafe {
            gemm::gemm(
                self.rows,
                self.columns,
                a.columns,
                self.start.cast_mut(),
                self.strides[1],
                self.strides[0],
                add,
                a.start,
                a.strides[1],
                a.strides[0],
                b.start,
                b.strides[1],
                b.strides[0],
                1.0,
                scale,
                false,
                false,
                false,
                by,
            );
        }
    }
}

/// The matrices of all heads of a tensor `[B, heads, N, d]`.
pub(crate) struct Heads {
    first: Matrix,
    heads: usize,
    /// Numbers from a sample to the next, and from a head to the next.
    strides: [isize; 2],
}

// SAFETY: only a place; whoever reads or writes there answers for it.
unsafe impl Sync for Heads {}

impl Heads {
    pub(crate) fn of(x: &FlexTensor) -> Self {
        let layout = x.layout();
        let [_, heads, rows, columns] = x.shape().dims();
        let strides = layout.strides();
        let start = numbers(x)[layout.start_offset()..].as_ptr();
        let first = Matrix { start, rows, columns, strides: [strides[2], strides[3]] };
        Self { first, heads, strides: [strides[0], strides[1]] }
    }

    pub(crate) fn at(&self, task: usize) -> Matrix {
        let (sample, head) = ((task / self.heads) as isize, (task % self.heads) as isize);
        let offset = sample * self.strides[0] + head * self.strides[1];
        Matrix { start: self.first.start.wrapping_offset(offset), ..self.first }
    }
}
