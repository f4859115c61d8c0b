//! Feature alignment: heads on a student's features, and their distance from a teacher's.
//!
//! | port      | dims       | what                                                        |
//! |-----------|------------|-------------------------------------------------------------|
//! | `student` | `K B S D`  | tapped layers, ascending; S = V or N tokens, or 1 more      |
//! | `teacher` | `L B M E`  | tapped layers over the whole lattice, or 1 token more       |
//! | `visible` | `B V`      | optional: indices of the student's patches                  |
//! | `loss`    | `1`        | mean over layers, samples and tokens of `2 - 2 <s, t>`      |
//!
//! With `of: pooled` the ports are `student` `B D` and `teacher` `B E`. Vectors are divided by
//! their l2 norm, so the loss is the mean squared distance of unit vectors, between 0 and 4. The
//! last `last` layers of both are paired in ascending order. A class token takes part when both
//! sides have one. The teacher's tokens are gathered with `visible`. Measures `cosine`.
//! Source: Wang et al. 2024, "InternVideo2" (arXiv 2403.15377); recipes §1.5.

use burn::module::{Module, Param};
use burn::tensor::{FloatDType, Int, Tensor};
use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::node::NodeError;
use schemas::port::Ports;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::init::Init;
use crate::kind::{self, Call, Kind, Published};
use crate::layers::alignment_head::{Head, HeadKind};
use crate::layers::block;
use crate::layers::norm::unit;
use crate::layers::separate_tables::SeparateTables;
use crate::layers::size::side;
use crate::layers::{positions, stretch, tokens};
use crate::layout::Layout;
use crate::published;
use crate::tensors::Tensors;

/// What is aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Of {
    /// Tokens of several layers.
    #[default]
    Tokens,
    /// One vector per clip.
    Pooled,
}

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Tokens or pooled vectors.
    pub of: Of,
    /// Layers that are paired, counted from the last; all of the teacher's when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<usize>,
    /// Distance between the student's layers that are paired; may be a fraction.
    pub interval: f64,
    /// Form of the heads, one for each layer.
    pub head: HeadKind,
    /// Whether a learned position table is added before the heads.
    pub positions: bool,
    /// Whether that table is a sum of one over places and one over frames.
    pub separable: bool,
    /// Whether pictures, which are clips of one frame, have a table of their own (stage 2).
    pub picture_table: bool,
    /// Class tokens of a student that has several: they take no part, but have rows in the table.
    pub class_rows: usize,
    /// Whether the teacher's vectors are made unit vectors; a mean of unit vectors may stay as it is.
    pub unit: bool,
    /// Word in the keys of published checkpoints: `clip` or `mae`.
    pub group: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            of: Of::Tokens,
            last: None,
            interval: 1.0,
            head: HeadKind::Linear,
            positions: true,
            separable: false,
            picture_table: false,
            class_rows: 0,
            unit: true,
            group: "clip".to_owned(),
        }
    }
}

/// Heads, and the position table that they share.
#[derive(Module, Debug)]
pub struct FeatureAlignment {
    /// One for each pair of layers.
    pub heads: Vec<Head>,
    /// `[1, N or 1 + N, D]`, sine-cosine start.
    pub pos_embed: Option<Param<Tensor<3>>>,
    /// The same in parts, separable.
    pub pos_embed_parts: Option<SeparateTables>,
    /// `[1, H W or 1 + H W, D]`, of pictures.
    pub img_pos_embed: Option<Param<Tensor<3>>>,
    /// Extra tokens in front of the student's and of the teacher's patches.
    front: [usize; 2],
    /// Rows of the table that no token takes.
    spare: usize,
    unit: bool,
    /// Layers of the student that are paired.
    taps: Vec<usize>,
}

impl FeatureAlignment {
    /// Unit vectors of the student in the teacher's space, `[K, B, S, E]`. `student`:
    /// `[K, B, S, D]`, `visible`: `[B, V]`. The teacher has `rows` tokens of the whole clip.
    pub fn project(
        &self,
        student: Tensor<4>,
        visible: Option<Tensor<2, Int>>,
        rows: usize,
    ) -> Tensor<4> {
        let batch = student.dims()[1];
        let drop = self.front[0].saturating_sub(self.front[1]);
        let needed = rows - self.front[1].saturating_sub(self.front[0]) + self.spare;
        let extra = self.spare + self.front[0].min(self.front[1]);
        let fits = |table: &&Param<Tensor<3>>| needed == table.lazy_shape()[1];
        let picture = self.img_pos_embed.as_ref().filter(fits);
        let table = picture.or(self.pos_embed.as_ref()).map(Param::val);
        let table = table.or_else(|| self.pos_embed_parts.as_ref().map(SeparateTables::whole));
        let table = table.map(|table| {
            // Pictures without a table of their own have the mean over time.
            let table = match table.dims()[1] > needed {
                true => stretch::still(table, extra, needed - extra),
                false => table,
            };
            let [_, rows, width] = table.dims();
            let table = table.slice_dim(1, self.spare..rows);
            let table = table.expand([batch, rows - self.spare, width]);
            seen(table, visible, self.front[0].min(self.front[1]))
        });
        let align = |(head, tap): (&Head, &usize)| {
            let layer: Tensor<3> = student.clone().slice_dim(0, *tap..tap + 1).squeeze_dim(0);
            let tokens = layer.dims()[1];
            let layer = layer.slice_dim(1, drop..tokens);
            head.forward(match &table {
                Some(table) => layer + table.clone().cast(student.dtype()),
                None => layer,
            })
        };
        Tensor::stack(self.heads.iter().zip(&self.taps).map(align).collect::<Vec<_>>(), 0)
    }

