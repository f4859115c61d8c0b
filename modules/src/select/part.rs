//! Part: some of the equal parts that rows were joined from.
//!
//! | port   | dims        | what                                                    |
//! |--------|-------------|---------------------------------------------------------|
//! | `rows` | `N L D`     | samples; other dims with another `of`                   |
//! | `part` | `N/p*k L D` | the parts from `from` to before `to`, k of p            |
//!
//! `of` says what the rows are: `tokens` (`N L D`), `vectors` (`N D`), `ids` (ints `N L`) or `numbers`
//! (ints `N`). The gradient of floats flows back; it is 0 in the other parts. It undoes
//! `select/concatenate` behind a node that saw several batches as one.
//! Source: the matching batch of InternVideo2, recipes §2.6.

use burn::module::Module;
use burn::tensor::{Int, Tensor};
use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::node::NodeError;
use schemas::port::Ports;
use serde::{Deserialize, Serialize};

use crate::init::Init;
use crate::kind::{self, Call, Kind};
use crate::layers::rows::{Change, Rows};
use crate::layers::size::side;
use crate::tensors::Tensors;

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What the rows are.
    pub of: Rows,
    /// Equal parts that the rows have.
    pub parts: usize,
    /// First part, counted from 0.
    pub from: usize,
    /// The part after the last one; all parts when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<usize>,
}

impl Default for Config {
    fn default() -> Self {
        Self { of: Rows::default(), parts: 2, from: 0, to: None }
    }
}

impl Config {
    fn to(&self) -> usize {
        self.to.unwrap_or(self.parts)
    }
}

/// No parameters.
#[derive(Module, Debug)]
pub struct Part {
    parts: usize,
}

/// Parts of one tensor.
struct Cut {
    parts: usize,
    from: usize,
    to: usize,
}

impl Change for Cut {
    fn floats<const R: usize>(&self, mut tensors: Vec<Tensor<R>>) -> Tensor<R> {
        let rows = tensors.swap_remove(0);
        let one = rows.dims()[0] / self.parts;
        rows.slice_dim(0, self.from * one..self.to * one)
    }

    fn ints<const R: usize>(&self, mut tensors: Vec<Tensor<R, Int>>) -> Tensor<R, Int> {
        let rows = tensors.swap_remove(0);
        let one = rows.dims()[0] / self.parts;
        rows.slice_dim(0, self.from * one..self.to * one)
    }
}

impl Kind for Config {
    type Module = Part;

    fn ports(&self, _: &[String]) -> Ports {
        let rows = format!("N/{}*{}", self.parts, self.to().saturating_sub(self.from));
        let ports = self.of.input(Ports::default(), "rows", "N").about("samples");
        self.of.output(ports, "part", &rows).about("the parts that are named")
    }

    fn check(&self, dims: &Dims) -> Vec<OptionProblem> {
        let (rows, mut problems) = (side(dims, "N"), Vec::new());
        if !(1..=1 << 10).contains(&self.parts) || !rows.is_multiple_of(self.parts.max(1)) {
            let message = format!("{rows} rows are not {} equal parts", self.parts);
            let hint = "give the number of batches that were joined";
            problems.push(OptionProblem::new("parts", message, hint));
        } else if self.from >= self.to() || self.to() > self.parts {
            let message = format!("parts {} to {} of {}", self.from, self.to(), self.parts);
            let hint = "`from` is below `to`, and `to` at most `parts`";
            problems.push(OptionProblem::new("from", message, hint));
        }
        problems
    }

    fn init(&self, _: &Dims, _: &Init) -> Part {
        Part { parts: self.parts }
    }

    fn forward(&self, module: &Part, mut inputs: Tensors, _: &Call) -> Result<Tensors, NodeError> {
        let cut = Cut { parts: module.parts, from: self.from, to: self.to() };
        let mut outputs = Tensors::new();
        outputs.put("part", self.of.map(&mut inputs, &["rows"], cut)?);
        Ok(outputs)
    }
}

/// Kind `select/part`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("part.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use schemas::node::At;

    use crate::rng::Key;

    #[test]
    fn parts_are_those_that_were_joined() {
        let config = Config { of: Rows::Numbers, parts: 3, from: 1, to: None };
        assert_eq!(config.ports(&[]).find_output("part").unwrap().dims, "N/3*2");
        let module = config.init(&Dims::new(), &Init::new(0, "part", &Device::flex()));
        let rows = Tensor::<1, Int>::from_data([1, 2, 3, 4, 5, 6], &Device::flex());
        let call = Call::new(Key::new(0, "part"), At::default());
        let given = config.forward(&module, Tensors::of("rows", rows), &call);
        let part: Tensor<1, Int> = given.unwrap().take("part").unwrap();
        assert_eq!(part.into_data().iter::<i64>().collect::<Vec<_>>(), [3, 4, 5, 6]);
    }

    #[test]
    fn parts_that_are_not_there_are_refused() {
        let config = |parts, from, to| Config { parts, from, to: Some(to), ..Config::default() };
        let rows = Dims::from([("N".to_owned(), 6)]);
        assert_eq!(config(3, 0, 2).check(&rows), []);
        for (wrong, option) in [
            (config(4, 0, 1), "parts"),
            (config(0, 0, 1), "parts"),
            (config(3, 2, 2), "from"),
            (config(3, 2, 4), "from"),
        ] {
            assert_eq!(wrong.check(&rows)[0].option, option);
        }
    }
}
