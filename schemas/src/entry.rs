//! The registry: what a kind is to everyone who does not compute.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::dims::Dims;
use crate::layout::Layout;
use crate::lora::Lora;
use crate::node::{Node, NodeError, NodeSpec, Part};
use crate::port::Ports;

/// A problem with a kind's options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionProblem {
    /// Dotted path of the option inside the node, empty for the node as a whole.
    pub option: String,
    /// What is wrong, lower case, with the value and the allowed range.
    pub message: String,
    /// What to write instead, an imperative; may be empty.
    pub hint: String,
}

impl OptionProblem {
    /// A problem with one option.
    pub fn new(
        option: impl Into<String>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self { option: option.into(), message: message.into(), hint: hint.into() }
    }
}

/// Reads options of any kind; the problem names the option that does not fit.
pub fn read_options<T: DeserializeOwned>(options: &Value) -> Result<T, OptionProblem> {
    serde_path_to_error::deserialize(options).map_err(|error| {
        let path = error.path().to_string();
        let option = if path == "." { String::new() } else { path };
        OptionProblem::new(option, error.inner().to_string(), "")
    })
}

/// Parameters of a node, counted without making them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// All parameters.
    pub parameters: u64,
    /// Those of the blocks alone, as published sizes often count.
    pub blocks: u64,
    /// Floating point operations of one forward pass, multiply and add counted apart; 0 when
    /// the kind does not say.
    pub flops: u64,
}

/// What is known of a parameter without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// Dotted path of field names.
    pub path: String,
    /// Extent of each dim.
    pub shape: Vec<usize>,
    /// Whether it is the matrix of a linear layer, stored `[in, out]`.
    pub linear: bool,
}

impl Parameter {
    /// The shape in a weights file, where linear layers are stored `[out, in]`.
    pub fn file_shape(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        if self.linear {
            shape.reverse();
        }
        shape
    }
}

/// A published network in the words of a kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    /// Options of the kind.
    pub options: Value,
    /// Dims of its inputs, as far as the weights depend on them.
    pub dims: Dims,
}

/// The worst value of an array beside its reference.
#[derive(Debug, Clone, PartialEq)]
pub struct Compared {
    /// Name of the array.
    pub name: String,
    /// Index of the value, row-major.
    pub index: usize,
    /// What was computed.
    pub got: f64,
    /// What was expected.
    pub expected: f64,
    /// How far off it is, in shares of the tolerance.
    pub share: f64,
}

/// What a kind is compared with.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Against {
    /// Folder of references.
    pub folder: PathBuf,
    /// Share of an array's largest value that it may be off; that of the folder when absent.
    pub tolerance: Option<f64>,
    /// Names of arrays for ports, in place of those that are known.
    pub names: Vec<(String, String)>,
}

/// What came of comparing a kind with reference tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct Conformance {
    /// Share of an array's largest value that it may be off.
    pub tolerance: f64,
    /// Arrays that were compared.
    pub compared: Vec<Compared>,
    /// Names of references that nothing was compared with.
    pub left: Vec<String>,
}

/// What is written of the saved state of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Export {
    /// All parameters; adapters stand beside their matrices under their own paths.
    Parameters,
    /// The parameters of the network without adapters, which are added to their matrices.
    Merged,
    /// The adapters alone, as a folder that PEFT reads.
    Adapters,
}

/// A kind as the graph sees it.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// JSON Schema of the options.
    pub schema: fn() -> Value,
    /// Reads options; returns them with defaults filled in.
    pub resolve: fn(&Value) -> Result<Value, OptionProblem>,
    /// Ports of a node with these (resolved) options and these connected inputs.
    pub ports: fn(&Value, wired: &[String]) -> Ports,
    /// Problems that the options show, alone or with the dims of the inputs. There are no dims
    /// when an input has problems of its own.
    pub check: fn(&Value, &Dims) -> Vec<OptionProblem>,
    /// Counts parameters without making them.
    pub count: fn(&NodeSpec) -> Count,
    /// Lists the parameters, without making them.
    pub parameters: fn(&NodeSpec) -> Vec<Parameter>,
    /// Ways in which files name the parameters.
    pub layouts: fn(&NodeSpec) -> Vec<Layout>,
    /// What the `config.json` beside published weights says in the words of the kind, as often as
    /// they hold it; nothing when they are of another network.
    pub published: fn(&Value) -> Vec<Published>,
    /// Compares a weights file with the parameters, without making or reading them.
    pub check_weights: fn(&NodeSpec) -> Result<(), NodeError>,
    /// Reads what a folder of published adapters asks for, and compares their matrices with the
    /// layers, without reading them.
    pub adapters: fn(&NodeSpec, &Path) -> Result<Lora, NodeError>,
    /// Writes the parameters of a saved state with the keys that people have.
    pub export: fn(&NodeSpec, &Part, Export, &Path) -> Result<(), NodeError>,
    /// Compares the kind with a folder of reference tensors.
    pub conform: fn(&NodeSpec, &Against) -> Result<Conformance, NodeError>,
    /// Makes the node, with parameters drawn or loaded.
    pub build: fn(&NodeSpec) -> Result<Box<dyn Node>, NodeError>,
    /// Text of the file that defines the kind, for `playhouse explain`.
    pub about: &'static str,
    /// Whether the kind makes frames from nothing.
    pub source: bool,
}

/// Kinds by name, sorted: (name, first doc line, entry).
pub type Registry = &'static [(&'static str, &'static str, Entry)];

/// The entry of a kind.
pub fn find(registry: Registry, kind: &str) -> Option<&'static Entry> {
    registry.iter().find(|(name, _, _)| *name == kind).map(|(_, _, entry)| entry)
}

/// The word among `words` that is most like `word`, if one is like it at all.
pub fn nearest<'a>(word: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let score = |other: &str| strsim::normalized_damerau_levenshtein(word, other);
    words
        .into_iter()
        .map(|other| (score(other), other))
        .filter(|(score, _)| *score > 0.5)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, other)| other)
}
