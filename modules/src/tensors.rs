//! Tensors by port name, with the rank known at run time.
//!
//! burn's tensors carry their rank in the type; a port carries it in the graph. This file is the
//! only place where the one becomes the other: [`Tensors::take`] checks the rank, and an
//! [`AnyTensor`] is what travels inside a frame while it stays in its process.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::{DType as BurnDType, Device, FloatDType, Gradients, Int, Tensor, TensorData};
use bytes::Bytes;
use schemas::frame::{DType, DeviceTensor, Frame};
use schemas::node::NodeError;

use crate::norm_squared_ops::norm_squared;

/// A tensor whose rank and class are known at run time.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "one variant for each class (float, int) and rank")]
pub enum AnyTensor {
    F1(Tensor<1>),
    F2(Tensor<2>),
    F3(Tensor<3>),
    F4(Tensor<4>),
    F5(Tensor<5>),
    F6(Tensor<6>),
    I1(Tensor<1, Int>),
    I2(Tensor<2, Int>),
    I3(Tensor<3, Int>),
    I4(Tensor<4, Int>),
}

/// Runs the same expression on the tensor inside, whatever its rank.
macro_rules! each {
    ($any:expr, $t:ident => $body:expr) => {
        match $any {
            AnyTensor::F1($t) => $body,
            AnyTensor::F2($t) => $body,
            AnyTensor::F3($t) => $body,
            AnyTensor::F4($t) => $body,
            AnyTensor::F5($t) => $body,
            AnyTensor::F6($t) => $body,
            AnyTensor::I1($t) => $body,
            AnyTensor::I2($t) => $body,
            AnyTensor::I3($t) => $body,
            AnyTensor::I4($t) => $body,
        }
    };
}

/// Runs the same expression on a float tensor; another expression on an int tensor.
macro_rules! each_float {
    ($any:expr, $t:ident => $body:expr, $other:ident => $int:expr) => {
        match $any {
            AnyTensor::F1($t) => $body,
            AnyTensor::F2($t) => $body,
            AnyTensor::F3($t) => $body,
            AnyTensor::F4($t) => $body,
            AnyTensor::F5($t) => $body,
            AnyTensor::F6($t) => $body,
            $other => $int,
        }
    };
}
pub(crate) use each_float;

/// A tensor type of fixed class and rank.
pub trait Ranked: Sized {
    /// For messages: class and rank.
    const NAME: &'static str;
    /// Wraps.
    fn wrap(self) -> AnyTensor;
    /// Unwraps, or gives the tensor back when class or rank differ.
    #[expect(clippy::result_large_err, reason = "the tensor goes back to the caller, who names it")]
    fn unwrap(any: AnyTensor) -> Result<Self, AnyTensor>;
}

macro_rules! ranked {
    ($($variant:ident, $type:ty, $name:literal;)*) => {$(
        impl Ranked for $type {
            const NAME: &'static str = $name;
            fn wrap(self) -> AnyTensor {
                AnyTensor::$variant(self)
            }
            fn unwrap(any: AnyTensor) -> Result<Self, AnyTensor> {
                match any {
                    AnyTensor::$variant(tensor) => Ok(tensor),
                    other => Err(other),
                }
            }
        }
        impl From<$type> for AnyTensor {
            fn from(tensor: $type) -> Self {
                Self::$variant(tensor)
            }
        }
    )*};
}

ranked! {
    F1, Tensor<1>, "float tensor of rank 1";
    F2, Tensor<2>, "float tensor of rank 2";
    F3, Tensor<3>, "float tensor of rank 3";
    F4, Tensor<4>, "float tensor of rank 4";
    F5, Tensor<5>, "float tensor of rank 5";
    F6, Tensor<6>, "float tensor of rank 6";
    I1, Tensor<1, Int>, "int tensor of rank 1";
    I2, Tensor<2, Int>, "int tensor of rank 2";
    I3, Tensor<3, Int>, "int tensor of rank 3";
    I4, Tensor<4, Int>, "int tensor of rank 4";
}