    /// Unit vectors of the teacher at the student's tokens, `[K, B, S, E]`. `teacher`:
    /// `[L, B, M, E]`.
    pub fn targets(&self, teacher: Tensor<4>, visible: Option<Tensor<2, Int>>) -> Tensor<4> {
        let [layers, batch, rows, width] = teacher.dims();
        let pairs = self.heads.len();
        let drop = self.front[1].saturating_sub(self.front[0]);
        let last = teacher.slice_dim(0, layers - pairs..layers).slice_dim(2, drop..rows);
        let rows = rows - drop;
        let last = last.cast(FloatDType::F32).reshape([pairs * batch, rows, width]);
        let visible = visible.map(|visible| visible.repeat_dim(0, pairs));
        let front = self.front[1] - drop;
        let kept = seen(last, visible, front);
        let tokens = kept.dims()[1];
        let kept = if self.unit { unit(kept) } else { kept };
        kept.reshape([pairs, batch, tokens, width])
    }
}

/// The first `front` rows of `[B, front + N, D]`, then those that are visible.
fn seen(x: Tensor<3>, visible: Option<Tensor<2, Int>>, front: usize) -> Tensor<3> {
    let Some(visible) = visible else { return x };
    let rows = x.dims()[1];
    let kept = tokens::gather(x.clone().slice_dim(1, front..rows), visible);
    if front == 0 {
        return kept;
    }
    Tensor::cat(vec![x.slice_dim(1, 0..front), kept], 1)
}

/// Mean of `<s, t>` over all unit vectors.
fn cosine<const R: usize>(student: Tensor<R>, teacher: Tensor<R>) -> Tensor<1> {
    (student * teacher).sum_dim(R - 1).mean()
}

impl Config {
    /// Extra tokens in front of the patches of the student and the teacher.
    fn front(dims: &Dims) -> [usize; 2] {
        let all = side(dims, "t") * side(dims, "h") * side(dims, "w");
        let kept = dims.get("V").copied().unwrap_or(all);
        [side(dims, "S").saturating_sub(kept), side(dims, "M").saturating_sub(all)]
    }

    fn pairs(&self, dims: &Dims) -> usize {
        self.last.unwrap_or_else(|| side(dims, "L"))
    }
}

impl Kind for Config {
    type Module = FeatureAlignment;

    fn ports(&self, _: &[String]) -> Ports {
        let ports = Ports::default();
        let ports = match self.of {
            Of::Pooled => ports
                .input("student", "B D")
                .about("pooled feature")
                .stopped("teacher", "B E")
                .about("pooled feature"),
            Of::Tokens => ports
                .input("student", "K B S D")
                .lattice("t h w")
                .about("tapped layers, ascending")
                .stopped("teacher", "L B M E")
                .lattice("t h w")
                .about("tapped layers of the whole clip, ascending")
                .stopped("visible", "B V")
                .lattice("t h w")
                .int()
                .optional()
                .about("indices of the student's patches"),
        };
        ports.loss("loss").about("mean squared distance of unit vectors")
    }

    fn check(&self, dims: &Dims) -> Vec<OptionProblem> {
        let mut problems = Vec::new();
        if !(self.interval >= 1.0 && self.interval.is_finite()) {
            let message = format!("`interval` is {}, but must be at least 1", self.interval);
            problems.push(OptionProblem::new("interval", message, "1 takes neighbouring layers"));
            return problems;
        }
        if self.of == Of::Pooled || !dims.contains_key("L") {
            return problems;
        }
        let (pairs, student, teacher) = (self.pairs(dims), side(dims, "K"), side(dims, "L"));
        if pairs == 0 || pairs > teacher {
            let message = format!("{pairs} layers of the teacher's {teacher}");
            problems.push(OptionProblem::new("last", message, "give the teacher more `taps`"));
        } else if block::taps(student, pairs, self.interval).len() < pairs {
            let message = format!("{pairs} layers of the student's {student}");
            problems.push(OptionProblem::new("last", message, "give the student more `taps`"));
        }
        let all = side(dims, "t") * side(dims, "h") * side(dims, "w");
        let (sees, given) = (side(dims, "S"), dims.get("V").copied().unwrap_or(all));
        if sees < given {
            let message = format!("the student gives {sees} tokens, but the lattice has {given}");
            let hint = "connect `visible` to the mask that the student sees through";
            problems.push(OptionProblem::new("", message, hint));
        }
        let taught = side(dims, "M");
        if taught < all {
            let message = format!("the teacher gives {taught} tokens, but the lattice has {all}");
            let hint = "let the teacher see the whole clip: disconnect its `visible`";
            problems.push(OptionProblem::new("", message, hint));
        }
        if Self::front(dims).iter().any(|front| *front > self.class_rows.clamp(1, 1 << 10)) {
            let message = "more than one token beside the lattice".to_owned();
            let hint = "connect `visible` when the student sees a part of the clip, or set \
                        `class_rows` when it has several class tokens";
            problems.push(OptionProblem::new("", message, hint));
        }
        let (width, multiple) = (side(dims, "D"), if self.separable { 4 } else { 16 });
        if self.positions && !width.is_multiple_of(multiple) {
            let message = format!("{width} student channels, not a multiple of {multiple}");
            problems.push(OptionProblem::new("positions", message, "set it to false"));
        }
        if self.separable && (self.picture_table || !self.positions) {
            let message = "a table in parts is in place of others".to_owned();
            let hint = "leave out `picture_table`, and `positions: false`";
            problems.push(OptionProblem::new("separable", message, hint));
        }
        problems
    }

