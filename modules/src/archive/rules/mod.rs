//! Named changes that fit a checkpoint to another model: of size, of parts, of vocabulary.
//!
//! A rule is written as data, for example `resize_plane: { from: [16, 16], to: [14, 14] }`, and is a
//! pure function of arrays on the host. `remove` and `start_at_zero` are about keys: the first says
//! which tensors of a file are not wanted, the second which parameters need not be in it.

mod kernels;
mod matrices;
mod tables;

use std::path::PathBuf;

use burn::tensor::Device;
use schemas::frame::Frame;
use schemas::glob::fits;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::tensors::AnyTensor;
pub use crate::video::transform::resize::Filter;

/// Values on the host, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct ArrayF32 {
    /// Extents.
    pub shape: Vec<usize>,
    /// As many values as the extents say.
    pub values: Vec<f32>,
}

impl ArrayF32 {
    /// An array, when the number of values fits the shape.
    pub fn new(shape: Vec<usize>, values: Vec<f32>) -> Option<Self> {
        (volume(&shape) == Some(values.len())).then_some(Self { shape, values })
    }

    /// Zeros, when that many values can be held.
    pub fn zeros(shape: Vec<usize>) -> Option<Self> {
        let values = vec![0.0; volume(&shape)?];
        Some(Self { shape, values })
    }
}

/// The most values of an array that a rule makes.
const MAX_VALUES: usize = 1 << 33;

fn volume(shape: &[usize]) -> Option<usize> {
    let count = shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent));
    count.filter(|count| *count <= MAX_VALUES)
}

/// Why a rule does not fit its inputs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// Another number of inputs.
    #[error("rule `{rule}` takes {expected} arrays, got {found}")]
    Inputs {
        /// Name of the rule.
        rule: &'static str,
        /// How many it takes.
        expected: usize,
        /// How many came.
        found: usize,
    },
    /// An input or an option that the rule cannot use.
    #[error("rule `{rule}`: {reason}")]
    Unfit {
        /// Name of the rule.
        rule: &'static str,
        /// What is wrong.
        reason: String,
    },
}

/// How a picture kernel becomes one of a clip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Inflation {
    /// The kernel at the middle frame, zeros before and after it.
    Centre,
    /// The kernel divided by the number of frames, at each of them.
    Average,
}

/// How a patch kernel becomes one of another size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Restem {
    /// The kernel that gives enlarged patches the tokens of the patches (FlexiViT).
    PseudoInverse {
        /// How patches are enlarged.
        filter: Filter,
        /// Whether the filter widens when patches shrink.
        #[serde(default)]
        antialias: bool,
    },
    /// The kernel resized like a picture.
    Bicubic,
}

/// How new rows start.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum NewRows {
    /// As the mean of the old rows.
    Mean,
    /// Normal, with mean 0.
    Normal {
        /// Standard deviation.
        sigma: f64,
        /// Seed of the draws.
        seed: u64,
    },
}

