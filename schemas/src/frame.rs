//! A frame: one tensor in flight between two nodes.
//!
//! The bytes are on the host, little-endian and contiguous in row-major order, or a handle to a
//! device tensor that never leaves its process. An edge that crosses processes asks the handle
//! for its bytes; an edge inside a process passes the handle, without a copy.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The largest rank a frame may have.
pub const MAX_RANK: usize = 8;

/// What one element of a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// 32-bit IEEE float.
    F32,
    /// 16-bit brain float.
    Bf16,
    /// 16-bit IEEE float.
    F16,
    /// 64-bit signed integer.
    I64,
    /// 8-bit unsigned integer.
    U8,
    /// One byte, 0 or 1.
    Bool,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
            Self::I64 => 8,
            Self::U8 | Self::Bool => 1,
        }
    }

    /// The name in messages and on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::I64 => "i64",
            Self::U8 => "u8",
            Self::Bool => "bool",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A tensor that stays on its device; the compute side knows what is behind it.
pub trait DeviceTensor: Send + Sync + fmt::Debug {
    /// Copies the elements to the host, little-endian and contiguous.
    fn to_host(&self) -> Bytes;
    /// For the compute side to recognise its own type.
    fn as_any(&self) -> &dyn Any;
}

#[derive(Debug, Clone)]
enum Payload {
    Host(Bytes),
    Device(Arc<dyn DeviceTensor>),
}

/// One tensor in flight. Cloning shares the payload.
#[derive(Debug, Clone)]
pub struct Frame {
    dtype: DType,
    shape: Vec<usize>,
    payload: Payload,
}

/// Frames by port name.
pub type Frames = BTreeMap<String, Frame>;

/// Why bytes are not a frame.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    /// The bytes do not fill the shape.
    #[error("a frame {dtype}{shape:?} takes {expected} bytes, not {found}")]
    Length {
        /// Element type.
        dtype: DType,
        /// Declared shape.
        shape: Vec<usize>,
        /// Bytes that the shape takes.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// The shape has too many dims or its product overflows.
    #[error("a frame of shape {shape:?} is out of bounds (rank at most {MAX_RANK})")]
    Shape {
        /// Declared shape.
        shape: Vec<usize>,
    },
}

impl Frame {
    /// A frame of host bytes; refuses bytes that do not fill the shape.
    pub fn host(dtype: DType, shape: Vec<usize>, bytes: Bytes) -> Result<Self, FrameError> {
        let expected = byte_count(dtype, &shape)?;
        if bytes.len() != expected {
            return Err(FrameError::Length { dtype, shape, expected, found: bytes.len() });
        }
        Ok(Self { dtype, shape, payload: Payload::Host(bytes) })
    }

    /// A frame that holds a device tensor.
    pub fn device(dtype: DType, shape: Vec<usize>, tensor: Arc<dyn DeviceTensor>) -> Self {
        Self { dtype, shape, payload: Payload::Device(tensor) }
    }

    /// A frame of 32-bit floats.
    pub fn f32(shape: impl Into<Vec<usize>>, values: impl IntoIterator<Item = f32>) -> Self {
        let bytes: Vec<_> = values.into_iter().map(f32::to_le_bytes).collect();
        let bytes = bytes.into_flattened().into();
        Self::host(DType::F32, shape.into(), bytes).expect("the values fill the shape")
    }

    /// A frame of 64-bit integers.
    pub fn i64(shape: impl Into<Vec<usize>>, values: impl IntoIterator<Item = i64>) -> Self {
        let bytes: Vec<_> = values.into_iter().map(i64::to_le_bytes).collect();
        let bytes = bytes.into_flattened().into();
        Self::host(DType::I64, shape.into(), bytes).expect("the values fill the shape")
    }

    /// What an element is.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Extent of each dim, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the frame has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the payload.
    pub fn size(&self) -> usize {
        self.len() * self.dtype.size()
    }

    /// The elements as host bytes; copies only when the frame is a device tensor.
    pub fn bytes(&self) -> Bytes {
        match &self.payload {
            Payload::Host(bytes) => bytes.clone(),
            Payload::Device(tensor) => tensor.to_host(),
        }
    }

    /// The device tensor, if the frame holds one.
    pub fn tensor(&self) -> Option<&dyn DeviceTensor> {
        match &self.payload {
            Payload::Host(_) => None,
            Payload::Device(tensor) => Some(tensor.as_ref()),
        }
    }

    /// The elements of a float frame.
    pub fn to_f32(&self) -> Vec<f32> {
        let bytes = self.bytes();
        match self.dtype {
            DType::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            DType::Bf16 => bytes
                .as_chunks::<2>()
                .0
                .iter()
                .map(|b| half::bf16::from_le_bytes(*b).to_f32())
                .collect(),
            DType::F16 => bytes
                .as_chunks::<2>()
                .0
                .iter()
                .map(|b| half::f16::from_le_bytes(*b).to_f32())
                .collect(),
            DType::I64 => self.to_i64().into_iter().map(|v| v as f32).collect(),
            DType::U8 | DType::Bool => bytes.iter().map(|&v| f32::from(v)).collect(),
        }
    }

    /// The elements of an integer frame.
    pub fn to_i64(&self) -> Vec<i64> {
        let bytes = self.bytes();
        match self.dtype {
            DType::I64 => bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
            DType::U8 | DType::Bool => bytes.iter().map(|&v| i64::from(v)).collect(),
            _ => self.to_f32().into_iter().map(|v| v as i64).collect(),
        }
    }
}

/// Bytes that a tensor takes; refuses shapes out of bounds.
pub fn byte_count(dtype: DType, shape: &[usize]) -> Result<usize, FrameError> {
    let out_of_bounds = || FrameError::Shape { shape: shape.to_vec() };
    if shape.len() > MAX_RANK {
        return Err(out_of_bounds());
    }
    shape.iter().try_fold(dtype.size(), |n, &d| n.checked_mul(d)).ok_or_else(out_of_bounds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_do_not_fill_the_shape_are_refused() {
        let error = Frame::host(DType::F32, vec![2, 3], Bytes::from_static(&[0; 20])).unwrap_err();
        assert_eq!(error.to_string(), "a frame f32[2, 3] takes 24 bytes, not 20");
    }

    #[test]
    fn a_shape_that_overflows_is_refused() {
        let shape = vec![usize::MAX, 2];
        assert!(Frame::host(DType::U8, shape, Bytes::new()).is_err());
    }

    #[test]
    fn values_come_back() {
        assert_eq!(Frame::f32([3], [1.0, -2.5, 0.0]).to_f32(), [1.0, -2.5, 0.0]);
        assert_eq!(Frame::i64([2], [-1, 1 << 40]).to_i64(), [-1, 1 << 40]);
    }
}
