//! A reader of the pickles that `torch.save` writes, which runs nothing.
//!
//! A pickle is a program for a stack machine. This machine knows the instructions that build plain
//! data and a list of calls that it understands as data (`call`): tensors, ordered dicts, sizes,
//! numpy scalars. Any other call gives an opaque value with the name of what would have been called.
//! Values lie in one list and name each other by number, so a file that nests, repeats or encloses
//! itself drives no recursion. Source: `pickletools` of CPython 3.13, protocols 2 to 5.

mod call;
mod machine;

use std::ops::Range;

use super::dtype::Dtype;
use super::mapped::shown;

pub(super) use machine::run;

/// Number of a value.
pub(super) type Id = u32;

/// A part of the pickle.
pub(super) type Span = Range<usize>;

/// What a pickle builds.
#[derive(Debug, Clone)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    /// An integer beyond 64 bits, little-endian.
    Long(Span),
    Float(f64),
    Text(Span),
    Bytes(Span),
    /// Bytes that the pickle writes as text.
    Short(Box<[u8]>),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A class or function, by module and name.
    Global(Span, Span),
    Storage(Storage),
    Tensor(Box<View>),
    /// A tensor that cannot be read, and why.
    Refused(Box<str>),
    Opaque(Box<Opaque>),
}

/// The elements that tensors are views of.
#[derive(Debug, Clone)]
pub(super) struct Storage {
    /// None for bytes whose type the tensor says.
    pub(super) dtype: Option<Dtype>,
    /// Name of a type that cannot be read.
    pub(super) unknown: Option<Span>,
    pub(super) key: Span,
    /// Elements of the whole storage.
    pub(super) held: usize,
    /// Element at which the part that tensors count from begins.
    pub(super) start: usize,
}

/// A tensor as the pickle describes it.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub(super) dtype: Dtype,
    pub(super) key: Span,
    pub(super) held: usize,
    pub(super) first: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// An object of a class that is not known, and the values that it was given.
#[derive(Debug, Clone)]
pub(super) struct Opaque {
    /// The class, a `Global`.
    pub(super) class: Id,
    pub(super) held: Vec<Id>,
}

/// The values of one pickle.
#[derive(Debug)]
pub(super) struct Values<'a> {
    bytes: &'a [u8],
    all: Vec<Value>,
    pub(super) root: Id,
    /// Bytes of the pickle, up to and with its end.
    pub(super) length: usize,
}

impl<'a> Values<'a> {
    pub(super) fn get(&self, id: Id) -> &Value {
        &self.all[id as usize]
    }

    /// The text of a span, or how its bytes look when they are not UTF-8.
    pub(super) fn text(&self, span: &Span) -> std::borrow::Cow<'a, str> {
        String::from_utf8_lossy(&self.bytes[span.clone()])
    }

    pub(super) fn raw(&self, span: &Span) -> &'a [u8] {
        &self.bytes[span.clone()]
    }

    /// The entries of a dict by key, with the keys that are strings or integers as text.
    pub(super) fn entries(&self, id: Id) -> Option<impl Iterator<Item = (Option<String>, Id)>> {
        let Value::Dict(entries) = self.get(id) else { return None };
        Some(entries.iter().map(|(key, value)| (self.name(*key), *value)))
    }

    /// All storages that are named.
    pub(super) fn storages(&self) -> impl Iterator<Item = &Storage> {
        self.all.iter().filter_map(|value| match value {
            Value::Storage(storage) => Some(storage),
            _ => None,
        })
    }

    /// The name of the class of an opaque value, for people.
    pub(super) fn class(&self, opaque: &Opaque) -> String {
        let Value::Global(module, name) = self.get(opaque.class) else { return String::new() };
        shown(&format!("{}.{}", self.text(module), self.text(name)))
    }

    /// A key as part of a path.
    pub(super) fn name(&self, key: Id) -> Option<String> {
        match self.get(key) {
            Value::Text(span) if span.len() <= 4096 => {
                std::str::from_utf8(self.raw(span)).ok().map(str::to_owned)
            }
            Value::Int(number) => Some(number.to_string()),
            _ => None,
        }
    }
}