/// A named change of a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Rule {
    /// Resizes each frame of a position table `[.., N, D]` from rows and columns to others, corners
    /// not aligned. The first `leading` rows, of class tokens, stay.
    ResizePlane {
        /// Rows and columns in the file.
        from: [usize; 2],
        /// Rows and columns wanted.
        to: [usize; 2],
        /// The interpolation; bicubic in most models, bilinear in SigLIP 2.
        #[serde(default = "bicubic")]
        filter: Filter,
        /// Whether the filter widens when the table shrinks.
        #[serde(default)]
        antialias: bool,
        /// Rows before the table.
        #[serde(default)]
        leading: usize,
    },
    /// Resizes a position table of clips: linear in time, bicubic in space.
    ResizeClip {
        /// Frames, rows and columns in the file.
        from: [usize; 3],
        /// Frames, rows and columns wanted.
        to: [usize; 3],
        /// Rows before the table.
        #[serde(default)]
        leading: usize,
    },
    /// Resizes a position table of clips in time only, linearly.
    ResizeTime {
        /// Frames in the file.
        from: usize,
        /// Frames wanted.
        to: usize,
        /// Rows before the table.
        #[serde(default)]
        leading: usize,
    },
    /// Makes a kernel of clips `[O, I, T, h, w]` of one of pictures `[O, I, h, w]`.
    InflateKernel {
        /// T.
        frames: usize,
        /// How the kernel is spread over time.
        how: Inflation,
    },
    /// Resizes the last two axes of a patch kernel.
    ResizeKernel {
        /// Height and width wanted.
        to: [usize; 2],
        /// How.
        how: Restem,
    },
    /// Leaves out the tensors whose key fits the pattern; `*` stands for any characters.
    Remove {
        /// Pattern.
        #[serde(default = "any")]
        keys: String,
    },
    /// Lets parameters whose key fits the pattern be absent; they start at zero, as gates of
    /// modules that are put in.
    StartAtZero {
        /// Pattern.
        #[serde(default = "any")]
        keys: String,
    },
    /// `W + scale * B A` of `W [O, I]`, `A [r, I]` and `B [O, r]`, in this order; the scale is
    /// alpha over r (Hu et al. 2021).
    MergeLora {
        /// Alpha; may be absent beside `from`.
        #[serde(default)]
        alpha: Option<f64>,
        /// Alpha over the root of r instead (rsLoRA, Kalajdzievski 2023).
        #[serde(default)]
        rank_stabilised: bool,
        /// Folder of PEFT with A, B and alpha; the checkpoint itself holds them when absent.
        #[serde(default)]
        from: Option<PathBuf>,
    },
    /// Adds rows to a table of embeddings `[V, D]` or a bias `[V]`.
    GrowRows {
        /// Rows wanted.
        rows: usize,
        /// How new ones start.
        how: NewRows,
    },
}

fn any() -> String {
    "*".to_owned()
}

fn bicubic() -> Filter {
    Filter::Bicubic
}

impl Rule {
    /// The name that the rule has in files.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::ResizePlane { .. } => "resize_plane",
            Self::ResizeClip { .. } => "resize_clip",
            Self::ResizeTime { .. } => "resize_time",
            Self::InflateKernel { .. } => "inflate_kernel",
            Self::ResizeKernel { .. } => "resize_kernel",
            Self::Remove { .. } => "remove",
            Self::StartAtZero { .. } => "start_at_zero",
            Self::MergeLora { .. } => "merge_lora",
            Self::GrowRows { .. } => "grow_rows",
        }
    }

    /// The changed array. All rules take one array, `merge_lora` takes three.
    pub fn apply(&self, inputs: &[ArrayF32]) -> Result<ArrayF32, RuleError> {
        let rule = self.name();
        let expected = if matches!(self, Self::MergeLora { .. }) { 3 } else { 1 };
        if inputs.len() != expected {
            return Err(RuleError::Inputs { rule, expected, found: inputs.len() });
        }
        let unfit = |reason: String| RuleError::Unfit { rule, reason };
        for input in inputs {
            if volume(&input.shape) != Some(input.values.len()) {
                let (shape, held) = (&input.shape, input.values.len());
                return Err(unfit(format!("{held} values for {shape:?}")));
            }
        }
        let input = &inputs[0];
        let made = match self {
            &Self::ResizePlane { from, to, filter, antialias, leading } => {
                let [rows, columns] = from;
                tables::plane(input, ([rows, columns], to), leading, (filter, antialias))
            }
            &Self::ResizeClip { from, to, leading } => tables::clip(input, (from, to), leading),
            &Self::ResizeTime { from, to, leading } => tables::time(input, (from, to), leading),
            &Self::InflateKernel { frames, how } => kernels::inflate(input, frames, how),
            &Self::ResizeKernel { to, how } => kernels::restem(input, to, how),
            &Self::MergeLora { alpha: Some(alpha), rank_stabilised, .. } => {
                matrices::merge_lora(inputs, alpha, rank_stabilised)
            }
            Self::MergeLora { .. } => Err("`alpha` is needed".to_owned()),
            &Self::GrowRows { rows, how } => matrices::grow(input, rows, how),
            Self::Remove { .. } | Self::StartAtZero { .. } => {
                Err("is about keys and changes no array".to_owned())
            }
        };
        made.map_err(unfit)
    }

    /// Whether a tensor of a file is left out.
    pub fn removes(&self, key: &str) -> bool {
        matches!(self, Self::Remove { keys } if fits(keys, key))
    }

    /// What a parameter that the file does not have starts with, when the rule lets it be absent.
    pub fn absent(&self, key: &str, shape: &[usize]) -> Option<ArrayF32> {
        match self {
            Self::StartAtZero { keys } if fits(keys, key) => ArrayF32::zeros(shape.to_vec()),
            _ => None,
        }
    }
}