impl AnyTensor {
    /// Wraps a float tensor of any rank up to 6.
    pub fn float<const D: usize>(tensor: Tensor<D>) -> Self {
        let dispatch = tensor.into_dispatch();
        match D {
            1 => Self::F1(Tensor::from_dispatch(dispatch)),
            2 => Self::F2(Tensor::from_dispatch(dispatch)),
            3 => Self::F3(Tensor::from_dispatch(dispatch)),
            4 => Self::F4(Tensor::from_dispatch(dispatch)),
            5 => Self::F5(Tensor::from_dispatch(dispatch)),
            6 => Self::F6(Tensor::from_dispatch(dispatch)),
            _ => panic!("a tensor of rank {D} has no port"),
        }
    }

    /// The float tensor of rank `D` inside; panics when it is another, a programming error.
    pub fn into_float<const D: usize>(self) -> Tensor<D> {
        assert_eq!(self.shape().len(), D, "rank");
        each_float!(self, t => Tensor::from_dispatch(t.into_dispatch()),
            other => panic!("an int tensor {:?} where floats are due", other.shape()))
    }

    /// Extent of each dim.
    pub fn shape(&self) -> Vec<usize> {
        each!(self, t => t.dims().to_vec())
    }

    /// Whether the elements are floats.
    pub fn is_float(&self) -> bool {
        each_float!(self, _t => true, _other => false)
    }

    /// Without autodiff: the values alone.
    pub fn inner(self) -> Self {
        each!(self, t => t.inner().into())
    }

    /// Zeros of the same shape, without autodiff.
    pub fn zeros(self) -> Self {
        each!(self, t => t.inner().zeros_like().into())
    }

    /// As a leaf whose gradient is kept; ints stay as they are.
    pub fn leaf(self) -> Self {
        each_float!(self, t => t.inner().autodiff().require_grad().into(), other => other)
    }

    /// Takes the gradient of a leaf, without autodiff; none when it has none.
    pub fn gradient(&self, from: &mut Gradients) -> Option<Self> {
        each_float!(self, t => t.grad_remove(from).map(|g| g.inner().into()), _other => None)
    }

    /// Sum of two float tensors of one shape.
    pub fn plus(self, other: Self) -> Self {
        each_float!(self, t => add(t, other).into(), int => int)
    }

    /// Float elements times `factor`.
    pub fn times(self, factor: f64) -> Self {
        each_float!(self, t => t.mul_scalar(factor).into(), other => other)
    }

    /// Float elements in another precision; ints stay.
    pub fn cast(self, dtype: FloatDType) -> Self {
        each_float!(self, t => t.cast(dtype).into(), other => other)
    }

    /// On another device.
    pub fn to_device(self, device: &Device) -> Self {
        each!(self, t => t.to_device(device).into())
    }

    /// Sum of squares; 0 for what is no float.
    pub fn squared_norm(&self) -> f64 {
        each_float!(self, t => {
            f64::from(norm_squared(t.clone().inner()).into_scalar::<f32>())
        }, _other => 0.0)
    }

    /// Host data.
    pub fn to_data(&self) -> TensorData {
        each!(self, t => t.to_data())
    }

    /// Reads a frame onto a device (without autodiff). A handle of this process is not copied.
    pub fn from_frame(frame: &Frame, device: &Device) -> Result<Self, NodeError> {
        if let Some(held) = frame.tensor().and_then(|t| t.as_any().downcast_ref::<Self>()) {
            let same = each!(held, t => t.device() == *device);
            let tensor = held.clone();
            return Ok(if same { tensor } else { tensor.to_device(device) });
        }
        let bytes = frame.bytes();
        let shape = frame.shape().to_vec();
        let dtype = match frame.dtype() {
            DType::F32 => BurnDType::F32,
            DType::Bf16 => BurnDType::BF16,
            DType::F16 => BurnDType::F16,
            DType::I64 => BurnDType::I64,
            DType::U8 | DType::Bool => {
                return Self::from_frame(&Frame::i64(shape, frame.to_i64()), device);
            }
        };
        let data = TensorData::from_bytes_vec(bytes.to_vec(), shape.clone(), dtype);
        Self::from_data(data, device).ok_or_else(|| NodeError::Mismatch {
            port: String::new(),
            found: format!("{}{shape:?}", frame.dtype()),
            expected: "a float of rank 1 to 6 or an int of rank 1 to 4".to_owned(),
        })
    }