    fn init(&self, dims: &Dims, init: &Init) -> FeatureAlignment {
        let (inputs, outputs) = (side(dims, "D"), side(dims, "E"));
        let head = || Head::new(self.head, inputs, outputs, init);
        if self.of == Of::Pooled {
            let heads = vec![head()];
            return FeatureAlignment {
                heads,
                pos_embed: None,
                pos_embed_parts: None,
                img_pos_embed: None,
                front: [0; 2],
                spare: 0,
                unit: self.unit,
                taps: Vec::new(),
            };
        }
        let lattice = [side(dims, "t"), side(dims, "h"), side(dims, "w")];
        let front = Self::front(dims);
        let shared = front[0].min(front[1]);
        let extra = shared.max(self.class_rows);
        let table = |lattice: positions::Lattice| {
            let rows = extra + lattice.iter().product::<usize>();
            let values = move || positions::joint(lattice, inputs, extra);
            init.computed([1, rows, inputs], values)
        };
        let picture = [1, lattice[1], lattice[2]];
        let pairs = self.pairs(dims);
        FeatureAlignment {
            heads: (0..pairs).map(|_| head()).collect(),
            pos_embed: (self.positions && !self.separable).then(|| table(lattice)),
            pos_embed_parts: self
                .separable
                .then(|| SeparateTables::new(lattice, inputs, extra, init)),
            img_pos_embed: self.picture_table.then(|| table(picture)),
            front,
            spare: extra - shared,
            unit: self.unit,
            taps: block::taps(side(dims, "K"), pairs, self.interval),
        }
    }

    fn forward(
        &self,
        module: &FeatureAlignment,
        mut inputs: Tensors,
        _: &Call,
    ) -> Result<Tensors, NodeError> {
        let cosine = if self.of == Of::Pooled {
            let teacher: Tensor<2> = inputs.take("teacher")?;
            let student: Tensor<2> = module.heads[0].forward(inputs.take("student")?);
            let teacher = teacher.cast(FloatDType::F32);
            cosine(student, if self.unit { unit(teacher) } else { teacher })
        } else {
            let visible: Option<Tensor<2, Int>> = inputs.take_if("visible")?;
            let teacher: Tensor<4> = inputs.take("teacher")?;
            let rows = teacher.dims()[2];
            let targets = module.targets(teacher, visible.clone());
            cosine(module.project(inputs.take("student")?, visible, rows), targets)
        };
        let loss = cosine.clone().mul_scalar(-2.0).add_scalar(2.0);
        Ok(Tensors::of("loss", loss).measure("cosine", cosine.inner()))
    }

    fn all_published(config: &Value) -> Vec<Published> {
        let heads = published::alignment_heads(config).or_else(|| published::next_heads(config));
        heads.unwrap_or_default()
    }

    fn layouts(&self) -> Vec<Layout> {
        let group = &self.group;
        let inside = [(".mlp.fc1", ".head.0"), (".mlp.fc2", ".head.2")];
        let official = Layout::new("official").rules(&inside);
        let table = format!("{group}_pos_embed");
        match self.of {
            Of::Tokens => {
                let heads = format!("{group}_decoder.");
                let picture = format!("{group}_img_pos_embed");
                let official = official.rule("^pos_embed_parts.", &format!("{table}_"));
                let official = official.rule("^img_pos_embed", &picture);
                vec![official.rule("^heads.", &heads).rule("^pos_embed", &table)]
            }
            Of::Pooled => {
                let head = format!("final_{group}_decoder.");
                // Stage 2 of InternVideo-Next.
                let later = Layout::new("later").rules(&inside);
                let later = later.rule("^heads.0.", &format!("selfdist_proj_{group}."));
                vec![official.rule("^heads.0.", &head), later]
            }
        }
    }
}

/// Kind `losses/feature_alignment`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("feature_alignment.rs"));