/// What a rule that is written as data makes of a tensor.
pub fn apply(rule: &Value, tensor: AnyTensor, device: &Device) -> Result<AnyTensor, String> {
    let rule = read(rule)?;
    let frame = tensor.into_frame();
    let input = ArrayF32 { shape: frame.shape().to_vec(), values: frame.to_f32() };
    let made = rule.apply(&[input]).map_err(|error| error.to_string())?;
    let frame = Frame::f32(made.shape, made.values);
    AnyTensor::from_frame(&frame, device).map_err(|error| error.to_string())
}

/// The shape that a rule that is written as data makes of another.
pub fn shape(rule: &Value, shape: &[usize]) -> Result<Vec<usize>, String> {
    let rule = read(rule)?;
    let input = ArrayF32::zeros(shape.to_vec()).ok_or("the tensor is too large")?;
    Ok(rule.apply(&[input]).map_err(|error| error.to_string())?.shape)
}

fn read(rule: &Value) -> Result<Rule, String> {
    serde_json::from_value(rule.clone()).map_err(|error| error.to_string())
}

/// Multiplies one axis of `[outer, from, inner]` by a matrix `[to, from]`.
fn along(values: &[f32], inner: usize, matrix: &[f64], (from, to): (usize, usize)) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len() / from * to);
    let mut line = vec![0.0f64; inner];
    for block in values.chunks_exact(from * inner) {
        for weights in matrix.chunks_exact(from) {
            line.fill(0.0);
            for (weight, row) in weights.iter().zip(block.chunks_exact(inner)) {
                if *weight != 0.0 {
                    line.iter_mut().zip(row).for_each(|(sum, v)| *sum += weight * f64::from(*v));
                }
            }
            out.extend(line.iter().map(|sum| *sum as f32));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_from_data_and_unknown_options_are_refused() {
        let read = |text: &str| serde_json::from_str::<Rule>(text);
        let rule = read(r#"{"resize_plane": {"from": [2, 2], "to": [3, 3], "leading": 1}}"#);
        let Ok(Rule::ResizePlane { filter, antialias, leading, .. }) = rule else { panic!() };
        assert_eq!((filter, antialias, leading), (Filter::Bicubic, false, 1));
        assert!(read(r#"{"resize_time": {"from": 4, "to": 8, "width": 2}}"#).is_err());
        let how = r#"{"pseudo_inverse": {"filter": "bilinear"}}"#;
        let text = format!(r#"{{"resize_kernel": {{"to": [8, 8], "how": {how}}}}}"#);
        assert_eq!(read(&text).unwrap().name(), "resize_kernel");
    }

    #[test]
    fn keys_are_removed_and_absent_gates_start_at_zero() {
        let remove = Rule::Remove { keys: "decoder.*".into() };
        assert!(remove.removes("decoder.norm.weight") && !remove.removes("encoder.x"));
        let gates = Rule::StartAtZero { keys: "*.gate".into() };
        assert_eq!(gates.absent("blocks.0.gate", &[2]).unwrap().values, [0.0, 0.0]);
        assert_eq!(gates.absent("blocks.0.weight", &[2]), None);
        let array = ArrayF32::zeros(vec![1]).unwrap();
        assert!(gates.apply(&[array]).is_err());
    }

    #[test]
    fn inputs_that_do_not_fit_are_told() {
        let rule = Rule::MergeLora { alpha: Some(1.0), rank_stabilised: false, from: None };
        let text = rule.apply(&[]).unwrap_err().to_string();
        assert_eq!(text, "rule `merge_lora` takes 3 arrays, got 0");
        let short = ArrayF32 { shape: vec![3], values: vec![1.0] };
        let grow = Rule::GrowRows { rows: 4, how: NewRows::Mean };
        let text = grow.apply(&[short]).unwrap_err().to_string();
        assert_eq!(text, "rule `grow_rows`: 1 values for [3]");
    }
}
