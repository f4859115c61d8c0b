//! Ports: the named, typed openings of a node.
//!
//! A port declares its element class, symbolic dims, the token lattice (t, h, w) where tokens
//! come from one, value tags, and what a gradient does there: it flows through an `input`, ends
//! at a `stopped` port, and begins at a `loss`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The class of elements that a port takes. The exact dtype is the node's precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Elements {
    /// Floating point numbers.
    Float,
    /// Integers: indices, labels, sample ids.
    Int,
}

impl Elements {
    /// The word used in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Float => "float",
            Self::Int => "int",
        }
    }
}

/// What a gradient does at a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grad {
    /// It flows on to whoever feeds the port.
    Flows,
    /// It ends here: targets, masks, labels.
    Stopped,
    /// It begins here, with the weight of the loss.
    Loss,
}

/// One opening of a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Port {
    /// Name, unique among the inputs or the outputs of the node.
    pub name: String,
    /// Class of elements.
    pub elements: Elements,
    /// Dims separated by blanks, as [`crate::dims::Dim`] reads them.
    pub dims: String,
    /// Token lattice: frames, rows, columns, as dims.
    pub lattice: Option<String>,
    /// Facts about the values, compared across an edge when both ends state them.
    pub tags: BTreeMap<String, String>,
    /// What a gradient does here.
    pub grad: Grad,
    /// Whether the node works without it.
    pub optional: bool,
    /// One line for people.
    pub about: String,
}

/// All ports of a node, in the order they are declared.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Ports {
    /// What the node takes.
    pub inputs: Vec<Port>,
    /// What the node gives.
    pub outputs: Vec<Port>,
    #[serde(skip)]
    last_is_output: bool,
}

impl Ports {
    /// Adds an input that gradients flow through.
    pub fn input(self, name: &str, dims: impl Into<String>) -> Self {
        self.add(false, name, dims.into(), Grad::Flows)
    }

    /// Adds an input where gradients end.
    pub fn stopped(self, name: &str, dims: impl Into<String>) -> Self {
        self.add(false, name, dims.into(), Grad::Stopped)
    }

    /// Adds an output.
    pub fn output(self, name: &str, dims: impl Into<String>) -> Self {
        self.add(true, name, dims.into(), Grad::Flows)
    }

    /// Adds an output without gradient: indices, scores for people.
    pub fn plain(self, name: &str, dims: impl Into<String>) -> Self {
        self.add(true, name, dims.into(), Grad::Stopped)
    }

    /// Adds a scalar output where the backward pass begins.
    pub fn loss(self, name: &str) -> Self {
        self.add(true, name, "1".to_owned(), Grad::Loss)
    }

    /// The port just added takes or gives integers.
    pub fn int(mut self) -> Self {
        self.last().elements = Elements::Int;
        self
    }

    /// The port just added may be left unconnected.
    pub fn optional(mut self) -> Self {
        self.last().optional = true;
        self
    }

    /// The port just added carries tokens of this lattice (frames, rows, columns).
    pub fn lattice(mut self, lattice: impl Into<String>) -> Self {
        self.last().lattice = Some(lattice.into());
        self
    }

    /// The values at the port just added have this property.
    pub fn tag(mut self, name: &str, value: impl Into<String>) -> Self {
        self.last().tags.insert(name.to_owned(), value.into());
        self
    }

    /// Says in one line what travels through the port just added.
    pub fn about(mut self, about: &str) -> Self {
        self.last().about = about.to_owned();
        self
    }

    /// The input of this name.
    pub fn find_input(&self, name: &str) -> Option<&Port> {
        self.inputs.iter().find(|port| port.name == name)
    }

    /// The output of this name.
    pub fn find_output(&self, name: &str) -> Option<&Port> {
        self.outputs.iter().find(|port| port.name == name)
    }

    /// Names of the outputs where a backward pass begins.
    pub fn losses(&self) -> impl Iterator<Item = &str> {
        self.outputs.iter().filter(|p| p.grad == Grad::Loss).map(|p| p.name.as_str())
    }

    fn add(mut self, output: bool, name: &str, dims: String, grad: Grad) -> Self {
        let port = Port {
            name: name.to_owned(),
            elements: Elements::Float,
            dims,
            lattice: None,
            tags: BTreeMap::new(),
            grad,
            optional: false,
            about: String::new(),
        };
        self.last_is_output = output;
        if output {
            self.outputs.push(port)
        } else {
            self.inputs.push(port)
        }
        self
    }

    fn last(&mut self) -> &mut Port {
        let ports = if self.last_is_output { &mut self.outputs } else { &mut self.inputs };
        ports.last_mut().expect("a port was added before it is described")
    }
}
