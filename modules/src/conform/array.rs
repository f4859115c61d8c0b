//! Arrays of reference files.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::TensorData;
use schemas::node::NodeError;

use crate::archive::{Archive, Dtype};
use crate::tensors::AnyTensor;

/// An array of a reference file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Array {
    pub(super) shape: Vec<usize>,
    pub(super) values: Vec<f64>,
    pub(super) float: bool,
}

/// All arrays of a file.
pub(super) fn arrays(path: &Path) -> Result<BTreeMap<String, Array>, NodeError> {
    let archive = Archive::open(path)?;
    let mut arrays = BTreeMap::new();
    for (key, info) in archive.keys() {
        let stored = archive.get(key)?;
        let values = match info.dtype {
            Dtype::I64 => {
                let one = |b: &[u8; 8]| i64::from_le_bytes(*b) as f64;
                stored.bytes.as_chunks::<8>().0.iter().map(one).collect()
            }
            _ => stored.to_f32().into_iter().map(f64::from).collect(),
        };
        let (shape, float) = (info.shape.to_vec(), info.dtype.is_float());
        arrays.insert(key.to_owned(), Array { shape, values, float });
    }
    Ok(arrays)
}

/// Where each row holds a value; every row holds it equally often.
pub(super) fn places(array: &Array, value: f64) -> Option<Array> {
    let [rows, columns] = array.shape[..] else { return None };
    let found = |row: &[f64]| -> Vec<f64> {
        let row = row.iter().enumerate();
        row.filter(|(_, held)| **held == value).map(|(i, _)| i as f64).collect()
    };
    let rows_of: Vec<Vec<f64>> = array.values.chunks(columns.max(1)).map(found).collect();
    let count = rows_of.first().map_or(0, Vec::len);
    let even = rows_of.iter().all(|row| row.len() == count);
    let values = rows_of.concat();
    even.then_some(Array { shape: vec![rows, count], values, float: false })
}

/// A clip `[B, T, 3, H, W]` as `[B, 3, T, H, W]`, and the reverse.
pub(super) fn swapped(array: &Array) -> Array {
    let [b, m, n, h, w] = array.shape[..] else { return array.clone() };
    let plane = h * w;
    let mut values = Vec::with_capacity(array.values.len());
    for (sample, second) in (0..b).flat_map(|s| (0..n).map(move |second| (s, second))) {
        for first in 0..m {
            let start = ((sample * m + first) * n + second) * plane;
            values.extend_from_slice(&array.values[start..start + plane]);
        }
    }
    Array { shape: vec![b, n, m, h, w], values, float: array.float }
}

impl Array {
    /// Its values on the host; none for more than six dims.
    pub(super) fn tensor(&self, float: bool) -> Option<AnyTensor> {
        let device = crate::device::host();
        let shape = self.shape.clone();
        let data = if float {
            TensorData::new(self.values.iter().map(|v| *v as f32).collect::<Vec<_>>(), shape)
        } else {
            TensorData::new(self.values.iter().map(|v| *v as i64).collect::<Vec<_>>(), shape)
        };
        AnyTensor::from_data(data, &device)
    }
}
