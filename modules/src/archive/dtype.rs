//! Element types of weight files, and their values as f32.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use pulp::bytemuck;
use serde::{Deserialize, Serialize};

/// What one element of a stored tensor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 64-bit IEEE float.
    F64,
    /// 64-bit signed integer.
    I64,
    /// 32-bit IEEE float.
    F32,
    /// 32-bit signed integer.
    I32,
    /// 16-bit brain float.
    Bf16,
    /// 16-bit IEEE float.
    F16,
    /// 16-bit signed integer.
    I16,
    /// 8-bit signed integer.
    I8,
    /// 8-bit unsigned integer.
    U8,
    /// One byte, 0 or 1.
    Bool,
}

/// Type, its own name, that in safetensors, in PyTorch, and of PyTorch's storage.
const NAMES: [(Dtype, &str, &str, &str, &str); 10] = [
    (Dtype::F64, "f64", "F64", "float64", "DoubleStorage"),
    (Dtype::I64, "i64", "I64", "int64", "LongStorage"),
    (Dtype::F32, "f32", "F32", "float32", "FloatStorage"),
    (Dtype::I32, "i32", "I32", "int32", "IntStorage"),
    (Dtype::Bf16, "bf16", "BF16", "bfloat16", "BFloat16Storage"),
    (Dtype::F16, "f16", "F16", "float16", "HalfStorage"),
    (Dtype::I16, "i16", "I16", "int16", "ShortStorage"),
    (Dtype::I8, "i8", "I8", "int8", "CharStorage"),
    (Dtype::U8, "u8", "U8", "uint8", "ByteStorage"),
    (Dtype::Bool, "bool", "BOOL", "bool", "BoolStorage"),
];

impl Dtype {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::Bf16 | Self::F16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// The name in messages.
    pub fn name(self) -> &'static str {
        NAMES[self as usize].1
    }

    /// Whether its values are floats.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::Bf16 | Self::F16)
    }

    pub(super) fn safetensors(self) -> &'static str {
        NAMES[self as usize].2
    }

    pub(super) fn from_safetensors(name: &str) -> Option<Self> {
        NAMES.iter().find(|names| names.2 == name).map(|names| names.0)
    }

    /// From `float32` and the like.
    pub(super) fn from_torch(name: &str) -> Option<Self> {
        NAMES.iter().find(|names| names.3 == name).map(|names| names.0)
    }

    /// From `FloatStorage` and the like.
    pub(super) fn from_storage(name: &str) -> Option<Self> {
        NAMES.iter().find(|names| names.4 == name).map(|names| names.0)
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Writes the values of little-endian elements over `out`. Values of f64 and of wide integers are
/// rounded to the nearest f32.
pub fn widen(dtype: Dtype, bytes: &[u8], out: &mut Vec<f32>) {
    out.resize(bytes.len() / dtype.size(), 0.0);
    match dtype {
        Dtype::F32 => each(bytes, out, f32::from_le_bytes),
        Dtype::F64 => each(bytes, out, |b| f64::from_le_bytes(b) as f32),
        Dtype::I64 => each(bytes, out, |b| i64::from_le_bytes(b) as f32),
        Dtype::I32 => each(bytes, out, |b| i32::from_le_bytes(b) as f32),
        Dtype::I16 => each(bytes, out, |b| f32::from(i16::from_le_bytes(b))),
        Dtype::I8 => each(bytes, out, |b| f32::from(i8::from_le_bytes(b))),
        Dtype::U8 | Dtype::Bool => each(bytes, out, |[b]: [u8; 1]| f32::from(b)),
        Dtype::Bf16 => each(bytes, out, |b| wide(u16::from_le_bytes(b))),
        Dtype::F16 => half_floats(bytes, out),
    }
}

/// A bf16 is the upper half of an f32.
fn wide(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

fn each<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    for (to, from) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *to = value(*from);
    }
}

/// Eight values at a time where the machine can. The slice is taken as it lies when its address
/// allows; otherwise it goes through a small buffer.
fn half_floats(bytes: &[u8], out: &mut [f32]) {
    let aligned = bytemuck::try_cast_slice::<u8, u16>(bytes).ok();
    if let Some(bits) = aligned.filter(|_| cfg!(target_endian = "little")) {
        let values: &[f16] = half::slice::HalfBitsSliceExt::reinterpret_cast(bits);
        return values.convert_to_f32_slice(out);
    }
    let mut buffer = [f16::ZERO; 1024];
    for (to, from) in out.chunks_mut(buffer.len()).zip(bytes.chunks(2 * buffer.len())) {
        for (value, bits) in buffer.iter_mut().zip(from.as_chunks::<2>().0) {
            *value = f16::from_le_bytes(*bits);
        }
        buffer[..to.len()].convert_to_f32_slice(to);
    }
}

/// Little-endian elements of a float type from f32 values; none for other types.
pub fn narrow(dtype: Dtype, values: &[f32]) -> Option<Vec<u8>> {
    let bytes = match dtype {
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::F64 => values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect(),
        Dtype::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        _ => return None,
    };
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_names_is_in_the_order_of_the_types() {
        for (at, (dtype, name, ..)) in NAMES.iter().enumerate() {
            assert_eq!(*dtype as usize, at, "{name}");
        }
    }

    #[test]
    fn every_sixteen_bit_float_widens_to_its_value_at_any_address() {
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let mut odd = vec![0];
        odd.extend_from_slice(&all);
        for dtype in [Dtype::Bf16, Dtype::F16] {
            let (mut out, mut moved) = (Vec::new(), Vec::new());
            widen(dtype, &all, &mut out);
            widen(dtype, &odd[1..], &mut moved);
            for bits in 0..=u16::MAX {
                let exact = match dtype {
                    Dtype::Bf16 => bf16::from_bits(bits).to_f32(),
                    _ => f16::from_bits(bits).to_f32(),
                };
                for value in [out[bits as usize], moved[bits as usize]] {
                    assert!(value == exact || (value.is_nan() && exact.is_nan()), "{bits:#x}");
                }
            }
        }
    }

    #[test]
    fn what_is_narrowed_widens_back() {
        let values = [0.0, -1.5, 0.25, 96.0];
        for dtype in [Dtype::F64, Dtype::F32, Dtype::Bf16, Dtype::F16] {
            let mut out = Vec::new();
            widen(dtype, &narrow(dtype, &values).unwrap(), &mut out);
            assert_eq!(out, values, "{dtype}");
        }
        assert_eq!(narrow(Dtype::I8, &values), None);
    }
}
