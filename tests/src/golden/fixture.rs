//! Files of a fixture, read whole.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor, TensorData};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// An array of numbers with its shape.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Extents.
    pub shape: Vec<usize>,
    /// Values, row-major.
    pub values: Vec<f64>,
}

impl Array {
    /// As a float tensor on `device`.
    pub fn float<const D: usize>(&self, device: &Device) -> Tensor<D> {
        let values: Vec<f32> = self.values.iter().map(|v| *v as f32).collect();
        Tensor::from_data(TensorData::new(values, self.shape.clone()), device)
    }

    /// As an int tensor on `device`.
    pub fn int<const D: usize>(&self, device: &Device) -> Tensor<D, Int> {
        let values: Vec<i64> = self.values.iter().map(|v| *v as i64).collect();
        Tensor::from_data(TensorData::new(values, self.shape.clone()), device)
    }

    /// Where each row of a mask `[B, N]` holds a value, counted after the first `skip` columns;
    /// every row holds it equally often.
    pub fn places(&self, value: f64, skip: usize) -> Self {
        let (rows, columns) = (self.shape[0], self.shape[1]);
        let found = |row: &[f64]| -> Vec<f64> {
            let row = row.iter().skip(skip).enumerate();
            row.filter(|(_, held)| **held == value).map(|(i, _)| i as f64).collect()
        };
        let values: Vec<f64> = self.values.chunks(columns).flat_map(found).collect();
        Self { shape: vec![rows, values.len() / rows], values }
    }

    /// From any float tensor.
    pub fn of<const D: usize>(tensor: Tensor<D>) -> Self {
        let data = tensor.into_data();
        let shape = data.shape().to_vec();
        Self { shape, values: data.iter::<f64>().collect() }
    }
}

/// Arrays by name.
pub type Arrays = BTreeMap<String, Array>;

/// A fixture folder.
#[derive(Debug, Clone)]
pub struct Fixture {
    /// The folder.
    pub folder: PathBuf,
    /// `config.json`.
    pub config: Value,
    /// `meta.json`, null when there is none.
    pub meta: Value,
}

impl Fixture {
    /// Opens a folder.
    pub fn open(folder: &Path) -> Self {
        let json = |name: &str| {
            let text = std::fs::read_to_string(folder.join(name)).ok()?;
            Some(serde_json::from_str(&text).expect("a fixture holds JSON"))
        };
        Self {
            folder: folder.to_owned(),
            config: json("config.json").expect("a fixture has config.json"),
            meta: json("meta.json").unwrap_or_default(),
        }
    }

    /// Bytes of a safetensors file.
    pub fn bytes(&self, file: &str) -> Vec<u8> {
        let path = self.folder.join(file);
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// All arrays of a safetensors file.
    pub fn arrays(&self, file: &str) -> Arrays {
        let bytes = self.bytes(file);
        let tensors = SafeTensors::deserialize(&bytes).expect("a fixture holds safetensors");
        tensors.iter().map(|(name, view)| (name.to_owned(), array(&view))).collect()
    }

    /// A whole number of the configuration.
    pub fn count(&self, field: &str) -> usize {
        self.config[field].as_u64().unwrap_or_else(|| panic!("`{field}` is no number")) as usize
    }

    /// A number of the configuration.
    pub fn number(&self, field: &str) -> f64 {
        self.config[field].as_f64().unwrap_or_else(|| panic!("`{field}` is no number"))
    }

    /// Whole numbers of the configuration.
    pub fn list(&self, field: &str) -> Tensor<1, Int> {
        let list = self.config[field].as_array().unwrap_or_else(|| panic!("`{field}` is no list"));
        let list: Vec<i64> = list.iter().filter_map(Value::as_i64).collect();
        Tensor::from_data(list.as_slice(), &crate::device::device())
    }

    /// A switch of the configuration; off when absent.
    pub fn flag(&self, field: &str) -> bool {
        self.config[field].as_bool().unwrap_or(false)
    }

    /// Share of the largest value that a tensor may be off: ten times what the reference is off
    /// in single precision, at least 2e-5.
    pub fn tolerance(&self) -> f64 {
        let measured = self.meta["f32_vs_f64_max_abs_diff_and_scale"].as_object();
        let one = |pair: &Value| {
            pair[0].as_f64().unwrap_or(0.0) / pair[1].as_f64().unwrap_or(1.0).max(1.0)
        };
        let worst = measured.into_iter().flatten().map(|(_, pair)| one(pair)).fold(0.0, f64::max);
        (10.0 * worst).max(2e-5)
    }
}

fn array(view: &safetensors::tensor::TensorView<'_>) -> Array {
    let bytes = view.data();
    let values = match view.dtype() {
        Dtype::F32 => wide(bytes, |b| f64::from(f32::from_le_bytes(b))),
        Dtype::F64 => wide(bytes, f64::from_le_bytes),
        Dtype::I32 => wide(bytes, |b| f64::from(i32::from_le_bytes(b))),
        Dtype::I64 => wide(bytes, |b| i64::from_le_bytes(b) as f64),
        Dtype::U8 | Dtype::BOOL => bytes.iter().map(|b| f64::from(*b)).collect(),
        other => panic!("{other:?} in a fixture"),
    };
    Array { shape: view.shape().to_vec(), values }
}

fn wide<const N: usize>(bytes: &[u8], one: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    bytes.as_chunks::<N>().0.iter().map(|chunk| one(*chunk)).collect()
}
