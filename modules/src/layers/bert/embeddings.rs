//! Embeddings of words, places and types.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};
use schemas::node::NodeError;

use super::size::TextSize;
use crate::init::Init;

/// Learned tables whose rows are added up.
#[derive(Module, Debug)]
pub struct Tables {
    /// Of words, `[V, D]`.
    pub words: Param<Tensor<2>>,
    /// Of places, `[positions, D]`.
    pub positions: Param<Tensor<2>>,
    /// Of types, `[types, D]`.
    pub types: Option<Param<Tensor<2>>>,
}

impl Tables {
    /// Tables of a size; no types when there are none.
    pub fn new(size: &TextSize, init: &Init) -> Self {
        let table = |rows| init.normal([rows, size.width], 0.02);
        Self {
            words: table(size.vocab),
            positions: table(size.positions),
            types: (size.types > 0).then(|| table(size.types)),
        }
    }

    /// Rows of words, `[B, L]`; returns `[B, L, D]`.
    pub fn of_words(&self, ids: Tensor<2, Int>) -> Result<Tensor<3>, NodeError> {
        lookup("ids", &self.words, ids)
    }

    /// Adds places, counted after `first` earlier tokens, and types to words `[B, L, D]`. Tokens
    /// without type are of type 0.
    pub fn place(
        &self,
        words: Tensor<3>,
        types: Option<Tensor<2, Int>>,
        first: usize,
    ) -> Result<Tensor<3>, NodeError> {
        let [_, length, _] = words.dims();
        let places = self.positions.val();
        let all = places.dims()[0];
        if first + length > all {
            let what = "port `ids`".to_owned();
            let reason = format!(
                "texts of {} tokens, but the table holds {all} places; cut the texts, or set \
                 `size.positions`",
                first + length
            );
            return Err(NodeError::Data { what, reason });
        }
        let words = words + places.slice_dim(0, first..first + length).unsqueeze::<3>();
        match (&self.types, types) {
            (Some(table), Some(types)) => Ok(words + lookup("types", table, types)?),
            (Some(table), None) => Ok(words + table.val().slice_dim(0, 0..1).unsqueeze::<3>()),
            (None, _) => Ok(words),
        }
    }
}

/// Rows of a table; refuses numbers that name none: the backend would panic on them.
fn lookup(
    port: &str,
    table: &Param<Tensor<2>>,
    ids: Tensor<2, Int>,
) -> Result<Tensor<3>, NodeError> {
    let [batch, length] = ids.dims();
    let table = table.val();
    let [rows, width] = table.dims();
    let held = ids.to_data().convert::<i64>();
    let wrong = held.iter::<i64>().position(|id| id < 0 || id >= rows as i64);
    if let Some(place) = wrong {
        let id = held.iter::<i64>().nth(place).unwrap_or_default();
        let what = format!("port `{port}`");
        let (sample, token) = (place / length.max(1), place % length.max(1));
        let reason = format!(
            "sample {sample}, token {token} is {id}, but the table holds {rows} rows; use the \
             vocabulary of this network"
        );
        return Err(NodeError::Data { what, reason });
    }
    Ok(table.select(0, ids.reshape([batch * length])).reshape([batch, length, width]))
}