    /// Uploads host data; none when no variant has its class and rank.
    pub fn from_data(data: TensorData, device: &Device) -> Option<Self> {
        let (rank, int) = (data.shape().len(), data.dtype().is_int() || data.dtype().is_uint());
        Some(match (int, rank) {
            (false, 1) => Self::F1(upload(data, device)),
            (false, 2) => Self::F2(upload(data, device)),
            (false, 3) => Self::F3(upload(data, device)),
            (false, 4) => Self::F4(upload(data, device)),
            (false, 5) => Self::F5(upload(data, device)),
            (false, 6) => Self::F6(upload(data, device)),
            (true, 1) => Self::I1(Tensor::from_data(data, device)),
            (true, 2) => Self::I2(Tensor::from_data(data, device)),
            (true, 3) => Self::I3(Tensor::from_data(data, device)),
            (true, 4) => Self::I4(Tensor::from_data(data, device)),
            _ => return None,
        })
    }

    /// As a frame that holds the device tensor. Autodiff is dropped.
    pub fn into_frame(self) -> Frame {
        let tensor = self.inner();
        let shape = tensor.shape();
        let dtype = match each!(&tensor, t => t.dtype()) {
            BurnDType::BF16 => DType::Bf16,
            BurnDType::F16 => DType::F16,
            dtype if dtype.is_float() => DType::F32,
            _ => DType::I64,
        };
        Frame::device(dtype, shape, Arc::new(tensor))
    }
}

fn add<const D: usize>(left: Tensor<D>, right: AnyTensor) -> Tensor<D> {
    left + right.into_float::<D>()
}

/// Uploads floats in the dtype of the data, whatever the device's default is.
fn upload<const D: usize>(data: TensorData, device: &Device) -> Tensor<D> {
    let dtype = data.dtype();
    Tensor::from_data(data, (device, dtype))
}

impl DeviceTensor for AnyTensor {
    fn to_host(&self) -> Bytes {
        let data = self.to_data();
        let data = match data.dtype() {
            BurnDType::F32 | BurnDType::BF16 | BurnDType::F16 | BurnDType::I64 => data,
            dtype if dtype.is_float() => data.convert_dtype(BurnDType::F32),
            _ => data.convert_dtype(BurnDType::I64),
        };
        Bytes::copy_from_slice(data.as_bytes())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Tensors by port name, and numbers measured on the way.
#[derive(Debug, Clone, Default)]
pub struct Tensors {
    by_port: BTreeMap<String, AnyTensor>,
    /// Scalars for observers, by name.
    pub measures: Vec<(String, Tensor<1>)>,
}

impl Tensors {
    /// No tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// One tensor.
    pub fn of(port: &str, tensor: impl Ranked) -> Self {
        Self::new().with(port, tensor)
    }

    /// And another one.
    pub fn with(mut self, port: &str, tensor: impl Ranked) -> Self {
        self.by_port.insert(port.to_owned(), tensor.wrap());
        self
    }

    /// And a scalar for observers; no gradient flows from it.
    pub fn measure(mut self, name: &str, value: Tensor<1>) -> Self {
        self.measures.push((name.to_owned(), value));
        self
    }

    /// Puts a tensor of any rank.
    pub fn put(&mut self, port: &str, tensor: AnyTensor) {
        self.by_port.insert(port.to_owned(), tensor);
    }

    /// Takes the tensor of a port that must be connected.
    pub fn take<T: Ranked>(&mut self, port: &str) -> Result<T, NodeError> {
        self.take_if(port)?.ok_or_else(|| NodeError::MissingInput { port: port.to_owned() })
    }

    /// Takes the tensor of an optional port.
    pub fn take_if<T: Ranked>(&mut self, port: &str) -> Result<Option<T>, NodeError> {
        let Some(any) = self.by_port.remove(port) else { return Ok(None) };
        T::unwrap(any).map(Some).map_err(|found| NodeError::Mismatch {
            port: port.to_owned(),
            found: format!(
                "{} {:?}",
                if found.is_float() { "floats" } else { "ints" },
                found.shape()
            ),
            expected: T::NAME.to_owned(),
        })
    }

    /// Whether the port has a tensor.
    pub fn has(&self, port: &str) -> bool {
        self.by_port.contains_key(port)
    }

    /// All tensors, by port.
    pub fn into_map(self) -> BTreeMap<String, AnyTensor> {
        self.by_port
    }

    /// All tensors, by port.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &AnyTensor)> {
        self.by_port.iter()
    }
}
